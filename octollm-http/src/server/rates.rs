//! Limits on the rate of requests: which of them a request counts against, and what its answer reports of them.

use std::{fmt::Write, net::IpAddr, sync::Arc, time::Duration};

use http::{HeaderName, HeaderValue, request::Parts};
use octollm_core::{
    contract::ContractRef,
    error::{ConfigError, ErrorKind, Failure},
    limit::{MemoryRateLimiter, RateCount, RateLimit, RateLimiter, RateState},
    parts::Caller,
};
use sha2::{Digest, Sha256};
use tokio::time::timeout;

use super::routes::{Answer, Refusal};
use crate::{io::Peer, wire::names};

/// The limits as they are set on a server.
#[derive(Clone, Default)]
pub(crate) struct RateSettings {
    pub(crate) limiter: Option<Arc<dyn RateLimiter>>,
    pub(crate) rules: Vec<RateRule>,
}

/// One limit.
#[derive(Debug, Clone)]
pub(crate) struct RateRule {
    pub(crate) setting: &'static str,
    pub(crate) limit: RateLimit,
    pub(crate) counted: Counted,
    /// `None` for all contracts together.
    pub(crate) contract: Option<ContractRef>,
}

/// The requests that are counted together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Counted {
    /// Authentications of one peer that failed.
    FailedAuthentications,
    /// Those of one caller.
    PerCaller,
    /// All.
    InTotal,
}

/// The limits of a server that runs.
pub(crate) struct Rates {
    limiter: Arc<dyn RateLimiter>,
    failed_authentications: Vec<Rule>,
    /// Those of a caller first: a caller that is refused by its own does not use up those of all.
    rules: Vec<Rule>,
}

struct Rule {
    limit: RateLimit,
    counted: Counted,
    contract: Option<ContractRef>,
    /// The key, which the caller is appended to.
    prefix: String,
}

/// Time limit on a [`RateLimiter`]. Beyond it requests are allowed.
const LIMITER_TIMEOUT: Duration = Duration::from_millis(500);

impl RateSettings {
    /// # Errors
    /// A limit cannot be counted, or is of a contract that is not served.
    pub(crate) fn build(
        self,
        arm_id: &str,
        is_served: impl Fn(&ContractRef) -> bool,
    ) -> Result<Option<Arc<Rates>>, ConfigError> {
        let mut rules = Vec::new();
        for RateRule { setting, limit, counted, contract } in self.rules {
            limit.check(setting)?;
            check_served(setting, contract.as_ref(), &is_served)?;
            let of = contract.as_ref().map_or_else(|| "*".to_owned(), ToString::to_string);
            let (requests, period) = (limit.requests(), limit.period().as_millis());
            let prefix = format!("{arm_id}:{counted:?}:{of}:{requests}/{period}:{}:", limit.most_at_once());
            rules.push(Rule { limit, counted, contract, prefix });
        }
        if rules.is_empty() {
            return Ok(None);
        }
        rules.sort_by_key(|rule| (rule.counted, rule.contract.is_none()));
        let failures = rules.partition_point(|rule| rule.counted == Counted::FailedAuthentications);
        let limited = rules.split_off(failures);
        let limiter = self.limiter.unwrap_or_else(|| Arc::new(MemoryRateLimiter::new()));
        Ok(Some(Arc::new(Rates { limiter, failed_authentications: rules, rules: limited })))
    }
}

/// # Errors
/// A setting is of a contract that is not served.
pub(crate) fn check_served(
    setting: &'static str,
    contract: Option<&ContractRef>,
    is_served: impl Fn(&ContractRef) -> bool,
) -> Result<(), ConfigError> {
    match contract {
        Some(contract) if !is_served(contract) => {
            Err(ConfigError::new(setting, format!("is set for {contract}, which is not served: add its arm")))
        }
        _ => Ok(()),
    }
}

/// What the answer to a request reports of its limits: the one of which the least is left.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct RateReport(Option<(RateLimit, RateState)>);

impl Rates {
    /// Whether a request for this contract is counted.
    pub(crate) fn apply_to(&self, contract: &ContractRef) -> bool {
        self.rules.iter().any(|rule| rule.applies(Some(contract)))
    }

    /// Counts a request.
    ///
    /// # Errors
    /// It is over a limit.
    pub(crate) async fn take(
        &self,
        caller: &Caller,
        head: &Parts,
        contract: Option<&ContractRef>,
    ) -> Result<RateReport, Refusal> {
        let rules: Vec<_> = self.rules.iter().filter(|rule| rule.applies(contract)).collect();
        let (mut report, mut caller_key) = (RateReport::default(), None);
        let mut keys = Vec::with_capacity(rules.len());
        for rule in &rules {
            keys.push(match rule.counted {
                Counted::InTotal => rule.key(""),
                _ => rule.key(caller_key.get_or_insert_with(|| key_of(caller, head))),
            });
        }
        for (rule, state) in rules.iter().zip(self.ask(&rules, &keys, 1).await) {
            if let Some(wait) = state.retry_after {
                return Err(refusal(rule.limit, state, wait));
            }
            if report.0.is_none_or(|(_, least)| state.remaining < least.remaining) {
                report = RateReport(Some((rule.limit, state)));
            }
        }
        Ok(report)
    }

    /// Checks whether a peer may try to authenticate. Nothing is counted.
    ///
    /// # Errors
    /// Too many of its authentications have failed.
    pub(crate) async fn may_authenticate(&self, head: &Parts) -> Result<(), Refusal> {
        self.of_peer(head, 0).await
    }

    /// Counts an authentication that failed.
    pub(crate) async fn authentication_failed(&self, head: &Parts) {
        let _ = self.of_peer(head, 1).await;
    }

    async fn of_peer(&self, head: &Parts, failures: u32) -> Result<(), Refusal> {
        if self.failed_authentications.is_empty() {
            return Ok(());
        }
        // Where the peer is not known, all would be refused for the failures of one.
        let Some(peer) = peer_key(head) else { return Ok(()) };
        let rules: Vec<_> = self.failed_authentications.iter().collect();
        let keys: Vec<_> = rules.iter().map(|rule| rule.key(&peer)).collect();
        for (rule, state) in rules.iter().zip(self.ask(&rules, &keys, failures).await) {
            if let Some(wait) = state.retry_after {
                return Err(refusal(rule.limit, state, wait));
            }
        }
        Ok(())
    }

    /// The states of keys, up to the first that refuses. None if the limiter failed, which is no failure of the request.
    async fn ask(&self, rules: &[&Rule], keys: &[String], requests: u32) -> Vec<RateState> {
        if rules.is_empty() {
            return Vec::new();
        }
        let pairs = rules.iter().zip(keys);
        let counts: Vec<_> =
            pairs.map(|(rule, key)| RateCount { key, limit: &rule.limit, requests }).collect();
        match timeout(LIMITER_TIMEOUT, self.limiter.take_each(&counts)).await {
            Ok(Ok(states)) => states,
            Ok(Err(error)) => {
                tracing::warn!(%error, "the rate limiter failed: the request is allowed");
                Vec::new()
            }
            Err(_) => {
                tracing::warn!(limit = ?LIMITER_TIMEOUT, "the rate limiter took too long: the request is allowed");
                Vec::new()
            }
        }
    }
}

impl Rule {
    fn key(&self, caller: &str) -> String {
        format!("{}{caller}", self.prefix)
    }

    fn applies(&self, contract: Option<&ContractRef>) -> bool {
        self.contract.is_none() || self.contract.as_ref() == contract
    }
}

impl RateReport {
    /// Adds the report to an answer.
    pub(crate) fn on(self, result: Result<Answer, Refusal>) -> Result<Answer, Refusal> {
        let Some((limit, state)) = self.0 else { return result };
        let fields = fields(limit, state).into_iter();
        match result {
            Ok(answer) => Ok(fields.fold(answer, |answer, (name, value)| answer.header(name, value))),
            Err(refusal) => Err(fields.fold(refusal, |refusal, (name, value)| refusal.header(name, value))),
        }
    }
}

fn refusal(limit: RateLimit, state: RateState, wait: Duration) -> Refusal {
    let failure = Failure::new(ErrorKind::RateLimited, "too many requests: try again later")
        .before_execution()
        .retryable_after(wait);
    let refusal = Refusal::from(failure);
    fields(limit, state).into_iter().fold(refusal, |refusal, (name, value)| refusal.header(name, value))
}

fn fields(limit: RateLimit, state: RateState) -> [(HeaderName, HeaderValue); 3] {
    let seconds = state.reset.as_secs() + u64::from(state.reset.subsec_nanos() > 0);
    [
        (names::RATE_LIMIT, limit.most_at_once().into()),
        (names::RATE_REMAINING, state.remaining.into()),
        (names::RATE_RESET, seconds.into()),
    ]
}

/// The key of a caller: a digest of who it is, or the address of a peer that nobody knows.
fn key_of(caller: &Caller, head: &Parts) -> String {
    let Some(grant) = caller.grant() else {
        return peer_key(head).unwrap_or_else(|| "peer:unknown".into());
    };
    let mut digest = Sha256::new();
    let issuer = grant.issuer.as_deref();
    digest.update([u8::from(issuer.is_some())]);
    digest.update(issuer.map_or(0, |issuer| issuer.len() as u64).to_be_bytes());
    digest.update(issuer.unwrap_or_default());
    digest.update(&grant.subject);
    let mut key = "caller:".to_owned();
    for byte in &digest.finalize()[..16] {
        let _ = write!(key, "{byte:02x}");
    }
    key
}

/// The key of the other end of a connection: its address, of IPv6 the first 64 bits, of which a host has any number.
fn peer_key(head: &Parts) -> Option<String> {
    let address = head.extensions.get::<Peer>()?.address?.ip().to_canonical();
    Some(match address {
        IpAddr::V4(address) => format!("peer:{address}"),
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            format!("peer:{a:x}:{b:x}:{c:x}:{d:x}::")
        }
    })
}

#[cfg(test)]
mod tests {
    use octollm_core::parts::Grant;

    use super::*;

    fn head(address: &str) -> Parts {
        let mut request = http::Request::new(());
        let peer = Peer { address: address.parse().ok(), ..Peer::default() };
        request.extensions_mut().insert(peer);
        request.into_parts().0
    }

    #[test]
    fn a_key_is_of_one_caller_or_one_peer() {
        let known = |issuer: &str, subject: &str| {
            Caller::Known(Arc::new(Grant::new(subject, ["a:b"]).issuer(issuer)))
        };
        let here = head("192.0.2.1:1");
        let callers = [known("ab", "c"), known("a", "bc"), known("", "abc"), Caller::known("abc", ["a:b"])];
        let keys: std::collections::HashSet<_> = callers.iter().map(|caller| key_of(caller, &here)).collect();
        assert_eq!(keys.len(), 4);
        assert!(keys.iter().all(|key| key.len() == 39 && key.is_ascii()), "{keys:?}");
        let again = Caller::Known(Arc::new(Grant::new("c", ["other:scope"]).issuer("ab")));
        assert_eq!(
            key_of(&callers[0], &here),
            key_of(&again, &head("192.0.2.9:1")),
            "wherever it calls from"
        );
        for (one, other, is_same) in [
            ("192.0.2.1:1", "192.0.2.1:2", true),
            ("192.0.2.1:1", "[::ffff:192.0.2.1]:2", true),
            ("192.0.2.1:1", "192.0.2.2:1", false),
            ("[2001:db8:1:2::1]:1", "[2001:db8:1:2:ffff::9]:1", true),
            ("[2001:db8:1:2::1]:1", "[2001:db8:1:3::1]:1", false),
            ("unknown", "unknown", true),
        ] {
            let key = |address| key_of(&Caller::Anonymous, &head(address));
            assert_eq!(key(one) == key(other), is_same, "{one} {other}");
        }
    }
}
