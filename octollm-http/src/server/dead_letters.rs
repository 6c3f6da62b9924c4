//! The dead letters of a durable bus: they are listed, and delivered again.

use std::sync::Arc;

use async_trait::async_trait;
use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use http::{Method, StatusCode};
use octollm_core::{
    bus::{BusError, DeadLetter, DurableBus, FailedAttempt},
    error::{ConfigError, ErrorKind, Failure},
    event::Event,
};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;

use super::{
    Server,
    routes::{Answer, Endpoint, Inbound, Refusal, RouteTable, Takes, within},
    tasks::{limit, parameters},
};

/// The scope of callers that see dead letters and deliver them again.
pub(crate) const SCOPE: &str = "events:admin";
/// Dead letters of a page: the default, and the most.
pub(crate) const PAGE: usize = 20;
pub(crate) const MAX_PAGE: usize = 100;
/// Stands for the token in the data of an event.
const REDACTED: &str = "[redacted]";
/// A page ends with the event that reaches so many bytes.
const MAX_PAGE_BYTES: usize = 1024 * 1024;

impl Server {
    /// Sets the durable bus whose dead letters are at `GET /dead-letters?group=NAME`, with their reasons and attempts.
    /// `POST /dead-letters/{id}/replay?group=NAME` delivers one to its group again. Both need the scope `events:admin`, which sees the events of
    /// all callers.
    pub fn dead_letters(mut self, bus: impl DurableBus) -> Self {
        self.dead_letters = Some(Arc::new(bus));
        self
    }
}

/// Adds the routes of dead letters.
pub(crate) fn add_dead_letters(table: &mut RouteTable, bus: &Arc<dyn DurableBus>) -> Result<(), ConfigError> {
    table.add(Method::GET, "/dead-letters", List(bus.clone()))?;
    table.add(Method::POST, "/dead-letters/{id}/replay", Replay(bus.clone()))
}

/// `GET /dead-letters`
struct List(Arc<dyn DurableBus>);

/// `POST /dead-letters/{id}/replay`
struct Replay(Arc<dyn DurableBus>);

/// The answer to `GET /dead-letters`.
#[derive(Serialize, JsonSchema)]
pub(crate) struct DeadLetters {
    /// The oldest first.
    dead_letters: Vec<Letter>,
    /// Cursor of the next page. Null at the end.
    next: Option<String>,
}

#[derive(Serialize, JsonSchema)]
struct Letter {
    /// Unique in the group.
    id: String,
    /// The event in its native form, without the token in its data. Null where the bytes are none.
    event: Option<Value>,
    /// The bytes that are no event, in base64. Null where they are one.
    bytes: Option<String>,
    /// Why it is no longer delivered.
    reason: String,
    /// Number of deliveries.
    attempts: u32,
    /// The last deliveries that failed, oldest first.
    history: Vec<Attempt>,
}

#[derive(Serialize, JsonSchema)]
struct Attempt {
    /// Time of the delivery (RFC 3339).
    at: String,
    /// Name of the consumer.
    consumer: String,
    /// Why it was not acknowledged.
    reason: String,
}

/// The answer to a replay.
#[derive(Serialize, JsonSchema)]
pub(crate) struct Replayed {
    id: String,
    group: String,
}

#[async_trait]
impl Endpoint for List {
    fn takes(&self) -> Takes {
        Takes::Place
    }

    async fn call(&self, inbound: Inbound<'_>) -> Result<Answer, Refusal> {
        inbound.parts.caller.may(SCOPE)?;
        let Query { group, after, limit } = Query::read(inbound.head.uri.query(), true)?;
        let limit = limit.unwrap_or(PAGE);
        // One more says whether there is another page.
        let listed = async {
            self.0.dead_letters(&group, after.as_deref(), limit + 1).await.map_err(|error| failure(&error))
        };
        let mut found = within(inbound.parts.deadline, listed).await?;
        let mut bytes = 0;
        let fits = |letter: &&DeadLetter| {
            let fits = bytes < MAX_PAGE_BYTES;
            bytes += letter.event.as_ref().map_or_else(Bytes::len, Event::size);
            fits
        };
        let count = found.iter().take(limit).take_while(fits).count();
        let has_more = found.len() > count;
        found.truncate(count);
        let next = found.last().filter(|_| has_more).map(|letter| letter.entry.clone());
        let dead_letters = found.into_iter().map(Letter::of).collect::<Result<_, _>>()?;
        Ok(Answer::json(&DeadLetters { dead_letters, next })?)
    }
}

#[async_trait]
impl Endpoint for Replay {
    fn takes(&self) -> Takes {
        Takes::Place
    }

    async fn call(&self, inbound: Inbound<'_>) -> Result<Answer, Refusal> {
        inbound.parts.caller.may(SCOPE)?;
        let Query { group, .. } = Query::read(inbound.head.uri.query(), false)?;
        let replayed = async { self.0.replay(&group, inbound.id).await.map_err(|error| failure(&error)) };
        within(inbound.parts.deadline, replayed).await?;
        let id = inbound.id.to_owned();
        Ok(Answer::json(&Replayed { id, group })?.status(StatusCode::ACCEPTED))
    }
}

impl Letter {
    fn of(letter: DeadLetter) -> Result<Self, Failure> {
        let DeadLetter { entry: id, event, reason, attempts, history, .. } = letter;
        let (event, bytes) = match event {
            Ok(event) => {
                let mut event = serde_json::to_value(&event).map_err(|_| Failure::of(ErrorKind::Internal))?;
                // That of a job would let its reader act as the caller.
                if let Some(token) = event.pointer_mut("/data/token") {
                    *token = REDACTED.into();
                }
                (Some(event), None)
            }
            Err(bytes) => (None, Some(BASE64_STANDARD.encode(bytes))),
        };
        let attempt =
            |FailedAttempt { at, consumer, reason, .. }| Attempt { at: at.to_string(), consumer, reason };
        Ok(Self { id, event, bytes, reason, attempts, history: history.into_iter().map(attempt).collect() })
    }
}

/// `group=&after=&limit=`, each at most once.
#[derive(Default)]
struct Query {
    group: String,
    after: Option<String>,
    limit: Option<usize>,
}

impl Query {
    /// # Errors
    /// The group is missing, or a parameter is malformed or unknown. Only lists have pages.
    fn read(text: Option<&str>, is_list: bool) -> Result<Self, Failure> {
        let (mut group, mut query) = (None, Self::default());
        parameters(text.unwrap_or_default(), |name, value| match name {
            "group" => Some(group.replace(value.to_owned()).is_some()),
            "after" if is_list => Some(query.after.replace(value.to_owned()).is_some()),
            "limit" if is_list => limit(value, MAX_PAGE).map(|limit| query.limit.replace(limit).is_some()),
            _ => None,
        })?;
        let missing = || Failure::new(ErrorKind::BadRequest, "the query parameter group is missing");
        query.group = group.ok_or_else(missing)?;
        Ok(query)
    }
}

fn failure(error: &BusError) -> Failure {
    match error {
        BusError::UnknownGroup { .. } => Failure::new(ErrorKind::NotFound, "there is no such group"),
        BusError::UnknownDeadLetter { .. } => {
            Failure::new(ErrorKind::NotFound, "there is no such dead letter")
        }
        BusError::Full { .. } => Failure::new(ErrorKind::Unavailable, "the bus is full: try again later"),
        error => {
            let source: &dyn std::error::Error = error;
            tracing::warn!(error = source, "the dead letters of the bus are not available");
            Failure::new(ErrorKind::Unavailable, "the bus is not available: try again later")
        }
    }
}
