//! Tells the bus what becomes of tasks.

use std::{sync::Arc, time::Duration};

use serde_json::{Value, json};

use crate::{
    bus::EventBus,
    event::Event,
    task::{TaskRecord, TaskStatus},
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
        let event_type = match record.task.status {
            TaskStatus::Queued => "task.queued",
            TaskStatus::Processing => "task.started",
            TaskStatus::Completed => "task.completed",
            TaskStatus::Failed => "task.failed",
            TaskStatus::Cancelled => "task.cancelled",
        };
        let mut data = json!({
            "task_id": record.task.task_id,
            "status": record.task.status,
            "contract": record.contract,
        });
        if record.task.status.is_finished() {
            data["duration_ms"] = json!(u64::try_from(took.as_millis()).unwrap_or(u64::MAX));
        }
        if let Some(error) = &record.task.error {
            data["error"] = json!(error);
        }
        self.publish(event_type, record, data).await;
    }

    /// The task is further than it was.
    pub(super) async fn progress(&self, record: &TaskRecord, progress: &Progress) {
        let data = json!({ "task_id": record.task.task_id, "progress": progress });
        self.publish("task.progress", record, data).await;
    }

    async fn publish(&self, event_type: &str, record: &TaskRecord, data: Value) {
        let id = record.task.task_id.as_str();
        let published = match Event::new(event_type, &*self.source, data) {
            Ok(event) => {
                let event = event
                    .with_subject(id)
                    .with_correlation_id(record.correlation_id.as_str())
                    .with_partition_key(id);
                match tokio::time::timeout(PATIENCE, self.bus.publish(event)).await {
                    Ok(published) => published.map_err(|error| error.to_string()),
                    Err(_) => Err(format!("the bus did not take it within {PATIENCE:?}")),
                }
            }
            Err(error) => Err(error.to_string()),
        };
        if let Err(error) = published {
            tracing::warn!(event_type, task = id, error, "event not published");
        }
    }
}
