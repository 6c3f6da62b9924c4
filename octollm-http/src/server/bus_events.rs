//! `GET /events`: the events of the bus of a server, as far as the caller may see them.

use std::{collections::HashMap, sync::Arc};

use async_trait::async_trait;
use futures_util::stream;
use octollm_core::{
    Context,
    bus::{BusError, EventBus, Overflow, Signal, Subscription},
    error::{ErrorKind, Failure},
    event::{Event, Pattern},
    id::TaskId,
    orchestrator::Orchestrator,
    parts::Caller,
};
use serde_json::{Value, json};

use super::{
    events::{self, LiveStreams, ServerEvent},
    routes::{Answer, Endpoint, Inbound, Refusal, Takes, within},
    tasks::parameters,
};

/// Events that wait for a reader. Beyond it the oldest are dropped, and the reader has a gap.
const WAITING: usize = 256;
/// Tasks of which it is remembered whether the caller finds them.
const REMEMBERED: usize = 1024;

/// `GET /events`.
pub(crate) struct BusEvents {
    pub(crate) bus: Arc<dyn EventBus>,
    /// Knows to whom a task belongs.
    pub(crate) orchestrator: Arc<dyn Orchestrator>,
    pub(crate) live: LiveStreams,
}

#[async_trait]
impl Endpoint for BusEvents {
    fn takes(&self) -> Takes {
        Takes::Stream
    }

    fn is_json(&self) -> bool {
        false
    }

    fn is_streaming(&self) -> bool {
        true
    }

    async fn call(&self, inbound: Inbound<'_>) -> Result<Answer, Refusal> {
        let pattern = pattern(inbound.head.uri.query().unwrap_or_default())?;
        // A bus stores no events for a caller that is away.
        let resumes = events::last_event_id(inbound.head).is_some();
        let (deadline, cx) = (inbound.parts.deadline, Context::from_parts(inbound.parts, Arc::new(())));
        let bus = cx.bus(&self.bus);
        let subscribed = async {
            let subscription = bus.subscribe(pattern, Overflow::DropOldest(WAITING)).await;
            subscription.map_err(failure)
        };
        let subscription = within(deadline, subscribed).await?;
        let sees_all = *cx.caller() == Caller::Unchecked || cx.caller().may("tasks:admin").is_ok();
        let reader = Reader {
            subscription,
            cx: cx.clone(),
            orchestrator: self.orchestrator.clone(),
            sees_all,
            known: HashMap::new(),
            resumes,
        };
        let events = stream::unfold(reader, async |mut reader| {
            let event = reader.next().await?;
            Some((event, reader))
        });
        Ok(self.live.answer(events, &cx))
    }
}

/// Reads `pattern=`.
fn pattern(query: &str) -> Result<Pattern, Failure> {
    let mut pattern = None;
    parameters(query, |name, value| match name {
        "pattern" => value.parse().ok().map(|read| pattern.replace(read).is_some()),
        _ => None,
    })?;
    pattern.ok_or_else(|| Failure::new(ErrorKind::BadRequest, "the query parameter pattern is missing"))
}

fn failure(error: BusError) -> Failure {
    match error {
        BusError::Denied { source } => Failure::clone(&source).before_execution(),
        error => {
            tracing::warn!(%error, "bus not available for a reader of events");
            Failure::new(ErrorKind::Unavailable, "the bus is not available").before_execution()
        }
    }
}

/// The events of one caller.
struct Reader {
    subscription: Subscription,
    cx: Context,
    orchestrator: Arc<dyn Orchestrator>,
    /// Whether the tasks of all callers are seen.
    sees_all: bool,
    known: HashMap<TaskId, bool>,
    /// Whether the caller connects again.
    resumes: bool,
}

impl Reader {
    async fn next(&mut self) -> Option<ServerEvent> {
        if std::mem::take(&mut self.resumes) {
            return gap(&json!({ "reason": "the connection to the caller was lost" }));
        }
        loop {
            let event = match self.subscription.next().await? {
                Signal::Event(event) => event,
                Signal::Lagged(missed) => return gap(&json!({ "missed": missed })),
                Signal::Gap(reason) => return gap(&json!({ "reason": reason.to_string() })),
            };
            match self.sees(&event).await {
                Ok(true) => return ServerEvent::named(event.id(), &event),
                Ok(false) => {}
                Err(failure) => {
                    tracing::debug!(%failure, "whose task an event is of is not known");
                    return gap(&json!({ "missed": 1 }));
                }
            }
        }
    }

    /// Whether the caller may see an event: one of a task, if it finds the task.
    async fn sees(&mut self, event: &Event) -> Result<bool, Failure> {
        if self.sees_all {
            return Ok(true);
        }
        let Some(task) = task_of(event) else {
            return Ok(self.cx.caller().grant().is_none_or(|grant| grant.task.is_none()));
        };
        if let Some(sees) = self.known.get(&task) {
            return Ok(*sees);
        }
        let sees = match self.orchestrator.get(&task, &self.cx).await {
            Ok(_) => true,
            Err(failure) if failure.retryable => return Err(failure),
            Err(_) => false,
        };
        if self.known.len() >= REMEMBERED {
            self.known.clear();
        }
        self.known.insert(task, sees);
        Ok(sees)
    }
}

/// The task that an event is about.
fn task_of(event: &Event) -> Option<TaskId> {
    let named = || event.data().get("task_id").and_then(Value::as_str)?.parse().ok();
    event.subject().and_then(|subject| subject.parse().ok()).or_else(named)
}

fn gap(members: &Value) -> Option<ServerEvent> {
    let mut gap = json!({ "type": "gap" });
    if let (Some(gap), Some(members)) = (gap.as_object_mut(), members.as_object()) {
        gap.extend(members.clone());
    }
    ServerEvent::named("", &gap)
}
