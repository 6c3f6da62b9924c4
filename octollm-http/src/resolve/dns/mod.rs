//! The endpoints that DNS has for a name.
// A module uses only what stands before it here.
mod answers;
mod lookup;
mod refresh;

use std::{net::SocketAddr, time::Duration};

use async_trait::async_trait;
use hickory_resolver::proto::rr::Name;
use octollm_core::{error::ConfigError, id::is_arm_id};
use tokio::time::{Instant, sleep_until, timeout};
use tower::BoxError;

use self::{
    lookup::{Kept, Lookups, Place},
    refresh::Refresh,
};
use super::{Endpoint, Resolver, url::ServiceUrl};
use crate::limits::within;

/// The addresses of a name as endpoints of one arm, which are looked up again when their time to live has passed.
///
/// ```no_run
/// use octollm_http::resolve::Dns;
///
/// # fn main() -> Result<(), octollm_core::error::ConfigError> {
/// // One endpoint for each pod of a headless service of Kubernetes.
/// let judges = Dns::new("judge", "http://judge-arm:8103").build()?;
/// // The same, with the ports from SRV records.
/// let coders = Dns::srv("coder", "http://_http._tcp.coder-arm").build()?;
/// # Ok(()) }
/// ```
///
/// A client without code of its own has them from its environment: `OCTOLLM_ARM_JUDGE=dns+http://judge-arm:8103` and
/// `OCTOLLM_ARM_CODER=srv+http://_http._tcp.coder-arm`.
///
/// Both A and AAAA records are looked up. Addresses of a family to which the machine has no route are left out where those of the
/// other can be reached. A name that does not exist, or has no such records, has no endpoints. The answer of a server that fails
/// or does not answer is an error, and the last addresses of this name and family stay in force.
///
/// Without [`server`](Self::server) names are looked up as the system has it: by the name servers, search domains and `ndots` of
/// `/etc/resolv.conf`. Its file of hosts is not read. A name that was found in one search domain is looked up there first.
#[derive(Debug, Clone)]
#[must_use = "a builder does nothing until it builds"]
pub struct Dns {
    arm: String,
    url: String,
    is_srv: bool,
    servers: Vec<SocketAddr>,
    min_refresh: Duration,
    max_refresh: Duration,
    lookup_timeout: Duration,
}

const SHORTEST: Duration = Duration::from_millis(1);
const DAY: Duration = Duration::from_secs(24 * 3600);

impl Dns {
    /// An arm at each address of the URL's host. The port is that of the URL. A host with a dot at its end is looked up without
    /// search domains.
    pub fn new(arm: impl Into<String>, url: impl Into<String>) -> Self {
        Self {
            arm: arm.into(),
            url: url.into(),
            is_srv: false,
            servers: Vec::new(),
            min_refresh: Duration::from_secs(1),
            max_refresh: Duration::from_secs(30),
            lookup_timeout: Duration::from_secs(5),
        }
    }

    /// An arm at each target of the SRV records of the URL's host, such as `http://_http._tcp.judge-arm`.
    ///
    /// The targets with the lowest number of priority that have an address are used, by their weights. The `Host` of requests and the
    /// name in certificates is the host without its labels `_http._tcp`, and not that of a target, since who forges an answer chooses
    /// the targets.
    pub fn srv(arm: impl Into<String>, url: impl Into<String>) -> Self {
        Self { is_srv: true, ..Self::new(arm, url) }
    }

    /// Adds a name server, in place of those of the system. Names are then looked up as they are, without search domains.
    pub fn server(mut self, address: SocketAddr) -> Self {
        self.servers.push(address);
        self
    }

    /// Sets the shortest time between two lookups, whatever the time to live of the records. After an error it is doubled with each
    /// further one, up to [`max_refresh`](Self::max_refresh). Default 1 s, 1 ms to a day.
    pub fn min_refresh(mut self, time: Duration) -> Self {
        self.min_refresh = time;
        self
    }

    /// Sets the longest time between two lookups, whatever the time to live of the records. Default 30 s, at most a day.
    pub fn max_refresh(mut self, time: Duration) -> Self {
        self.max_refresh = time;
        self
    }

    /// Sets the time limit on a lookup, with all its questions. A server that does not answer is asked three times within it.
    /// Default 5 s, at most a day.
    pub fn lookup_timeout(mut self, time: Duration) -> Self {
        self.lookup_timeout = time;
        self
    }

    /// Builds the resolver.
    ///
    /// # Errors
    /// A limit, the id or the URL is invalid. The setting of the error is the name of the limit, or the id.
    pub fn build(self) -> Result<impl Resolver, ConfigError> {
        let invalid = |problem: &'static str| ConfigError::new(self.arm.clone(), problem);
        within("max_refresh", SHORTEST, self.max_refresh, DAY)?;
        within("min_refresh", SHORTEST, self.min_refresh, self.max_refresh)?;
        within("lookup_timeout", SHORTEST, self.lookup_timeout, DAY)?;
        if !is_arm_id(&self.arm) {
            return Err(invalid("is not an arm id of lower-case letters, digits and dashes"));
        }
        let url = ServiceUrl::parse(&self.url).map_err(invalid)?;
        let host = url.authority.host();
        let is_address = host.starts_with('[') || host.parse::<std::net::IpAddr>().is_ok();
        if is_address {
            return Err(invalid("has a URL with an address, which is not looked up: leave out `dns+`"));
        }
        if self.is_srv && url.authority.port().is_some() {
            return Err(invalid("has a URL with a port, which SRV records have themselves"));
        }
        let mut name = Name::from_ascii(host)
            .map_err(|source| invalid("has a URL whose host is not a DNS name").with_source(source))?;
        if !self.servers.is_empty() {
            name.set_fqdn(true);
        }
        let refresh = Refresh::new(self.min_refresh, self.max_refresh);
        let lookups = Lookups::new(name, self.is_srv, self.servers.clone(), self.lookup_timeout);
        // The dot keeps the name from the search domains, and is no part of the name in certificates.
        let host = host.trim_end_matches('.').to_owned();
        Ok(Follower { dns: self, url, host, lookups, refresh, kept: Kept::default(), due: None, last: None })
    }
}

/// Looks a name up again and again.
struct Follower {
    dns: Dns,
    url: ServiceUrl,
    /// Host of the URL, without a dot at its end.
    host: String,
    lookups: Lookups,
    refresh: Refresh,
    kept: Kept,
    /// Time of the next lookup. `None` before the first.
    due: Option<Instant>,
    /// The last endpoints. `None` after an error.
    last: Option<Vec<Endpoint>>,
}

#[async_trait]
impl Resolver for Follower {
    async fn next(&mut self) -> Result<Vec<Endpoint>, BoxError> {
        loop {
            if let Some(due) = self.due {
                sleep_until(due).await;
            }
            let looked = timeout(self.dns.lookup_timeout, self.lookups.all(&self.kept)).await;
            let looked = looked.map_err(BoxError::from).and_then(|looked| looked);
            let now = Instant::now();
            match looked {
                Ok((places, ttl, kept)) => {
                    self.kept = kept;
                    self.due = Some(now + self.refresh.after_answer(ttl, refresh::random()));
                    let endpoints: Vec<_> = places.iter().map(|place| self.endpoint(place)).collect();
                    if self.last.as_ref() != Some(&endpoints) {
                        self.last = Some(endpoints.clone());
                        return Ok(endpoints);
                    }
                }
                Err(source) => {
                    self.due = Some(now + self.refresh.after_error(refresh::random()));
                    self.last = None;
                    // The configuration of the system may have changed.
                    self.lookups.reset();
                    return Err(Unresolved { name: self.host.clone(), source }.into());
                }
            }
        }
    }
}

impl Follower {
    fn endpoint(&self, place: &Place) -> Endpoint {
        let host = if self.dns.is_srv { without_service(&self.host) } else { &self.host };
        let url = match place.port.or(self.url.authority.port_u16()) {
            Some(port) => self.url.at(&format!("{host}:{port}")),
            None => self.url.at(host),
        };
        let port = place.port.unwrap_or_else(|| self.url.port());
        Endpoint::new(&*self.dns.arm, url).address((place.address, port).into()).weight(place.weight)
    }
}

/// The host without the labels of a service and its protocol.
fn without_service(mut host: &str) -> &str {
    while let Some((label, rest)) = host.split_once('.')
        && label.starts_with('_')
    {
        host = rest;
    }
    host
}

/// A name was not resolved.
#[derive(Debug, thiserror::Error)]
#[error("the DNS name {name} cannot be resolved")]
struct Unresolved {
    name: String,
    source: BoxError,
}
