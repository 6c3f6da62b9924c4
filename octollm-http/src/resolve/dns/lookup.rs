//! Looking up the records of a name.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    sync::Arc,
    time::Duration,
};

use futures_util::{StreamExt, future::join, stream};
use hickory_resolver::{
    TokioResolver,
    config::{NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts},
    lookup::Lookup,
    net::{NetError, runtime::TokioRuntimeProvider},
    proto::rr::{Name, RData, RecordType, rdata::SRV},
    system_conf::read_system_conf,
};
use tokio::runtime::{self, Handle};
use tower::BoxError;

use super::answers::{Addresses, Answer, by_priority, full_names};

/// Most targets of SRV records that are looked up.
const MOST_TARGETS: usize = 256;
/// Targets that are looked up at a time.
const AT_ONCE: usize = 16;
/// Attempts after the first one, within the time limit of a lookup.
const REPEATS: usize = 2;

/// Looks up one name.
pub(super) struct Lookups {
    name: Name,
    is_srv: bool,
    /// Those of the system if empty.
    servers: Vec<SocketAddr>,
    time_limit: Duration,
    client: Option<Arc<Client>>,
}

/// A client of name servers.
struct Client {
    resolver: TokioResolver,
    /// The full names that are looked up.
    names: Vec<Name>,
    /// Runtime of its sockets.
    runtime: runtime::Id,
}

/// One place where an arm is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) address: IpAddr,
    /// Port by an SRV record.
    pub(super) port: Option<u16>,
    pub(super) weight: u32,
}

/// What a lookup remembers for the next.
#[derive(Default)]
pub(super) struct Kept {
    /// The full name that has records.
    name: Option<Name>,
    addresses: HashMap<Name, Addresses>,
}

/// The records of one full name.
struct Found {
    places: Vec<Place>,
    ttl: Duration,
    addresses: HashMap<Name, Addresses>,
}

impl Lookups {
    pub(super) fn new(name: Name, is_srv: bool, servers: Vec<SocketAddr>, time_limit: Duration) -> Self {
        Self { name, is_srv, servers, time_limit, client: None }
    }

    /// Reads the configuration of the system again, before the next lookup.
    pub(super) fn reset(&mut self) {
        self.client = None;
    }

    /// Looks up the name, with what the last lookup has left. Returns the places in order, the time for which they hold, and what the
    /// next lookup needs.
    ///
    /// # Errors
    /// The configuration of the system cannot be read, or it is not known whether the name has records.
    pub(super) async fn all(&mut self, kept: &Kept) -> Result<(Vec<Place>, Duration, Kept), BoxError> {
        let client = self.client()?;
        let mut failed = None;
        let mut shortest = Duration::MAX;
        // What had records once is asked first, and its answer holds: an error is not that of another domain.
        let known = kept.name.as_ref().filter(|name| client.names.contains(name));
        let others = client.names.iter().filter(|name| Some(*name) != known);
        for name in known.into_iter().chain(others) {
            match self.records(&client, name, kept).await {
                Ok(found) if !found.places.is_empty() => {
                    let kept = Kept { name: Some(name.clone()), addresses: found.addresses };
                    return Ok((found.places, found.ttl, kept));
                }
                Ok(nothing) => shortest = shortest.min(nothing.ttl),
                Err(error) if Some(name) == known => return Err(error.into()),
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        match failed {
            Some(error) if known.is_none() => Err(error.into()),
            _ => Ok((Vec::new(), shortest, Kept { name: known.cloned(), addresses: HashMap::new() })),
        }
    }

    fn client(&mut self) -> Result<Arc<Client>, BoxError> {
        let runtime = Handle::current().id();
        if let Some(client) = self.client.as_ref().filter(|client| client.runtime == runtime) {
            return Ok(Arc::clone(client));
        }
        let (config, mut options) = if self.servers.is_empty() {
            read_system_conf()?
        } else {
            let servers = self.servers.iter().map(|server| {
                let mut config = NameServerConfig::udp_and_tcp(server.ip());
                for connection in &mut config.connections {
                    connection.port = server.port();
                }
                config
            });
            (ResolverConfig::from_name_servers(servers.collect()), ResolverOpts::default())
        };
        let names = full_names(&self.name, &config, options.ndots);
        let once = self.time_limit / (REPEATS as u32 + 1);
        (options.attempts, options.timeout) = (REPEATS, options.timeout.min(once));
        // The times to live are those of the answers, and not what is left of them.
        options.cache_size = 0;
        options.use_hosts_file = ResolveHosts::Never;
        let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
        *builder.options_mut() = options;
        let client = Arc::new(Client { resolver: builder.build()?, names, runtime });
        self.client = Some(Arc::clone(&client));
        Ok(client)
    }

    async fn records(&self, client: &Client, name: &Name, kept: &Kept) -> Result<Found, NetError> {
        if self.is_srv {
            return client.targets(name, kept).await;
        }
        let (addresses, ttl) = client.addresses(name, kept.addresses.get(name)).await?;
        let places = places(&addresses, None, 1).collect();
        Ok(Found { places, ttl, addresses: HashMap::from([(name.clone(), addresses)]) })
    }
}

impl Client {
    async fn addresses(
        &self,
        name: &Name,
        before: Option<&Addresses>,
    ) -> Result<(Addresses, Duration), NetError> {
        let ask = |kind| self.resolver.lookup(name.clone(), kind);
        let (v4, v6) = join(ask(RecordType::A), ask(RecordType::AAAA)).await;
        let v4 = Answer::of(records(&v4), |data| match data {
            RData::A(address) => Some(Ipv4Addr::from(*address)),
            _ => None,
        });
        let v6 = Answer::of(records(&v6), |data| match data {
            RData::AAAA(address) => Some(Ipv6Addr::from(*address)),
            _ => None,
        });
        Addresses::of(v4, v6, before)
    }

    /// The targets of the first priority with addresses.
    async fn targets(&self, name: &Name, kept: &Kept) -> Result<Found, NetError> {
        let answer = self.resolver.lookup(name.clone(), RecordType::SRV).await;
        let read = |data: &RData| match data {
            RData::SRV(target) => Some(target.clone()),
            _ => None,
        };
        let (mut targets, mut ttl) = match Answer::of(records(&answer), read) {
            Answer::Found(targets, ttl) => (targets, ttl),
            Answer::Nothing { ttl, .. } => (Vec::new(), ttl),
            Answer::Failed(error) => return Err(error),
        };
        if targets.len() > MOST_TARGETS {
            let count = targets.len();
            tracing::warn!(%name, count, most = MOST_TARGETS, "a name has too many SRV records: some are left out");
            targets.sort_by(|a, b| (a.priority, &a.target, a.port).cmp(&(b.priority, &b.target, b.port)));
            targets.truncate(MOST_TARGETS);
        }
        let (mut places, mut addresses) = (Vec::new(), HashMap::new());
        for group in by_priority(targets) {
            let mut failed = None;
            let mut looked = stream::iter(group).map(|target| self.target(target, kept)).buffered(AT_ONCE);
            while let Some((SRV { target, port, .. }, weight, found)) = looked.next().await {
                match found {
                    Ok((found, its_ttl)) => {
                        ttl = ttl.min(its_ttl);
                        places.extend(self::places(&found, Some(port), weight));
                        addresses.insert(target, found);
                    }
                    Err(error) => failed = Some(error),
                }
            }
            match failed {
                _ if !places.is_empty() => break,
                Some(error) => return Err(error),
                None => {}
            }
        }
        places.sort_unstable();
        places.dedup_by_key(|place| (place.address, place.port));
        Ok(Found { places, ttl, addresses })
    }

    /// The addresses of one target. If they cannot be looked up, those that it had before stay.
    async fn target(
        &self,
        (record, weight): (SRV, u32),
        kept: &Kept,
    ) -> (SRV, u32, Result<(Addresses, Duration), NetError>) {
        let before = kept.addresses.get(&record.target);
        let found = match (self.addresses(&record.target, before).await, before) {
            (Err(_), Some(before)) if !before.is_empty() => Ok((before.clone(), Duration::ZERO)),
            (found, _) => found,
        };
        (record, weight, found)
    }
}

fn records(answer: &Result<Lookup, NetError>) -> Result<&[hickory_resolver::proto::rr::Record], NetError> {
    answer.as_ref().map(Lookup::answers).map_err(NetError::clone)
}

fn places(addresses: &Addresses, port: Option<u16>, weight: u32) -> impl Iterator<Item = Place> {
    addresses.reachable(has_route).into_iter().map(move |address| Place { address, port, weight })
}

/// Whether the machine has a route to an address. Nothing is sent.
fn has_route(to: IpAddr) -> bool {
    let from: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let connected = UdpSocket::bind((from, 0)).and_then(|socket| socket.connect((to, 53)));
    !matches!(
        connected.map_err(|error| error.kind()),
        Err(io::ErrorKind::NetworkUnreachable
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::AddrNotAvailable
            | io::ErrorKind::Unsupported)
    )
}
