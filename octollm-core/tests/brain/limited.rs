//! Limits on the running tasks of a contract, over all brains on a store.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::future::join_all;
use octollm_core::{
    arm::arm_fn,
    brain::Brain,
    orchestrator::Orchestrator,
    store::{MemoryStore, StoreError},
    task::{Priority, TaskRequest, TaskResult, TaskStatus},
};
use tokio::time::{Instant, sleep};

use crate::{
    layer::{Layer, Stores, layered},
    scripted::program,
    support::{Compute, anyone, compute, end_of, goal, shared_store},
};

const SECOND: Duration = Duration::from_secs(1);

/// Counts what runs at a time.
#[derive(Clone, Default)]
struct Count(Arc<(AtomicUsize, AtomicUsize)>);

impl Count {
    fn begin(&self) -> impl Drop + use<> {
        struct End(Count);
        impl Drop for End {
            fn drop(&mut self) {
                self.0.0.0.fetch_sub(1, Ordering::SeqCst);
            }
        }
        let running = self.0.0.fetch_add(1, Ordering::SeqCst) + 1;
        self.0.1.fetch_max(running, Ordering::SeqCst);
        End(self.clone())
    }

    fn most(&self) -> usize {
        self.0.1.load(Ordering::SeqCst)
    }
}

/// A brain that runs at most so many tasks of `Compute`, each for as many seconds as its number.
fn brain(store: Arc<MemoryStore>, count: &Count, most: usize) -> Brain {
    let count = count.clone();
    let slow = program(move |input: Compute, _| {
        let count = count.clone();
        async move {
            let _running = count.begin();
            sleep(SECOND * u32::try_from(input.number).unwrap()).await;
            Ok(input.number)
        }
    });
    let quick = arm_fn(|_: TaskRequest, _| async { Ok(TaskResult::new(1)) });
    let builder = Brain::builder().arm::<Compute>(slow).arm::<TaskRequest>(quick).store(store);
    builder.max_running_of::<Compute>(most).build().unwrap()
}

#[tokio::test(start_paused = true)]
async fn two_brains_together_do_not_exceed_a_limit_and_use_all_of_it() {
    let (store, count) = (shared_store(), Count::default());
    let brains = [brain(store.clone(), &count, 3), brain(store, &count, 3)];
    let begun = Instant::now();
    let mut ids = Vec::new();
    for n in 0..12 {
        ids.push(brains[n % 2].submit(compute(10), &anyone()).await.unwrap().task_id);
    }
    // Those of other contracts pass them, whatever their priority.
    let other = brains[0].submit(goal("low").priority(Priority::Low), &anyone()).await.unwrap().task_id;
    assert_eq!(end_of(&brains[0], &other).await.status, TaskStatus::Completed);
    assert!(begun.elapsed() < SECOND);
    join_all(ids.iter().map(|id| end_of(&brains[1], id))).await;
    assert_eq!(count.most(), 3);
    // Four rounds, without a pause for a place that is free.
    assert!(begun.elapsed() < 41 * SECOND, "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn the_end_of_a_task_wakes_another_brain() {
    let (store, count) = (shared_store(), Count::default());
    let (one, two) = (brain(store.clone(), &count, 1), brain(store, &count, 1));
    let begun = Instant::now();
    one.submit(compute(14), &anyone()).await.unwrap();
    sleep(SECOND).await;
    let draining = tokio::spawn({
        let one = one.clone();
        async move { one.drain().await }
    });
    let second = two.submit(compute(1), &anyone()).await.unwrap().task_id;
    end_of(&two, &second).await;
    assert!((15 * SECOND..15 * SECOND + SECOND / 2).contains(&begun.elapsed()), "{:?}", begun.elapsed());
    draining.await.unwrap();
    assert_eq!(count.most(), 1);
    // So does a cancellation by a brain that does not run it. The task no longer counts, and stops when its brain renews the lease.
    let (long, next) = (two.submit(compute(1_000), &anyone()).await.unwrap().task_id, compute(1));
    sleep(SECOND).await;
    let next = two.submit(next, &anyone()).await.unwrap().task_id;
    one.cancel(&long, &anyone()).await.unwrap();
    let cancelled = Instant::now();
    end_of(&two, &next).await;
    assert!(cancelled.elapsed() < 2 * SECOND, "{:?}", cancelled.elapsed());
}

/// A store that renews no lease.
struct Forgetful {
    inner: Arc<MemoryStore>,
}

impl Layer for Forgetful {
    async fn around<T: Send>(
        &self,
        operation: &'static str,
        _: Stores<'_>,
        work: impl Future<Output = Result<T, StoreError>> + Send,
    ) -> Result<T, StoreError> {
        if operation == "renew" {
            return Err(StoreError::Unavailable("the network".into()));
        }
        work.await
    }
}

layered!(Forgetful);

#[tokio::test(start_paused = true)]
async fn a_run_counts_until_its_lease_has_expired() {
    let (store, count) = (shared_store(), Count::default());
    let slow = program(|_, _| std::future::pending());
    let lost = Brain::builder().arm::<Compute>(slow).store(Forgetful { inner: store.clone() });
    let lost = lost.max_running_of::<Compute>(1).build().unwrap();
    let first = lost.submit(compute(3), &anyone()).await.unwrap().task_id;
    sleep(SECOND).await;
    let two = brain(store, &count, 1);
    let (begun, second) = (Instant::now(), two.submit(compute(3), &anyone()).await.unwrap().task_id);
    two.recover().await.unwrap();
    sleep(28 * SECOND).await;
    assert_eq!(count.most(), 0, "the lease of the first one has not expired");
    lost.close().await;
    let (first, second) = (end_of(&two, &first).await, end_of(&two, &second).await);
    assert!(first.completed_at < second.completed_at);
    assert_eq!((first.status, count.most()), (TaskStatus::Completed, 1));
    assert!(begun.elapsed() < 50 * SECOND, "{:?}", begun.elapsed());
}

#[test]
fn a_limit_is_of_a_contract_that_the_brain_runs_and_at_least_one() {
    let quick = || arm_fn(|_: TaskRequest, _| async { Ok(TaskResult::new(1)) });
    let builder = || Brain::builder().arm::<TaskRequest>(quick());
    for wrong in [builder().max_running_of::<Compute>(1), builder().max_running_of::<TaskRequest>(0)] {
        assert_eq!(wrong.build().unwrap_err().setting(), "max_running_of");
    }
    // The last one holds.
    let twice = builder().max_running_of::<TaskRequest>(0).max_running_of::<TaskRequest>(2);
    assert!(twice.build().is_ok());
}

/// A store that answers claims late.
struct Slow {
    inner: Arc<MemoryStore>,
}

impl Layer for Slow {
    async fn around<T: Send>(
        &self,
        operation: &'static str,
        _: Stores<'_>,
        work: impl Future<Output = Result<T, StoreError>> + Send,
    ) -> Result<T, StoreError> {
        let answer = work.await;
        if operation == "claim" {
            sleep(SECOND).await;
        }
        answer
    }
}

layered!(Slow);

#[tokio::test(start_paused = true)]
async fn a_brain_that_closes_hands_back_what_it_has_claimed_and_not_started() {
    let (store, count) = (shared_store(), Count::default());
    let never = program(|_, _| std::future::pending());
    let one = Brain::builder().arm::<Compute>(never).store(Slow { inner: store.clone() }).build().unwrap();
    let id = one.submit(compute(1), &anyone()).await.unwrap().task_id;
    sleep(SECOND / 2).await;
    assert_eq!(one.get(&id, &anyone()).await.unwrap().status, TaskStatus::Processing, "it is claimed");
    one.close().await;
    let task = one.get(&id, &anyone()).await.unwrap();
    assert_eq!((task.status, task.attempt), (TaskStatus::Queued, 1));
    let two = brain(store, &count, 1);
    assert_eq!(two.recover().await.unwrap(), 1);
    assert_eq!(end_of(&two, &id).await.status, TaskStatus::Completed);
}
