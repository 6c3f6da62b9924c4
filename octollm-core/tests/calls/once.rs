//! Steps of a task that run once end to end: by the key of a journaled call, through crashes, retries, reruns and batches.

use std::{
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering::SeqCst},
    },
};

use octollm_core::{
    Context,
    arm::arm_fn,
    budget::{Budget, Usage},
    error::{CallError, ErrorKind},
    mesh::{Fault, Mesh, MeshBuilder},
    orchestrator::{Orchestrator, finished},
    task::{Task, TaskRequest, TaskResult, TaskStatus},
    transport::{Call, Reply},
};
use serde_json::json;
use tokio::sync::Notify;
use tower::{ServiceExt, layer::layer_fn, service_fn, util::BoxCloneSyncService};

use crate::support::*;

type CallService = BoxCloneSyncService<Call, Reply, CallError>;

/// A mesh with an arm that charges, and counts how often it has.
fn charging() -> (MeshBuilder, Arc<AtomicU32>) {
    let charged = Arc::new(AtomicU32::new(0));
    let count = charged.clone();
    let arm = arm_fn(move |input: Charge, cx: Context| {
        count.fetch_add(1, SeqCst);
        async move {
            cx.spend(Usage::tokens(5))?;
            Ok(input.number)
        }
    });
    (Mesh::builder().arm::<Charge>("bank", arm), charged)
}

/// Charges once, with so many retries.
fn pays(builder: MeshBuilder, retries: u32) -> MeshBuilder {
    builder.brain(arm_fn(move |_: TaskRequest, cx: Context| async move {
        let paid = cx.call(Charge { number: 9 }).retry(retries).await?;
        Ok(TaskResult::new(json!(paid)))
    }))
}

fn paid(task: &Task) -> serde_json::Value {
    task.result.as_ref().unwrap_or_else(|| panic!("{task:?}")).output.to_value()
}

#[tokio::test(start_paused = true)]
async fn a_brain_that_dies_between_the_answer_and_the_journal_is_followed_by_one_that_replays() {
    let (builder, charged) = charging();
    let (answered, first) = (Arc::new(Notify::new()), Arc::new(AtomicBool::new(true)));
    let answers = answered.clone();
    let layer = layer_fn(move |service: CallService| {
        let (answered, first) = (answered.clone(), first.clone());
        service_fn(move |call: Call| {
            let (answered, first) = (answered.clone(), first.clone());
            let inner = service.clone();
            async move {
                let reply = inner.oneshot(call).await;
                if first.swap(false, SeqCst) {
                    answered.notify_one();
                    pending::<()>().await;
                }
                reply
            }
        })
    });
    let mesh = pays(builder, 0).layer(layer).start().await;
    let id = mesh.submit(TaskRequest::new("pay")).await.unwrap().task_id;
    answers.notified().await;
    mesh.crash_brain().await.unwrap();
    let task = finished(&mesh.brain(), &id, &mesh.context()).await.unwrap();
    assert_eq!((paid(&task), charged.load(SeqCst)), (json!(9), 1));
    assert_eq!(mesh.calls_to("bank").len(), 2);
    assert_eq!(task.metadata.tokens_used, 5);
}

#[tokio::test(start_paused = true)]
async fn a_brain_that_dies_while_the_arm_runs_does_not_make_it_run_again() {
    let charged = Arc::new(AtomicU32::new(0));
    let (count, begun) = (charged.clone(), Arc::new(Notify::new()));
    let begins = begun.clone();
    let arm = arm_fn(move |_: Charge, _| {
        count.fetch_add(1, SeqCst);
        begun.notify_one();
        pending()
    });
    let mesh = pays(Mesh::builder().arm::<Charge>("bank", arm), 0).start().await;
    let id = mesh.submit(TaskRequest::new("pay")).await.unwrap().task_id;
    begins.notified().await;
    mesh.crash_brain().await.unwrap();
    let task = finished(&mesh.brain(), &id, &mesh.context()).await.unwrap();
    let error = task.error.unwrap();
    assert_eq!((error.kind, error.may_have_executed), (ErrorKind::OutcomeUnknown, true));
    // Neither does a rerun.
    let again = mesh.rerun(&id).await.unwrap();
    assert_eq!(again.error.unwrap().kind, ErrorKind::OutcomeUnknown);
    assert_eq!(charged.load(SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn a_retry_after_a_lost_answer_gets_it_from_the_record() {
    let (builder, charged) = charging();
    // A retry must not go to the other arm.
    let other = arm_fn(|_: Charge, _| async { Ok(0) });
    let mesh = pays(builder.arm::<Charge>("other", other), 1).start().await;
    mesh.fault("bank", Fault::DropReply.once());
    let task = mesh.run(TaskRequest::new("pay")).await.unwrap();
    assert_eq!((paid(&task), charged.load(SeqCst), mesh.calls_to("other").len()), (json!(9), 1, 0));
    let calls = mesh.calls_to("bank");
    assert_eq!(calls.len(), 2);

    // A call without a key is not repeated.
    mesh.fault("bank", Fault::DropReply.once());
    let lost = mesh.call(Charge { number: 9 }).retry(1).await.unwrap_err();
    assert_eq!((lost.kind(), charged.load(SeqCst)), (ErrorKind::ConnectionLost, 2));
}

#[tokio::test(start_paused = true)]
async fn an_arm_that_dies_half_way_has_an_unknown_outcome_and_no_success() {
    let charged = Arc::new(AtomicU32::new(0));
    let count = charged.clone();
    let arm = arm_fn(move |input: Charge, _| {
        count.fetch_add(1, SeqCst);
        async move {
            tokio::time::sleep(ms(10)).await;
            Ok(input.number)
        }
    });
    let mesh = pays(Mesh::builder().arm::<Charge>("bank", arm), 3).start().await;
    mesh.fault("bank", Fault::Crash.once());
    let task = mesh.run(TaskRequest::new("pay")).await.unwrap();
    let error = task.error.unwrap();
    assert_eq!((error.kind, error.may_have_executed), (ErrorKind::OutcomeUnknown, true));
    assert_eq!((charged.load(SeqCst), mesh.calls_to("bank").len()), (1, 2), "nobody insists");
}

#[tokio::test(start_paused = true)]
async fn a_retry_then_a_rerun_charge_once() {
    let (builder, charged) = charging();
    let mesh = pays(builder, 1).start().await;
    mesh.fault("bank", Fault::DropReply.times(2));
    let failed = mesh.run(TaskRequest::new("pay")).await.unwrap();
    assert_eq!(failed.error.unwrap().kind, ErrorKind::UpstreamFailed);
    let task = mesh.rerun(&failed.task_id).await.unwrap();
    assert_eq!((paid(&task), charged.load(SeqCst)), (json!(9), 1));
    // From the step: the operator insists, and the call has another key.
    let (builder, charged) = charging();
    let mesh = pays(builder, 0).start().await;
    mesh.fault("bank", Fault::DropReply.once());
    let failed = mesh.run(TaskRequest::new("pay")).await.unwrap();
    mesh.brain().rerun(&failed.task_id, Some(&0.into()), &mesh.context()).await.unwrap();
    let task = finished(&mesh.brain(), &failed.task_id, &mesh.context()).await.unwrap();
    assert_eq!((task.status, charged.load(SeqCst)), (TaskStatus::Completed, 2));
}

#[tokio::test(start_paused = true)]
async fn a_batch_with_keys_under_a_budget_counts_each_usage_once() {
    let (builder, charged) = charging();
    let mesh = builder
        .brain(arm_fn(|_: TaskRequest, cx: Context| async move {
            let charges = (0..10).map(|number| Charge { number });
            let paid = cx.call_all(charges).at_once(3).budget(Budget::tokens(60)).retry(1).await?;
            Ok(TaskResult::new(json!([paid.iter().sum::<u64>(), cx.used().tokens])))
        }))
        .start()
        .await;
    mesh.fault("bank", Fault::DropReply.once().when(|input: &Charge| input.number == 2));
    mesh.fault("bank", Fault::DropReply.once().when(|input: &Charge| input.number == 7));
    let task = mesh.run(TaskRequest::new("pay")).await.unwrap();
    assert_eq!((paid(&task), charged.load(SeqCst)), (json!([45, 50]), 10));
    assert_eq!((task.metadata.tokens_used, mesh.calls_to("bank").len()), (50, 12));
}
