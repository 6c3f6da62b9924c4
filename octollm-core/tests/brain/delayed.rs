//! Tasks that start later.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use octollm_core::{
    Context,
    brain::Brain,
    error::{ErrorKind, Failure},
    orchestrator::Orchestrator,
    parts::{Caller, ContextParts, Grant},
    store::MemoryStore,
    task::{Submission, TaskBudget, TaskStatus},
};
use tokio::time::{Instant, sleep};

use crate::{
    scripted::program,
    support::{Compute, anyone, clock_ahead, compute, end_of, run, shared_store},
};

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

/// Brains whose tasks return how many milliseconds after `begun` they run.
fn brain(store: &Arc<MemoryStore>, begun: Instant) -> Brain {
    let program = program(move |_, _| async move { Ok(begun.elapsed().as_millis() as u64) });
    let brain = Brain::builder().arm::<Compute>(program).store(store.clone());
    brain.grant_life(HOUR).max_queued(2).build().unwrap()
}

fn millis(time: Duration) -> u64 {
    time.as_millis() as u64
}

/// A time of day that is so far ahead by the clock of the brains.
fn ahead(time: Duration) -> Timestamp {
    clock_ahead(time.as_secs())()
}

#[track_caller]
fn assert_refused(failure: &Failure, path: &str, words: &str) {
    assert_eq!(failure.kind, ErrorKind::ValidationFailed);
    let [violation] = &*failure.violations else { panic!("{failure:?}") };
    assert_eq!(violation.path, path);
    assert!(violation.message.contains(words), "{violation:?}");
}

#[tokio::test(start_paused = true)]
async fn a_task_starts_when_its_time_has_come_and_at_once_then() {
    let (store, begun) = (shared_store(), Instant::now());
    let brain = brain(&store, begun);
    // The brain sleeps until the second one, which is earlier.
    let late = brain.submit(compute(1).run_in(HOUR), &anyone()).await.unwrap();
    let early = brain.submit(compute(2).run_in(7 * SECOND), &anyone()).await.unwrap();
    assert!(late.run_at > early.run_at && early.status == TaskStatus::Queued);
    for (task, after) in [(early, 7 * SECOND), (late, HOUR)] {
        let output = end_of(&brain, &task.task_id).await.into_output::<Compute>().unwrap();
        assert!((millis(after)..millis(after) + 20).contains(&output), "{output}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_brain_that_did_not_submit_it_wakes_for_it_too() {
    let (store, begun) = (shared_store(), Instant::now());
    let (submitting, running) = (brain(&store, begun), brain(&store, begun));
    running.recover().await.unwrap();
    sleep(SECOND).await;
    let id = submitting.submit(compute(1).run_at(ahead(5 * SECOND)), &anyone()).await.unwrap().task_id;
    submitting.close().await;
    let output = end_of(&running, &id).await.into_output::<Compute>().unwrap();
    assert!((5_000..5_050).contains(&output), "{output}");
}

#[tokio::test(start_paused = true)]
async fn a_time_that_has_passed_delays_nothing() {
    let brain = brain(&shared_store(), Instant::now());
    let submission = compute(1).run_at(Timestamp::UNIX_EPOCH);
    assert!(run(&brain, submission).await.into_output::<Compute>().unwrap() < 20);
    assert!(run(&brain, compute(1).run_in(Duration::ZERO)).await.into_output::<Compute>().unwrap() < 20);
}

#[tokio::test(start_paused = true)]
async fn a_delayed_task_survives_the_brain_that_took_it() {
    let (store, begun) = (shared_store(), Instant::now());
    let one = brain(&store, begun);
    let id = one.submit(compute(1).run_in(HOUR), &anyone()).await.unwrap().task_id;
    sleep(60 * SECOND).await;
    one.close().await;
    let two = brain(&store, begun);
    assert_eq!(two.recover().await.unwrap(), 0);
    let output = end_of(&two, &id).await.into_output::<Compute>().unwrap();
    assert!((millis(HOUR)..millis(HOUR) + 20).contains(&output), "{output}");
}

#[tokio::test(start_paused = true)]
async fn the_time_limit_begins_with_the_start() {
    let slow = program(|_, _| async {
        sleep(50 * SECOND).await;
        Ok(1)
    });
    let brain = Brain::builder().arm::<Compute>(slow).build().unwrap();
    let budget = TaskBudget { max_time_seconds: Some(55.0), ..TaskBudget::default() };
    let task = run(&brain, compute(1).budget(budget).run_in(HOUR)).await;
    assert_eq!(task.status, TaskStatus::Completed);
}

#[tokio::test(start_paused = true)]
async fn a_delayed_task_counts_among_the_queued_ones_and_can_be_cancelled() {
    let brain = brain(&shared_store(), Instant::now());
    let later = || compute(1).run_in(HOUR);
    let first = brain.submit(later(), &anyone()).await.unwrap();
    brain.submit(later(), &anyone()).await.unwrap();
    assert_eq!(brain.submit(later(), &anyone()).await.unwrap_err().kind, ErrorKind::Overloaded);
    assert_eq!(brain.cancel(&first.task_id, &anyone()).await.unwrap().status, TaskStatus::Cancelled);
    brain.submit(later(), &anyone()).await.unwrap();
    sleep(2 * HOUR).await;
    let task = brain.get(&first.task_id, &anyone()).await.unwrap();
    assert_eq!((task.status, task.run_at), (TaskStatus::Cancelled, first.run_at));
}

#[tokio::test(start_paused = true)]
async fn a_start_after_the_end_of_the_grant_or_in_a_decade_is_refused() {
    let brain = brain(&shared_store(), Instant::now());
    let mut parts = ContextParts::new();
    parts.caller = Caller::Known(Arc::new(Grant::new("ali", ["number:compute"])));
    let ali = Context::from_parts(parts, Arc::new(()));
    let submit = async |submission: Submission, cx: &Context| brain.submit(submission, cx).await;
    let refused = submit(compute(1).run_at(ahead(HOUR + SECOND)), &ali).await.unwrap_err();
    assert_refused(&refused, "run_at", "when the grant of the task ends");
    let refused = submit(compute(1).run_in(HOUR), &ali).await.unwrap_err();
    assert_refused(&refused, "run_in_seconds", "when the grant of the task ends");
    submit(compute(1).run_in(HOUR - SECOND), &ali).await.unwrap();
    let decade = Submission::MAX_DELAY;
    let refused = submit(compute(1).run_at(ahead(decade + HOUR)), &anyone()).await.unwrap_err();
    assert_refused(&refused, "run_at", "more than ten years");
    let refused = submit(compute(1).run_in(decade + SECOND), &anyone()).await.unwrap_err();
    assert_refused(&refused, "run_in_seconds", "ten years");
    let mut both = compute(1).run_at(Timestamp::UNIX_EPOCH);
    both.run_in = Some(SECOND);
    assert_refused(&submit(both, &anyone()).await.unwrap_err(), "run_at", "together");
    submit(compute(1).run_in(decade), &anyone()).await.unwrap();
}
