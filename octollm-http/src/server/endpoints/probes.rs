//! What a server tells about itself.

use std::{collections::BTreeMap, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use http::{StatusCode, header, request::Parts, uri::Authority};
use jiff::Timestamp;
use octollm_core::{
    card::{ArmCard, ArmStatus},
    dispatcher::Dispatcher,
};
use serde::Serialize;

use crate::server::{
    respond::{Refusal, Reply},
    routes::{Endpoint, Inbound, Takes},
    vitals::Vitals,
};

/// `GET /health`: the process lives.
pub(crate) struct Health {
    pub(crate) vitals: Arc<Vitals>,
    pub(crate) version: String,
}

#[derive(Serialize)]
struct HealthBody<'a> {
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
        let uptime_seconds = self.vitals.uptime().as_secs();
        Reply::json(&HealthBody { status: ArmStatus::Healthy, version: &self.version, uptime_seconds })
    }
}

/// `GET /ready`: work may be sent here.
pub(crate) struct Ready {
    pub(crate) vitals: Arc<Vitals>,
}

#[derive(Serialize)]
struct ReadyBody<'a> {
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
        let checks = self.vitals.run_checks().await;
        let ready = !self.vitals.is_draining() && checks.values().all(|passed| *passed);
        let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        Ok(Reply::json(&ReadyBody { ready, checks, timestamp: Timestamp::now() })?.status(status))
    }
}

/// `GET /capabilities` of an arm: its card.
pub(crate) struct ArmCapabilities {
    pub(crate) dispatcher: Arc<Dispatcher>,
    pub(crate) vitals: Arc<Vitals>,
}

#[async_trait]
impl Endpoint for ArmCapabilities {
    fn takes(&self) -> Takes {
        Takes::Probe
    }

    async fn call(&self, inbound: Inbound<'_>) -> Result<Reply, Refusal> {
        Reply::json(&self.card(inbound.head))
    }
}

impl ArmCapabilities {
    /// The card as it is now, for a caller who asked with this head.
    pub(crate) fn card(&self, head: &Parts) -> ArmCard {
        let mut card: ArmCard = self.dispatcher.card().clone();
        if card.endpoint.is_none() {
            card.endpoint = asked_at(head).map(|authority| format!("http://{authority}"));
        }
        if self.vitals.is_draining() {
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
        Takes::Probe
    }

    async fn call(&self, _: Inbound<'_>) -> Result<Reply, Refusal> {
        Ok(Reply::written(self.0.clone()))
    }
}
