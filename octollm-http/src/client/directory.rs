//! The directory of a client: which arms there are, and asking them for their cards when these are needed.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    sync::{Arc, Mutex, PoisonError, RwLock, Weak},
    time::{Duration, SystemTime},
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use http::{Method, StatusCode};
use octollm_core::{
    card::ArmCard,
    contract::{ContractRef, Keys, Spec},
    deadline::Deadline,
    error::{ErrorKind, Failure},
    json::read_output,
    parts::ContextParts,
    resilience::RetryBudget,
};
use tokio::{
    runtime::{self, Handle},
    sync::watch,
    time::{Instant, sleep_until, timeout},
};

use super::{
    exchange::{Exchanger, Target},
    foreign,
    known::Known,
    offers::{self, Drift, Offer, Offers},
    pool::{ExchangeLimits, Origin, ServerHints},
    site::{Judging, Listed, Site},
};

/// The arms with their endpoints and cards. It asks all endpoints in rounds, at the first call, and when an offer or the set of endpoints has
/// changed: in a deployment the endpoints of one arm may have different cards.
pub(super) struct Directory {
    itself: Weak<Self>,
    pub(super) exchanger: Exchanger,
    judging: Judging,
    time_limit: Duration,
    known: RwLock<Known>,
    round: watch::Sender<Round>,
    fingerprints: Mutex<HashMap<ContractRef, String>>,
    reported_drifts: Mutex<HashSet<(ContractRef, Arc<str>)>>,
}

#[derive(Debug, Default)]
struct Round {
    number: u64,
    /// Runtime of the round, which may have stopped.
    running: Option<runtime::Id>,
    /// Time of its begin or its end.
    changed: Option<Instant>,
}

/// The shortest time between two rounds.
const BETWEEN_ROUNDS: Duration = Duration::from_secs(1);

/// The most endpoints that are asked at a time, since requests to silent ones must leave connections to calls and to each other.
const ASKED_AT_ONCE: usize = 32;
/// The largest card, in bytes. As values its schemas take up to a hundred times as much memory.
const MAX_CARD: usize = 1 << 20;

impl Directory {
    pub(super) fn new(
        configured: Vec<Listed>,
        resolvers: usize,
        exchanger: Exchanger,
        judging: Judging,
        time_limit: Duration,
    ) -> Arc<Self> {
        let directory = Arc::new_cyclic(|itself| Self {
            itself: itself.clone(),
            exchanger,
            judging,
            time_limit,
            known: RwLock::new(Known::new(resolvers)),
            round: watch::Sender::default(),
            fingerprints: Mutex::default(),
            reported_drifts: Mutex::default(),
        });
        directory.replace(0, configured);
        directory
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
    /// [`ErrorKind::ContractNotOffered`], or [`ErrorKind::Unreachable`] if arms could not be asked, or [`ErrorKind::Unavailable`] if the
    /// resolvers have found none. A retry waits for the next round.
    pub(super) async fn find(&self, contract: &ContractRef) -> Result<Arc<Offers>, Failure> {
        let mut round = self.begin_round();
        let first_sets = Instant::now() + self.time_limit;
        loop {
            // In this order: what is learned after the look at the offers is seen as a change.
            let Round { running, changed, .. } = *round.borrow_and_update();
            if let Some(offers) = self.offers(contract) {
                return Ok(offers);
            }
            let is_incomplete = self.read(Known::is_incomplete) && Instant::now() < first_sets;
            if running.is_none() && !is_incomplete {
                if self.is_due() && self.read(Known::asks) {
                    // Endpoints were found after the last round.
                    self.begin_round();
                    continue;
                }
                let since = changed.map_or(BETWEEN_ROUNDS, |changed| changed.elapsed());
                let wait = BETWEEN_ROUNDS.saturating_sub(since);
                return Err(self.read(|known| known.unknown(contract, wait)));
            }
            self.changes(&mut round).await;
        }
    }

    /// Asks all arms again, unless that was done a moment ago.
    pub(super) async fn refresh(&self) {
        let first_sets = Instant::now() + self.time_limit;
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

    /// Replaces the endpoints of a source: 0 is the configuration. Returns when to ask the new ones for their cards.
    pub(super) fn replace(&self, source: usize, set: Vec<Listed>) -> Option<Instant> {
        let create =
            |listed: &Listed, budget: &RetryBudget| Arc::new(Site::new(listed, budget, &self.judging));
        let connected =
            |site: &Arc<Site>| Some((site.arm.clone(), Origin::of(&site.url.uri("/")?, site.url.address())?));
        let (gone, is_any_new, arms) = {
            let mut known = self.write();
            let (gone, is_any_new) = known.replace(source, set, create);
            let mut gone: Vec<_> = gone.iter().filter_map(connected).collect();
            // Another path or weight has the same connections.
            let stay: Vec<_> =
                if gone.is_empty() { vec![] } else { known.sites().filter_map(connected).collect() };
            gone.retain(|place| !stay.contains(place));
            (gone, is_any_new, known.len())
        };
        let pool = self.exchanger.pool();
        pool.set_arms(arms);
        for (arm, origin) in &gone {
            pool.forget(arm, origin);
        }
        self.round.send_modify(|_| ());
        is_any_new
            .then(|| self.round.borrow().changed.map_or_else(Instant::now, |last| last + BETWEEN_ROUNDS))
    }

    /// Counts a source that has failed as one without endpoints, if it has never answered.
    pub(super) fn has_failed(&self, source: usize) {
        self.write().has_failed(source);
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
            let runs_here = round.running == Some(runtime.id());
            if asks && due && !runs_here {
                let (number, running, changed) = (round.number + 1, Some(runtime.id()), Some(Instant::now()));
                *round = Round { number, running, changed };
                begun = Some(number);
            }
            begun.is_some()
        });
        if let Some(number) = begun {
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

    fn learn(&self, site: &Arc<Site>, round: u64, answer: Result<ArmCard, Failure>) {
        self.write().learn(site, round, answer);
        self.round.send_modify(|_| ());
    }

    fn read<T>(&self, read: impl FnOnce(&Known) -> T) -> T {
        read(&self.known.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, Known> {
        self.known.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Asks for the cards at this time, unless a round has begun meanwhile.
pub(super) async fn refresh_at(directory: &Weak<Directory>, due: Instant) {
    sleep_until(due).await;
    if let Some(directory) = directory.upgrade() {
        directory.refresh_later();
    }
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
    let directory = &round.directory;
    let mut waiting = directory.read(Known::to_ask).into_iter();
    let one = async |site: Arc<Site>| {
        let answer = ask_in_time(directory, &site).await;
        (site, answer)
    };
    let mut answers: FuturesUnordered<_> = waiting.by_ref().take(ASKED_AT_ONCE).map(one).collect();
    while let Some((site, answer)) = answers.next().await {
        directory.learn(&site, round.number, answer);
        answers.extend(waiting.next().map(one));
    }
}

async fn ask_in_time(directory: &Directory, site: &Site) -> Result<ArmCard, Failure> {
    let limit = directory.time_limit;
    let late = || Err(Failure::new(ErrorKind::Unreachable, format!("no answer within {limit:?}")));
    let answer = Deadline::after(limit).run(ask(directory, site)).await.unwrap_or_else(late);
    if let Err(trouble) = &answer {
        tracing::warn!(arm = %site.arm, endpoint = ?site.url, %trouble, "the arm did not return its card");
    }
    answer
}

/// Asks an endpoint for its card.
async fn ask(directory: &Directory, site: &Site) -> Result<ArmCard, Failure> {
    let no_uri = || Failure::new(ErrorKind::BadRequest, "no such URL").before_execution();
    let uri = site.url.uri("/capabilities").ok_or_else(no_uri)?;
    let mut parts = ContextParts::new();
    parts.deadline = Some(Deadline::after(directory.time_limit));
    let request = site.url.request(Method::GET, uri, None, &parts);
    let hints = ServerHints { address: site.url.address(), ..ServerHints::default() };
    let limits = ExchangeLimits { deadline: parts.deadline, work: directory.time_limit, hints };
    let target = || Target {
        arm: Arc::clone(&site.arm),
        endpoint: site.url.shared(),
        contract: None,
        idempotent: true,
        deadline: parts.deadline,
        work: directory.time_limit,
    };
    let answer = directory.exchanger.send(request, &site.arm, limits, target).await?;
    if answer.status() != StatusCode::OK {
        let status = answer.status();
        let mut failure = foreign::failure(status, answer.headers(), answer.body(), SystemTime::now());
        failure.message = format!("answered {}", status.as_u16());
        return Err(failure);
    }
    if answer.body().len() > MAX_CARD {
        return Err(Failure::new(ErrorKind::BadResponse, "its card is larger than 1 MiB"));
    }
    let no_card = |_| Failure::new(ErrorKind::BadResponse, "its answer is no card of an arm");
    let card = read_output(answer.body()).map_err(no_card)?;
    offers::log_left_out(&site.arm, &card);
    Ok(card)
}

impl fmt::Debug for Directory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Directory").finish_non_exhaustive()
    }
}
