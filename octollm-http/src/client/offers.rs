//! Where a contract is offered.

use std::{
    collections::HashMap,
    ops::Range,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Method, Request, Uri,
    header::{ACCEPT, CONTENT_TYPE, HOST},
};
use octollm_core::{
    card::ArmCard,
    contract::{ContractCard, ContractRef, Keys},
    error::{ErrorKind, Failure},
    transport::Call,
};

use super::{endpoint::Endpoint, exchange::Target};
use crate::wire;

/// An arm as it was configured.
#[derive(Debug)]
pub(super) struct ConfiguredArm {
    pub(super) id: Arc<str>,
    /// At least one.
    pub(super) endpoints: Vec<Endpoint>,
    /// The place of the first of them among all endpoints.
    pub(super) first_site: usize,
    /// What it serves, for arms that have no card to show.
    pub(super) card: Option<ArmCard>,
}

/// Every arm that offers one contract, at each of its URLs.
#[derive(Debug)]
pub(super) struct Route {
    offers: Vec<Offer>,
    /// Whose turn it is.
    turn: AtomicUsize,
}

/// One contract, at one URL of one arm.
#[derive(Debug)]
pub(super) struct Offer {
    pub(super) arm: Arc<str>,
    pub(super) endpoint: Endpoint,
    uri: Uri,
    /// Its place among all endpoints of the directory.
    pub(super) site: usize,
    pub(super) timeout: Duration,
    /// Whether a call with a key runs once, whichever process of the arm it reaches.
    honours_keys: bool,
    /// Of the arm's schemas; empty where it does not tell.
    pub(super) fingerprint: String,
    /// Set at the first call that has schemas of its own.
    pub(super) drift: OnceLock<Option<Drift>>,
}

/// Two ideas of one contract.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Drift {
    pub(super) ours: String,
    pub(super) theirs: String,
}

impl Route {
    /// Where the next call begins.
    pub(super) fn next_turn(&self) -> usize {
        match self.offers.len() {
            0 | 1 => 0,
            many => self.turn.fetch_add(1, Ordering::Relaxed) % many,
        }
    }

    /// The steps to ask for [offers](Self::offer).
    pub(super) fn steps(&self) -> Range<usize> {
        0..2 * self.offers.len()
    }

    /// The offer of one step, if it has one. Over all steps each offer comes once: first those that are not to be avoided, beginning
    /// with the one whose turn it is, then the others.
    pub(super) fn offer(&self, turn: usize, step: usize, avoid: &[Arc<str>]) -> Option<&Offer> {
        let offer = self.offers.get((turn + step) % self.offers.len().max(1))?;
        let is_avoided = avoid.iter().any(|tried| **tried == *offer.endpoint.as_str());
        (is_avoided == (step >= self.offers.len())).then_some(offer)
    }

    /// Whether both lead to the same places.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        let places = |route: &Self| {
            route.offers.iter().map(|offer| (Arc::clone(&offer.arm), offer.uri.clone())).collect::<Vec<_>>()
        };
        places(self) == places(other)
    }

    /// Whether a call with a key runs once, however often it is sent and wherever.
    pub(super) fn honours_keys(&self) -> bool {
        let mut arms = self.offers.iter().map(|offer| &offer.arm);
        let first = arms.next();
        arms.all(|arm| Some(arm) == first) && self.offers.iter().all(|offer| offer.honours_keys)
    }

    pub(super) fn at_site(&self, site: usize) -> Option<&Offer> {
        self.offers.iter().find(|offer| offer.site == site)
    }
}

impl Offer {
    /// The request of one call. What is left of the deadline is written now.
    pub(super) fn request(&self, call: &Call) -> Request<Bytes> {
        let mut head = HeaderMap::with_capacity(HEADERS);
        head.insert(HOST, self.endpoint.host());
        head.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        head.insert(ACCEPT, HeaderValue::from_static("application/json"));
        wire::write_parts(&call.parts, &mut head);
        if let Some(key) = &call.key {
            wire::write_key(key, &mut head);
        }
        let mut request = Request::new(call.input.clone());
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.uri.clone();
        *request.headers_mut() = head;
        request
    }

    pub(super) fn target(&self, call: &Call, work: Duration) -> Target {
        Target {
            arm: Arc::clone(&self.arm),
            endpoint: self.endpoint.as_str().into(),
            contract: Some(call.contract.clone()),
            idempotent: call.is_idempotent(),
            deadline: call.parts.deadline,
            work,
        }
    }
}

/// As many as a call usually has, with room for a token.
const HEADERS: usize = 12;

impl Drift {
    /// What to add to a failure that may come from it.
    pub(super) fn explain(&self, failure: &mut Failure) {
        if !matches!(failure.kind, ErrorKind::ValidationFailed | ErrorKind::BadResponse) {
            return;
        }
        failure.message.push_str("; the schemas of caller and arm differ");
        let schemas = serde_json::json!({ "caller": self.ours, "arm": self.theirs });
        match &mut failure.details {
            Some(serde_json::Value::Object(details)) => {
                details.insert("schemas".into(), schemas);
            }
            details => *details = Some(serde_json::json!({ "schemas": schemas })),
        }
    }
}

/// The ways that the cards of these arms tell of.
pub(super) fn all<'a>(
    arms: impl Iterator<Item = (&'a ConfiguredArm, &'a ArmCard)>,
) -> HashMap<ContractRef, Arc<Route>> {
    let mut routes: HashMap<ContractRef, Vec<Offer>> = HashMap::new();
    for (arm, card) in arms {
        for contract in &card.contracts {
            let Some(reference) = contract.reference() else { continue };
            let endpoints = arm.endpoints.iter().zip(arm.first_site..);
            let offers = endpoints.filter_map(|(endpoint, site)| offer(&arm.id, endpoint, site, contract));
            routes.entry(reference).or_default().extend(offers);
        }
    }
    let route = |offers| Arc::new(Route { offers, turn: AtomicUsize::new(0) });
    routes
        .into_iter()
        .filter(|(_, offers)| !offers.is_empty())
        .map(|(contract, offers)| (contract, route(offers)))
        .collect()
}

/// `None` where the card's path is no path.
fn offer(arm: &Arc<str>, endpoint: &Endpoint, site: usize, contract: &ContractCard) -> Option<Offer> {
    Some(Offer {
        arm: Arc::clone(arm),
        endpoint: endpoint.clone(),
        uri: endpoint.route(&contract.path)?,
        site,
        timeout: Duration::from_millis(contract.timeout_ms),
        honours_keys: contract.keys == Keys::Shared,
        fingerprint: contract.fingerprint.clone(),
        drift: OnceLock::new(),
    })
}
