//! What a server says of itself, and how it is.

use std::{
    collections::BTreeMap,
    fmt,
    future::Future,
    panic::AssertUnwindSafe,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{FutureExt, future::join_all};
use http::{StatusCode, header, request::Parts, uri::Authority};
use jiff::Timestamp;
use octollm_core::{
    card::{ArmCard, ArmStatus},
    dispatcher::Dispatcher,
};
use schemars::JsonSchema;
use serde::Serialize;
use tokio::time::{Instant, timeout};

use super::{
    head::Arrival,
    reply::{Refusal, Reply},
    routes::{Endpoint, Inbound, Takes},
};

/// `GET /health`: the process lives.
pub(crate) struct Health {
    pub(crate) health: Arc<HealthState>,
    pub(crate) version: String,
}

#[derive(Serialize, JsonSchema)]
pub(crate) struct HealthBody<'a> {
    status: ArmStatus,
    version: &'a str,
    uptime_seconds: u64,
}

#[async_trait]
impl Endpoint for Health {
    fn takes(&self) -> Takes {
        Takes::Probe
    }

    async fn call(&self, _: Inbound<'_>) -> Result<Reply, Refusal> {
        let uptime_seconds = self.health.uptime().as_secs();
        Reply::json(&HealthBody { status: ArmStatus::Healthy, version: &self.version, uptime_seconds })
    }
}

/// `GET /ready`: work may be sent here.
pub(crate) struct Ready {
    pub(crate) health: Arc<HealthState>,
}

#[derive(Serialize, JsonSchema)]
pub(crate) struct ReadyBody<'a> {
    ready: bool,
    checks: BTreeMap<&'a str, bool>,
    timestamp: Timestamp,
}

#[async_trait]
impl Endpoint for Ready {
    fn takes(&self) -> Takes {
        Takes::Probe
    }

    async fn call(&self, _: Inbound<'_>) -> Result<Reply, Refusal> {
        let checks = self.health.run_checks().await;
        let ready = !self.health.is_draining() && checks.values().all(|passed| *passed);
        let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        Ok(Reply::json(&ReadyBody { ready, checks, timestamp: Timestamp::now() })?.status(status))
    }
}

/// `GET /capabilities` of an arm: its card.
#[derive(Clone)]
pub(crate) struct ArmCapabilities {
    pub(crate) dispatcher: Arc<Dispatcher>,
    pub(crate) health: Arc<HealthState>,
}

#[async_trait]
impl Endpoint for ArmCapabilities {
    fn takes(&self) -> Takes {
        Takes::Document
    }

    async fn call(&self, inbound: Inbound<'_>) -> Result<Reply, Refusal> {
        Reply::json(&self.card(&inbound))
    }
}

impl ArmCapabilities {
    /// The card as it is now. Where nothing else is set, its endpoint is what the caller asked. Below a path of somebody
    /// else's server that is not known, and left to the caller, who knows by which URL it asks.
    pub(crate) fn card(&self, inbound: &Inbound<'_>) -> ArmCard {
        let mut card: ArmCard = self.dispatcher.card().clone();
        if card.endpoint.is_none() && inbound.arrival != Arrival::Mounted {
            card.endpoint = asked_at(inbound.head).map(|authority| format!("http://{authority}"));
        }
        if self.health.is_draining() {
            card.status = ArmStatus::Unavailable;
        }
        card
    }
}

/// Under which name the caller reached this server.
fn asked_at(head: &Parts) -> Option<Authority> {
    let host = || head.headers.get(header::HOST).and_then(|host| Authority::try_from(host.as_bytes()).ok());
    head.uri.authority().cloned().or_else(host)
}

/// A document that never changes.
pub(crate) struct Written(pub(crate) Bytes);

#[async_trait]
impl Endpoint for Written {
    fn takes(&self) -> Takes {
        Takes::Document
    }

    async fn call(&self, _: Inbound<'_>) -> Result<Reply, Refusal> {
        Ok(Reply::written(self.0.clone()))
    }
}

/// One thing that must hold for a server to be ready.
pub(crate) struct Check {
    name: String,
    run: Box<dyn Fn() -> CheckFuture + Send + Sync>,
}

type CheckFuture = Pin<Box<dyn Future<Output = bool> + Send>>;

impl Check {
    pub(crate) fn new<F, Fut>(name: String, check: F) -> Self
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = bool> + Send + 'static,
    {
        Self { name, run: Box::new(move || Box::pin(check())) }
    }
}

impl fmt::Debug for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Check").field(&self.name).finish()
    }
}

/// How a server is: how long it runs, whether it goes down, and what it depends on.
#[derive(Debug)]
pub(crate) struct HealthState {
    started: Instant,
    draining: AtomicBool,
    checks: Vec<Check>,
    check_timeout: Duration,
}

impl HealthState {
    pub(crate) fn new(checks: Vec<Check>, check_timeout: Duration) -> Self {
        Self { started: Instant::now(), draining: AtomicBool::new(false), checks, check_timeout }
    }

    pub(crate) fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    /// From now on the server is not ready.
    pub(crate) fn drain(&self) {
        self.draining.store(true, Ordering::Release);
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// Runs all checks at once. One that takes too long or panics has failed.
    pub(crate) async fn run_checks(&self) -> BTreeMap<&str, bool> {
        let checks = self.checks.iter().map(|check| async move {
            let run = AssertUnwindSafe(async { (check.run)().await }).catch_unwind();
            let passed = matches!(timeout(self.check_timeout, run).await, Ok(Ok(true)));
            (check.name.as_str(), passed)
        });
        let mut passed = BTreeMap::new();
        for (name, holds) in join_all(checks).await {
            *passed.entry(name).or_insert(true) &= holds;
        }
        passed
    }
}
