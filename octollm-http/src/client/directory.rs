//! The cards of the arms: asking for them when they are needed.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    fmt::{self, Write as _},
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::{Duration, SystemTime},
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use http::{Method, StatusCode};
use octollm_core::{
    card::ArmCard,
    contract::{ContractRef, Keys, Spec},
    deadline::Deadline,
    dispatcher::not_offered,
    error::{ErrorKind, Failure},
    json::read_output,
    parts::ContextParts,
};
use serde_json::json;
use tokio::{
    runtime::{self, Handle},
    sync::watch,
    time::{Instant, timeout},
};

use super::{
    exchange::{Exchanger, Target},
    foreign,
    offers::{self, ConfiguredArm, Drift, Endpoint, Offer, Offers},
    pool::ExchangeLimits,
};

/// The arms and their cards. It asks all endpoints in rounds, at the first call and when an offer has changed: in a deployment the
/// endpoints of one arm may have different cards.
pub(super) struct Directory {
    arms: Vec<ConfiguredArm>,
    exchanger: Exchanger,
    time_limit: Duration,
    known: RwLock<Known>,
    round: watch::Sender<Round>,
    fingerprints: Mutex<HashMap<ContractRef, String>>,
    reported_drifts: Mutex<HashSet<(ContractRef, Arc<str>)>>,
}

#[derive(Default)]
struct Known {
    offers: HashMap<ContractRef, Arc<Offers>>,
    /// Those of the endpoints, by position.
    cards: Vec<Learned>,
}

/// The last answer of an endpoint.
#[derive(Default)]
struct Learned {
    /// Last card.
    card: Option<ArmCard>,
    /// Failure of the last round, if it failed.
    trouble: Option<Failure>,
    /// Last round in which the endpoint answered.
    round: u64,
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
    pub(super) fn new(arms: Vec<ConfiguredArm>, exchanger: Exchanger, time_limit: Duration) -> Self {
        let learned = |arm: &ConfiguredArm, endpoint| {
            let card = arm.card.clone().map(|card| reached_at(card, endpoint));
            Learned { card, ..Learned::default() }
        };
        let cards = arms.iter().flat_map(|arm| arm.endpoints.iter().map(|endpoint| learned(arm, endpoint)));
        let mut known = Known { offers: HashMap::new(), cards: cards.collect() };
        known.offers = offers_of(&arms, &known);
        Self {
            arms,
            exchanger,
            time_limit,
            known: RwLock::new(known),
            round: watch::Sender::default(),
            fingerprints: Mutex::default(),
            reported_drifts: Mutex::default(),
        }
    }

    /// The offers of a contract, as far as they are known now.
    pub(super) fn offers(&self, contract: &ContractRef) -> Option<Arc<Offers>> {
        self.known.read().unwrap_or_else(PoisonError::into_inner).offers.get(contract).cloned()
    }

    /// Who has the record of a call of this contract with a key, by the cards.
    pub(super) fn keys(&self, contract: &ContractRef) -> Keys {
        self.offers(contract).map_or(Keys::None, |offers| offers.keys())
    }

    /// The offers of a contract. The arms are asked where there are none. One that answers late delays only calls that no
    /// other arm can serve.
    ///
    /// # Errors
    /// [`ErrorKind::ContractNotOffered`], or [`ErrorKind::Unreachable`] if arms could not be asked. A retry waits for the next round.
    pub(super) async fn find(self: &Arc<Self>, contract: &ContractRef) -> Result<Arc<Offers>, Failure> {
        let mut round = self.begin_round();
        loop {
            // In this order: what is learned after the look at the offers is seen as a change.
            let Round { running, changed, .. } = *round.borrow_and_update();
            if let Some(offers) = self.offers(contract) {
                return Ok(offers);
            }
            if running.is_none() {
                let since = changed.map_or(BETWEEN_ROUNDS, |changed| changed.elapsed());
                return Err(self.unknown(contract, BETWEEN_ROUNDS.saturating_sub(since)));
            }
            self.changes(&mut round).await;
        }
    }

    /// Asks all arms again, unless that was done a moment ago.
    pub(super) async fn refresh(self: &Arc<Self>) {
        let mut round = self.begin_round();
        while round.borrow_and_update().running.is_some() {
            self.changes(&mut round).await;
        }
    }

    /// Asks all arms again, unless that was done a moment ago. Returns at once.
    pub(super) fn refresh_later(self: &Arc<Self>) {
        self.begin_round();
    }

    /// Asks all arms again, unless that was done a moment ago, and waits for the answers of these endpoints.
    pub(super) async fn refresh_sites(self: &Arc<Self>, sites: &[usize]) {
        let learned_in = |number| {
            let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
            sites.iter().all(|site| known.cards.get(*site).is_none_or(|learned| learned.round == number))
        };
        let mut receiver = self.begin_round();
        loop {
            let Round { number, running, .. } = *receiver.borrow_and_update();
            if running.is_none() || learned_in(number) {
                return;
            }
            self.changes(&mut receiver).await;
        }
    }

    /// The cards of the arms that answered in the last round, without contracts that cannot be called. Of several endpoints of an arm
    /// the first that answered counts.
    pub(super) fn cards(&self) -> Vec<ArmCard> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        let usable = |card: &ArmCard| {
            let mut card = card.clone();
            card.contracts.retain(|contract| offers::unusable(contract).is_none());
            card
        };
        let first = |arm: &ConfiguredArm| {
            let mut reachable = known.of(arm).iter().filter(|learned| learned.trouble.is_none());
            reachable.find_map(|learned| learned.card.as_ref())
        };
        self.arms.iter().filter_map(first).map(usable).collect()
    }

    /// All endpoints of all arms, by position.
    pub(super) fn sites(&self) -> impl Iterator<Item = (&Arc<str>, &Endpoint)> {
        self.arms.iter().flat_map(|arm| arm.endpoints.iter().map(|endpoint| (&arm.id, endpoint)))
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
            let mut reported = self.reported_drifts.lock().unwrap_or_else(PoisonError::into_inner);
            if reported.insert((contract.clone(), Arc::clone(&offer.arm))) {
                tracing::warn!(%contract, arm = %offer.arm, ours, theirs, "the schemas of caller and arm differ");
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

    fn begin_round(self: &Arc<Self>) -> watch::Receiver<Round> {
        let receiver = self.round.subscribe();
        let nobody_to_ask = self.arms.iter().all(|arm| arm.card.is_some());
        let Ok(runtime) = Handle::try_current() else { return receiver };
        let mut begun = None;
        self.round.send_if_modified(|round| {
            let due = round.changed.is_none_or(|changed| changed.elapsed() >= BETWEEN_ROUNDS);
            let runs_here = round.running == Some(runtime.id());
            if !nobody_to_ask && due && !runs_here {
                let (number, running, changed) = (round.number + 1, Some(runtime.id()), Some(Instant::now()));
                *round = Round { number, running, changed };
                begun = Some(number);
            }
            begun.is_some()
        });
        if let Some(number) = begun {
            runtime.spawn(ask_all(RunningRound { directory: Arc::clone(self), number }));
        }
        receiver
    }

    /// Waits until an arm has answered or the round has ended. If its runtime has stopped, another round begins here.
    async fn changes(self: &Arc<Self>, round: &mut watch::Receiver<Round>) {
        // The channel is never closed: the sender is in `self`.
        if timeout(BETWEEN_ROUNDS, round.changed()).await.is_err() {
            self.begin_round();
        }
    }

    fn learn(&self, site: usize, round: u64, answer: Result<ArmCard, Failure>) {
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        let learned = &mut known.cards[site];
        learned.round = round;
        match answer {
            Ok(card) => (learned.card, learned.trouble) = (Some(card), None),
            // Its last offers may still hold.
            Err(trouble) => learned.trouble = Some(trouble),
        }
        known.offers = offers_of(&self.arms, &known);
        drop(known);
        self.round.send_modify(|_| ());
    }

    /// The failure for a contract without offers, when the next round can begin after `wait`.
    fn unknown(&self, contract: &ContractRef, wait: Duration) -> Failure {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        let mut offered: Vec<_> = known.offers.keys().collect();
        // Other versions first, which a caller needs most likely.
        offered.sort_by_key(|other| (other.name() != contract.name(), *other));
        let offered: Vec<_> = offered.into_iter().map(ToString::to_string).collect();
        let silent: Vec<_> =
            self.arms.iter().filter_map(|arm| Some((&*arm.id, known.trouble(arm)?))).collect();
        let mut failure = not_offered("any arm", contract, &offered);
        if self.arms.is_empty() {
            failure.message = format!(
                "{contract} is not offered: no arm is set; set OCTOLLM_ARM_<ID>=http://host:port for `Arms::from_env()`, \
                 or call `.endpoint(id, url)` of `Arms::builder()`"
            );
        }
        for arm in &self.arms {
            let cards = known.of(arm).iter().filter_map(|learned| learned.card.as_ref());
            let named = cards.flat_map(|card| &card.contracts).filter(|card| {
                card.name == contract.name() && [0, contract.version()].contains(&card.version)
            });
            let reasons: BTreeSet<_> = named.filter_map(offers::unusable).collect();
            for reason in reasons {
                let _ = write!(
                    failure.message,
                    "; it is on the card of {}, but cannot be called: {reason}",
                    arm.id
                );
            }
        }
        if silent.is_empty() { failure } else { unknown_without(&silent, &failure.message, &offered, wait) }
    }
}

/// The failure for a contract without offers while some arms did not return their cards. A retry helps unless all of them
/// refused this caller, but not before the next round, in `wait`.
fn unknown_without(
    silent: &[(&str, &Failure)],
    not_offered: &str,
    offered: &[String],
    wait: Duration,
) -> Failure {
    let named: Vec<_> = silent.iter().map(|(arm, trouble)| format!("{arm} ({})", trouble.message)).collect();
    let message = format!("{not_offered}; these did not return their cards: {}", named.join(", "));
    let unreachable: Vec<_> =
        silent.iter().map(|(arm, trouble)| json!({ "arm": arm, "reason": trouble.message })).collect();
    let refused = |(_, trouble): &(&str, &Failure)| is_refusal(trouble);
    let kind = match silent.first() {
        Some((_, trouble)) if silent.iter().all(refused) => trouble.kind,
        _ => ErrorKind::Unreachable,
    };
    let mut failure = Failure::new(kind, message).before_execution();
    failure.retryable &= !silent.iter().all(refused);
    // Any of them may offer the contract: a retry can help as soon as one of them can be asked again.
    let asked = silent.iter().map(|(_, trouble)| trouble.retry_after).min().flatten();
    failure.retry_after = asked.max(Some(wait)).filter(|wait| failure.retryable && !wait.is_zero());
    failure.details = Some(json!({ "offered": offered, "unreachable": unreachable }));
    failure
}

/// Whether the arm refused this caller, or one of them does not trust the other's certificate.
fn is_refusal(trouble: &Failure) -> bool {
    match trouble.kind {
        ErrorKind::Unauthenticated | ErrorKind::InsufficientScope => true,
        kind => kind == ErrorKind::Unreachable && !trouble.retryable,
    }
}

/// Sets the endpoint of a card that has none to the URL by which its arm was reached.
fn reached_at(mut card: ArmCard, endpoint: &Endpoint) -> ArmCard {
    if card.endpoint.as_ref().is_none_or(|named| named.trim().is_empty()) {
        card.endpoint = Some(endpoint.as_str().to_owned());
    }
    card
}

fn offers_of(arms: &[ConfiguredArm], known: &Known) -> HashMap<ContractRef, Arc<Offers>> {
    let cards = |arm| known.of(arm).iter().map(|learned| learned.card.as_ref()).collect();
    offers::all(arms.iter().map(|arm| (arm, cards(arm))), &known.offers)
}

impl Known {
    /// The answers of the endpoints of an arm.
    fn of(&self, arm: &ConfiguredArm) -> &[Learned] {
        self.cards.get(arm.first_site..).and_then(|rest| rest.get(..arm.endpoints.len())).unwrap_or_default()
    }

    /// The failure of an arm none of whose endpoints has returned its card. One that a retry can help comes first.
    fn trouble(&self, arm: &ConfiguredArm) -> Option<&Failure> {
        let troubles: Option<Vec<_>> = self.of(arm).iter().map(|learned| learned.trouble.as_ref()).collect();
        troubles?.into_iter().min_by_key(|trouble| is_refusal(trouble))
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
    let mut waiting = sites_to_ask(&directory.arms).into_iter();
    let one = async |(site, arm, endpoint)| (site, ask_in_time(directory, arm, endpoint).await);
    let mut answers: FuturesUnordered<_> = waiting.by_ref().take(ASKED_AT_ONCE).map(one).collect();
    while let Some((site, answer)) = answers.next().await {
        directory.learn(site, round.number, answer);
        answers.extend(waiting.next().map(one));
    }
}

/// The endpoints of the arms without a fixed card, by position: the first ones of all arms, then the second ones.
fn sites_to_ask(arms: &[ConfiguredArm]) -> Vec<(usize, &ConfiguredArm, &Endpoint)> {
    let mut sites: Vec<_> = arms
        .iter()
        .filter(|arm| arm.card.is_none())
        .flat_map(|arm| (arm.first_site..).zip(&arm.endpoints).map(move |(site, url)| (site, arm, url)))
        .collect();
    sites.sort_by_key(|(site, arm, _)| site - arm.first_site);
    sites
}

async fn ask_in_time(
    directory: &Directory,
    arm: &ConfiguredArm,
    endpoint: &Endpoint,
) -> Result<ArmCard, Failure> {
    let limit = directory.time_limit;
    let late = || Err(Failure::new(ErrorKind::Unreachable, format!("no answer within {limit:?}")));
    let answer = Deadline::after(limit).run(ask(directory, arm, endpoint)).await.unwrap_or_else(late);
    if let Err(trouble) = &answer {
        tracing::warn!(arm = %arm.id, ?endpoint, %trouble, "the arm did not return its card");
    }
    answer
}

/// Asks an endpoint for its card.
async fn ask(directory: &Directory, arm: &ConfiguredArm, endpoint: &Endpoint) -> Result<ArmCard, Failure> {
    let no_uri = || Failure::new(ErrorKind::BadRequest, "no such URL").before_execution();
    let uri = endpoint.uri("/capabilities").ok_or_else(no_uri)?;
    let mut parts = ContextParts::new();
    parts.deadline = Some(Deadline::after(directory.time_limit));
    let request = endpoint.request(Method::GET, uri, None, &parts);
    let limits =
        ExchangeLimits { deadline: parts.deadline, work: directory.time_limit, ..ExchangeLimits::default() };
    let target = || Target {
        arm: Arc::clone(&arm.id),
        endpoint: endpoint.shared(),
        contract: None,
        idempotent: true,
        deadline: parts.deadline,
        work: directory.time_limit,
    };
    let answer = directory.exchanger.send(request, &arm.id, limits, target).await?;
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
    offers::log_left_out(&arm.id, &card);
    Ok(reached_at(card, endpoint))
}

impl fmt::Debug for Directory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Directory").field("arms", &self.arms).finish_non_exhaustive()
    }
}
