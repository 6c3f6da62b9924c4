//! Events of tasks.

use std::{sync::LazyLock, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, de::Error as _};

use super::{TaskError, TaskStatus};
use crate::{
    budget::is_zero,
    budget::{Cost, Usage},
    contract::ContractRef,
    error::InvalidValue,
    event::{Channel, Event},
    id::TaskId,
    update::Progress,
};

/// The `data` of a task's event, as the brain publishes it on `events:task:*`.
///
/// Members that are not known are ignored when it is read. A member that the event lacks is `None`, or 0 for the counts that
/// are part of a total.
///
/// ```
/// use octollm_core::{bus::{EventBus, MemoryBus, Overflow, Signal}, task::{TaskEvent, TaskStatus}};
///
/// # async fn follow(bus: MemoryBus) -> Result<(), Box<dyn std::error::Error>> {
/// let mut events = bus.subscribe("events:task:*".parse()?, Overflow::DropOldest(1024)).await?;
/// while let Some(signal) = events.next().await {
///     let Signal::Event(event) = signal else { continue };
///     let event = TaskEvent::try_from(&event)?;
///     let id = &event.task_id;
///     match (event.status, &event.progress, &event.error) {
///         (None, Some(progress), _) => println!("{id}: {} %", progress.percentage),
///         (Some(TaskStatus::Completed), ..) => println!("{id}: completed, {:?}", event.usage()),
///         (Some(TaskStatus::Failed), _, Some(error)) => println!("{id}: {}", error.message),
///         _ => {}
///     }
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct TaskEvent {
    /// The task.
    pub task_id: TaskId,
    /// The new status. `None` for progress.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "known_status")]
    pub status: Option<TaskStatus>,
    /// The contract of the task. `None` for progress, and in events of other systems.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub contract: Option<ContractRef>,
    /// The progress of a running task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<Progress>,
    /// The error of a failed task. With the status queued, that of the attempt which another one follows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<TaskError>,
    /// The number of the attempt. `None` for the first one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<u32>,
    /// Tokens that a finished task used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens_used: Option<u64>,
    /// Cost of a finished task.
    #[serde(default, rename = "cost_dollars", skip_serializing_if = "Option::is_none")]
    pub cost: Option<Cost>,
    /// Tokens that models read, as far as they are known; part of `tokens_used`.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub input_tokens: u64,
    /// Tokens that models wrote, as far as they are known; part of `tokens_used`.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub output_tokens: u64,
    /// Tokens that models read from a cache; part of `input_tokens`.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub cached_tokens: u64,
    /// Calls whose usage nobody reported.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub unmetered_calls: u64,
    /// Arms that answered calls of a finished task, each once, in the order of their first answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arms_used: Option<Vec<String>>,
    /// Time that a finished task ran, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration_ms: Option<u64>,
}

impl TaskEvent {
    /// An event for a new status.
    pub fn of_status(task_id: TaskId, contract: impl Into<Option<ContractRef>>, status: TaskStatus) -> Self {
        Self { status: Some(status), contract: contract.into(), ..Self::empty(task_id) }
    }

    /// An event for progress.
    pub fn of_progress(task_id: TaskId, progress: Progress) -> Self {
        Self { progress: Some(progress), ..Self::empty(task_id) }
    }

    fn empty(task_id: TaskId) -> Self {
        Self {
            task_id,
            status: None,
            contract: None,
            progress: None,
            error: None,
            attempt: None,
            tokens_used: None,
            cost: None,
            input_tokens: 0,
            output_tokens: 0,
            cached_tokens: 0,
            unmetered_calls: 0,
            arms_used: None,
            duration_ms: None,
        }
    }

    /// Sets the number of the attempt, where it is not the first.
    #[must_use]
    pub fn with_attempt(mut self, attempt: u32) -> Self {
        self.attempt = (attempt > 1).then_some(attempt);
        self
    }

    /// Sets the error of a failed task, or that of the attempt before.
    #[must_use]
    pub fn with_error(mut self, error: TaskError) -> Self {
        self.error = Some(error);
        self
    }

    /// Sets what a finished task used.
    #[must_use]
    pub fn with_usage(mut self, usage: Usage) -> Self {
        (self.tokens_used, self.cost) = (Some(usage.tokens), Some(usage.cost));
        (self.input_tokens, self.output_tokens) = (usage.input, usage.output);
        (self.cached_tokens, self.unmetered_calls) = (usage.cached, usage.unmetered);
        self
    }

    /// Sets the arms that answered calls of a finished task.
    #[must_use]
    pub fn with_arms_used(mut self, arms: Vec<String>) -> Self {
        self.arms_used = Some(arms);
        self
    }

    /// Sets how long a finished task ran.
    #[must_use]
    pub fn with_duration(mut self, duration: Duration) -> Self {
        self.duration_ms = Some(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX));
        self
    }

    /// What a finished task used. `None` where the event has neither tokens nor cost, which is not zero.
    pub fn usage(&self) -> Option<Usage> {
        if self.tokens_used.is_none() && self.cost.is_none() {
            return None;
        }
        let mut usage = Usage::tokens(self.tokens_used.unwrap_or_default());
        usage.cost = self.cost.unwrap_or_default();
        (usage.input, usage.output) = (self.input_tokens, self.output_tokens);
        (usage.cached, usage.unmetered) = (self.cached_tokens, self.unmetered_calls);
        Some(usage)
    }

    /// The type of the event, `task.<action>`.
    pub fn event_type(&self) -> &'static str {
        match self.status {
            Some(TaskStatus::Queued) => "task.queued",
            Some(TaskStatus::Processing) => "task.started",
            Some(TaskStatus::Completed) => "task.completed",
            Some(TaskStatus::Failed) => "task.failed",
            Some(TaskStatus::Cancelled) => "task.cancelled",
            Some(TaskStatus::Unknown) | None => "task.progress",
        }
    }

    /// The event with this as its data. Its subject and its partition key are the id of the task.
    ///
    /// Set what is missing on the event: [`with_correlation_id`](Event::with_correlation_id),
    /// [`with_traceparent`](Event::with_traceparent).
    ///
    /// # Errors
    /// [`InvalidValue`] when `source` is empty.
    pub fn to_event(&self, source: impl Into<String>) -> Result<Event, InvalidValue> {
        let data = serde_json::to_value(self).map_err(|error| {
            InvalidValue::new("event").because(format!("the data does not have the expected form: {error}"))
        })?;
        let (id, event) = (self.task_id.as_str(), Event::on(channel(self.event_type())?, source, data)?);
        Ok(event.with_subject(id).with_partition_key(id))
    }
}

/// The channel of an event of a task. Those of a new status are made once.
fn channel(event_type: &'static str) -> Result<Channel, InvalidValue> {
    static CHANNELS: LazyLock<Vec<Channel>> = LazyLock::new(|| {
        let types = ["task.queued", "task.started", "task.completed", "task.failed", "task.cancelled"];
        types.into_iter().filter_map(|event_type| Channel::from_event_type(event_type).ok()).collect()
    });
    let known = CHANNELS.iter().find(|channel| channel.event_type() == event_type);
    known.map_or_else(|| Channel::from_event_type(event_type), |channel| Ok(channel.clone()))
}

impl TryFrom<&Event> for TaskEvent {
    type Error = InvalidValue;

    /// # Errors
    /// [`InvalidValue`] when the event is not one of the six of a task, whose [`kind`](InvalidValue::kind) then is `type of a
    /// task event`, or when its data is not of this form.
    fn try_from(event: &Event) -> Result<Self, InvalidValue> {
        let status = match event.event_type() {
            "task.queued" => Some(TaskStatus::Queued),
            "task.started" => Some(TaskStatus::Processing),
            "task.progress" => None,
            "task.completed" => Some(TaskStatus::Completed),
            "task.failed" => Some(TaskStatus::Failed),
            "task.cancelled" => Some(TaskStatus::Cancelled),
            other => {
                return Err(InvalidValue::new(OTHER_TYPE).because(format!("it is {other:?}")));
            }
        };
        let read = Self { status, ..event.data_as()? };
        let missing = |field| Err(InvalidValue::new("task event").because(format!("`{field}` is missing")));
        match status {
            None if read.progress.is_none() => missing("progress"),
            Some(TaskStatus::Failed) if read.error.is_none() => missing("error"),
            _ => Ok(read),
        }
    }
}

const OTHER_TYPE: &str = "type of a task event";

/// A status of a later version is an error: its event has a type that this version does not read.
fn known_status<'de, D: Deserializer<'de>>(from: D) -> Result<Option<TaskStatus>, D::Error> {
    match Option::<TaskStatus>::deserialize(from)? {
        Some(TaskStatus::Unknown) => Err(D::Error::custom("the status is not known")),
        status => Ok(status),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::error::{ErrorKind, Failure};

    const TASK: &str = "task_3fK9aZ0qLw81bXyT";

    fn of_status(status: TaskStatus) -> TaskEvent {
        TaskEvent::of_status(TASK.parse().unwrap(), "crate.review".parse::<ContractRef>().unwrap(), status)
    }

    fn ended(status: TaskStatus) -> TaskEvent {
        let mut usage =
            Usage::metered(1000, 200).with_cached(10).with_cost(Cost::from_nano_dollars(250_000_000));
        usage.unmetered = 1;
        let event = of_status(status).with_usage(usage).with_arms_used(vec!["judge".to_owned()]);
        event.with_duration(Duration::from_millis(24))
    }

    #[test]
    fn each_change_has_its_type_and_survives_its_event() {
        let failure = Failure::new(ErrorKind::Unavailable, "the parser is being updated");
        let progress = Progress { percentage: 40, ..Progress::default() };
        let events = [
            (of_status(TaskStatus::Queued), "task.queued"),
            (of_status(TaskStatus::Processing), "task.started"),
            (TaskEvent::of_progress(TASK.parse().unwrap(), progress), "task.progress"),
            (ended(TaskStatus::Completed), "task.completed"),
            (ended(TaskStatus::Failed).with_error(TaskError::from(&failure)), "task.failed"),
            (ended(TaskStatus::Cancelled), "task.cancelled"),
        ];
        for (event, event_type) in events {
            let carried = event.to_event("brain").unwrap();
            assert_eq!((carried.event_type(), carried.source()), (event_type, "brain"));
            assert_eq!((carried.subject(), carried.partition_key()), (Some(TASK), Some(TASK)));
            assert_eq!(TaskEvent::try_from(&carried).unwrap(), event);
            assert_eq!(serde_json::from_value::<TaskEvent>(carried.data().clone()).unwrap(), event);
        }
    }

    #[test]
    fn a_final_event_says_what_was_used() {
        let data = serde_json::to_value(ended(TaskStatus::Completed)).unwrap();
        let expected = json!({
            "task_id": TASK, "status": "completed", "contract": "crate.review", "duration_ms": 24,
            "tokens_used": 1200, "cost_dollars": 0.25, "input_tokens": 1000, "output_tokens": 200, "cached_tokens": 10,
            "unmetered_calls": 1, "arms_used": ["judge"],
        });
        assert_eq!(data, expected);
        let nothing = of_status(TaskStatus::Cancelled).with_usage(Usage::ZERO).with_arms_used(Vec::new());
        let data = serde_json::to_value(nothing.with_duration(Duration::ZERO)).unwrap();
        let expected = json!({
            "task_id": TASK, "status": "cancelled", "contract": "crate.review", "duration_ms": 0, "tokens_used": 0,
            "cost_dollars": 0.0, "arms_used": [],
        });
        assert_eq!(data, expected);
    }

    #[test]
    fn an_event_without_usage_is_read_and_is_not_zero() {
        let data = json!({ "task_id": TASK, "status": "completed", "duration_ms": 1234, "later": true });
        let read = TaskEvent::try_from(&Event::new("task.completed", "orchestrator", data).unwrap()).unwrap();
        assert_eq!((read.status, read.usage()), (Some(TaskStatus::Completed), None));
        assert_eq!((read.duration_ms, read.contract), (Some(1234), None));
    }

    #[test]
    fn what_is_no_task_event_is_refused() {
        for other in ["arm.registered", "task.noticed"] {
            let event = Event::new(other, "s", json!({ "task_id": TASK })).unwrap();
            let error = TaskEvent::try_from(&event).unwrap_err();
            assert_eq!(error.to_string(), format!("not a valid type of a task event: it is {other:?}"));
        }
        for data in [Value::Null, json!({}), json!({ "task_id": TASK })] {
            for event_type in ["task.failed", "task.progress"] {
                let event = Event::new(event_type, "s", data.clone()).unwrap();
                assert_ne!(TaskEvent::try_from(&event).unwrap_err().kind(), OTHER_TYPE);
            }
        }
        let unknown = json!({ "task_id": TASK, "status": "input_required" });
        assert!(serde_json::from_value::<TaskEvent>(unknown).is_err());
    }
}
