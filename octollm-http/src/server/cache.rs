//! Answers that are repeated in place of another run, for the contracts that ask for it.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use octollm_core::{
    bus::{BusError, EventBus, Overflow, Signal},
    contract::ContractRef,
    event::Event,
    id::TaskId,
    parts::Caller,
};
use sha2::{Digest, Sha256};
use tokio::{
    runtime::Handle,
    time::{Instant, sleep},
};
use tokio_util::sync::{CancellationToken, DropGuard};

/// The cached answers of a server.
pub(crate) struct AnswerCache {
    answers: Mutex<Answers>,
    bus: Option<Arc<dyn EventBus>>,
    /// Whether a task receives the events of the bus, or has found that bus closed.
    listens: AtomicBool,
    end: CancellationToken,
    _ends: DropGuard,
}

/// The digest of everything that an answer depends on.
pub(crate) type CacheKey = [u8; 32];

/// The result of looking for an answer.
#[derive(Debug, PartialEq)]
pub(crate) enum Lookup {
    /// The answer, and its age.
    Hit(Bytes, Duration),
    /// There is none. One that is found now can be stored with this number.
    Miss(u64),
    /// Events may be missing, so that an answer could have been invalidated.
    Off,
}

/// Bytes of an answer beside its output: its key, its place in the order, and its contract.
const OVERHEAD: usize = 256;
/// Events that may wait. When there are more, all answers are dropped.
const EVENTS: usize = 1024;
/// Pauses between two attempts to subscribe.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(30));
const CHANNEL: &str = "events:cache:invalidated";

impl AnswerCache {
    pub(crate) fn new(max_answers: usize, max_bytes: usize, bus: Option<Arc<dyn EventBus>>) -> Arc<Self> {
        let (end, is_open) = (CancellationToken::new(), bus.is_none());
        let answers = Mutex::new(Answers { max_answers, max_bytes, is_open, ..Answers::default() });
        let (listens, ends) = (AtomicBool::new(bus.is_none()), end.clone().drop_guard());
        let cache = Arc::new(Self { answers, bus, listens, end, _ends: ends });
        cache.listen();
        cache
    }

    /// The answer with this key.
    pub(crate) fn get(self: &Arc<Self>, key: &CacheKey) -> Lookup {
        self.listen();
        self.answers().get(key, Instant::now())
    }

    /// Stores an answer, unless something was invalidated since it was looked for.
    pub(crate) fn store(
        &self,
        key: CacheKey,
        contract: ContractRef,
        output: &Bytes,
        time: Duration,
        miss: u64,
    ) {
        let now = Instant::now();
        let Some(expires) = now.checked_add(time) else { return };
        // A copy has no spare capacity.
        let output = Bytes::copy_from_slice(output);
        self.answers().store(key, Stored { contract, output, since: now, expires, order: 0 }, miss);
    }

    fn answers(&self) -> MutexGuard<'_, Answers> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts the task that receives the events of the bus, once there is a runtime.
    fn listen(self: &Arc<Self>) {
        if self.listens.load(Ordering::Acquire) {
            return;
        }
        let (Some(bus), Ok(runtime)) = (&self.bus, Handle::try_current()) else { return };
        if !self.listens.swap(true, Ordering::AcqRel) {
            runtime.spawn(receive(bus.clone(), Listener(Arc::downgrade(self)), self.end.clone()));
        }
    }
}

/// What the task that receives events has of the cache. Without the task, nothing is answered from the cache.
struct Listener(Weak<AnswerCache>);

impl Listener {
    fn change(&self, change: impl FnOnce(&mut Answers)) {
        if let Some(cache) = self.0.upgrade() {
            change(&mut cache.answers());
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Some(cache) = self.0.upgrade() {
            cache.answers().open(false);
            cache.listens.store(false, Ordering::Release);
        }
    }
}

/// Receives the events of a bus until the cache is dropped or the bus closed.
async fn receive(bus: Arc<dyn EventBus>, listener: Listener, end: CancellationToken) {
    let listening = async {
        let mut pause = PAUSES.0;
        loop {
            let ended = match CHANNEL.parse() {
                Ok(channel) => subscribed(&*bus, channel, &listener, &mut pause).await,
                Err(_) => return,
            };
            tracing::warn!(
                error = ended.as_ref().map(tracing::field::display),
                "cached answers are off: no events"
            );
            if let Some(BusError::Closed) = ended {
                // Nothing can be received any more, and nothing is served from the cache.
                return std::future::pending().await;
            }
            sleep(pause).await;
            pause = (pause * 2).min(PAUSES.1);
        }
    };
    tokio::select! {
        () = end.cancelled() => {}
        () = listening => {}
    }
}

/// Receives events for as long as one subscription lasts. Returns why it ended.
async fn subscribed(
    bus: &dyn EventBus,
    channel: octollm_core::event::Pattern,
    listener: &Listener,
    pause: &mut Duration,
) -> Option<BusError> {
    let mut events = match bus.subscribe(channel, Overflow::DropOldest(EVENTS)).await {
        Ok(events) => events,
        Err(error) => return Some(error),
    };
    *pause = PAUSES.0;
    listener.change(|answers| answers.open(true));
    while let Some(signal) = events.next().await {
        let contract = match &signal {
            Signal::Event(event) => contract_of(event),
            Signal::Gap(_) | Signal::Lagged(_) => None,
        };
        listener.change(|answers| answers.invalidate(contract.as_ref()));
    }
    listener.change(|answers| answers.open(false));
    events.ended()
}

/// The contract whose answers are invalid. `None` for all, also where the event cannot be read.
fn contract_of(event: &Event) -> Option<ContractRef> {
    event.data().get("contract")?.as_str()?.parse().ok()
}

/// The key of an answer. The input counts byte by byte: equal values that are written in two ways are two inputs.
pub(crate) fn cache_key(
    contract: &ContractRef,
    input: &[u8],
    caller: &Caller,
    task: Option<&TaskId>,
) -> CacheKey {
    let mut digest = Sha256::new();
    let mut part = |bytes: &[u8]| {
        digest.update((bytes.len() as u64).to_be_bytes());
        digest.update(bytes);
    };
    part(contract.name().as_bytes());
    part(&contract.version().to_be_bytes());
    part(task.map_or("", TaskId::as_str).as_bytes());
    match caller.grant() {
        Some(grant) => {
            let mut scopes: Vec<_> = grant.scopes.iter().collect();
            scopes.sort_unstable();
            scopes.dedup();
            part(&[2, u8::from(grant.issuer.is_some())]);
            part(grant.issuer.as_deref().unwrap_or_default().as_bytes());
            part(grant.subject.as_bytes());
            part(&(scopes.len() as u64).to_be_bytes());
            scopes.into_iter().for_each(|scope| part(scope.as_bytes()));
            onward(grant.links.as_deref(), &mut part);
        }
        None => part(&[u8::from(*caller == Caller::Anonymous)]),
    }
    part(input);
    digest.finalize().into()
}

/// Adds what the arm may call on with for its caller, which its answer can depend on. The same is passed on by other links later.
fn onward(links: Option<&[Arc<str>]>, part: &mut impl FnMut(&[u8])) {
    let Some(links) = links else { return part(&[0]) };
    let Some(last) = links.last() else { return part(&[1]) };
    #[cfg(feature = "tokens")]
    if let Some((mut scopes, task)) = crate::token::covered_by(last) {
        scopes.sort_unstable();
        scopes.dedup();
        part(&[2]);
        part(task.as_ref().map_or("", TaskId::as_str).as_bytes());
        part(&(scopes.len() as u64).to_be_bytes());
        return scopes.iter().for_each(|scope| part(scope.as_bytes()));
    }
    part(&[3]);
    part(last.as_bytes());
}

/// Answers by key, bounded in number and bytes. Of more, the oldest are dropped.
#[derive(Debug, Default)]
struct Answers {
    max_answers: usize,
    max_bytes: usize,
    stored: HashMap<CacheKey, Stored>,
    /// The keys in the order in which their answers were stored.
    order: BTreeMap<u64, CacheKey>,
    stored_ever: u64,
    bytes: usize,
    /// Counts the invalidations.
    generation: u64,
    is_open: bool,
}

#[derive(Debug)]
struct Stored {
    contract: ContractRef,
    output: Bytes,
    since: Instant,
    expires: Instant,
    order: u64,
}

impl Answers {
    fn get(&mut self, key: &CacheKey, now: Instant) -> Lookup {
        if !self.is_open {
            return Lookup::Off;
        }
        match self.stored.get(key) {
            Some(stored) if now < stored.expires => {
                Lookup::Hit(stored.output.clone(), now.saturating_duration_since(stored.since))
            }
            Some(_) => {
                self.remove(key);
                Lookup::Miss(self.generation)
            }
            None => Lookup::Miss(self.generation),
        }
    }

    fn store(&mut self, key: CacheKey, stored: Stored, miss: u64) {
        let bytes = stored.bytes();
        if miss != self.generation || !self.is_open || bytes > self.max_bytes || self.max_answers == 0 {
            return;
        }
        self.remove(&key);
        while self.stored.len() >= self.max_answers || self.bytes + bytes > self.max_bytes {
            let Some((_, oldest)) = self.order.pop_first() else { break };
            self.remove(&oldest);
        }
        self.stored_ever += 1;
        self.bytes += bytes;
        self.order.insert(self.stored_ever, key);
        self.stored.insert(key, Stored { order: self.stored_ever, ..stored });
    }

    fn remove(&mut self, key: &CacheKey) {
        if let Some(stored) = self.stored.remove(key) {
            self.order.remove(&stored.order);
            self.bytes -= stored.bytes();
        }
    }

    /// Drops the answers of a contract, or all.
    fn invalidate(&mut self, contract: Option<&ContractRef>) {
        self.generation += 1;
        let dropped = |stored: &Stored| contract.is_none_or(|contract| stored.contract == *contract);
        let keys: Vec<_> =
            self.stored.iter().filter(|(_, stored)| dropped(stored)).map(|(key, _)| *key).collect();
        keys.iter().for_each(|key| self.remove(key));
    }

    /// Begins to answer, or ends it. In between, an invalidation can have been missed.
    fn open(&mut self, is_open: bool) {
        self.invalidate(None);
        self.is_open = is_open;
    }
}

impl Stored {
    fn bytes(&self) -> usize {
        self.output.len() + OVERHEAD
    }
}

#[cfg(test)]
mod tests {
    use octollm_core::parts::Grant;
    use proptest::prelude::*;

    use super::*;

    fn contract(name: &str) -> ContractRef {
        name.parse().unwrap()
    }

    fn answers(max_answers: usize, max_bytes: usize) -> Answers {
        Answers { max_answers, max_bytes, is_open: true, ..Answers::default() }
    }

    fn stored(length: usize, since: Instant, life: u64) -> Stored {
        let expires = since + Duration::from_secs(life);
        Stored { contract: contract("a.b"), output: vec![b'x'; length].into(), since, expires, order: 0 }
    }

    proptest! {
        /// Whatever is stored, looked for and dropped: the bounds hold, and the sums are those of what is stored.
        #[test]
        fn the_bounds_hold(steps in prop::collection::vec((0_u8..20, 0_usize..600, 0_u64..5, 0_u8..10), 1..200)) {
            let mut answers = answers(5, 2_000);
            let mut now = Instant::now();
            for (key, length, seconds, step) in steps {
                match step {
                    0 => answers.invalidate(Some(&contract("a.b"))),
                    1 => now += Duration::from_secs(seconds),
                    2 | 3 => drop(answers.get(&[key; 32], now)),
                    _ => {
                        let miss = answers.generation;
                        answers.store([key; 32], stored(length, now, seconds), miss);
                    }
                }
                prop_assert!(answers.stored.len() <= 5 && answers.bytes <= 2_000);
                prop_assert_eq!(answers.stored.len(), answers.order.len());
                prop_assert_eq!(answers.bytes, answers.stored.values().map(Stored::bytes).sum::<usize>());
            }
        }
    }

    #[test]
    fn what_is_found_before_an_invalidation_is_not_stored_after_it() {
        let (mut answers, now) = (answers(5, 10_000), Instant::now());
        let miss = answers.generation;
        answers.invalidate(Some(&contract("other.one")));
        answers.store([1; 32], stored(1, now, 60), miss);
        assert_eq!(answers.get(&[1; 32], now), Lookup::Miss(miss + 1));
        answers.store([1; 32], stored(1, now, 60), miss + 1);
        let later = now + Duration::from_secs(59);
        assert_eq!(answers.get(&[1; 32], later), Lookup::Hit("x".into(), Duration::from_secs(59)));
        assert_eq!(answers.get(&[1; 32], later + Duration::from_secs(1)), Lookup::Miss(miss + 1));
        answers.store([1; 32], stored(1, now, 60), miss + 1);
        answers.open(false);
        assert_eq!(answers.get(&[1; 32], now), Lookup::Off);
        answers.open(true);
        assert!(
            matches!(answers.get(&[1; 32], now), Lookup::Miss(_)),
            "while it was closed, events were missed"
        );
    }

    #[test]
    fn everything_that_an_answer_depends_on_is_in_its_key() {
        let grant = |issuer: &str, subject: &str, scopes: &[&str]| {
            Caller::Known(Arc::new(Grant::new(subject, scopes.iter().copied()).issuer(issuer)))
        };
        let (a, b) = (TaskId::new(), TaskId::new());
        let (one, two) = (contract("a.b"), contract("a.b@2"));
        let me = grant("x", "me", &["a:b", "c:d"]);
        let keys = [
            cache_key(&one, b"{}", &Caller::Unchecked, None),
            cache_key(&two, b"{}", &Caller::Unchecked, None),
            cache_key(&one, b"{ }", &Caller::Unchecked, None),
            cache_key(&one, b"{}", &Caller::Anonymous, None),
            cache_key(&one, b"{}", &Caller::Unchecked, Some(&a)),
            cache_key(&one, b"{}", &Caller::Unchecked, Some(&b)),
            cache_key(&one, b"{}", &me, None),
            cache_key(&one, b"{}", &grant("xm", "e", &["a:b", "c:d"]), None),
            cache_key(&one, b"{}", &grant("y", "me", &["a:b", "c:d"]), None),
            cache_key(&one, b"{}", &grant("x", "me", &["a:b"]), None),
            cache_key(&one, b"{}", &Caller::known("me", ["a:b", "c:d"]), None),
        ];
        let distinct: std::collections::HashSet<_> = keys.iter().collect();
        assert_eq!(distinct.len(), keys.len());
        let reordered = grant("x", "me", &["c:d", "a:b", "a:b"]);
        assert_eq!(cache_key(&one, b"{}", &reordered, None), cache_key(&one, b"{}", &me, None));
    }
}
