//! An arm over HTTP that answers with `cancelled`, under a brain.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use octollm_core::{
    Context,
    arm::arm_fn,
    brain::Brain,
    budget::Usage,
    error::{ArmError, ErrorKind},
    orchestrator::{Orchestrator, StepOutcome, finished, whole_journal},
    task::{Submission, TaskRequest, TaskResult, TaskStatus},
};
use octollm_http::Server;
use serde_json::json;

use crate::peer::{Check, Verdict, arms, network, unused_host};

#[tokio::test(start_paused = true)]
async fn a_call_that_an_arm_answers_with_cancelled_is_recorded() {
    let (host, calls) = (unused_host(), Arc::<AtomicUsize>::default());
    let counted = calls.clone();
    // The first call is cancelled by its operator, the second fails, and those after them succeed.
    let judge = arm_fn(move |_: Check, cx: Context| {
        let call = counted.fetch_add(1, Ordering::Relaxed);
        async move {
            cx.spend(Usage::tokens(10))?;
            match call {
                0 => Err(ArmError::new(ErrorKind::Cancelled, "an operator cancelled it")),
                1 => Err(ArmError::unavailable("not now")),
                _ => Ok(Verdict { is_valid: true }),
            }
        }
    });
    let server = Server::new("judge").arm::<Check>(judge).listen(network().listen(&host).unwrap()).unwrap();
    tokio::spawn(server.run());
    let program = arm_fn(|_: TaskRequest, cx: Context| async move {
        let check = |code: &str| cx.call(Check { code: code.into() });
        let first = check("first").await.map_err(|error| error.kind());
        let second = if first == Err(ErrorKind::Cancelled) { "second" } else { "another" };
        check(second).retry(0).await?;
        Ok::<_, ArmError>(TaskResult::new(json!([first.is_ok(), second])))
    });
    let arms = arms().endpoint("judge", format!("http://{host}")).build().unwrap();
    let brain = Brain::builder().arm::<TaskRequest>(program).arms(arms).build().unwrap();
    let cx = Context::detached();
    let submission = Submission::of(&TaskRequest::new("check")).unwrap();
    let id = brain.submit(submission, &cx).await.unwrap().task_id;
    let failed = finished(&brain, &id, &cx).await.unwrap();
    assert_eq!((failed.status, failed.metadata.tokens_used), (TaskStatus::Failed, 20));
    let journal = whole_journal(&brain, &id, &cx).await.unwrap();
    assert_eq!((journal.len(), journal[0].outcome, journal[0].tokens_used), (2, StepOutcome::Failed, 10));
    assert_eq!(&*journal[0].arm, "judge");

    // Neither call is idempotent. The answer of the first is known; that of the second is made again.
    brain.rerun(&id, Some(&1.into()), &cx).await.unwrap();
    let task = finished(&brain, &id, &cx).await.unwrap();
    assert_eq!(task.result.expect("no result").output, json!([false, "second"]));
    assert_eq!((calls.load(Ordering::Relaxed), task.metadata.tokens_used), (3, 30));
}
