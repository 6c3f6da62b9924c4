//! The registry: arms that announce themselves to an orchestrator, and are found by that.
//!
//! An orchestrator's server has a [`Registry`], at which arms register by `POST /arms/register`. A registration holds for 30 s, and an
//! arm renews it while it serves. The arms of the brain follow it by its [`resolver`](Registry::resolver); other programs follow
//! `GET /arms` by `OrchestratorClient::resolver`.
//!
//! The server of an arm registers by an [`Announce`], as which an `OrchestratorClient` serves.
// A module uses only what stands before it here.
mod place;
mod change;
mod process;
mod book;
mod announce;
mod following;

use std::{
    collections::HashSet,
    fmt,
    sync::{Arc, LazyLock, Mutex, MutexGuard, OnceLock, PoisonError, Weak},
    time::Duration,
};

use octollm_core::{
    __private::{Counters, Gauges, now},
    bus::EventBus,
    card::ArmCard,
    error::{ConfigError, Failure},
    event::Event,
};
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep_until, timeout},
};

pub use self::announce::{Announce, Announcement};
pub(crate) use self::{
    announce::{Heartbeats, Registered, Request, random, scopes_of},
    book::{Claim, Holder},
    place::Place,
};
use self::{book::Book, change::Change, following::Following, place::Prefix};
use crate::{
    limits::{RegistryConfig, limits_setters, registry_limits},
    resolve::{Endpoint, Resolver},
};

/// The arms that are registered at an orchestrator. It is cheap to clone; clones are the same registry.
///
/// It is in the memory of one process. After a restart the arms register again with their next heartbeat.
///
/// ```
/// # use octollm_core::{Arm, brain::Brain, error::Error, task::TaskRequest};
/// use octollm_http::{Registry, Server};
///
/// # fn run(plan: impl Arm<TaskRequest>) -> Result<Server, Error> {
/// let registry = Registry::builder().allow("http://*.judge:8103").build()?;
/// let brain = Brain::builder().arm(plan).build()?; // its arms follow `registry.resolver()`
/// let server = Server::new("brain").orchestrator(brain).registry(registry);
/// # Ok(server) }
/// ```
///
/// # Who may register
///
/// Where callers are known, an arm `judge` needs the scope `arms.judge:register`, and for each contract `code.validate` that it serves
/// `code:serve`. The card has a key, and the request is signed by it. The id then belongs to that subject and key, also after
/// the registration has ended: others are refused until an administrator [clears](Self::clear) it.
///
/// Where callers are not checked, everybody may register what is not held with a key, as everybody may call everything.
///
/// The endpoint of an arm is below an allowed prefix: by default on this machine. So nobody directs calls to other places.
#[derive(Clone)]
pub struct Registry(Arc<Inner>);

struct Inner {
    book: Mutex<State>,
    allowed: Vec<Prefix>,
    /// Whether the program has set what is allowed.
    is_default: bool,
    changed: watch::Sender<u64>,
    /// Wakes what publishes changes and ends registrations.
    wake: Arc<Notify>,
    server: OnceLock<Publisher>,
}

struct State {
    book: Book,
    /// The cards that were listed last.
    listed: Option<Listed>,
    /// Whether something publishes its changes and ends its registrations.
    is_attended: bool,
}

/// The cards of a version of the book. They are the same until one of its registrations ends.
struct Listed {
    version: u64,
    until: Option<Instant>,
    cards: Arc<[ArmCard]>,
}

/// The server to which the registry belongs.
struct Publisher {
    id: String,
    bus: Option<Arc<dyn EventBus>>,
}

static GAUGES: LazyLock<Gauges<Inner>> = LazyLock::new(|| {
    let arms = ("octollm_registry_arms", "Arms that are registered, by status.", &["server", "status"][..]);
    Gauges::new(&[arms], |inner, gauges| {
        let (Some(server), [arms]) = (inner.server.get(), gauges) else { return };
        let counts = inner.state().book.counts(Instant::now());
        for (status, count) in ["healthy", "degraded", "unavailable"].into_iter().zip(counts) {
            arms.with_label_values(&[&*server.id, status]).add(i64::try_from(count).unwrap_or(i64::MAX));
        }
    })
});

static REQUESTS: LazyLock<Counters> = LazyLock::new(|| {
    let help = "Registrations and their renewals, by outcome.";
    Counters::new("octollm_registry_requests_total", help, &["server", "code"])
});

/// Time limit on publishing an event.
const PUBLISH: Duration = Duration::from_secs(1);

impl Registry {
    /// Creates a registry for arms on this machine.
    pub fn new() -> Self {
        RegistryBuilder::default().into_registry(Prefix::loopback())
    }

    /// Returns a builder, to allow the endpoints of other machines and to set limits.
    pub fn builder() -> RegistryBuilder {
        RegistryBuilder::default()
    }

    /// Returns the cards of the arms: those of the processes that are registered, one for each endpoint. An arm without any has its
    /// last card, with the status that it is unavailable.
    pub fn cards(&self) -> Vec<ArmCard> {
        self.listed().to_vec()
    }

    /// The [`cards`](Self::cards), which are the same slice as long as they have not changed.
    pub(crate) fn listed(&self) -> Arc<[ArmCard]> {
        let (mut state, now) = (self.0.state(), Instant::now());
        let version = state.book.version();
        let is_current =
            |listed: &&Listed| listed.version == version && listed.until.is_none_or(|until| now < until);
        if let Some(listed) = state.listed.as_ref().filter(is_current) {
            return listed.cards.clone();
        }
        let (until, cards) = (state.book.next_end(now), Arc::from(state.book.cards(now)));
        let before = state.listed.take().map(|listed| listed.cards);
        // A renewal moves the end alone.
        let cards = before.filter(|before| *before == cards).unwrap_or(cards);
        state.listed = Some(Listed { version, until, cards: cards.clone() });
        cards
    }

    /// Forgets an arm and who holds it, so that it can be registered with another key or by another subject. Returns its
    /// endpoints; `None` where no such arm was registered.
    pub fn clear(&self, id: &str) -> Option<Vec<String>> {
        self.change(|book| book.clear(Instant::now(), id))
    }

    /// Returns a resolver of the arms that are registered and accept work, for the clients in this process.
    pub fn resolver(&self) -> impl Resolver {
        Following { registry: self.clone(), changed: self.0.changed.subscribe(), last: None }
    }

    /// Makes the registry that of a server, with ids that nobody can register.
    ///
    /// # Errors
    /// It belongs to another server.
    pub(crate) fn of_server(
        &self,
        id: &str,
        reserved: impl IntoIterator<Item = String>,
        bus: Option<Arc<dyn EventBus>>,
    ) -> Result<(), ConfigError> {
        let server = Publisher { id: id.to_owned(), bus };
        if self.0.server.set(server).is_err() {
            return Err(ConfigError::new("registry", "is that of another server: build one for each"));
        }
        self.0.state().book.reserve(reserved);
        GAUGES.add(&self.0);
        Ok(())
    }

    /// Whether only endpoints of this machine are allowed, since the program has set no others.
    pub(crate) fn allows_by_default(&self) -> bool {
        self.0.is_default
    }

    /// Whether arms may be registered at an endpoint.
    pub(crate) fn allows(&self, place: &Place) -> bool {
        self.0.allowed.iter().any(|prefix| prefix.allows(place))
    }

    /// The time for which a registration holds that asks for this, in whole seconds.
    pub(crate) fn lifetime(&self, asked: Option<u64>) -> Duration {
        self.0.state().book.lifetime(asked)
    }

    /// Registers a process, renews it, or ends its registration. Returns whether it was not registered before.
    pub(crate) fn register(&self, claim: Claim) -> Result<bool, Failure> {
        self.change(|book| book.register(Instant::now(), claim))
    }

    /// Counts a request by its outcome.
    pub(crate) fn count(&self, code: &str) {
        if let Some(server) = self.0.server.get() {
            REQUESTS.with(&[&server.id, code]).count();
        }
    }

    fn change<T>(&self, change: impl FnOnce(&mut Book) -> T) -> T {
        let runtime = tokio::runtime::Handle::try_current().ok();
        let (done, was_attended) = {
            let mut state = self.0.state();
            let done = change(&mut state.book);
            let version = state.book.version();
            self.0.changed.send_if_modified(|seen| std::mem::replace(seen, version) != version);
            let is_attended = state.is_attended || runtime.is_some();
            (done, std::mem::replace(&mut state.is_attended, is_attended))
        };
        match runtime.filter(|_| !was_attended) {
            // Without the lock, which is taken where the runtime ends and drops it.
            Some(runtime) => {
                let attendance = Attendance { inner: Arc::downgrade(&self.0), is_over: false };
                runtime.spawn(attend(attendance, self.0.wake.clone()));
            }
            None => self.0.wake.notify_one(),
        }
        done
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends registrations, and returns the changes and when the next one ends.
    fn turn(&self) -> (Vec<Change>, Option<Instant>) {
        let now_ = Instant::now();
        let mut state = self.state();
        state.book.expire(now_, now().as_second());
        let version = state.book.version();
        self.changed.send_if_modified(|seen| std::mem::replace(seen, version) != version);
        let (changes, next) = (state.book.take_changes(), state.book.next_end(now_));
        if changes.is_empty() && next.is_none() {
            state.is_attended = false;
        }
        (changes, next)
    }

    async fn publish(&self, changes: Vec<Change>) {
        let Some(server) = self.server.get() else { return };
        for change in changes {
            change.log(&server.id);
            let Some(bus) = &server.bus else { continue };
            let event = match Event::new(change.event_type(), &*server.id, change.data()) {
                Ok(event) => event.with_subject(&*change.arm).with_partition_key(&*change.arm),
                Err(error) => {
                    tracing::error!(%error, "event cannot be written");
                    continue;
                }
            };
            let published = timeout(PUBLISH, bus.publish(event)).await;
            match published {
                Ok(Ok(_)) => {}
                Ok(Err(error)) => {
                    tracing::warn!(arm = change.arm, %error, "the change of an arm could not be published");
                }
                Err(_) => {
                    tracing::warn!(arm = change.arm, "the change of an arm could not be published in time")
                }
            }
        }
    }
}

/// What attends to a registry. Where it is dropped with its runtime, another one can.
struct Attendance {
    inner: Weak<Inner>,
    /// Another one may attend by now.
    is_over: bool,
}

impl Drop for Attendance {
    fn drop(&mut self) {
        if let Some(inner) = self.inner.upgrade().filter(|_| !self.is_over) {
            inner.state().is_attended = false;
        }
    }
}

/// Ends registrations and publishes changes, until none is left or the registry is dropped.
async fn attend(mut attendance: Attendance, wake: Arc<Notify>) {
    loop {
        let Some(inner) = attendance.inner.upgrade() else { return };
        let (changes, next) = inner.turn();
        match (changes.is_empty(), next) {
            (false, _) => inner.publish(changes).await,
            (true, None) => {
                attendance.is_over = true;
                return;
            }
            (true, Some(next)) => {
                drop(inner);
                tokio::select! {
                    () = wake.notified() => {}
                    () = sleep_until(next) => {}
                }
            }
        }
    }
}

/// The endpoint of an arm that accepts work. `None` where its card has no URL.
pub(crate) fn endpoint_of(card: &ArmCard) -> Option<Endpoint> {
    Some(Endpoint::new(&*card.arm_id, card.endpoint.as_deref()?).card(card.clone()))
}

impl Default for Registry {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry").field("allowed", &self.0.allowed).finish_non_exhaustive()
    }
}

/// Builds a [`Registry`]: see [`Registry::builder`].
#[derive(Debug, Default)]
#[must_use = "a builder does nothing until it builds"]
pub struct RegistryBuilder {
    config: RegistryConfig,
    allowed: Vec<String>,
    reserved: HashSet<String>,
}

impl RegistryBuilder {
    /// Allows endpoints below a URL, in place of those of this machine. It can be called again for more.
    ///
    /// `http://judge:8103` allows that scheme, host and port, and every path. `http://gateway/arms` allows the paths `/arms` and below.
    /// `http://*.judge:8103` allows each name of one more label, such as `judge-0.judge`, and `http://judge:*` each port.
    pub fn allow(mut self, prefix: impl Into<String>) -> Self {
        self.allowed.push(prefix.into());
        self
    }

    /// Reserves an id: nobody can register it. The ids of the server itself, of the issuers of its tokens, and of the arms in the
    /// configuration of its orchestrator are reserved without this.
    pub fn reserve(mut self, id: impl Into<String>) -> Self {
        self.reserved.insert(id.into());
        self
    }

    /// Builds the registry.
    ///
    /// # Errors
    /// A prefix is malformed, a limit is out of range, or two of them contradict each other.
    pub fn build(self) -> Result<Registry, ConfigError> {
        self.config.validate()?;
        let parse = |prefix: &String| {
            Prefix::parse(prefix)
                .map_err(|problem| ConfigError::new("allow", format!("has a prefix that {problem}")))
        };
        let allowed: Vec<_> = self.allowed.iter().map(parse).collect::<Result<_, _>>()?;
        Ok(self.into_registry(allowed))
    }

    fn into_registry(self, allowed: Vec<Prefix>) -> Registry {
        let is_default = self.allowed.is_empty();
        let allowed = if is_default { Prefix::loopback() } else { allowed };
        let state = State { book: Book::new(self.config, self.reserved), listed: None, is_attended: false };
        let (book, changed, wake) = (Mutex::new(state), watch::Sender::new(0), Arc::default());
        Registry(Arc::new(Inner { book, allowed, is_default, changed, wake, server: OnceLock::new() }))
    }

    fn config_mut(&mut self) -> &mut RegistryConfig {
        &mut self.config
    }
}

registry_limits!(limits_setters RegistryBuilder);

#[cfg(test)]
mod tests;
