//! What a server gives up at its end: requests that are dropped without an answer are logged, counted and published.

use std::{
    fmt,
    sync::{LazyLock, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use http::HeaderMap;
use octollm_core::{
    __private::{Counters, who},
    bus::EventBus,
    event::Event,
};
use serde_json::json;
use tokio::time::timeout;

use super::{
    recording::{RouteMeter, Seen, milliseconds},
    routes::Ids,
};
use crate::wire::read_parts;

static GIVEN_UP: LazyLock<Counters> = LazyLock::new(|| {
    let help = "Requests that were dropped without an answer at the end of the server.";
    Counters::new("octollm_http_given_up_total", help, &["server", "method", "route", "reason"])
});

/// Requests that are logged and published one by one. Further ones are counted only.
const MOST_REPORTED: usize = 1000;
/// Time limit on publishing what was given up.
const PUBLISH: Duration = Duration::from_secs(1);

/// Why a server gives up what runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reason {
    /// The grace period is over.
    Grace,
    /// A second signal came.
    Signal,
}

/// Whether a server gives up what runs, and what it has given up.
#[derive(Debug, Default)]
pub(crate) struct Ending {
    reason: OnceLock<Reason>,
    given_up: Mutex<GivenUp>,
}

#[derive(Debug, Default)]
struct GivenUp {
    count: usize,
    events: Vec<Event>,
}

/// A request without an answer. Dropped as such at the end of the server, it is reported.
pub(crate) struct Unanswered<'a> {
    ending: &'a Ending,
    meter: Option<&'a RouteMeter>,
    seen: Option<&'a Seen>,
    ids: &'a Ids,
    is_answered: bool,
}

/// A request within the layers of the user, which can hold it before and after the server itself has it. Dropped there at the end of
/// the server, it is reported.
pub(crate) struct InLayers<'a> {
    pub(crate) ending: &'a Ending,
    pub(crate) meters: &'a [RouteMeter],
    pub(crate) seen: &'a Seen,
    /// The ids in its head.
    pub(crate) head: HeaderMap,
    pub(crate) is_answered: bool,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Grace => "grace",
            Self::Signal => "signal",
        })
    }
}

impl Ending {
    /// Reports requests that are dropped from now on.
    pub(crate) fn give_up(&self, reason: Reason) {
        let _ = self.reason.set(reason);
    }

    /// Publishes what was given up, and returns the number of requests.
    ///
    /// # Cancel safety
    /// Dropping the future loses the events that are not published yet.
    pub(crate) async fn publish(&self, bus: Option<&dyn EventBus>) -> usize {
        let GivenUp { count, events } = std::mem::take(&mut *self.given_up());
        let Some(bus) = bus.filter(|_| !events.is_empty()) else { return count };
        match timeout(PUBLISH, bus.publish_all(events)).await {
            Ok(results) => {
                let failed = results.iter().filter(|result| result.is_err()).count();
                if let Some(Err(error)) = results.iter().find(|result| result.is_err()) {
                    tracing::warn!(%error, failed, "requests that were given up could not be published");
                }
            }
            Err(_) => tracing::warn!("requests that were given up could not be published in time"),
        }
        count
    }

    fn given_up(&self) -> MutexGuard<'_, GivenUp> {
        self.given_up.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn report(&self, reason: Reason, ids: &Ids, meter: &RouteMeter, seen: &Seen) {
        if !seen.give_up() {
            return;
        }
        let (server, method, route) = (&*meter.server, &*meter.method, &*meter.route);
        let reason = reason.to_string();
        GIVEN_UP.with(&[server, method, route, &reason]).count();
        let count = {
            let mut given_up = self.given_up();
            given_up.count += 1;
            given_up.count
        };
        if count > MOST_REPORTED {
            return;
        }
        let (request, correlation) = ids.texts();
        let contract = seen.contract.get().or(meter.contract.as_ref()).map(ToString::to_string);
        let grant = seen.caller.get().and_then(|caller| caller.grant());
        let task = ids.task_id().or_else(|| grant?.task.as_ref()).map(ToString::to_string);
        let running = seen.begun.elapsed();
        tracing::warn!(
            request,
            correlation,
            method,
            route,
            contract,
            caller = seen.caller.get().and_then(who).map(tracing::field::display),
            task,
            running_ms = milliseconds(running),
            reason,
            server,
            "request given up"
        );
        let data = json!({
            "request_id": request,
            "method": method,
            "route": route,
            "contract": contract,
            "issuer": grant.and_then(|grant| grant.issuer.as_deref()),
            "caller": grant.map(|grant| &grant.subject),
            "task_id": task,
            "running_ms": u64::try_from(running.as_millis()).unwrap_or(u64::MAX),
            "reason": reason,
        });
        match Event::new("request.dropped", server, data) {
            Ok(event) => {
                self.given_up().events.push(event.with_subject(request).with_correlation_id(correlation))
            }
            Err(error) => tracing::error!(%error, "event cannot be written"),
        }
    }
}

impl<'a> Unanswered<'a> {
    pub(crate) fn new(
        ending: &'a Ending,
        meter: Option<&'a RouteMeter>,
        seen: Option<&'a Seen>,
        ids: &'a Ids,
    ) -> Self {
        Self { ending, meter, seen, ids, is_answered: false }
    }

    pub(crate) fn answered(mut self) {
        self.is_answered = true;
    }
}

impl Drop for Unanswered<'_> {
    fn drop(&mut self) {
        let Some(reason) = self.ending.reason.get().filter(|_| !self.is_answered) else { return };
        if let (Some(meter), Some(seen)) = (self.meter.filter(|meter| !meter.is_quiet), self.seen) {
            self.ending.report(*reason, self.ids, meter, seen);
        }
    }
}

impl Drop for InLayers<'_> {
    fn drop(&mut self) {
        let Some(reason) = self.ending.reason.get().filter(|_| !self.is_answered) else { return };
        let Some(meter) = self.seen.meter(self.meters).filter(|meter| !meter.is_quiet) else { return };
        let parts = read_parts(&self.head).unwrap_or_else(|refused| refused.1);
        self.ending.report(*reason, &Ids::of(&self.head, &parts), meter, self.seen);
    }
}
