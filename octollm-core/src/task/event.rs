//! Events of tasks.

use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use super::TaskError;
use crate::{
    budget::{Cost, Usage},
    contract::ContractRef,
    event::{Event, InvalidEvent},
    id::TaskId,
    update::Progress,
};

/// A change of a task, as the brain publishes it on `events:task:*`.
///
/// As JSON it is the `data` of the event. Members it does not know are ignored when it is read, and what an older brain
/// did not write is `None`.
///
/// ```
/// use octollm_core::{bus::{EventBus, MemoryBus, Overflow, Signal}, task::{TaskChange, TaskEvent}};
///
/// # async fn follow(bus: MemoryBus) -> Result<(), Box<dyn std::error::Error>> {
/// let mut events = bus.subscribe("events:task:*".parse()?, Overflow::DropOldest(1024)).await?;
/// while let Some(signal) = events.next().await {
///     let Signal::Event(event) = signal else { continue };
///     let TaskEvent { task_id, change, .. } = TaskEvent::try_from(&event)?;
///     match change {
///         TaskChange::Progress(progress) => println!("{task_id}: {} %", progress.percentage),
///         TaskChange::Completed(spent) => println!("{task_id}: done, {:?}", spent.usage),
///         TaskChange::Failed(error, _) => println!("{task_id}: {}", error.message),
///         _ => {}
///     }
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct TaskEvent {
    /// The task.
    pub task_id: TaskId,
    /// The contract it runs. `None` on progress, and in events of other systems.
    pub contract: Option<ContractRef>,
    /// What changed.
    pub change: TaskChange,
}

/// What changed in a task.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum TaskChange {
    /// It was accepted: `task.queued`.
    Queued,
    /// It runs: `task.started`.
    Started,
    /// It is further than before: `task.progress`.
    Progress(Progress),
    /// It ended with a result: `task.completed`.
    Completed(TaskSpent),
    /// It ended with an error: `task.failed`.
    Failed(TaskError, TaskSpent),
    /// It was cancelled: `task.cancelled`.
    Cancelled(TaskSpent),
}

/// What a finished task used.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct TaskSpent {
    /// Tokens and money. `None` where the event does not say; that is not zero.
    pub usage: Option<Usage>,
    /// The arms that answered its calls, each once, in the order of their first answer.
    pub arms_used: Vec<String>,
    /// How long it ran. On the wire in whole milliseconds.
    pub duration: Option<Duration>,
}

impl TaskEvent {
    /// A change of the task `task_id`. `contract` is left out of progress events on the wire.
    pub fn new(task_id: TaskId, contract: impl Into<Option<ContractRef>>, change: TaskChange) -> Self {
        Self { task_id, contract: contract.into(), change }
    }

    /// The event that carries it: about the task, and in order with the task's other events.
    ///
    /// What it does not carry is set on the event: [`with_correlation_id`](Event::with_correlation_id),
    /// [`with_traceparent`](Event::with_traceparent).
    ///
    /// # Errors
    /// [`InvalidEvent::Empty`] when `source` is empty.
    pub fn to_event(&self, source: impl Into<String>) -> Result<Event, InvalidEvent> {
        let id = self.task_id.as_str();
        Ok(Event::of(self.change.event_type(), source, self)?.with_subject(id).with_partition_key(id))
    }

    fn from_data(data: Data, event_type: &str) -> Result<Self, &'static str> {
        let spent = TaskSpent {
            usage: data.usage(),
            arms_used: data.arms_used.unwrap_or_default(),
            duration: data.duration_ms.map(Duration::from_millis),
        };
        let change = match event_type {
            "task.queued" => TaskChange::Queued,
            "task.started" => TaskChange::Started,
            "task.progress" => TaskChange::Progress(data.progress.ok_or("there is no member `progress`")?),
            "task.completed" => TaskChange::Completed(spent),
            "task.failed" => TaskChange::Failed(data.error.ok_or("there is no member `error`")?, spent),
            "task.cancelled" => TaskChange::Cancelled(spent),
            _ => return Err("the status is not known"),
        };
        Ok(Self { task_id: data.task_id, contract: data.contract, change })
    }
}

impl TaskChange {
    /// The type of its event, `task.<action>`.
    pub fn event_type(&self) -> &'static str {
        match self {
            Self::Queued => "task.queued",
            Self::Started => "task.started",
            Self::Progress(_) => "task.progress",
            Self::Completed(_) => "task.completed",
            Self::Failed(..) => "task.failed",
            Self::Cancelled(_) => "task.cancelled",
        }
    }

    /// What the task used, where it has finished.
    pub fn spent(&self) -> Option<&TaskSpent> {
        match self {
            Self::Completed(spent) | Self::Failed(_, spent) | Self::Cancelled(spent) => Some(spent),
            Self::Queued | Self::Started | Self::Progress(_) => None,
        }
    }

    /// The `status` in the data of its event.
    fn status(&self) -> Option<&'static str> {
        match self {
            Self::Queued => Some("queued"),
            Self::Started => Some("processing"),
            Self::Progress(_) => None,
            Self::Completed(_) => Some("completed"),
            Self::Failed(..) => Some("failed"),
            Self::Cancelled(_) => Some("cancelled"),
        }
    }
}

impl TaskSpent {
    /// What was used, by the work and all it called, and for how long it ran.
    pub fn new(usage: Usage, arms_used: Vec<String>, duration: Duration) -> Self {
        Self { usage: Some(usage), arms_used, duration: Some(duration) }
    }
}

impl TryFrom<&Event> for TaskEvent {
    type Error = InvalidEvent;

    /// # Errors
    /// [`InvalidEvent::OtherType`] when the event is not one of the six of a task, [`InvalidEvent::Data`] when its data is not
    /// of this form.
    fn try_from(event: &Event) -> Result<Self, InvalidEvent> {
        if !TYPES.contains(&event.event_type()) {
            return Err(InvalidEvent::OtherType { found: event.event_type().to_owned() });
        }
        Self::from_data(event.data_as()?, event.event_type())
            .map_err(|problem| InvalidEvent::Data { source: serde_json::Error::custom(problem) })
    }
}

impl Serialize for TaskEvent {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Data::of(self).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for TaskEvent {
    /// Reads the data alone: its status, or its progress, says what changed.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let data = Data::deserialize(deserializer)?;
        let event_type = match data.status.as_deref() {
            None => "task.progress",
            Some("queued") => "task.queued",
            Some("processing") => "task.started",
            Some("completed") => "task.completed",
            Some("failed") => "task.failed",
            Some("cancelled") => "task.cancelled",
            Some(_) => "",
        };
        Self::from_data(data, event_type).map_err(D::Error::custom)
    }
}

const TYPES: [&str; 6] =
    ["task.queued", "task.started", "task.progress", "task.completed", "task.failed", "task.cancelled"];

/// The `data` of the event.
#[derive(Serialize, Deserialize)]
struct Data {
    task_id: TaskId,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    status: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    contract: Option<ContractRef>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    progress: Option<Progress>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    error: Option<TaskError>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tokens_used: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cost_dollars: Option<Cost>,
    #[serde(default, skip_serializing_if = "is_zero")]
    input_tokens: u64,
    #[serde(default, skip_serializing_if = "is_zero")]
    output_tokens: u64,
    #[serde(default, skip_serializing_if = "is_zero")]
    cached_tokens: u64,
    #[serde(default, skip_serializing_if = "is_zero")]
    unmetered_calls: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    arms_used: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    duration_ms: Option<u64>,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(count: &u64) -> bool {
    *count == 0
}

impl Data {
    /// `None` where neither the total nor the cost is there.
    fn usage(&self) -> Option<Usage> {
        if self.tokens_used.is_none() && self.cost_dollars.is_none() {
            return None;
        }
        let mut usage = Usage::tokens(self.tokens_used.unwrap_or_default());
        usage.cost = self.cost_dollars.unwrap_or_default();
        (usage.input, usage.output, usage.cached) =
            (self.input_tokens, self.output_tokens, self.cached_tokens);
        usage.unmetered = self.unmetered_calls;
        Some(usage)
    }

    fn of(event: &TaskEvent) -> Self {
        let change = &event.change;
        let spent = change.spent();
        let usage = spent.and_then(|spent| spent.usage);
        let Usage { input, output, cached, unmetered, .. } = usage.unwrap_or_default();
        let duration = spent.and_then(|spent| spent.duration);
        Self {
            task_id: event.task_id.clone(),
            status: change.status().map(str::to_owned),
            contract: event.contract.clone().filter(|_| change.status().is_some()),
            progress: if let TaskChange::Progress(progress) = change { Some(progress.clone()) } else { None },
            error: if let TaskChange::Failed(error, _) = change { Some(error.clone()) } else { None },
            tokens_used: usage.map(|usage| usage.tokens),
            cost_dollars: usage.map(|usage| usage.cost),
            input_tokens: input,
            output_tokens: output,
            cached_tokens: cached,
            unmetered_calls: unmetered,
            arms_used: spent.map(|spent| spent.arms_used.clone()),
            duration_ms: duration.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX)),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::error::{ErrorKind, Failure};

    const TASK: &str = "task_3fK9aZ0qLw81bXyT";

    fn spent() -> TaskSpent {
        let mut usage =
            Usage::metered(1000, 200).with_cached(10).with_cost(Cost::from_nano_dollars(250_000_000));
        usage.unmetered = 1;
        TaskSpent::new(usage, vec!["judge".to_owned()], Duration::from_millis(24))
    }

    fn event(change: TaskChange) -> TaskEvent {
        let contract = (!matches!(change, TaskChange::Progress(_))).then(|| "crate.review".parse().unwrap());
        TaskEvent::new(TASK.parse().unwrap(), contract, change)
    }

    fn failed() -> TaskChange {
        let failure = Failure::new(ErrorKind::Unavailable, "the parser is being updated");
        TaskChange::Failed(TaskError::from(&failure), spent())
    }

    #[test]
    fn each_change_has_its_type_and_survives_its_event() {
        let changes = [
            (TaskChange::Queued, "task.queued"),
            (TaskChange::Started, "task.started"),
            (TaskChange::Progress(Progress { percentage: 40, ..Progress::default() }), "task.progress"),
            (TaskChange::Completed(spent()), "task.completed"),
            (failed(), "task.failed"),
            (TaskChange::Cancelled(spent()), "task.cancelled"),
        ];
        for (change, event_type) in changes {
            let change = event(change);
            let carried = change.to_event("brain").unwrap();
            assert_eq!((carried.event_type(), carried.source()), (event_type, "brain"));
            assert_eq!((carried.subject(), carried.partition_key()), (Some(TASK), Some(TASK)));
            assert_eq!(TaskEvent::try_from(&carried).unwrap(), change);
            assert_eq!(serde_json::from_value::<TaskEvent>(carried.data().clone()).unwrap(), change);
        }
    }

    #[test]
    fn a_final_event_says_what_was_used() {
        let data = serde_json::to_value(event(TaskChange::Completed(spent()))).unwrap();
        let expected = json!({
            "task_id": TASK, "status": "completed", "contract": "crate.review", "duration_ms": 24,
            "tokens_used": 1200, "cost_dollars": 0.25, "input_tokens": 1000, "output_tokens": 200, "cached_tokens": 10,
            "unmetered_calls": 1, "arms_used": ["judge"],
        });
        assert_eq!(data, expected);
        let nothing = TaskSpent::new(Usage::ZERO, Vec::new(), Duration::ZERO);
        let data = serde_json::to_value(event(TaskChange::Cancelled(nothing))).unwrap();
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
        let TaskChange::Completed(spent) = read.change else { panic!("it was completed") };
        assert_eq!((spent.usage, spent.duration), (None, Some(Duration::from_millis(1234))));
        assert_eq!(read.contract, None);
    }

    #[test]
    fn what_is_no_task_event_is_refused() {
        for other in ["arm.registered", "task.noticed"] {
            let event = Event::new(other, "s", json!({ "task_id": TASK })).unwrap();
            assert!(
                matches!(TaskEvent::try_from(&event), Err(InvalidEvent::OtherType { found }) if found == other)
            );
        }
        for data in [Value::Null, json!({}), json!({ "task_id": TASK })] {
            let event = Event::new("task.failed", "s", data).unwrap();
            assert!(matches!(TaskEvent::try_from(&event), Err(InvalidEvent::Data { .. })));
        }
        let unknown = json!({ "task_id": TASK, "status": "input_required" });
        assert!(serde_json::from_value::<TaskEvent>(unknown).is_err());
    }
}
