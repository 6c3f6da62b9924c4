//! A brain whose program calls arms by a queue.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use octollm_core::brain::Brain;
use octollm_core::bus::{DurableBus, MemoryDurableBus};
use octollm_core::contract::TaskContract;
use octollm_core::error::ArmError;
use octollm_core::idempotency::MemoryIdempotencyStore;
use octollm_core::orchestrator::{Orchestrator, finished};
use octollm_core::store::MemoryStore;
use octollm_core::task::{Submission, TaskRequest, TaskResult, TaskStatus};
use octollm_core::worker::{QueuedArms, Worker, group};
use octollm_core::{Arm, Context};
use octollm_macros::TaskContract;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use tokio::time::sleep;

/// Pays a bill, which must not happen twice.
#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "bill.pay", output = usize, timeout = "1h")]
struct Pay {
    amount: u32,
}

#[derive(Clone)]
struct Bank {
    paid: Arc<Semaphore>,
    open: Arc<Semaphore>,
}

#[async_trait]
impl Arm<Pay> for Bank {
    async fn execute(&self, _: Pay, _: &Context) -> Result<usize, ArmError> {
        self.paid.add_permits(1);
        self.open.acquire().await?.forget();
        Ok(self.paid.available_permits())
    }
}

struct Clerk;

#[async_trait]
impl Arm<TaskRequest> for Clerk {
    async fn execute(&self, _: TaskRequest, cx: &Context) -> Result<TaskResult, ArmError> {
        let receipt = cx.call(Pay { amount: 7 }).await?;
        Ok(TaskResult::new(format!("receipt {receipt}")))
    }
}

async fn brain(bus: &MemoryDurableBus, store: &Arc<MemoryStore>) -> Brain {
    let arms = QueuedArms::builder("brain", bus.clone())
        .contract::<Pay>("bank")
        .shared_keys(Duration::from_secs(3600))
        .detached()
        .connect()
        .await
        .unwrap();
    Brain::builder().arm(Clerk).arms(arms).store(store.clone()).build().unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_result_is_found_after_a_restart_of_the_brain() {
    // The result is published while no brain runs, or after the next one has asked again.
    for is_early in [true, false] {
        let (bus, store) = (MemoryDurableBus::new(), Arc::new(MemoryStore::new()));
        let bank = Bank { paid: Arc::new(Semaphore::new(0)), open: Arc::new(Semaphore::new(0)) };
        let keys = MemoryIdempotencyStore::new();
        let worker = Worker::new(bus.clone()).id("bank").arm(bank.clone()).idempotency(keys);
        let worker = tokio::spawn(worker.run());
        let (first, cx) = (brain(&bus, &store).await, Context::detached());
        let task = Submission::from(TaskRequest::new("pay"));
        let task = first.submit(task, &cx).await.unwrap().task_id;
        while bank.paid.available_permits() == 0 {
            sleep(Duration::from_millis(1)).await;
        }
        first.close().await;
        drop(first);
        if is_early {
            bank.open.add_permits(1);
            while bus.group(&group(&Pay::SPEC.reference())).await.unwrap().pending > 0 {
                sleep(Duration::from_millis(1)).await;
            }
        }
        let second = brain(&bus, &store).await;
        second.recover().await.unwrap();
        if !is_early {
            sleep(Duration::from_secs(3)).await;
            bank.open.add_permits(1);
        }
        let done = finished(&second, &task, &cx).await.unwrap();
        assert_eq!(done.status, TaskStatus::Completed, "{:?}", done.error);
        assert_eq!(done.result.unwrap().output, "receipt 1");
        assert_eq!(bank.paid.available_permits(), 1, "it is paid once");
        worker.abort();
    }
}
