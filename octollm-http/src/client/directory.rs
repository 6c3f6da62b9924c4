//! The directory of a client: which arms there are, and asking them for their cards when these are needed.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    fmt,
    sync::{
        Arc, Mutex, PoisonError, RwLock, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::{FutureExt, StreamExt, stream::FuturesUnordered};
use octollm_core::{
    card::ArmCard,
    contract::{ContractRef, Keys, Spec},
    error::Failure,
    resilience::RetryBudget,
};
use tokio::{
    runtime::{self, Handle},
    select,
    sync::watch,
    time::{Instant, interval, timeout},
};

use super::{
    cards::ask,
    exchange::Exchanger,
    known::{CardAnswer, Known},
    offers::{Drift, Offer, Offers},
    pool::Origin,
    site::{Judging, Listed, Site},
};

/// The arms with their endpoints and cards. It asks all endpoints in rounds, at the first call, when an offer or the set of endpoints has
/// changed, and for a call where the last round is long ago: in a deployment the endpoints of one arm may have different cards, and what a
/// card says of its arm does not hold for ever.
pub(super) struct Directory {
    itself: Weak<Self>,
    pub(super) exchanger: Exchanger,
    judging: Judging,
    asking: Asking,
    /// From when on the cards are old, in milliseconds since `begun`.
    old_at: AtomicU64,
    begun: Instant,
    known: RwLock<Known>,
    round: watch::Sender<Round>,
    fingerprints: Mutex<HashMap<ContractRef, String>>,
    reported_drifts: Mutex<HashSet<(ContractRef, Arc<str>)>>,
}

/// How the arms are asked for their cards.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asking {
    pub(super) time_limit: Duration,
    /// Age from which a card is old.
    pub(super) refresh: Duration,
}

#[derive(Debug, Default)]
struct Round {
    number: u64,
    /// Runtime of the round, and when it has last run it: it may have stopped.
    running: Option<(runtime::Id, Instant)>,
    /// Time of its begin or its end.
    changed: Option<Instant>,
}

/// The shortest time between two rounds.
const BETWEEN_ROUNDS: Duration = Duration::from_secs(1);

/// How often a round says that its runtime runs, and looks for new endpoints.
const BEAT: Duration = Duration::from_millis(250);

/// The shortest time for which the health of an endpoint and the budget of an arm are remembered after these are gone.
const REMEMBERED: Duration = Duration::from_secs(30);

/// The most endpoints that are asked at a time, since requests to silent ones must leave connections to calls and to each other.
const ASKED_AT_ONCE: usize = 32;

impl Directory {
    /// `groups` are those of the resolvers. The configuration has the group 0.
    pub(super) fn new(
        configured: Vec<Listed>,
        groups: impl IntoIterator<Item = usize>,
        exchanger: Exchanger,
        judging: Judging,
        asking: Asking,
    ) -> Arc<Self> {
        let longest_open = judging.breaker.map_or(Duration::ZERO, |limits| limits.max_open);
        let known = Known::new([0].into_iter().chain(groups), REMEMBERED.max(longest_open), judging.retries);
        let directory = Arc::new_cyclic(|itself| Self {
            itself: itself.clone(),
            exchanger,
            judging,
            asking,
            old_at: AtomicU64::new(milliseconds(asking.refresh)),
            begun: Instant::now(),
            known: RwLock::new(known),
            round: watch::Sender::default(),
            fingerprints: Mutex::default(),
            reported_drifts: Mutex::default(),
        });
        directory.replace(0, configured);
        directory
    }

    /// The offers of a contract for a call, as far as they are known now. Where the cards are old, the arms are asked again meanwhile.
    pub(super) fn offers_now(&self, contract: &ContractRef, now: Instant) -> Option<Arc<Offers>> {
        let now = milliseconds(now.saturating_duration_since(self.begun));
        let old_at = self.old_at.load(Ordering::Relaxed);
        // Of many calls one begins the round.
        if now >= old_at && self.are_old_from(old_at, now) {
            self.refresh_later();
        }
        self.offers(contract)
    }

    /// The offers of a contract, as far as they are known now.
    pub(super) fn offers(&self, contract: &ContractRef) -> Option<Arc<Offers>> {
        self.read(|known| known.offers.get(contract).cloned())
    }

    /// Who has the record of a call of this contract with a key, by the cards.
    pub(super) fn keys(&self, contract: &ContractRef) -> Keys {
        self.offers(contract).map_or(Keys::None, |offers| offers.keys())
    }

    /// The offers of a contract. The arms are asked where there are none. One that answers late delays only calls that no
    /// other arm can serve.
    ///
    /// # Errors
    /// `ContractNotOffered`, or `Unreachable` if arms could not be asked, or `Unavailable` if the
    /// resolvers have found none. A retry waits for the next round.
    pub(super) async fn find(&self, contract: &ContractRef) -> Result<Arc<Offers>, Failure> {
        let mut round = self.begin_round();
        let first_sets = Instant::now() + self.asking.time_limit;
        loop {
            let is_early = Instant::now() < first_sets;
            // In this order: what is learned after the look at the offers is seen as a change.
            let Round { running, changed, .. } = *round.borrow_and_update();
            if let Some(offers) = self.offers(contract) {
                return Ok(offers);
            }
            if running.is_none() && self.is_due() && self.read(Known::asks) {
                // Endpoints were found after the last round.
                self.begin_round();
                continue;
            }
            let is_incomplete = is_early && self.read(|known| known.is_incomplete() || known.has_unasked());
            if running.is_none() && !is_incomplete {
                let since = changed.map_or(BETWEEN_ROUNDS, |changed| changed.elapsed());
                let wait = BETWEEN_ROUNDS.saturating_sub(since);
                return Err(self.read(|known| known.unknown(contract, wait)));
            }
            self.changes(&mut round).await;
        }
    }

    /// Asks all arms again, unless that was done a moment ago.
    pub(super) async fn refresh(&self) {
        let first_sets = Instant::now() + self.asking.time_limit;
        let mut round = self.begin_round();
        loop {
            let is_running = round.borrow_and_update().running.is_some();
            let is_incomplete = self.read(Known::is_incomplete) && Instant::now() < first_sets;
            if !is_running && !is_incomplete {
                return;
            }
            self.changes(&mut round).await;
        }
    }

    /// Asks all arms again, unless that was done a moment ago. Returns at once.
    pub(super) fn refresh_later(&self) {
        self.begin_round();
    }

    /// Asks all arms again, unless that was done a moment ago, and waits for the answers of these endpoints.
    pub(super) async fn refresh_sites(&self, sites: &[Arc<Site>]) {
        let mut receiver = self.begin_round();
        loop {
            let Round { number, running, .. } = *receiver.borrow_and_update();
            if running.is_none() || self.read(|known| known.learned_in(number, sites)) {
                return;
            }
            self.changes(&mut receiver).await;
        }
    }

    /// The cards of the arms that answered in the last round.
    pub(super) fn cards(&self) -> Vec<ArmCard> {
        self.read(Known::cards)
    }

    /// Replaces the endpoints of a source: 0 is the configuration.
    pub(super) fn replace(&self, source: usize, set: Vec<Listed>) {
        let create =
            |listed: &Listed, budget: &RetryBudget| Arc::new(Site::new(listed, budget, &self.judging));
        let connected =
            |site: &Arc<Site>| Some((site.arm.clone(), Origin::of(&site.url.uri("/")?, site.url.address())?));
        let pool = self.exchanger.pool();
        let gone = {
            let mut known = self.write();
            let mut gone: HashSet<_> =
                known.replace(source, set, Instant::now(), create).iter().filter_map(connected).collect();
            // An endpoint with another path has the same connections.
            if !gone.is_empty() {
                known.sites().filter_map(connected).for_each(|stays| {
                    gone.remove(&stays);
                });
            }
            // Under the lock, so that of two sources the later one sets the number last.
            pool.set_arms(known.len());
            gone
        };
        for (arm, origin) in &gone {
            pool.forget(arm, origin);
        }
        self.round.send_modify(|_| ());
    }

    /// When to [tend](Self::tend) to what the last sets have changed. `None` where there is nothing.
    pub(super) fn due(&self) -> Option<Instant> {
        let (has_unasked, forgets) = self.read(|known| (known.has_unasked(), known.forgets_at()));
        let now = Instant::now();
        let next_round = match *self.round.borrow() {
            // It takes them up, unless it ends just now.
            Round { running: Some(_), .. } => now + BETWEEN_ROUNDS,
            Round { changed, .. } => changed.map_or(now, |changed| now.max(changed + BETWEEN_ROUNDS)),
        };
        let asks = has_unasked.then_some(next_round);
        asks.into_iter().chain(forgets).min()
    }

    /// Asks new endpoints for their cards, and forgets those that are gone.
    pub(super) fn tend(&self) {
        self.write().forget(Instant::now());
        if self.read(Known::has_unasked) {
            self.begin_round();
        }
    }

    /// Counts a source that has failed as one without endpoints, if it has never answered.
    pub(super) fn has_failed(&self, source: usize, why: String) {
        self.write().has_failed(source, why);
        self.round.send_modify(|_| ());
    }

    /// The difference between the caller's schemas of a contract and the arm's, which is logged once for each arm.
    pub(super) fn drift<'o>(
        &self,
        contract: &ContractRef,
        offer: &'o Offer,
        spec: Option<&Spec>,
    ) -> Option<&'o Drift> {
        if let Some(drift) = offer.drift.get() {
            return drift.as_ref();
        }
        if offer.fingerprint.is_empty() {
            return offer.drift.get_or_init(|| None).as_ref();
        }
        // This caller has only JSON; the next one may have schemas.
        let ours = self.own_fingerprint(contract, spec?)?;
        let drift = offer.drift.get_or_init(|| {
            (ours != offer.fingerprint).then(|| Drift { ours, theirs: offer.fingerprint.clone() })
        });
        if let Some(Drift { ours, theirs }) = drift {
            let arm = &offer.site.arm;
            let mut reported = self.reported_drifts.lock().unwrap_or_else(PoisonError::into_inner);
            if reported.insert((contract.clone(), Arc::clone(arm))) {
                tracing::warn!(%contract, %arm, ours, theirs, "the schemas of caller and arm differ");
            }
        }
        drift.as_ref()
    }

    /// The fingerprint of the caller's schemas, which is computed once.
    fn own_fingerprint(&self, contract: &ContractRef, spec: &Spec) -> Option<String> {
        let mut fingerprints = self.fingerprints.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = fingerprints.get(contract) {
            return Some(known.clone());
        }
        let ours = spec.fingerprint()?;
        fingerprints.insert(contract.clone(), ours.clone());
        Some(ours)
    }

    /// Sets when the cards are old the next time. Returns whether nobody else has.
    fn are_old_from(&self, before: u64, now: u64) -> bool {
        let next = now.saturating_add(milliseconds(self.asking.refresh));
        self.old_at.compare_exchange(before, next, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    fn is_due(&self) -> bool {
        self.round.borrow().changed.is_none_or(|changed| changed.elapsed() >= BETWEEN_ROUNDS)
    }

    fn begin_round(&self) -> watch::Receiver<Round> {
        let receiver = self.round.subscribe();
        let (Ok(runtime), Some(directory)) = (Handle::try_current(), self.itself.upgrade()) else {
            return receiver;
        };
        let asks = self.read(Known::asks);
        let mut begun = None;
        self.round.send_if_modified(|round| {
            let due = round.changed.is_none_or(|changed| changed.elapsed() >= BETWEEN_ROUNDS);
            let now = Instant::now();
            let runs = round.running.is_some_and(|(id, beat)| id == runtime.id() || !is_stalled(beat, now));
            if asks && due && !runs {
                let (number, running) = (round.number + 1, Some((runtime.id(), now)));
                *round = Round { number, running, changed: Some(now) };
                begun = Some(number);
            }
            begun.is_some()
        });
        if let Some(number) = begun {
            let now = milliseconds(self.begun.elapsed());
            self.old_at.store(now.saturating_add(milliseconds(self.asking.refresh)), Ordering::Relaxed);
            runtime.spawn(ask_all(RunningRound { directory, number }));
        }
        receiver
    }

    /// Waits until an arm or a resolver has answered or the round has ended. If its runtime has stopped, another round begins here.
    async fn changes(&self, round: &mut watch::Receiver<Round>) {
        // The channel is never closed: the sender is in `self`.
        if timeout(BETWEEN_ROUNDS, round.changed()).await.is_err() {
            self.begin_round();
        }
    }

    fn learn(&self, round: u64, answers: Vec<CardAnswer>) {
        self.write().learn(round, answers);
        self.round.send_modify(|_| ());
    }

    /// Notes that the runtime of a round runs. Returns whether no other one has taken its place.
    fn beat(&self, number: u64) -> bool {
        let mut is_current = false;
        self.round.send_if_modified(|round| {
            is_current = round.number == number;
            if let Some((_, beat)) = round.running.as_mut().filter(|_| is_current) {
                *beat = Instant::now();
            }
            false
        });
        is_current
    }

    fn read<T>(&self, read: impl FnOnce(&Known) -> T) -> T {
        read(&self.known.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, Known> {
        self.known.write().unwrap_or_else(PoisonError::into_inner)
    }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Whether the runtime of a round no longer runs it.
fn is_stalled(beat: Instant, now: Instant) -> bool {
    now.saturating_duration_since(beat) >= BETWEEN_ROUNDS
}

/// Ends the round when it is dropped.
struct RunningRound {
    directory: Arc<Directory>,
    number: u64,
}

impl Drop for RunningRound {
    fn drop(&mut self) {
        self.directory.round.send_if_modified(|round| {
            let is_last = round.number == self.number;
            if is_last {
                (round.running, round.changed) = (None, Some(Instant::now()));
            }
            is_last
        });
    }
}

async fn ask_all(round: RunningRound) {
    let RunningRound { directory, number } = &round;
    let one = async |site: Arc<Site>| {
        let answer = ask(&directory.exchanger, directory.asking.time_limit, &site).await;
        (site, answer)
    };
    let mut waiting = VecDeque::new();
    let mut answers = FuturesUnordered::new();
    let mut beats = interval(BEAT);
    loop {
        // Also those that were found since the round has begun.
        waiting.extend(directory.write().ask_in(*number));
        let room = ASKED_AT_ONCE.saturating_sub(answers.len()).min(waiting.len());
        answers.extend(waiting.drain(..room).map(one));
        if answers.is_empty() || !directory.beat(*number) {
            return;
        }
        select! {
            _ = beats.tick() => {}
            Some(first) = answers.next() => {
                let mut answered = vec![first];
                while let Some(Some(next)) = answers.next().now_or_never() {
                    answered.push(next);
                }
                directory.learn(*number, answered);
            }
        }
    }
}

impl fmt::Debug for Directory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Directory").finish_non_exhaustive()
    }
}
