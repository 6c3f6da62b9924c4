//! Arms at an orchestrator: registering one there, and following those that are there.

use std::{collections::HashSet, mem, time::Duration};

use async_trait::async_trait;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use octollm_core::{
    card::{ArmCard, ArmStatus},
    deadline::Deadline,
    error::{ErrorKind, Failure},
    json::read_output,
    parts::{Caller, ContextParts},
};
use serde::Deserialize;
use tokio::time::{Instant, sleep_until};
use tower::BoxError;

use super::{
    OrchestratorClient,
    exchange::{never_nothing, read_answer},
};
use crate::{
    registry::{Announce, Announcement, Registered, endpoint_of, random},
    resolve::{Endpoint, Resolver},
    wire::names,
};

/// Time limits on a registration, and on asking for the arms: an orchestrator may have to ask some of them for their cards.
const REGISTER: Duration = Duration::from_secs(5);
const ASK: Duration = Duration::from_secs(15);
/// Time between two questions for the arms, and the longest after failures.
const INTERVAL: Duration = Duration::from_secs(5);
const LONGEST: Duration = Duration::from_secs(30);

/// Registers arms by `POST /arms/register`. The token has the scopes that are needed, of the caller of this client, or of its root.
#[async_trait]
impl Announce for OrchestratorClient {
    async fn announce(&self, announcement: &Announcement) -> Result<Duration, Failure> {
        let mut fields = HeaderMap::new();
        if let Some(proof) = announcement.proof(self.audience()) {
            let proof = HeaderValue::try_from(proof).map_err(|_| Failure::of(ErrorKind::Internal))?;
            fields.insert(names::PROOF, proof);
        }
        let scopes: Vec<_> = announcement.scopes().iter().map(String::as_str).collect();
        let body = Some(announcement.body().clone());
        let mut parts = ContextParts::new();
        parts.caller = self.own_caller().clone();
        let request = (Method::POST, "/arms/register", body);
        let answer =
            self.exchange(request, &parts, Deadline::after(REGISTER), (fields, Some(&scopes))).await?;
        let output = read_answer(answer, never_nothing).0?;
        let registered: Registered = read_output(&output).map_err(|error| {
            Failure::new(ErrorKind::BadResponse, format!("the answer has another shape: {error}"))
        })?;
        Ok(Duration::from_secs(registered.lifetime_s))
    }

    fn at(&self) -> &str {
        self.url()
    }
}

impl OrchestratorClient {
    /// Returns a resolver of the arms that the orchestrator knows and that accept work. It asks `GET /arms` every 5 s, and receives the
    /// list where that has changed. While the orchestrator is away, the last list stays in force. An arm that it lists as unavailable is
    /// not called any more, and one that it does not list after `resolver_grace`: an orchestrator that was restarted knows none before they
    /// have registered again.
    ///
    /// The orchestrator decides where calls go: tokens are sent to the URLs that it returns.
    pub fn resolver(&self) -> impl Resolver {
        Following {
            client: self.clone(),
            tag: None,
            known: None,
            unavailable: HashSet::new(),
            has_failed: false,
            asks: Asks::default(),
            next: None,
        }
    }
}

/// When the arms are asked for next.
#[derive(Debug, Default)]
struct Asks {
    failures: u32,
}

impl Asks {
    /// The wait after an answer or a failure, where `random` is from 0 to 1.
    fn wait(&mut self, is_answered: bool, random: f64) -> Duration {
        self.failures = if is_answered { 0 } else { self.failures.saturating_add(1) };
        let wait = INTERVAL.saturating_mul(1 << self.failures.saturating_sub(1).min(5)).min(LONGEST);
        wait.mul_f64(0.9 + 0.2 * random.clamp(0.0, 1.0))
    }
}

/// Follows `GET /arms`.
struct Following {
    client: OrchestratorClient,
    /// The `ETag` of the last list.
    tag: Option<HeaderValue>,
    /// The last set.
    known: Option<Vec<Endpoint>>,
    /// The arms of the last list that do not accept work.
    unavailable: HashSet<String>,
    /// Whether the last answer was an error, after which the set is returned again.
    has_failed: bool,
    asks: Asks,
    /// When to ask again.
    next: Option<Instant>,
}

#[derive(Deserialize)]
struct Arms {
    arms: Vec<ArmCard>,
}

#[async_trait]
impl Resolver for Following {
    async fn next(&mut self) -> Result<Vec<Endpoint>, BoxError> {
        loop {
            if let Some(next) = self.next {
                sleep_until(next).await;
            }
            let asked = self.ask().await;
            self.next = Some(Instant::now() + self.asks.wait(asked.is_ok(), random()));
            let had_failed = mem::replace(&mut self.has_failed, asked.is_err());
            let is_changed = asked?;
            if let Some(known) = self.known.as_ref().filter(|_| is_changed || had_failed) {
                return Ok(known.clone());
            }
        }
    }

    fn has_left(&self, arm: &str) -> bool {
        self.unavailable.contains(arm)
    }
}

impl Following {
    /// Asks for the arms. Returns whether they have changed.
    async fn ask(&mut self) -> Result<bool, Failure> {
        let mut fields = HeaderMap::new();
        if let Some(tag) = &self.tag {
            fields.insert(header::IF_NONE_MATCH, tag.clone());
        }
        // Cards need no token.
        let mut parts = ContextParts::new();
        parts.caller = Caller::Anonymous;
        let request = (Method::GET, "/arms", None);
        let answer = self.client.exchange(request, &parts, Deadline::after(ASK), (fields, None)).await?;
        if answer.status() == StatusCode::NOT_MODIFIED && self.known.is_some() {
            return Ok(false);
        }
        let tag = answer.headers().get(header::ETAG).cloned();
        let output = read_answer(answer, never_nothing).0?;
        let Arms { arms } = read_output(&output)
            .map_err(|_| Failure::new(ErrorKind::BadResponse, "the answer is no list of arms"))?;
        let (unavailable, working): (Vec<_>, Vec<_>) =
            arms.iter().partition(|card| card.status == ArmStatus::Unavailable);
        let (mut found, mut places) = (Vec::new(), HashSet::new());
        for endpoint in working.into_iter().filter_map(endpoint_of) {
            if places.insert((endpoint.arm.clone(), endpoint.url.clone())) {
                found.push(endpoint);
            }
        }
        self.tag = tag;
        self.unavailable = unavailable.into_iter().map(|card| card.arm_id.clone()).collect();
        let found = Some(found);
        let is_changed = self.known != found;
        self.known = found;
        Ok(is_changed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_orchestrator_that_is_away_is_asked_less_often() {
        let mut asks = Asks::default();
        let waits: Vec<_> = (0..6).map(|_| asks.wait(false, 0.5).as_secs()).collect();
        assert_eq!(waits, [5, 10, 20, 30, 30, 30]);
        assert_eq!(asks.wait(true, 0.0), INTERVAL.mul_f64(0.9));
        for _ in 0..100 {
            assert!(asks.wait(false, 1.0) <= LONGEST.mul_f64(1.1));
        }
    }
}
