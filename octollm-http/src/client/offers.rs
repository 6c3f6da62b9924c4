//! Offers: which contracts are served at which endpoints, and the choice of one for a call.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, OnceLock},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Uri};
use octollm_core::{
    card::{ArmCard, ArmStatus},
    contract::{ContractCard, ContractRef, Keys},
    error::{CallError, ErrorKind, Failure},
    parts::ContextParts,
    transport::Call,
};
use tokio::time::Instant;

use super::{
    base_url::is_path,
    choice::{Rank, choose},
    exchange::Target,
    metrics::CallMeter,
    site::Site,
    sse::EVENTS,
};
use crate::wire;

/// The offers of one contract: every arm that serves it, at each of its endpoints.
#[derive(Debug)]
pub(super) struct Offers {
    offers: Vec<Offer>,
    /// The rank of the best offer when nothing is against it.
    best: Rank,
}

/// One contract, at one endpoint of one arm.
#[derive(Debug)]
pub(super) struct Offer {
    pub(super) site: Arc<Site>,
    uri: Uri,
    pub(super) timeout: Duration,
    pub(super) meter: Arc<CallMeter>,
    /// Scope that a token needs.
    pub(super) scope: String,
    /// Id, key and needs of the arm.
    pub(super) callee: Arc<ArmCard>,
    /// Who has the records of calls with a key.
    keys: Keys,
    /// By its card.
    idempotent: bool,
    /// Whether its card has chunks.
    has_chunks: bool,
    /// Fingerprint of the arm's schemas; empty where the card has none.
    pub(super) fingerprint: String,
    /// Set at the first call with schemas.
    pub(super) drift: OnceLock<Option<Drift>>,
    /// The rank by its card.
    rank: Rank,
}

/// The fingerprints of a contract whose schemas differ between caller and arm.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Drift {
    pub(super) ours: String,
    pub(super) theirs: String,
}

impl Offers {
    fn new(offers: Vec<Offer>) -> Self {
        let best = offers.iter().map(|offer| offer.rank).min().unwrap_or(Rank::good(0, 1));
        Self { offers, best }
    }

    /// Position of the offer for the next attempt: one that can be used and was not tried, then the one with less load of two.
    /// `tried` are those that did not take this attempt.
    pub(super) fn choose(&self, call: &Call, tried: &[usize], now: Instant, random: u64) -> Option<usize> {
        let rank = |position: usize| {
            let offer = self.offers.get(position)?;
            let name = offer.site.url.as_str();
            let is_other = call.only.as_ref().is_some_and(|only| **only != *name);
            if is_other || tried.contains(&position) {
                return None;
            }
            let is_avoided = call.avoid.iter().any(|avoided| **avoided == *name);
            Some(Rank { is_avoided, ..offer.site.rank(offer.rank, now) })
        };
        let load = |position: usize| self.offers.get(position).map_or(0.0, |offer| offer.site.load(now));
        match &*self.offers {
            [_] => rank(0).map(|_| 0),
            offers => choose(offers.len(), self.best, rank, load, random),
        }
    }

    /// The offers whose breakers would reject the call, with how long they do.
    pub(super) fn rejecting(
        &self,
        call: &Call,
        now: Instant,
    ) -> impl Iterator<Item = (usize, &Offer, Duration)> {
        let only = call.only.clone();
        self.offers.iter().enumerate().filter_map(move |(position, offer)| {
            let is_other = only.as_ref().is_some_and(|only| **only != *offer.site.url.as_str());
            let wait = offer.site.rejects(now).filter(|_| !is_other)?;
            Some((position, offer, wait))
        })
    }

    pub(super) fn sites(&self) -> impl ExactSizeIterator<Item = &Site> {
        self.offers.iter().map(|offer| &*offer.site)
    }

    pub(super) fn get(&self, position: usize) -> Option<&Offer> {
        self.offers.get(position)
    }

    /// Whether both have the same arms and URIs.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        let places = |all: &Self| {
            all.offers.iter().map(|offer| (Arc::as_ptr(&offer.site), offer.uri.clone())).collect::<Vec<_>>()
        };
        places(self) == places(other)
    }

    /// Who has the record of a call with a key: all offers, only that to which it was sent, or nobody.
    pub(super) fn keys(&self) -> Keys {
        let mut arms = self.offers.iter().map(|offer| &offer.site.arm);
        let first = arms.next();
        let is_one_arm = arms.all(|arm| Some(arm) == first);
        let all = |accepted: &[Keys]| self.offers.iter().all(|offer| accepted.contains(&offer.keys));
        match is_one_arm {
            _ if !all(&[Keys::Shared, Keys::Instance]) => Keys::None,
            true if all(&[Keys::Shared]) => Keys::Shared,
            _ => Keys::Instance,
        }
    }

    /// Checks that a call which must run once, or may have run before, is run once by its key: the cards may have changed.
    ///
    /// # Errors
    /// [`ErrorKind::OutcomeUnknown`], or [`ErrorKind::NotImplemented`] for a call that has not run.
    pub(super) fn check_keys(&self, call: &Call) -> Result<(), CallError> {
        let ContextParts { repeated, key, .. } = &call.parts;
        if *repeated && key.is_some() && !call.is_idempotent() && self.keys() == Keys::None {
            let failure = Failure::of(ErrorKind::OutcomeUnknown);
            return Err(CallError::new(call.contract.clone(), failure).with_attempts(0));
        }
        let honoured = || self.offers.iter().all(|offer| offer.idempotent || offer.keys != Keys::None);
        call.check_keys(!call.run_once || honoured())
            .map_err(|failure| CallError::new(call.contract.clone(), failure).with_attempts(0))
    }

    /// The offer at an endpoint.
    pub(super) fn at_site(&self, site: &Site) -> Option<&Offer> {
        self.offers.iter().find(|offer| std::ptr::eq(&*offer.site, site))
    }
}

impl Offer {
    /// Whether its server is one of octollm, by its card.
    pub(super) fn is_octollm(&self) -> bool {
        self.callee.instance.is_some()
    }

    /// What a request accepts whose updates are read: events, and of a server that may not have them JSON as well. `None` where the
    /// server is not asked for them.
    pub(super) fn accepts_events(&self) -> Option<HeaderValue> {
        match (self.is_octollm(), self.has_chunks) {
            (true, _) => Some(HeaderValue::from_static(EVENTS)),
            (false, true) => Some(HeaderValue::from_static("text/event-stream, application/json")),
            (false, false) => None,
        }
    }

    /// The request of one call, at `now`.
    pub(super) fn request(&self, call: &Call, now: Instant) -> Request<Bytes> {
        let (uri, input) = (self.uri.clone(), Some(call.input.clone()));
        let accepts = !self.is_octollm();
        let mut request = self.site.url.request((Method::POST, uri), input, &call.parts, (accepts, now));
        if call.parts.repeated {
            // The card may be of another process meanwhile.
            let sent_to = call.instance.as_deref().and_then(|id| HeaderValue::from_str(id).ok());
            let sent_to = sent_to.unwrap_or(HeaderValue::from_static("?"));
            request.headers_mut().insert(wire::names::INSTANCE, sent_to);
        }
        request
    }

    /// Adds the instance that may have run a call, by this card.
    pub(super) fn name_instance(&self, error: CallError) -> CallError {
        match &self.callee.instance {
            Some(instance) if error.may_have_executed() => error.with_instance(instance),
            _ => error,
        }
    }

    pub(super) fn target(&self, call: &Call, work: Duration) -> Target {
        Target {
            arm: Arc::clone(&self.site.arm),
            endpoint: self.site.url.shared(),
            contract: Some(call.contract.clone()),
            idempotent: call.is_idempotent(),
            deadline: call.parts.deadline,
            work,
        }
    }
}

impl Drift {
    /// Adds the fingerprints to a failure that may come from the difference.
    pub(super) fn explain(&self, failure: &mut Failure) {
        if !matches!(failure.kind, ErrorKind::ValidationFailed | ErrorKind::BadResponse) {
            return;
        }
        failure.message.push_str("; the schemas of caller and arm differ");
        failure.add_detail("schemas", serde_json::json!({ "caller": self.ours, "arm": self.theirs }));
    }
}

/// The offers of the contracts on the cards of these arms: those of each arm, one for each of its endpoints. An endpoint whose own
/// card does not list a contract of its arm offers it as the first endpoint that lists it.
pub(super) fn all<'a>(
    arms: impl Iterator<Item = Vec<(&'a Arc<Site>, Option<&'a ArmCard>)>>,
) -> HashMap<ContractRef, Arc<Offers>> {
    let mut found: HashMap<ContractRef, Vec<Offer>> = HashMap::new();
    for sites in arms {
        let own = |(site, card): (&'a Arc<Site>, Option<&'a ArmCard>)| {
            (site, card.map(|card| OwnCard::of(&site.arm, card)))
        };
        let sites: Vec<_> = sites.into_iter().map(own).collect();
        let mut listed = HashSet::new();
        for (_, first) in &sites {
            let Some(first) = first else { continue };
            for (reference, contract) in &first.contracts {
                if !listed.insert(reference) {
                    continue;
                }
                let offers = sites.iter().filter_map(|(site, own)| {
                    let own = own.as_ref().and_then(|own| Some((own, *own.contracts.get(reference)?)));
                    let (card, contract) = own.unwrap_or((first, contract));
                    offer(card, site, contract, CallMeter::of(&site.arm, reference))
                });
                found.entry(reference.clone()).or_default().extend(offers);
            }
        }
    }
    let found = found.into_iter().filter(|(_, offers)| !offers.is_empty());
    found.map(|(contract, offers)| (contract, Arc::new(Offers::new(offers)))).collect()
}

/// The card of one endpoint of an arm, as far as it is used in calls.
struct OwnCard<'a> {
    callee: Arc<ArmCard>,
    contracts: HashMap<ContractRef, &'a ContractCard>,
    rank: Rank,
}

impl<'a> OwnCard<'a> {
    fn of(arm: &str, card: &'a ArmCard) -> Self {
        // A card may name another arm as itself: tokens are for the arm that was configured.
        let mut callee = ArmCard::new(arm);
        (callee.needs, callee.key) = (card.needs.clone(), card.key.clone());
        callee.instance.clone_from(&card.instance);
        let mut contracts = HashMap::new();
        for contract in card.contracts.iter().filter(|contract| unusable(contract).is_none()) {
            // Of equal contracts on one card the first is called.
            if let Some(reference) = contract.reference() {
                contracts.entry(reference).or_insert(contract);
            }
        }
        let status = match card.status {
            ArmStatus::Healthy => 0,
            ArmStatus::Unavailable => 2,
            _ => 1,
        };
        Self { callee: Arc::new(callee), contracts, rank: Rank::good(status, card.cost_tier) }
    }
}

/// The offer of a contract at an endpoint. `None` if the path in the card is invalid.
fn offer(
    card: &OwnCard<'_>,
    site: &Arc<Site>,
    contract: &ContractCard,
    meter: Arc<CallMeter>,
) -> Option<Offer> {
    Some(Offer {
        scope: contract.scope.clone(),
        callee: Arc::clone(&card.callee),
        uri: site.url.uri(&contract.path)?,
        site: Arc::clone(site),
        timeout: Duration::from_millis(contract.timeout_ms),
        keys: contract.keys,
        idempotent: contract.idempotent,
        has_chunks: !contract.chunk_schema.is_null(),
        meter,
        fingerprint: contract.fingerprint.clone(),
        drift: OnceLock::new(),
        rank: card.rank,
    })
}

/// The reason why a contract on a card cannot be called, if it cannot.
pub(super) fn unusable(contract: &ContractCard) -> Option<&'static str> {
    if contract.reference().is_none() {
        let is_name = ContractRef::new(&*contract.name, 1).is_ok();
        return Some(if is_name {
            "its version is not a number from 1"
        } else {
            "its name is not that of a contract"
        });
    }
    (!is_path(&contract.path)).then_some("its path is not the path of a route, which begins with `/`")
}

/// Logs the contracts on a card that are left out.
pub(super) fn log_left_out(arm: &str, card: &ArmCard) {
    let mut listed = HashSet::new();
    for contract in &card.contracts {
        let twice = || (!listed.insert(contract.reference())).then_some("it is on the card twice");
        if let Some(reason) = unusable(contract).or_else(twice) {
            tracing::warn!(arm, contract = contract.name, reason, "a contract on a card is left out");
        }
    }
}
