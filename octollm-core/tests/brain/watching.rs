//! What watchers of a task see.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use futures_util::StreamExt;
use octollm_core::{
    Context,
    arm::arm_fn,
    brain::Brain,
    card::ArmCard,
    contract::{ContractSpec, TaskContract},
    error::{ArmError, Failure},
    id::TaskId,
    orchestrator::{Orchestrator, TaskPage, TaskUpdates, follow},
    store::MemoryStore,
    task::{Submission, Task, TaskQuery, TaskStatus, TaskUpdate},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::time::{sleep, timeout};

use crate::{
    scripted::program,
    support::{Compute, Local, anyone, brain, compute, end_of, run},
    trouble::{Trouble, away},
};

const SECOND: Duration = Duration::from_secs(1);

/// Streams texts of this length.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
struct Stream {
    times: usize,
    length: usize,
}

impl TaskContract for Stream {
    type Output = usize;
    type Chunk = String;
    const SPEC: ContractSpec = ContractSpec::new("text.stream", "/stream", "text:stream");
}

fn streams(store: impl octollm_core::store::TaskStore) -> Brain {
    let arm = arm_fn(|input: Stream, cx: Context| async move {
        for number in 0..input.times {
            cx.chunk::<Stream>(&format!("{number:0length$}", length = input.length)).await;
            cx.progress(50, "going on");
            sleep(SECOND / 10).await;
        }
        Ok::<_, ArmError>(input.times)
    });
    Brain::builder().arm::<Stream>(arm).store(store).build().unwrap()
}

async fn stream(brain: &Brain, times: usize, length: usize) -> TaskId {
    let submission = Submission::of(&Stream { times, length }).unwrap();
    brain.submit(submission, &anyone()).await.unwrap().task_id
}

async fn seen(brain: &Brain, id: &TaskId, after: Option<u64>) -> Vec<TaskUpdate> {
    let mut updates = brain.watch(id, after, &anyone()).await.unwrap();
    let mut seen = Vec::new();
    while let Some(update) = timeout(120 * SECOND, updates.next()).await.expect("the updates never end") {
        seen.push(update);
    }
    seen
}

#[tokio::test(start_paused = true)]
async fn chunks_are_stored_within_a_number_of_bytes_and_the_rest_is_a_gap() {
    let brain = streams(MemoryStore::new().update_bytes(1_000));
    let id = stream(&brain, 20, 300).await;
    end_of(&brain, &id).await;
    let updates = seen(&brain, &id, None).await;
    let missed = match updates[0] {
        TaskUpdate::Gap { missed, .. } => missed,
        ref other => panic!("{other:?}"),
    };
    let bytes: usize = updates
        .iter()
        .map(|update| match update {
            TaskUpdate::Chunk { data, .. } => data.as_str().len(),
            _ => 0,
        })
        .sum();
    assert!((600..=1_000).contains(&bytes), "{bytes}");
    assert_eq!(updates[1].seq(), missed + 1);
    assert!(updates.last().unwrap().is_last());
    // A chunk that is larger than all of it is stored while it is the latest.
    let id = stream(&brain, 1, 5_000).await;
    end_of(&brain, &id).await;
    assert!(matches!(
        seen(&brain, &id, None).await[..],
        [TaskUpdate::Gap { .. }, .., TaskUpdate::Status { .. }]
    ));
}

#[tokio::test(start_paused = true)]
async fn a_watch_goes_on_over_a_rerun_with_numbers_that_never_repeat() {
    let arms = Local::new();
    arms.fail("number.double");
    let brain = brain(&arms);
    let id = brain.submit(compute(4), &anyone()).await.unwrap().task_id;
    end_of(&brain, &id).await;
    let first = seen(&brain, &id, None).await;
    arms.heal();
    arms.hang("number.double");
    brain.rerun(&id, None, &anyone()).await.unwrap();
    let (from_the_start, from_the_middle, past_the_end) = (
        tokio::spawn({
            let (brain, id) = (brain.clone(), id.clone());
            async move { seen(&brain, &id, None).await }
        }),
        tokio::spawn({
            let (brain, id) = (brain.clone(), id.clone());
            async move { seen(&brain, &id, Some(2)).await }
        }),
        tokio::spawn({
            let (brain, id) = (brain.clone(), id.clone());
            async move { seen(&brain, &id, Some(u64::MAX)).await }
        }),
    );
    sleep(SECOND).await;
    brain.cancel(&id, &anyone()).await.unwrap();
    let all = from_the_start.await.unwrap();
    let numbers: Vec<u64> = all.iter().map(TaskUpdate::seq).collect();
    assert_eq!(numbers, (1..=all.len() as u64).collect::<Vec<_>>());
    assert_eq!(all[..first.len()], first);
    assert!(all.len() > first.len() + 1);
    let ends = all.iter().filter(|update| update.is_last()).count();
    assert_eq!(ends, 2, "the failure, and the cancellation");
    assert_eq!(from_the_middle.await.unwrap(), all[2..]);
    assert_eq!(past_the_end.await.unwrap(), all, "a number that nothing has had yet");
}

#[tokio::test(start_paused = true)]
async fn a_task_that_streams_and_is_cancelled_at_another_brain_ends_at_its_next_chunk() {
    let store = Trouble::new();
    let (one, two) = (streams(store.clone()), streams(store.clone()));
    let id = stream(&one, 200, 10).await;
    sleep(SECOND).await;
    two.cancel(&id, &anyone()).await.unwrap();
    let writes = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counted = writes.clone();
    store.fails(move |operation, _| {
        counted.fetch_add(usize::from(operation == "append_updates"), std::sync::atomic::Ordering::Relaxed);
        None
    });
    sleep(5 * SECOND).await;
    assert_eq!(one.get(&id, &anyone()).await.unwrap().status, TaskStatus::Cancelled);
    assert!(writes.load(std::sync::atomic::Ordering::Relaxed) <= 2);
    timeout(SECOND / 100, one.close()).await.expect("it still runs");
    assert!(seen(&two, &id, None).await.last().unwrap().is_last());
}

/// A brain elsewhere, whose streams of updates break after two.
struct Breaks(Brain);

#[async_trait]
impl Orchestrator for Breaks {
    async fn submit(&self, submission: Submission, cx: &Context) -> Result<Task, Failure> {
        self.0.submit(submission, cx).await
    }

    async fn get(&self, id: &TaskId, cx: &Context) -> Result<Task, Failure> {
        self.0.get(id, cx).await
    }

    async fn list(&self, query: TaskQuery, cx: &Context) -> Result<TaskPage, Failure> {
        self.0.list(query, cx).await
    }

    async fn cancel(&self, id: &TaskId, cx: &Context) -> Result<Task, Failure> {
        self.0.cancel(id, cx).await
    }

    async fn watch(&self, id: &TaskId, after: Option<u64>, cx: &Context) -> Result<TaskUpdates, Failure> {
        Ok(TaskUpdates::new(self.0.watch(id, after, cx).await?.take(2)))
    }

    async fn cards(&self) -> Result<Vec<ArmCard>, Failure> {
        self.0.cards().await
    }
}

#[tokio::test(start_paused = true)]
async fn who_follows_a_task_over_broken_streams_sees_each_update_once() {
    let brain = Breaks(streams(MemoryStore::new()));
    let id = stream(&brain.0, 10, 10).await;
    let mut seqs = Vec::new();
    follow(&brain, &id, &anyone(), |update| seqs.push(update.seq())).await.unwrap();
    assert!(seqs.len() > 20, "{seqs:?}");
    assert_eq!(seqs, (1..=seqs.len() as u64).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn messages_of_progress_are_stored_within_a_number_of_bytes_too() {
    let talks = program(|input: Compute, cx: Context| async move {
        for percent in 0..20 {
            cx.progress(percent, "x".repeat(300));
            sleep(SECOND).await;
        }
        Ok(input.number)
    });
    let store = MemoryStore::new().update_bytes(1_000);
    let brain = Brain::builder().arm::<Compute>(talks).store(store).build().unwrap();
    let id = run(&brain, compute(4)).await.task_id;
    let updates = seen(&brain, &id, None).await;
    let messages = updates.iter().filter(|update| matches!(update, TaskUpdate::Progress { .. })).count();
    assert_eq!(messages, 3);
    assert!(matches!(updates[0], TaskUpdate::Gap { .. }) && updates.last().unwrap().is_last());
}

#[tokio::test(start_paused = true)]
async fn chunks_that_were_stored_and_reported_as_failed_are_stored_once() {
    // The store confirms no second append, or none from the third on, so that the end of the task has to bring the rest.
    for fails in [|count: &usize| count % 2 == 1, |count: &usize| *count > 2] {
        let store = Trouble::new();
        let mut count = 0;
        store.fails(move |operation, _| {
            count += usize::from(operation == "after append_updates");
            (operation == "after append_updates" && fails(&count)).then(away)
        });
        let brain = streams(store);
        let id = stream(&brain, 12, 3).await;
        end_of(&brain, &id).await;
        let chunk = |update| match update {
            TaskUpdate::Chunk { data, .. } => data.read::<String>().ok(),
            _ => None,
        };
        let chunks: Vec<_> = seen(&brain, &id, None).await.into_iter().filter_map(chunk).collect();
        let expected: Vec<_> = (0..12).map(|number| format!("{number:03}")).collect();
        assert_eq!(chunks, expected);
    }
}
