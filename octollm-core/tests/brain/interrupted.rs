//! Arms that are interrupted where it hurts.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use octollm_core::{
    Arm, Context, brain::Brain, error::ArmError, orchestrator::Orchestrator, store::MemoryStore,
    task::TaskStatus,
};
use serde_json::json;
use tokio::time::timeout;

use crate::support::{Compute, Double, Increment, Local, anyone, compute, end_of, shared_store};

const SECOND: Duration = Duration::from_secs(1);

fn brain_with(arm: impl Arm<Compute>, arms: &Local, store: &Arc<MemoryStore>) -> Brain {
    let builder = Brain::builder().arm::<Compute>(arm).arms(arms.clone());
    builder.store(store.clone()).build().unwrap()
}

/// Answers what it could get.
struct Tolerant;

#[async_trait]
impl Arm<Compute> for Tolerant {
    async fn execute(&self, input: Compute, cx: &Context) -> Result<u64, ArmError> {
        let answers = cx.call_all((0..3).map(|_| Double { number: input.number })).each().await;
        Ok(answers.into_iter().flatten().sum())
    }
}

#[tokio::test(start_paused = true)]
async fn an_arm_does_not_answer_with_what_a_stop_left_it() {
    for cancel in [false, true] {
        let (arms, store) = (Local::new(), shared_store());
        arms.hang("number.double");
        let brain = brain_with(Tolerant, &arms, &store);
        let id = brain.submit(compute(4), &anyone()).await.unwrap().task_id;
        tokio::time::sleep(SECOND).await;
        if cancel {
            assert_eq!(brain.cancel(&id, &anyone()).await.unwrap().status, TaskStatus::Cancelled);
            continue;
        }
        brain.close().await;
        assert_eq!(brain.get(&id, &anyone()).await.unwrap().status, TaskStatus::Queued);
        arms.heal();
        let next = brain_with(Tolerant, &arms, &store);
        next.recover().await.unwrap();
        assert_eq!(end_of(&next, &id).await.result.unwrap().output, json!(24));
    }
}

struct PanicsWhenDropped;

impl Drop for PanicsWhenDropped {
    fn drop(&mut self) {
        panic!("dropped");
    }
}

/// Panics when it is dropped in the middle.
struct Brittle;

#[async_trait]
impl Arm<Compute> for Brittle {
    async fn execute(&self, _: Compute, _: &Context) -> Result<u64, ArmError> {
        let _brittle = PanicsWhenDropped;
        std::future::pending().await
    }
}

#[tokio::test(start_paused = true)]
async fn a_panic_while_an_arm_is_dropped_ends_its_task_all_the_same() {
    let (arms, store) = (Local::new(), shared_store());
    let builder = Brain::builder().arm::<Compute>(Brittle).arms(arms).store(store);
    let brain = builder.max_running(1).build().unwrap();
    let first = brain.submit(compute(1), &anyone()).await.unwrap().task_id;
    let second = brain.submit(compute(2), &anyone()).await.unwrap().task_id;
    tokio::time::sleep(SECOND).await;
    let cancelled = timeout(SECOND, brain.cancel(&first, &anyone())).await.expect("cancel hangs");
    assert_eq!(cancelled.unwrap().status, TaskStatus::Cancelled);
    let second = timeout(120 * SECOND, end_of(&brain, &second)).await.expect("its place was never free");
    assert_eq!(second.status, TaskStatus::Failed);
    timeout(SECOND, brain.close()).await.expect("close hangs");
}

/// Doubles three times at once, goes on with nothing where that fails, and adds one.
struct FallsBack;

#[async_trait]
impl Arm<Compute> for FallsBack {
    async fn execute(&self, input: Compute, cx: &Context) -> Result<u64, ArmError> {
        let refused = cx.call_json(&"number.unknown".parse().unwrap(), &json!({}));
        let calls = futures_util::future::try_join(
            async {
                tokio::time::sleep(Duration::from_millis(5)).await;
                refused.await.map(|_| 0)
            },
            cx.call(Double { number: input.number }),
        );
        let doubled = calls.await.map_or(0, |(_, doubled)| doubled);
        Ok(cx.call(Increment { number: doubled }).await?)
    }
}

/// The same with calls that are not polled any more once the first has failed.
struct FallsBackAtOnce;

#[async_trait]
impl Arm<Compute> for FallsBackAtOnce {
    async fn execute(&self, input: Compute, cx: &Context) -> Result<u64, ArmError> {
        let refused = cx.call_json(&"number.unknown".parse().unwrap(), &json!({}));
        let doubled = cx.call(Double { number: input.number });
        let fallen = match refused.await {
            // Dropped without having been polled.
            Err(_) => 0,
            Ok(_) => doubled.await?,
        };
        Ok(cx.call(Increment { number: fallen }).await?)
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_that_was_made_and_not_waited_for_is_no_other_program() {
    let (arms, store) = (Local::new(), shared_store());
    arms.hang("number.increment");
    let brain = brain_with(FallsBack, &arms, &store);
    let id = brain.submit(compute(4), &anyone()).await.unwrap().task_id;
    tokio::time::sleep(SECOND).await;
    brain.close().await;
    arms.heal();
    // The failure is replayed at once now, before anybody has looked at the other call.
    let next = brain_with(FallsBackAtOnce, &arms, &store);
    next.recover().await.unwrap();
    let task = end_of(&next, &id).await;
    assert_eq!((task.status, task.error), (TaskStatus::Completed, None));
}

#[tokio::test(start_paused = true)]
async fn a_cursor_of_an_earlier_run_does_not_hang() {
    let (arms, store) = (Local::new(), shared_store());
    arms.hang("number.double");
    let builder = Brain::builder().arm::<Compute>(Tolerant).arms(arms.clone()).store(store);
    let brain = builder.max_running(1).build().unwrap();
    let first = brain.submit(compute(1), &anyone()).await.unwrap().task_id;
    let second = brain.submit(compute(2), &anyone()).await.unwrap().task_id;
    let mut updates = brain.watch(&second, Some(100), &anyone()).await.unwrap();
    let watching = tokio::spawn(async move {
        let mut seen = Vec::new();
        while let Some(update) = updates.next().await {
            seen.push(update.seq());
        }
        seen
    });
    tokio::time::sleep(SECOND).await;
    arms.heal();
    brain.cancel(&first, &anyone()).await.unwrap();
    let seen = timeout(60 * SECOND, watching).await.expect("the updates never end").unwrap();
    assert_eq!(seen, [1, 2]);
}
