//! The layer by which an event is handled once.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::time::Instant;
use tower::{Layer, Service, ServiceExt};
use uuid::Uuid;

use super::{HandlerService, Nack, Received, boxed};
use crate::budget::Usage;
use crate::clock;
use crate::contract::hex;
use crate::event::Event;
use crate::idempotency::{Begun, IdempotencyStore, KeyedAnswer, KeyedRun, Started};

/// Has an event with the same source and id handled once, by the records of a store. An event that was handled before is acknowledged. One
/// that is being handled is retried.
///
/// A record is retained for the [retention](IdempotencyStore::retention) of the store. An event whose handler was interrupted, by a crash, a lost lease or
/// [`max_run`](Self::max_run), is a dead letter with the reason `outcome_unknown`: its effect may have been made. Where the effect is in a database, the inbox of
/// that database makes it exactly once.
#[derive(Clone)]
pub struct InboxLayer {
    name: Arc<str>,
    store: Arc<dyn IdempotencyStore>,
    max_run: Duration,
}

impl InboxLayer {
    /// Creates a layer for the handler of this name. Two handlers of one name share their records.
    pub fn new(name: impl Into<Arc<str>>, store: Arc<dyn IdempotencyStore>) -> Self {
        Self { name: name.into(), store, max_run: Duration::from_secs(5 * 60) }
    }

    /// Sets how long the handler may take (default 5 min). After that, the record counts as that of a crash.
    #[must_use]
    pub fn max_run(mut self, time: Duration) -> Self {
        self.max_run = time;
        self
    }

    async fn once<F>(&self, received: Received, handle: impl FnOnce(Received) -> F) -> Result<(), Nack>
    where
        F: Future<Output = Result<(), Nack>>,
    {
        let run = self.record(&received.event);
        let away = |_| Nack::retry().with_reason("the inbox is not available");
        let mut started = Started::new(&*self.store, &run);
        let begun = self.store.begin(&run, self.max_run, false).await.map_err(away)?;
        if !matches!(begun, Begun::Run) {
            started.ended();
            return not_begun(&begun);
        }
        started.runs();
        let (began, clock) = (clock::now(), Instant::now());
        let result = handle(received).await;
        let recorded = match &result {
            Ok(()) => {
                let answer = KeyedAnswer::new(Ok("null".into()), Usage::ZERO, began, clock.elapsed());
                self.store.finish(&run, answer).await
            }
            Err(_) => self.store.release(&run, true).await,
        };
        if let Err(error) = recorded {
            tracing::warn!(inbox = &*self.name, %error, "the inbox has no record of an event that was handled");
        } else {
            started.ended();
        }
        result
    }

    fn record(&self, event: &Event) -> KeyedRun {
        let mut digest = Sha256::new();
        for text in ["inbox", &self.name, event.source(), event.id()] {
            digest.update((text.len() as u64).to_be_bytes());
            digest.update(text);
        }
        KeyedRun { record: hex(&digest.finalize()), input: "0".repeat(32), run: Uuid::new_v4() }
    }
}

/// What becomes of an event whose handler does not run.
fn not_begun(begun: &Begun) -> Result<(), Nack> {
    match begun {
        Begun::Answered(_) => Ok(()),
        Begun::Running => Err(Nack::retry().with_reason("it is being handled elsewhere")),
        Begun::Full => Err(Nack::retry().with_reason("the inbox is full")),
        _ => Err(Nack::dead_letter("outcome_unknown: an earlier attempt was interrupted")),
    }
}

impl<S> Layer<S> for InboxLayer
where
    S: Service<Received, Response = (), Error = Nack> + Clone + Send + Sync + 'static,
    S::Future: Send,
{
    type Service = HandlerService;

    fn layer(&self, service: S) -> HandlerService {
        let inbox = self.clone();
        boxed(move |received| {
            let (inbox, service) = (inbox.clone(), service.clone());
            async move { inbox.once(received, |received| service.oneshot(received)).await }
        })
    }
}

impl fmt::Debug for InboxLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InboxLayer").field("name", &self.name).finish_non_exhaustive()
    }
}
