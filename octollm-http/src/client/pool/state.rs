//! The state of a pool: the connections of each arm, origin and runtime.

use std::{
    collections::HashMap,
    hash::{Hash, Hasher},
    net::SocketAddr,
    sync::{Arc, Weak},
};

use http::{
    Uri,
    uri::{Authority, Scheme},
};
use tokio::{runtime, sync::oneshot, time::Instant};

use super::{
    Protocol, Shared,
    allot::{Allotment, LaneId, Limits},
    checkout::Served,
    connection::Connection,
    http2::Http2,
};
use crate::limits::ClientConfig;

/// A caller that waits, and its runtime.
pub(super) type Waiter = (oneshot::Sender<Served>, runtime::Id);

pub(super) struct State {
    pub(super) allotment: Allotment<Box<Connection>, Arc<Http2>, Waiter>,
    pub(super) lanes: HashMap<Key, LaneId>,
    pub(super) arms: HashMap<Arc<str>, usize>,
    /// Number of lanes from which on unused ones are removed before there is one more.
    most_lanes: usize,
    /// Runtimes with a task that closes expired connections.
    pub(super) reapers: Vec<runtime::Id>,
}

/// The arm, the origin and the runtime of a connection. In another runtime its socket would wake no task.
#[derive(PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) arm: Arc<str>,
    pub(super) origin: Origin,
    pub(super) runtime: runtime::Id,
}

/// A scheme, host and port. It is compared and hashed as written, which is much faster than without case; two spellings of a name
/// have separate connections.
#[derive(Debug, Clone)]
pub(crate) struct Origin {
    pub(super) is_https: bool,
    pub(super) authority: Authority,
    /// Address of the socket, where it is not looked up.
    pub(super) address: Option<SocketAddr>,
}

impl State {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            allotment: Allotment::new(limits),
            lanes: HashMap::new(),
            arms: HashMap::new(),
            most_lanes: LANES,
            reapers: Vec::new(),
        }
    }

    pub(super) fn lane(&mut self, key: Key) -> LaneId {
        if let Some(lane) = self.lanes.get(&key) {
            return *lane;
        }
        if self.lanes.len() >= self.most_lanes {
            self.remove_unused();
        }
        let Self { allotment, lanes, arms, .. } = self;
        let arm = *arms.entry(Arc::clone(&key.arm)).or_insert_with(|| allotment.add_arm());
        *lanes.entry(key).or_insert_with(|| allotment.add_lane(arm))
    }

    /// Decides whether the next connection of a lane is shared, which means HTTP/2.
    pub(super) fn choose_version(
        &mut self,
        lane: LaneId,
        origin: &Origin,
        speaks_http2: bool,
        config: &ClientConfig,
        protocol: Protocol,
    ) {
        let least = if self.allotment.has_shared(lane) { MANY / 2 } else { MANY };
        let is_shared = match protocol {
            Protocol::Http1 => false,
            Protocol::Http2 => true,
            Protocol::Auto => {
                (origin.is_https || (speaks_http2 && self.allotment.callers(lane) >= least))
                    && self.allotment.exclusive_until(lane).is_none_or(|until| Instant::now() >= until)
            }
        };
        self.allotment.set_places(lane, if is_shared { config.max_streams } else { 0 });
    }

    /// Removes lanes without connections and callers: those of runtimes that have ended, and of endpoints that nobody calls.
    fn remove_unused(&mut self) {
        let Self { allotment, lanes, .. } = self;
        let now = Instant::now();
        lanes.retain(|_, lane| !allotment.remove_unused(*lane, now));
        self.most_lanes = (2 * lanes.len()).max(LANES);
    }

    /// Removes the idle connections of a runtime.
    pub(super) fn clear(&mut self, runtime: runtime::Id) -> impl Sized + use<> {
        let lanes = self.lanes.iter().filter(|(key, _)| key.runtime == runtime);
        lanes.flat_map(|(_, lane)| self.allotment.clear(*lane)).collect::<Vec<_>>()
    }

    /// Removes arms, origins and runtimes if nothing is open, so that no lane is in use.
    pub(super) fn forget_if_quiet(&mut self) {
        if self.allotment.is_quiet() && !self.lanes.is_empty() {
            self.allotment.reset();
            (self.lanes, self.arms) = (HashMap::new(), HashMap::new());
        }
    }
}

impl PartialEq for Origin {
    fn eq(&self, other: &Self) -> bool {
        self.is_https == other.is_https
            && self.authority.as_str() == other.authority.as_str()
            && self.address == other.address
    }
}

impl Eq for Origin {}

impl Hash for Origin {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.authority.as_str().hash(state);
        if let Some(address) = self.address {
            address.hash(state);
        }
    }
}

/// Number of lanes that are not yet looked through for unused ones.
const LANES: usize = 32;

/// Calls to one server at once from which on HTTP/2 costs less than HTTP/1.1. Half as many keep it.
const MANY: usize = 32;

impl Origin {
    /// The origin of a URI; `None` if it names no host.
    pub(crate) fn of(uri: &Uri, address: Option<SocketAddr>) -> Option<Self> {
        let is_https = uri.scheme() == Some(&Scheme::HTTPS);
        Some(Self { is_https, authority: uri.authority()?.clone(), address })
    }
}

/// The task that closes expired connections. If its runtime ends first, the connections of that runtime are closed.
pub(super) struct Reaper {
    pub(super) pool: Weak<Shared>,
    pub(super) runtime: runtime::Id,
    pub(super) is_done: bool,
}

impl Drop for Reaper {
    fn drop(&mut self) {
        if self.is_done {
            return;
        }
        if let Some(shared) = self.pool.upgrade() {
            let mut state = shared.state();
            state.reapers.retain(|runtime| *runtime != self.runtime);
            let idle = state.clear(self.runtime);
            state.forget_if_quiet();
            drop(state);
            drop(idle);
        }
    }
}

/// Closes expired connections, and ends when none is idle.
pub(super) async fn reap_idle(mut reaper: Reaper) {
    loop {
        let next = {
            let Some(shared) = reaper.pool.upgrade() else { return };
            let mut state = shared.state();
            let now = Instant::now();
            let expired = state.allotment.expire(now);
            let next = state.allotment.next_expiry(now);
            if next.is_none() {
                // Under the lock: the next connection that is given back starts another reaper.
                state.reapers.retain(|runtime| *runtime != reaper.runtime);
                state.forget_if_quiet();
                reaper.is_done = true;
            }
            drop(state);
            drop(expired);
            next
        };
        match next {
            Some(next) => tokio::time::sleep_until(next).await,
            None => return,
        }
    }
}
