//! Tasks with a uniqueness key.

use std::{sync::Arc, time::Duration};

use futures_util::future::join_all;
use octollm_core::{
    Context,
    brain::Brain,
    error::ErrorKind,
    orchestrator::Orchestrator,
    parts::{Caller, ContextParts, Grant},
    store::MemoryStore,
    task::{Submission, Task, TaskStatus},
};
use tokio::time::sleep;

use crate::{
    scripted::{Does, Scripted, error, on, program},
    support::{Compute, Increment, anyone, compute, end_of, shared_store},
};

const SECOND: Duration = Duration::from_secs(1);

fn daily(number: u64) -> Submission {
    compute(number).unique("daily")
}

/// A brain whose tasks make one call.
fn brain(store: &Arc<MemoryStore>, arms: &Scripted) -> Brain {
    on(store, arms, program(|_, cx: Context| async move { Ok(cx.call(Increment { number: 1 }).await?) }))
}

async fn submitted(brain: &Brain, submission: Submission) -> Task {
    brain.submit(submission, &anyone()).await.unwrap()
}

fn known(grant: Grant) -> Context {
    let mut parts = ContextParts::new();
    parts.caller = Caller::Known(Arc::new(grant));
    Context::from_parts(parts, Arc::new(()))
}

#[tokio::test(start_paused = true)]
async fn a_key_has_one_task_until_that_has_ended() {
    let (store, arms) = (shared_store(), Scripted::new(|_| Does::Hangs));
    let brain = brain(&store, &arms);
    let first = submitted(&brain, daily(1)).await;
    assert!(!first.existing);
    sleep(SECOND).await;
    // Also with another input, and while it runs.
    let again = submitted(&brain, daily(2)).await;
    assert_eq!((again.task_id, again.existing), (first.task_id.clone(), true));
    assert_eq!(again.status, TaskStatus::Processing);
    assert!(!submitted(&brain, compute(1).unique("weekly")).await.existing);
    assert!(!submitted(&brain, compute(1)).await.existing && !submitted(&brain, compute(1)).await.existing);
    // A cancelled, a completed and a failed task leave the key.
    brain.cancel(&first.task_id, &anyone()).await.unwrap();
    arms.now(|_| Does::Answers("1"));
    let second = submitted(&brain, daily(3)).await;
    assert!(!second.existing);
    assert_eq!(end_of(&brain, &second.task_id).await.status, TaskStatus::Completed);
    arms.now(|call| Does::Fails(error(call, ErrorKind::ArmFailed)));
    let third = submitted(&brain, daily(4)).await;
    assert_eq!(end_of(&brain, &third.task_id).await.status, TaskStatus::Failed);
    assert!(!third.existing && !submitted(&brain, daily(5)).await.existing);
}

#[tokio::test(start_paused = true)]
async fn a_task_that_waits_for_its_start_or_its_next_attempt_has_its_key() {
    let (store, arms) =
        (shared_store(), Scripted::new(|call| Does::Fails(error(call, ErrorKind::Unavailable))));
    let brain = brain(&store, &arms);
    let first = submitted(&brain, daily(1).run_in(60 * SECOND).attempts(50)).await;
    for second in 0..120 {
        let again = submitted(&brain, daily(1)).await;
        assert_eq!((again.task_id, again.existing), (first.task_id.clone(), true), "after {second} s");
        sleep(SECOND).await;
    }
    assert!(arms.steps().len() > 3);
}

#[tokio::test(start_paused = true)]
async fn of_many_submissions_at_once_one_queues_a_task() {
    let (store, arms) = (shared_store(), Scripted::new(|_| Does::Hangs));
    let (one, two) = (brain(&store, &arms), brain(&store, &arms));
    let tasks = join_all((0..40).map(|n| submitted(if n % 2 == 0 { &one } else { &two }, daily(n)))).await;
    assert_eq!(tasks.iter().filter(|task| !task.existing).count(), 1);
    assert!(tasks.iter().all(|task| task.task_id == tasks[0].task_id));
}

#[tokio::test(start_paused = true)]
async fn a_key_is_refused_a_task_that_is_run_again_while_another_one_has_it() {
    let (store, arms) =
        (shared_store(), Scripted::new(|call| Does::Fails(error(call, ErrorKind::ArmFailed))));
    let brain = brain(&store, &arms);
    let failed = submitted(&brain, daily(1)).await.task_id;
    assert_eq!(end_of(&brain, &failed).await.status, TaskStatus::Failed);
    arms.now(|_| Does::Hangs);
    let other = submitted(&brain, daily(2)).await;
    assert!(!other.existing);
    let refused = brain.rerun(&failed, None, &anyone()).await.unwrap_err();
    assert_eq!((refused.kind, refused.retryable), (ErrorKind::Conflict, false));
    assert!(refused.message.contains("uniqueness key"), "{refused}");
    brain.cancel(&other.task_id, &anyone()).await.unwrap();
    arms.now(|_| Does::Answers("1"));
    brain.rerun(&failed, None, &anyone()).await.unwrap();
    assert_eq!(submitted(&brain, daily(3)).await.task_id, failed, "it has its key again");
    assert_eq!(end_of(&brain, &failed).await.status, TaskStatus::Completed);
}

#[tokio::test(start_paused = true)]
async fn callers_do_not_share_keys_and_no_key_shows_a_task_that_its_caller_may_not_find() {
    let (store, arms) = (shared_store(), Scripted::new(|_| Does::Hangs));
    let brain = brain(&store, &arms);
    let ali = || Grant::new("ali", ["number:compute"]);
    let above = brain.submit(compute(1), &known(ali())).await.unwrap().task_id;
    let mut arm = ali().task(above);
    arm.actor = Some("planner".into());
    let callers =
        [known(ali()), known(Grant::new("eve", ["number:compute"])), known(arm), Context::detached()];
    let mut ids = Vec::new();
    for cx in &callers {
        let task = brain.submit(daily(1), cx).await.unwrap();
        assert!(!task.existing && !ids.contains(&task.task_id));
        let again = brain.submit(daily(1), cx).await.unwrap();
        assert_eq!((again.existing, &again.task_id), (true, &task.task_id));
        assert!(brain.get(&task.task_id, cx).await.is_ok());
        ids.push(task.task_id);
    }
}

#[tokio::test(start_paused = true)]
async fn a_key_that_is_known_is_answered_also_by_a_full_queue_and_odd_keys_are_refused() {
    let never = program(|_: Compute, _| std::future::pending());
    let brain = Brain::builder().arm::<Compute>(never).max_queued(1).build().unwrap();
    let later = || compute(1).run_in(60 * SECOND);
    let first = submitted(&brain, later().unique("k")).await;
    assert_eq!(brain.submit(later(), &anyone()).await.unwrap_err().kind, ErrorKind::Overloaded);
    assert_eq!(submitted(&brain, later().unique("k")).await.task_id, first.task_id);
    for key in ["", "a b", "é", "a\n", &"k".repeat(129)] {
        let refused = brain.submit(later().unique(key), &anyone()).await.unwrap_err();
        assert_eq!((refused.kind, &*refused.violations[0].path), (ErrorKind::ValidationFailed, "unique"));
    }
    assert_eq!(submitted(&brain, later().unique("k")).await.task_id, first.task_id);
}
