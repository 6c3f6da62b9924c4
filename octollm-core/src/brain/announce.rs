//! Tells the bus what becomes of tasks.

use std::{sync::Arc, time::Duration};

use crate::{
    budget::Usage,
    bus::EventBus,
    task::{TaskChange, TaskEvent, TaskRecord, TaskSpent, TaskStatus},
    update::Progress,
};

/// How long a bus may take over one event.
const PATIENCE: Duration = Duration::from_secs(1);

/// Publishes `task.*` events. A bus that takes none, or not in time, holds up no task: that is logged.
#[derive(Clone)]
pub(super) struct Announcer {
    pub(super) bus: Arc<dyn EventBus>,
    pub(super) source: Arc<str>,
}

impl Announcer {
    /// The task's status has changed.
    pub(super) async fn status(&self, record: &TaskRecord, took: Duration) {
        let taken = &record.task.metadata;
        let usage = Usage::tokens(taken.tokens_used).with_cost(taken.cost);
        let spent = TaskSpent::new(usage, taken.arms_used.clone(), took);
        let change = match (record.task.status, &record.task.error) {
            (TaskStatus::Queued, _) => TaskChange::Queued,
            (TaskStatus::Processing, _) => TaskChange::Started,
            (TaskStatus::Completed, _) => TaskChange::Completed(spent),
            (TaskStatus::Failed, Some(error)) => TaskChange::Failed(error.clone(), spent),
            (TaskStatus::Failed, None) => return,
            (TaskStatus::Cancelled, _) => TaskChange::Cancelled(spent),
        };
        self.publish(record, change).await;
    }

    /// The task is further than it was.
    pub(super) async fn progress(&self, record: &TaskRecord, progress: &Progress) {
        self.publish(record, TaskChange::Progress(progress.clone())).await;
    }

    async fn publish(&self, record: &TaskRecord, change: TaskChange) {
        let event_type = change.event_type();
        let event = TaskEvent::new(record.task.task_id.clone(), record.contract.clone(), change);
        let published = match event.to_event(&*self.source) {
            Ok(event) => {
                let event = event.with_correlation_id(record.correlation_id.as_str());
                match tokio::time::timeout(PATIENCE, self.bus.publish(event)).await {
                    Ok(published) => published.map_err(|error| error.to_string()),
                    Err(_) => Err(format!("the bus did not take it within {PATIENCE:?}")),
                }
            }
            Err(error) => Err(error.to_string()),
        };
        if let Err(error) = published {
            tracing::warn!(event_type, task = record.task.task_id.as_str(), error, "event not published");
        }
    }
}
