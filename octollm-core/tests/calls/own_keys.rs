//! Calls with a key of the caller's own: in a program without a brain, in batches, and where they are refused.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering::SeqCst},
};

use octollm_core::{
    Context,
    arm::arm_fn,
    contract::TaskContract,
    error::{ArmError, ErrorKind},
    mesh::{Fault, Mesh, MeshBuilder},
    task::{TaskRequest, TaskResult, TaskStatus},
};
use serde_json::json;

use crate::support::*;

/// A mesh with an arm that returns how often it has charged, with its number.
fn charging() -> (MeshBuilder, Arc<AtomicU32>) {
    let charged = Arc::new(AtomicU32::new(0));
    let count = charged.clone();
    let arm = arm_fn(move |input: Charge, _: Context| {
        let run = u64::from(count.fetch_add(1, SeqCst)) + 1;
        async move {
            if input.number == 0 { Err(ArmError::failed("no money")) } else { Ok(input.number * 10 + run) }
        }
    });
    (Mesh::builder().arm::<Charge>("bank", arm), charged)
}

fn charge(number: u64) -> Charge {
    Charge { number }
}

#[tokio::test(start_paused = true)]
async fn calls_with_one_key_run_once_and_have_one_answer() {
    let (builder, charged) = charging();
    let mesh = builder.start().await;
    for _ in 0..3 {
        assert_eq!(mesh.call(charge(5)).key("order-7").await.unwrap(), 51);
    }
    assert_eq!(mesh.call(charge(5)).key("order-7").repeated().await.unwrap(), 51);
    let other = mesh.call(charge(6)).key("order-7").await.unwrap_err();
    assert_eq!((other.kind(), other.may_have_executed()), (ErrorKind::ValidationFailed, false));
    assert_eq!(mesh.call(charge(6)).key("order-8").await.unwrap(), 62);
    // A failure is an answer.
    for _ in 0..2 {
        let failed = mesh.call(charge(0)).key("order-9").await.unwrap_err();
        assert_eq!(failed.kind(), ErrorKind::ArmFailed);
    }
    // A call by name has the key as well.
    let by_name = mesh.context().call_json(&Charge::SPEC.reference(), &json!({ "number": 5 })).key("order-7");
    assert_eq!((by_name.await.unwrap(), charged.load(SeqCst)), (json!(51), 3));
}

#[tokio::test(start_paused = true)]
async fn a_key_makes_a_retry_safe() {
    let (builder, charged) = charging();
    let mesh = builder.start().await;
    mesh.fault("bank", Fault::DropReply.once());
    assert_eq!(mesh.call(charge(5)).key("order-7").retry(1).await.unwrap(), 51);
    assert_eq!((charged.load(SeqCst), mesh.calls_to("bank").len()), (1, 2));
    // Without one it is not tried again.
    mesh.fault("bank", Fault::DropReply.once());
    let lost = mesh.call(charge(5)).retry(1).await.unwrap_err();
    assert_eq!((lost.kind(), charged.load(SeqCst)), (ErrorKind::ConnectionLost, 2));
}

#[tokio::test(start_paused = true)]
async fn a_repeated_call_without_a_record_does_not_run() {
    let (builder, charged) = charging();
    let mesh = builder.start().await;
    let unknown = mesh.call(charge(5)).key("order-7").repeated().retry(3).await.unwrap_err();
    assert_eq!((unknown.kind(), unknown.may_have_executed()), (ErrorKind::OutcomeUnknown, true));
    assert_eq!(charged.load(SeqCst), 0);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_have_a_key_is_refused_before_it_is_sent() {
    let (builder, charged) = charging();
    let mesh = builder.start().await;
    for key in ["", "é", "a\nb", &"k".repeat(256)] {
        let refused = mesh.call(charge(5)).key(key).await.unwrap_err();
        assert_eq!((refused.kind(), refused.may_have_executed()), (ErrorKind::BadRequest, false), "{key:?}");
    }
    let refused = mesh.call(charge(5)).repeated().await.unwrap_err();
    assert_eq!((refused.kind(), refused.may_have_executed()), (ErrorKind::BadRequest, false));
    assert_eq!((charged.load(SeqCst), mesh.calls_to("bank").len()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn an_idempotent_contract_ignores_keys() {
    let mesh = Mesh::builder().arm::<Measure>("worker", Worker).start().await;
    for number in [1, 2] {
        assert_eq!(mesh.call(measure(number)).key("k").repeated().await.unwrap().number, number);
    }
}

#[tokio::test(start_paused = true)]
async fn a_batch_has_a_key_for_each_call() {
    let (builder, charged) = charging();
    let mesh = builder.start().await;
    let cx = mesh.context();
    let keys = ["order-1", "order-2", "order-1"];
    let run = || cx.call_all([charge(5), charge(6), charge(5)]).keys(keys).at_once(1);
    assert_eq!(run().await.unwrap(), [51, 62, 51]);
    assert_eq!(run().await.unwrap(), [51, 62, 51]);
    for keys in [vec!["a"], vec!["a", "b", "c", "d"]] {
        for answer in cx.call_all([charge(5), charge(6), charge(5)]).keys(keys).each().await {
            assert_eq!(answer.unwrap_err().kind(), ErrorKind::BadRequest);
        }
    }
    assert_eq!(charged.load(SeqCst), 2);
}

#[tokio::test(start_paused = true)]
async fn the_program_of_a_brain_has_no_keys_of_its_own_and_its_arms_have() {
    let (builder, charged) = charging();
    // An arm that the brain calls, and that calls the bank.
    let teller = arm_fn(|input: Measure, cx: Context| async move {
        let number = cx.call(charge(input.number)).key("order-7").await?;
        Ok(Seen { number, tokens: None, attempt: 1 })
    });
    let brain = arm_fn(|_: TaskRequest, cx: Context| async move {
        let refused = cx.call(charge(5)).key("order-7").await.unwrap_err();
        let seen = cx.call(measure(5)).await?.number;
        let again = cx.call(measure(5)).await?.number;
        Ok(TaskResult::new(json!([refused.kind(), seen, again])))
    });
    let mesh = builder.arm::<Measure>("teller", teller).brain(brain).start().await;
    let task = mesh.run(TaskRequest::new("pay")).await.unwrap();
    assert_eq!(task.status, TaskStatus::Completed, "{task:?}");
    assert_eq!(task.result.unwrap().output.to_value(), json!(["bad_request", 51, 51]));
    // Another task has keys of its own.
    mesh.run(TaskRequest::new("pay")).await.unwrap();
    assert_eq!(charged.load(SeqCst), 2);
}
