//! The form of jobs and replies: the events that callers and workers exchange.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    budget::{Budget, Usage},
    clock,
    contract::ContractRef,
    deadline::Deadline,
    error::{ErrorKind, Failure, InvalidValue},
    event::{Channel, Event, Pattern},
    id::{IdempotencyKey, RequestId, TaskId},
    json::read_value,
    parts::ContextParts,
    update::{Phase, Update},
};

/// Domain of the channels on which jobs are published.
const JOBS: &str = "jobs";
/// Domain of the channels on which workers reply.
const REPLIES: &str = "replies";

/// What happened to a job, as the action of a channel.
pub(super) mod action {
    pub(in crate::worker) const QUEUED: &str = "queued";
    pub(in crate::worker) const CANCELLED: &str = "cancelled";
    pub(in crate::worker) const UPDATED: &str = "updated";
    pub(in crate::worker) const COMPLETED: &str = "completed";
    pub(in crate::worker) const FAILED: &str = "failed";
}

/// Returns the channel of what happens to the jobs of a contract.
pub(super) fn channel(contract: &ContractRef, action: &str) -> Result<Channel, InvalidValue> {
    Channel::new(JOBS, &contract.function_name(), action)
}

/// Returns the pattern of all replies to a caller.
pub(super) fn replies(to: &str) -> Result<Pattern, InvalidValue> {
    // A pattern can also have wildcards and alternatives.
    Channel::new(REPLIES, to, action::COMPLETED)?;
    format!("{REPLIES}:{to}:*").parse()
}

/// The data of an event that is a job. What else belongs to the job is in the attributes of the event.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Job {
    pub(super) input: Value,
    /// The entity of the channels on which the worker replies; `None` where nobody waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) reply_to: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) request_id: Option<RequestId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) task_id: Option<TaskId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) budget: Option<Budget>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) key: Option<String>,
    /// Whether the job may have been published before.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) repeated: bool,
    /// Whether the caller wants progress and chunks.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) updates: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) token: Option<String>,
}

impl Job {
    /// Reads the job of an event on the channel of this contract.
    pub(super) fn read(event: &Event) -> Result<Self, Failure> {
        let bad = |error: InvalidValue| Failure::new(ErrorKind::BadRequest, error.to_string());
        let job: Self = event.data_as().map_err(bad)?;
        if let Some(to) = &job.reply_to {
            replies(to).map_err(bad)?;
        }
        Ok(job)
    }

    /// The context of an attempt, of an unchecked caller.
    pub(super) fn parts(&self, event: &Event, attempt: u32) -> Result<ContextParts, Failure> {
        let request_id = self.request_id.clone().unwrap_or_default();
        let correlation_id = event.correlation_id().and_then(|id| id.parse().ok());
        let mut parts = ContextParts::of(request_id.clone(), correlation_id.unwrap_or(request_id));
        parts.task_id.clone_from(&self.task_id);
        parts.trace = event.traceparent().and_then(|trace| trace.parse().ok());
        parts.deadline = deadline(event);
        parts.budget = self.budget.unwrap_or(Budget::UNLIMITED);
        parts.attempt = attempt;
        let key = self.key.as_deref().unwrap_or_else(|| id(event));
        let bad_key = || Failure::new(ErrorKind::BadRequest, "the key is not 1 to 255 printable characters");
        parts.key = Some(IdempotencyKey::new(key).ok_or_else(bad_key)?);
        parts.repeated = self.repeated || attempt > 1;
        Ok(parts)
    }

    pub(super) fn input(&self) -> Bytes {
        self.input.to_string().into()
    }
}

/// The id of a job, which the events of its replies have as their subject.
pub(super) fn id(job: &Event) -> &str {
    job.subject().unwrap_or(job.id())
}

/// The deadline of a job, by the clock of this process.
fn deadline(job: &Event) -> Option<Deadline> {
    let left = job.expires_at()?.duration_since(clock::now());
    Some(Deadline::after(left.try_into().unwrap_or_default()))
}

/// The data of an event that cancels a job.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Cancelled {
    /// Id of the event that was the job.
    pub(super) event: String,
}

/// The end of a job.
#[derive(Debug, Clone)]
pub(super) struct Ended {
    pub(super) result: Result<Value, Failure>,
    pub(super) arm: String,
    pub(super) attempt: u32,
    pub(super) usage: Usage,
}

// Without `flatten`, which cannot read numbers where a program enables `arbitrary_precision` of serde_json.
#[derive(Serialize, Deserialize)]
struct CompletedForm {
    #[serde(default)]
    output: Value,
    arm: String,
    #[serde(default)]
    attempt: u32,
    #[serde(default)]
    usage: Usage,
}

#[derive(Serialize, Deserialize)]
struct FailedForm {
    error: Failure,
    arm: String,
    #[serde(default)]
    attempt: u32,
    #[serde(default)]
    usage: Usage,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum UpdateForm {
    Progress { percentage: u8, message: String },
    Phase(Phase),
    Steps { completed: u64, total: u64 },
    Chunk(Value),
}

/// What a worker sends to the caller of a job.
#[derive(Debug, Clone)]
pub(super) enum Reply {
    Update(Update),
    Ended(Box<Ended>),
}

impl Reply {
    /// Writes the event of a reply to a job.
    pub(super) fn to_event(&self, to: &str, job: &Event, arm: &str) -> Result<Event, InvalidValue> {
        let (action, data) = match self {
            Self::Update(update) => (action::UPDATED, serde_json::to_value(UpdateForm::of(update))),
            Self::Ended(ended) => {
                let Ended { result, arm, attempt, usage } = (**ended).clone();
                match result {
                    Ok(output) => {
                        let form = CompletedForm { output, arm, attempt, usage };
                        (action::COMPLETED, serde_json::to_value(form))
                    }
                    Err(error) => {
                        let form = FailedForm { error, arm, attempt, usage };
                        (action::FAILED, serde_json::to_value(form))
                    }
                }
            }
        };
        let data = data.map_err(|error| InvalidValue::new("reply").because(error.to_string()))?;
        let event = Event::on(Channel::new(REPLIES, to, action)?, arm, data)?;
        let event = event.with_subject(id(job)).with_partition_key(id(job)).caused_by(job);
        Ok(match job.traceparent() {
            Some(trace) => event.with_traceparent(trace),
            None => event,
        })
    }

    /// Reads a reply. `None` for an event that is none.
    pub(super) fn read(event: &Event) -> Option<Self> {
        let ended =
            |result, arm, attempt, usage| Some(Self::Ended(Box::new(Ended { result, arm, attempt, usage })));
        match event.channel().action() {
            action::UPDATED => Some(Self::Update(event.data_as::<UpdateForm>().ok()?.into())),
            action::COMPLETED => {
                let CompletedForm { output, arm, attempt, usage } = event.data_as().ok()?;
                ended(Ok(output), arm, attempt, usage)
            }
            action::FAILED => {
                let FailedForm { error, arm, attempt, usage } = event.data_as().ok()?;
                ended(Err(error), arm, attempt, usage)
            }
            _ => None,
        }
    }
}

impl UpdateForm {
    fn of(update: &Update) -> Self {
        match update.clone() {
            Update::Progress(percentage, message) => Self::Progress { percentage, message },
            Update::Phase(phase) => Self::Phase(phase),
            Update::Steps(completed, total) => Self::Steps { completed, total },
            Update::Chunk(chunk) => Self::Chunk(chunk),
        }
    }
}

impl From<UpdateForm> for Update {
    fn from(form: UpdateForm) -> Self {
        match form {
            UpdateForm::Progress { percentage, message } => Self::Progress(percentage, message),
            UpdateForm::Phase(phase) => Self::Phase(phase),
            UpdateForm::Steps { completed, total } => Self::Steps(completed, total),
            UpdateForm::Chunk(chunk) => Self::Chunk(chunk),
        }
    }
}

/// Reads JSON that an event can carry.
pub(super) fn value(json: &[u8], what: &str) -> Result<Value, Failure> {
    let unreadable = |error| Failure::new(ErrorKind::BadRequest, format!("{what} cannot be queued: {error}"));
    read_value(json).map_err(unreadable)
}
