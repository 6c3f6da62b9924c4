//! Offers: which contracts are served at which URLs, and the requests that are sent there.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    ops::Range,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Uri,
    header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST},
    uri::PathAndQuery,
};
use octollm_core::{
    card::ArmCard,
    contract::{ContractCard, ContractRef, Keys},
    error::{ErrorKind, Failure},
    parts::ContextParts,
    transport::Call,
};

use super::{
    exchange::{Target, add_detail},
    metrics::CallMeter,
};
use crate::wire;

/// The URL of a service: `http://host:port` or `https://host`, with a path if the service is mounted. It is cheap to clone.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Endpoint(Arc<Inner>);

#[derive(PartialEq, Eq)]
struct Inner {
    /// Without a slash at its end.
    url: Arc<str>,
    host: HeaderValue,
    /// Fields of each request.
    fields: Vec<(HeaderName, HeaderValue)>,
}

const MALFORMED: &str = "is not a URL such as http://judge-arm:8103";

impl Endpoint {
    /// # Errors
    /// The problem of the URL. The text does not repeat the URL, which could hold credentials.
    pub(crate) fn parse(url: &str) -> Result<Self, &'static str> {
        let url = url.trim();
        if url.is_empty() {
            return Err("has an empty URL");
        }
        if url.contains(['?', '#']) {
            return Err("has a query or a fragment");
        }
        let uri: Uri = url.parse().map_err(|_| MALFORMED)?;
        let scheme = match uri.scheme_str() {
            None => return Err("has no scheme: write http://host:port"),
            Some("https") if !cfg!(feature = "tls") => {
                return Err("is https, for which octollm has to be built with its feature `tls`");
            }
            Some(scheme @ ("http" | "https")) => scheme,
            Some(_) => return Err("has a scheme other than http and https"),
        };
        let authority = uri.authority().ok_or(MALFORMED)?;
        if authority.as_str().contains('@') {
            return Err("holds credentials, which would end up in logs: use tokens");
        }
        let explicit_port = authority.as_str().len() > authority.host().len();
        if authority.host().is_empty() || (explicit_port && authority.port_u16().is_none_or(|port| port == 0))
        {
            return Err(MALFORMED);
        }
        let host = HeaderValue::from_str(authority.as_str()).map_err(|_| MALFORMED)?;
        let url = format!("{scheme}://{authority}{}", uri.path().trim_end_matches('/'));
        Ok(Self(Arc::new(Inner { url: url.into(), host, fields: Vec::new() })))
    }

    /// The same endpoint with these fields in each request.
    pub(super) fn with_fields(&self, fields: &[(HeaderName, HeaderValue)]) -> Self {
        let Inner { url, host, .. } = &*self.0;
        Self(Arc::new(Inner { url: url.clone(), host: host.clone(), fields: fields.to_vec() }))
    }

    /// Whether its requests have fields of their own.
    pub(super) fn has_fields(&self) -> bool {
        !self.0.fields.is_empty()
    }

    /// Whether its requests have an authorization of their own.
    pub(super) fn has_authorization(&self) -> bool {
        self.0.fields.iter().any(|(name, _)| *name == AUTHORIZATION)
    }

    /// The URL as it was given, without a slash at its end.
    pub(super) fn as_str(&self) -> &str {
        &self.0.url
    }

    /// Whether nobody on the network can read what is sent: the URL is `https`, or its host is this machine.
    pub(super) fn is_confidential(&self) -> bool {
        if self.0.url.starts_with("https://") {
            return true;
        }
        let authority: Option<http::uri::Authority> =
            self.0.host.to_str().ok().and_then(|host| host.parse().ok());
        crate::io::is_loopback(authority.as_ref().map_or("", |authority| authority.host()))
    }

    pub(super) fn shared(&self) -> Arc<str> {
        Arc::clone(&self.0.url)
    }

    /// Creates a request for JSON with these parts. The time left until the deadline is written now.
    pub(super) fn request(
        &self,
        method: Method,
        uri: Uri,
        body: Option<Bytes>,
        parts: &ContextParts,
    ) -> Request<Bytes> {
        const JSON: HeaderValue = HeaderValue::from_static("application/json");
        let mut head = HeaderMap::with_capacity(HEADERS);
        for (name, value) in &self.0.fields {
            head.insert(name.clone(), value.clone());
        }
        head.insert(HOST, self.0.host.clone());
        head.insert(ACCEPT, JSON);
        if body.is_some() {
            head.insert(CONTENT_TYPE, JSON);
        }
        wire::write_parts(parts, &mut head);
        let mut request = Request::new(body.unwrap_or_default());
        *request.method_mut() = method;
        *request.uri_mut() = uri;
        *request.headers_mut() = head;
        request
    }

    /// The URI of a path that begins with a slash. `None` if it could be read as anything but a path below this URL.
    pub(super) fn uri(&self, path: &str) -> Option<Uri> {
        if !is_path(path) {
            return None;
        }
        format!("{}{path}", self.0.url).parse().ok()
    }
}

fn is_path(path: &str) -> bool {
    let is_absolute = path.starts_with('/') && !path.starts_with("//");
    is_absolute && !leads_upwards(path) && path.parse::<PathAndQuery>().is_ok()
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

/// Whether a server, or a proxy before it, could read a segment as a step upwards. Escapes are read as what they stand for.
fn leads_upwards(path: &str) -> bool {
    let path = path.split(['?', '#']).next().unwrap_or_default().to_ascii_lowercase();
    let path = path.replace("%2e", ".").replace("%2f", "/").replace("%5c", "/");
    path.split(['/', '\\']).any(|segment| matches!(segment, "." | ".."))
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An arm as configured.
#[derive(Debug)]
pub(super) struct ConfiguredArm {
    pub(super) id: Arc<str>,
    /// At least one.
    pub(super) endpoints: Vec<Endpoint>,
    /// Position of the first endpoint among those of all arms.
    pub(super) first_site: usize,
    /// Card, for an arm that has none of its own.
    pub(super) card: Option<ArmCard>,
}

/// The offers of one contract: every arm that serves it, at each of its URLs.
#[derive(Debug)]
pub(super) struct Offers {
    offers: Vec<Offer>,
    /// Position of the offer that the next call begins with.
    turn: AtomicUsize,
}

/// One contract, at one URL of one arm.
#[derive(Debug)]
pub(super) struct Offer {
    pub(super) arm: Arc<str>,
    pub(super) endpoint: Endpoint,
    uri: Uri,
    /// Position among all endpoints of the directory.
    pub(super) site: usize,
    pub(super) timeout: Duration,
    pub(super) meter: Arc<CallMeter>,
    /// Scope that a token needs.
    pub(super) scope: String,
    /// Id, key and needs of the arm.
    pub(super) callee: Arc<ArmCard>,
    /// Who has the records of calls with a key.
    keys: Keys,
    /// Id of the process of the arm.
    instance: HeaderValue,
    /// Fingerprint of the arm's schemas; empty where the card has none.
    pub(super) fingerprint: String,
    /// Set at the first call with schemas.
    pub(super) drift: OnceLock<Option<Drift>>,
}

/// The fingerprints of a contract whose schemas differ between caller and arm.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Drift {
    pub(super) ours: String,
    pub(super) theirs: String,
}

impl Offers {
    /// Position of the offer that this call begins with.
    pub(super) fn next_turn(&self) -> usize {
        match self.offers.len() {
            0 | 1 => 0,
            many => self.turn.fetch_add(1, Ordering::Relaxed) % many,
        }
    }

    /// The steps of [`offer`](Self::offer).
    pub(super) fn steps(&self) -> Range<usize> {
        0..2 * self.offers.len()
    }

    /// The offer of a step, if it has one. Over all steps each offer occurs once: first those that are not in `avoid`, from `turn`
    /// on, then the others. Where the call may go to one endpoint only, the others have no step.
    pub(super) fn offer(&self, turn: usize, step: usize, call: &Call) -> Option<&Offer> {
        let offer = self.offers.get((turn + step) % self.offers.len().max(1))?;
        if call.only.as_ref().is_some_and(|only| **only != *offer.endpoint.as_str()) {
            return None;
        }
        let is_avoided = call.avoid.iter().any(|tried| **tried == *offer.endpoint.as_str());
        (is_avoided == (step >= self.offers.len())).then_some(offer)
    }

    /// Whether both have the same arms and URIs.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        let places = |all: &Self| {
            all.offers.iter().map(|offer| (Arc::clone(&offer.arm), offer.uri.clone())).collect::<Vec<_>>()
        };
        places(self) == places(other)
    }

    /// Who has the record of a call with a key: all offers, only that to which it was sent, or nobody.
    pub(super) fn keys(&self) -> Keys {
        let mut arms = self.offers.iter().map(|offer| &offer.arm);
        let first = arms.next();
        let is_one_arm = arms.all(|arm| Some(arm) == first);
        let all = |accepted: &[Keys]| self.offers.iter().all(|offer| accepted.contains(&offer.keys));
        match is_one_arm {
            _ if !all(&[Keys::Shared, Keys::Instance]) => Keys::None,
            true if all(&[Keys::Shared]) => Keys::Shared,
            _ => Keys::Instance,
        }
    }

    /// The offer at an endpoint.
    pub(super) fn at_site(&self, site: usize) -> Option<&Offer> {
        self.offers.iter().find(|offer| offer.site == site)
    }
}

impl Offer {
    /// The request of one call.
    pub(super) fn request(&self, call: &Call) -> Request<Bytes> {
        let (uri, input) = (self.uri.clone(), Some(call.input.clone()));
        let mut request = self.endpoint.request(Method::POST, uri, input, &call.parts);
        if call.parts.repeated {
            request.headers_mut().insert(wire::names::INSTANCE, self.instance.clone());
        }
        request
    }

    pub(super) fn target(&self, call: &Call, work: Duration) -> Target {
        Target {
            arm: Arc::clone(&self.arm),
            endpoint: self.endpoint.shared(),
            contract: Some(call.contract.clone()),
            idempotent: call.is_idempotent(),
            deadline: call.parts.deadline,
            work,
        }
    }
}

/// Header fields of a usual call, with room for a token.
const HEADERS: usize = 12;

impl Drift {
    /// Adds the fingerprints to a failure that may come from the difference.
    pub(super) fn explain(&self, failure: &mut Failure) {
        if !matches!(failure.kind, ErrorKind::ValidationFailed | ErrorKind::BadResponse) {
            return;
        }
        failure.message.push_str("; the schemas of caller and arm differ");
        add_detail(failure, "schemas", serde_json::json!({ "caller": self.ours, "arm": self.theirs }));
    }
}

/// The offers of the contracts on these cards: those of each arm, one for each of its endpoints. An endpoint whose own card does not
/// list a contract of its arm offers it as the first endpoint that lists it. Calls go on in the turns of the offers `before`.
pub(super) fn all<'a>(
    arms: impl Iterator<Item = (&'a ConfiguredArm, Vec<Option<&'a ArmCard>>)>,
    before: &HashMap<ContractRef, Arc<Offers>>,
) -> HashMap<ContractRef, Arc<Offers>> {
    let mut found: HashMap<ContractRef, Vec<Offer>> = HashMap::new();
    for (arm, cards) in arms {
        let cards: Vec<_> = cards.into_iter().map(|card| card.map(|card| OwnCard::of(arm, card))).collect();
        let mut listed = HashSet::new();
        for first in cards.iter().flatten() {
            for (reference, contract) in &first.contracts {
                if !listed.insert(reference) {
                    continue;
                }
                let endpoints = arm.endpoints.iter().zip(arm.first_site..).zip(&cards);
                let meter = CallMeter::of(&arm.id, reference);
                let offers = endpoints.filter_map(|((endpoint, site), own)| {
                    let own = own.as_ref().and_then(|own| Some((own, *own.contracts.get(reference)?)));
                    let (card, contract) = own.unwrap_or((first, contract));
                    offer(card, arm, endpoint, site, contract, &meter)
                });
                found.entry(reference.clone()).or_default().extend(offers);
            }
        }
    }
    let turn =
        |contract: &ContractRef| before.get(contract).map_or(0, |offers| offers.turn.load(Ordering::Relaxed));
    found
        .into_iter()
        .filter(|(_, offers)| !offers.is_empty())
        .map(|(contract, offers)| {
            let turn = AtomicUsize::new(turn(&contract));
            (contract, Arc::new(Offers { offers, turn }))
        })
        .collect()
}

/// The card of one endpoint of an arm, as far as it is used in calls.
struct OwnCard<'a> {
    callee: Arc<ArmCard>,
    instance: HeaderValue,
    contracts: HashMap<ContractRef, &'a ContractCard>,
}

impl<'a> OwnCard<'a> {
    fn of(arm: &ConfiguredArm, card: &'a ArmCard) -> Self {
        // A card may name another arm as itself: tokens are for the arm that was configured.
        let mut callee = ArmCard::new(&*arm.id);
        (callee.needs, callee.key) = (card.needs.clone(), card.key.clone());
        let mut contracts = HashMap::new();
        for contract in card.contracts.iter().filter(|contract| unusable(contract).is_none()) {
            // Of equal contracts on one card the first is called.
            if let Some(reference) = contract.reference() {
                contracts.entry(reference).or_insert(contract);
            }
        }
        let instance = card.instance.as_deref().and_then(|id| HeaderValue::from_str(id).ok());
        let instance = instance.unwrap_or(HeaderValue::from_static("?"));
        Self { callee: Arc::new(callee), instance, contracts }
    }
}

/// The offer of a contract at an endpoint. `None` if the path in the card is invalid.
fn offer(
    card: &OwnCard<'_>,
    arm: &ConfiguredArm,
    endpoint: &Endpoint,
    site: usize,
    contract: &ContractCard,
    meter: &Arc<CallMeter>,
) -> Option<Offer> {
    Some(Offer {
        arm: Arc::clone(&arm.id),
        scope: contract.scope.clone(),
        callee: Arc::clone(&card.callee),
        endpoint: endpoint.clone(),
        uri: endpoint.uri(&contract.path)?,
        site,
        timeout: Duration::from_millis(contract.timeout_ms),
        keys: contract.keys,
        instance: card.instance.clone(),
        meter: Arc::clone(meter),
        fingerprint: contract.fingerprint.clone(),
        drift: OnceLock::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_urls_of_services() {
        for (url, read) in [
            ("http://judge:8103", "http://judge:8103"),
            (" http://judge:8103/ ", "http://judge:8103"),
            ("http://host/arms/judge/", "http://host/arms/judge"),
            ("http://[::1]:80", "http://[::1]:80"),
            #[cfg(feature = "tls")]
            ("HTTPS://judge/", "https://judge"),
        ] {
            assert_eq!(Endpoint::parse(url).unwrap().as_str(), read);
        }
        let mounted = Endpoint::parse("http://host:1/arms/judge").unwrap();
        assert_eq!(mounted.uri("/validate").unwrap(), "http://host:1/arms/judge/validate");
        assert_eq!(mounted.0.host, "host:1");
        assert_eq!(mounted.uri("/tasks?after=x..").unwrap().query(), Some("after=x.."));
        for path in ["validate", "//elsewhere/x", "", "/with space", "@elsewhere", "/a\r\nb: c"] {
            assert_eq!(mounted.uri(path), None, "{path}");
        }
        for path in [
            "/../x",
            "/a/..",
            "/./x",
            "/a/%2E%2e/x",
            "/a%2f..%2Fx",
            "/..\\x",
            "/%2e%2e%5cx",
            "/..?x",
            "/..#x",
        ] {
            assert_eq!(mounted.uri(path), None, "{path}");
        }
    }

    #[test]
    fn refuses_what_leads_nowhere() {
        for (url, problem) in [
            ("", "empty"),
            ("  ", "empty"),
            ("judge:8103", "no scheme"),
            ("/judge", "no scheme"),
            #[cfg(not(feature = "tls"))]
            ("https://judge", "feature `tls`"),
            ("ftp://judge", "other than http"),
            ("http://me:secret@judge", "credentials"),
            ("http://judge?x=1", "query"),
            ("http://judge/#x", "query"),
            ("http://", "not a URL"),
            ("http://judge:port", "not a URL"),
            ("http://judge:99999", "not a URL"),
            ("http://ju dge", "not a URL"),
        ] {
            assert!(Endpoint::parse(url).unwrap_err().contains(problem), "{url}");
        }
    }
}
