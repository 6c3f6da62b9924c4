//! Buses and stores that do not do what they should.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use octollm_core::{
    Arm, Context,
    brain::{Brain, BrainBuilder},
    bus::{EventBus, MemoryBus, Overflow, Signal},
    error::{ArmError, ErrorKind},
    event::Event,
    id::TaskId,
    orchestrator::{Orchestrator, whole_journal},
    task::TaskStatus,
};
use serde_json::json;
use tokio::time::{Instant, timeout};

use crate::{
    support::{Compute, Computer, Local, anyone, brain_on, compute, end_of, run, shared_store},
    trouble::{Trouble, away},
};

const SECOND: Duration = Duration::from_secs(1);

fn over(arms: &Local, store: &Arc<Trouble>) -> BrainBuilder {
    let builder = Brain::builder().arm::<Compute>(Computer).arms(arms.clone());
    builder.store(store.clone())
}

#[tokio::test(start_paused = true)]
async fn a_listener_that_never_reads_holds_up_no_task() {
    let bus = MemoryBus::new();
    let _stalled = bus.subscribe("events:task:*".parse().unwrap(), Overflow::Block).await.unwrap();
    for _ in 0..Overflow::BLOCK_CAPACITY {
        bus.publish(Event::new("task.queued", "test", json!(null)).unwrap()).await.unwrap();
    }
    let arms = Local::new();
    let brain = Brain::builder().arm::<Compute>(Computer).arms(arms.clone()).bus(bus).build().unwrap();
    let task = timeout(30 * SECOND, run(&brain, compute(4))).await.expect("the task is held up");
    assert_eq!(task.status, TaskStatus::Completed);
    arms.hang("number.double");
    let id = brain.submit(compute(4), &anyone()).await.unwrap().task_id;
    timeout(30 * SECOND, brain.cancel(&id, &anyone())).await.expect("cancel hangs").unwrap();
    brain.submit(compute(4), &anyone()).await.unwrap();
    timeout(30 * SECOND, brain.close()).await.expect("close hangs");
}

#[tokio::test(start_paused = true)]
async fn a_run_that_panics_gives_its_place_back() {
    let (arms, store) = (Local::new(), Trouble::new());
    let first = handed_back(&arms, &store).await;
    let brain = over(&arms, &store).max_running(1).build().unwrap();
    store.fails(|operation, _| {
        assert!(operation != "journal", "the store panics");
        None
    });
    brain.recover().await.unwrap();
    tokio::time::sleep(SECOND).await;
    store.fails(|_, _| None);
    let second = brain.submit(compute(5), &anyone()).await.unwrap().task_id;
    timeout(5 * SECOND, end_of(&brain, &second)).await.expect("the place of the first is never free");
    // Its lease has to run out first.
    assert_eq!(end_of(&brain, &first).await.status, TaskStatus::Completed);
    timeout(SECOND, brain.close()).await.expect("close hangs");
}

#[tokio::test(start_paused = true)]
async fn a_rerun_that_was_not_stored_changes_nothing() {
    let (arms, store) = (Local::new(), Trouble::new());
    let brain = over(&arms, &store).build().unwrap();
    arms.fail("number.double");
    let id = run(&brain, compute(4)).await.task_id;
    arms.heal();
    store.fails(|operation, _| (operation == "commit").then(away));
    let refused = brain.rerun(&id, None, &anyone()).await.unwrap_err();
    assert_eq!((refused.kind, refused.may_have_executed), (ErrorKind::Unavailable, true));
    store.fails(|_, _| None);
    assert_eq!(brain.get(&id, &anyone()).await.unwrap().status, TaskStatus::Failed, "nothing was run");
    let journal = whole_journal(&brain, &id, &anyone()).await.unwrap();
    assert_eq!(journal.len(), 2, "and nothing was discarded");
    brain.rerun(&id, None, &anyone()).await.unwrap();
    assert_eq!(end_of(&brain, &id).await.status, TaskStatus::Completed);
}

#[tokio::test(start_paused = true)]
async fn a_cancellation_that_was_not_written_is_no_ok() {
    let (arms, store) = (Local::new(), Trouble::new());
    let brain = over(&arms, &store).build().unwrap();
    arms.hang("number.double");
    let id = brain.submit(compute(4), &anyone()).await.unwrap().task_id;
    tokio::time::sleep(SECOND).await;
    store.fails(|operation, _| (operation == "commit").then(away));
    let refused = brain.cancel(&id, &anyone()).await;
    assert_eq!(refused.map(|task| task.status).map_err(|e| e.kind), Err(ErrorKind::Unavailable));
    store.fails(|_, _| None);
    assert_eq!(brain.cancel(&id, &anyone()).await.unwrap().status, TaskStatus::Cancelled);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_away_for_a_moment_loses_no_result() {
    let (arms, store) = (Local::new(), Trouble::new());
    let brain = over(&arms, &store).build().unwrap();
    let mut times = 0..2;
    store.fails(move |operation, record| {
        let ends = operation == "commit" && record.is_some_and(|record| record.status().is_finished());
        (ends && times.next().is_some()).then(away)
    });
    let begun = Instant::now();
    assert_eq!(run(&brain, compute(4)).await.status, TaskStatus::Completed);
    assert!(begun.elapsed() < 10 * SECOND, "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn what_is_accepted_while_the_brain_closes_is_reported_so() {
    let (arms, store) = (Local::new(), Trouble::new());
    let brain = over(&arms, &store).build().unwrap();
    store.slow(SECOND);
    let submitted = tokio::spawn({
        let brain = brain.clone();
        async move { brain.submit(compute(4), &anyone()).await }
    });
    tokio::time::sleep(SECOND / 2).await;
    brain.close().await;
    store.slow(Duration::ZERO);
    // It is in the store, where another brain takes it: after an error the caller would submit it again.
    let task = submitted.await.unwrap().expect("it was accepted");
    let next = over(&arms, &store).build().unwrap();
    assert_eq!(next.recover().await.unwrap(), 1);
    assert_eq!(end_of(&next, &task.task_id).await.status, TaskStatus::Completed);
}

#[derive(Default)]
struct Running {
    now: AtomicUsize,
    most: AtomicUsize,
    started: AtomicUsize,
}

/// Takes 20 s.
struct Long(Arc<Running>);

#[async_trait]
impl Arm<Compute> for Long {
    async fn execute(&self, input: Compute, _: &Context) -> Result<u64, ArmError> {
        self.0.started.fetch_add(1, Ordering::Relaxed);
        let now = self.0.now.fetch_add(1, Ordering::Relaxed) + 1;
        self.0.most.fetch_max(now, Ordering::Relaxed);
        tokio::time::sleep(20 * SECOND).await;
        self.0.now.fetch_sub(1, Ordering::Relaxed);
        Ok(input.number)
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_store_costs_a_brain_with_many_tasks_no_lease() {
    let (store, running) = (Trouble::new(), Arc::<Running>::default());
    store.slow(Duration::from_millis(100));
    let make = || {
        let builder = Brain::builder().arm::<Compute>(Long(running.clone())).store(store.clone());
        builder.lease(6 * SECOND).build().unwrap()
    };
    let (one, two) = (make(), make());
    let mut ids = Vec::new();
    for number in 0..50 {
        ids.push(one.submit(compute(number), &anyone()).await.unwrap().task_id);
    }
    two.recover().await.unwrap();
    for id in &ids {
        assert_eq!(end_of(&one, id).await.status, TaskStatus::Completed);
    }
    assert_eq!(running.started.load(Ordering::Relaxed), 50, "each was run by one brain");
}

#[tokio::test(start_paused = true)]
async fn a_task_that_is_run_again_at_the_news_of_its_failure_does_not_wait() {
    let arms = Local::new();
    let bus = MemoryBus::new();
    let mut failed =
        bus.subscribe("events:task:failed".parse().unwrap(), Overflow::DropOldest(8)).await.unwrap();
    // Between telling of the failure and being done with it, this one takes a moment.
    let _slow = bus.subscribe("events:task:failed".parse().unwrap(), Overflow::Block).await.unwrap();
    for _ in 0..Overflow::BLOCK_CAPACITY {
        bus.publish(Event::new("task.failed", "test", json!(null)).unwrap()).await.unwrap();
    }
    while matches!(timeout(SECOND, failed.next()).await, Ok(Some(_))) {}
    let brain = Brain::builder().arm::<Compute>(Computer).arms(arms.clone()).bus(bus).build().unwrap();
    arms.fail("number.double");
    let id = brain.submit(compute(4), &anyone()).await.unwrap().task_id;
    let Some(Signal::Event(_)) = failed.next().await else { panic!("no event") };
    arms.heal();
    let begun = Instant::now();
    brain.rerun(&id, None, &anyone()).await.unwrap();
    assert_eq!(end_of(&brain, &id).await.status, TaskStatus::Completed);
    assert!(begun.elapsed() < 5 * SECOND, "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_long_queue_is_taken_over_as_fast_as_it_is_worked_off() {
    let (arms, store) = (Local::new(), shared_store());
    let one = brain_on(&arms, store.clone());
    arms.hang("number.increment");
    let mut ids = Vec::new();
    for number in 0..2_000 {
        ids.push(one.submit(compute(number), &anyone()).await.unwrap().task_id);
    }
    one.close().await;
    arms.heal();
    let two = Brain::builder().arm::<Compute>(Computer).arms(arms.clone()).store(store.clone());
    let two = two.build().unwrap();
    two.recover().await.unwrap();
    let begun = Instant::now();
    let last = end_of(&two, ids.last().unwrap()).await;
    assert_eq!(last.status, TaskStatus::Completed);
    assert!(begun.elapsed() < 5 * SECOND, "{:?}", begun.elapsed());
}

/// A task that a brain began and handed back: its next run has a journal.
async fn handed_back(arms: &Local, store: &Arc<Trouble>) -> TaskId {
    let brain = over(arms, store).build().unwrap();
    arms.hang("number.double");
    let id = brain.submit(compute(4), &anyone()).await.unwrap().task_id;
    tokio::time::sleep(SECOND).await;
    brain.close().await;
    arms.heal();
    id
}

/// Has the next `times` reads of the journal fail.
fn no_journal(store: &Trouble, times: usize) {
    let mut times = 0..times;
    store.fails(move |operation, _| (operation == "journal" && times.next().is_some()).then(away));
}

#[tokio::test(start_paused = true)]
async fn a_journal_that_cannot_be_read_for_a_moment_costs_no_lease() {
    let (arms, store) = (Local::new(), Trouble::new());
    let taken_over = async |times| {
        let id = handed_back(&arms, &store).await;
        no_journal(&store, times);
        let (begun, brain) = (Instant::now(), over(&arms, &store).build().unwrap());
        brain.recover().await.unwrap();
        assert_eq!(end_of(&brain, &id).await.status, TaskStatus::Completed);
        brain.close().await;
        begun.elapsed()
    };
    let short = taken_over(3).await;
    assert!(short < SECOND, "{short:?}");
    // One that is away for longer: the task is free for others when its lease expires.
    let long = taken_over(7).await;
    assert!((30..45).contains(&long.as_secs()), "{long:?}");
}

#[tokio::test(start_paused = true)]
async fn a_task_whose_journal_is_not_read_yet_is_cancelled_and_handed_back() {
    let (arms, store) = (Local::new(), Trouble::new());
    let (first, second) = (handed_back(&arms, &store).await, handed_back(&arms, &store).await);
    let calls = arms.calls();
    let brain = over(&arms, &store).build().unwrap();
    no_journal(&store, 8);
    brain.recover().await.unwrap();
    tokio::time::sleep(SECOND / 2).await;
    assert_eq!(brain.cancel(&first, &anyone()).await.unwrap().status, TaskStatus::Cancelled);
    timeout(SECOND / 10, brain.close()).await.expect("close waits for the journal");
    assert_eq!(brain.get(&second, &anyone()).await.unwrap().status, TaskStatus::Queued);
    assert_eq!(arms.calls(), calls);
}
