//! A bus beside a brain that publishes on it.

use std::collections::HashSet;

use async_trait::async_trait;
use octollm_core::brain::Brain;
use octollm_core::bus::{EventBus, MemoryBus, Overflow};
use octollm_core::error::ArmError;
use octollm_core::orchestrator::{Orchestrator, finished};
use octollm_core::task::{Submission, TaskEvent, TaskRequest, TaskResult, TaskStatus};
use octollm_core::{Arm, Context};

use crate::*;

struct Echo;

#[async_trait]
impl Arm<TaskRequest> for Echo {
    async fn execute(&self, request: TaskRequest, _: &Context) -> Result<TaskResult, ArmError> {
        Ok(TaskResult::new(request.goal))
    }
}

#[tokio::test(start_paused = true)]
async fn a_stalled_monitor_hides_the_end_of_no_task_from_another() {
    const TASKS: usize = 360;
    let (bus, cx) = (MemoryBus::new(), Context::detached());
    let mut stalled = bus.subscribe(pattern("events:task:*"), Overflow::Block).await.unwrap();
    let mut monitor = bus.subscribe(pattern("events:task:*"), Overflow::DropOldest(8192)).await.unwrap();
    let brain = Brain::builder().arm(Echo).bus(bus.clone()).build().unwrap();
    let mut tasks = HashSet::new();
    for number in 0..TASKS {
        let submission = Submission::from(TaskRequest::new(format!("goal {number}")));
        tasks.insert(brain.submit(submission, &cx).await.unwrap().task_id);
    }
    for task in &tasks {
        finished(&brain, task, &cx).await.unwrap();
    }
    let mut seen = 0;
    while !tasks.is_empty() {
        // The stalled one is waited for once.
        let next = tokio::time::timeout(std::time::Duration::from_secs(30), monitor.next()).await;
        let Ok(Some(Signal::Event(event))) = next else { panic!("after {seen} events: {next:?}") };
        seen += 1;
        let event = TaskEvent::try_from(&event).unwrap();
        if event.status == Some(TaskStatus::Completed) {
            assert!(event.usage().is_some());
            assert!(tasks.remove(&event.task_id), "{} ended once", event.task_id);
        }
    }
    assert!(seen > Overflow::BLOCK_CAPACITY, "the stalled one had no room for all");
    let mut accounted = 0;
    while accounted < seen {
        match stalled.next().await {
            Some(Signal::Event(_)) => accounted += 1,
            Some(Signal::Lagged(missed)) => accounted += usize::try_from(missed).unwrap(),
            other => panic!("after {accounted} of {seen}: {other:?}"),
        }
    }
    assert_eq!(accounted, seen, "what it missed is in its stream");
}
