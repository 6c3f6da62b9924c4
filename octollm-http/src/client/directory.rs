//! Which arm offers what: learned from the arms' own cards, when it is needed.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use futures_util::{StreamExt, stream::FuturesUnordered};
use http::{
    HeaderValue, Request, StatusCode,
    header::{ACCEPT, HOST},
};
use octollm_core::{
    card::ArmCard,
    contract::{ContractRef, Spec},
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
    endpoint::Endpoint,
    exchange::{Exchanger, Target},
    foreign,
    pool::Terms,
    route::{self, ConfiguredArm, Drift, Offer, Route},
};
use crate::wire;

/// What is known of the arms. It asks them in rounds: at the first call, and when something is not as it was.
pub(super) struct Directory {
    arms: Vec<ConfiguredArm>,
    exchanger: Exchanger,
    time_limit: Duration,
    known: RwLock<Known>,
    round: watch::Sender<Round>,
    fingerprints: Mutex<HashMap<ContractRef, String>>,
    told_drifts: Mutex<HashSet<(ContractRef, Arc<str>)>>,
}

#[derive(Default)]
struct Known {
    routes: HashMap<ContractRef, Arc<Route>>,
    cards: Vec<Learned>,
}

/// What is known of one arm.
#[derive(Default)]
struct Learned {
    /// Its last card.
    card: Option<ArmCard>,
    /// Why it gave none the last time.
    trouble: Option<Failure>,
    /// The last round in which it was asked.
    round: u64,
}

#[derive(Debug, Default)]
struct Round {
    number: u64,
    /// The runtime that it runs in, which may stand still for ever.
    running: Option<runtime::Id>,
    /// When it was begun, or has ended.
    changed: Option<Instant>,
}

/// So much time is between two rounds at least.
const BETWEEN_ROUNDS: Duration = Duration::from_secs(1);

/// So many arms are asked at a time: questions to silent ones must leave connections to calls, and to each other.
const ASKED_AT_ONCE: usize = 32;
/// The largest card that is read, in bytes: as values its schemas take up to a hundred times as much memory.
const MAX_CARD: usize = 1 << 20;

impl Directory {
    pub(super) fn new(arms: Vec<ConfiguredArm>, exchanger: Exchanger, time_limit: Duration) -> Self {
        let card = |arm: &ConfiguredArm| Some(reached_at(arm.card.clone()?, arm.endpoints.first()));
        let cards = arms.iter().map(|arm| Learned { card: card(arm), ..Learned::default() }).collect();
        let mut known = Known { routes: HashMap::new(), cards };
        known.routes = routes(&arms, &known.cards);
        Self {
            arms,
            exchanger,
            time_limit,
            known: RwLock::new(known),
            round: watch::Sender::default(),
            fingerprints: Mutex::default(),
            told_drifts: Mutex::default(),
        }
    }

    /// What is known by now.
    pub(super) fn route(&self, contract: &ContractRef) -> Option<Arc<Route>> {
        self.known.read().unwrap_or_else(PoisonError::into_inner).routes.get(contract).cloned()
    }

    /// Whether a call of this contract runs once if it has a key, as the cards say.
    pub(super) fn honours_keys(&self, contract: &ContractRef) -> bool {
        self.route(contract).is_some_and(|route| route.honours_keys())
    }

    /// The way to a contract; the arms are asked where it is not known. One that answers late holds up only calls
    /// that no other can serve.
    ///
    /// # Errors
    /// [`ErrorKind::ContractNotOffered`], or [`ErrorKind::Unreachable`] where arms could not be asked.
    pub(super) async fn find(self: &Arc<Self>, contract: &ContractRef) -> Result<Arc<Route>, Failure> {
        let mut round = self.begin_round();
        loop {
            // In this order: what is learned behind the look at the routes is told as a change.
            let running = round.borrow_and_update().running;
            if let Some(route) = self.route(contract) {
                return Ok(route);
            }
            if running.is_none() {
                return Err(self.unknown(contract));
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

    /// Asks all arms again, unless that was done a moment ago, and waits for the answer of this one.
    pub(super) async fn refresh_arm(self: &Arc<Self>, arm: &str) {
        let Some(position) = self.arms.iter().position(|known| &*known.id == arm) else { return };
        let learned_in = || self.known.read().unwrap_or_else(PoisonError::into_inner).cards[position].round;
        let mut receiver = self.begin_round();
        loop {
            let Round { number, running, .. } = *receiver.borrow_and_update();
            if running.is_none() || learned_in() == number {
                return;
            }
            self.changes(&mut receiver).await;
        }
    }

    /// The cards of the arms that could be asked the last time.
    pub(super) fn cards(&self) -> Vec<ArmCard> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        let reachable = known.cards.iter().filter(|learned| learned.trouble.is_none());
        reachable.filter_map(|learned| learned.card.clone()).collect()
    }

    /// All endpoints of all arms, each in its place.
    pub(super) fn sites(&self) -> impl Iterator<Item = (&Arc<str>, &Endpoint)> {
        self.arms.iter().flat_map(|arm| arm.endpoints.iter().map(|endpoint| (&arm.id, endpoint)))
    }

    /// Whether caller and arm mean the same by a contract. Told once for each arm.
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
        // A caller with JSON alone has no schemas: the next one may have.
        let ours = self.own_fingerprint(contract, spec?)?;
        let drift = offer.drift.get_or_init(|| {
            (ours != offer.fingerprint).then(|| Drift { ours, theirs: offer.fingerprint.clone() })
        });
        if let Some(Drift { ours, theirs }) = drift {
            let mut told = self.told_drifts.lock().unwrap_or_else(PoisonError::into_inner);
            if told.insert((contract.clone(), Arc::clone(&offer.arm))) {
                tracing::warn!(%contract, arm = %offer.arm, ours, theirs, "the schemas of caller and arm differ");
            }
        }
        drift.as_ref()
    }

    /// Written from the schemas only once: that takes a while.
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

    /// Waits until something was learned, or the round has ended. One that runs in a runtime that stands still is not waited
    /// for: another one is begun here.
    async fn changes(self: &Arc<Self>, round: &mut watch::Receiver<Round>) {
        // It cannot be closed: the sender is ours.
        if timeout(BETWEEN_ROUNDS, round.changed()).await.is_err() {
            self.begin_round();
        }
    }

    fn learn(&self, arm: usize, round: u64, answer: Result<ArmCard, Failure>) {
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        let learned = &mut known.cards[arm];
        learned.round = round;
        match answer {
            Ok(card) => (learned.card, learned.trouble) = (Some(card), None),
            // What it offered it may still offer: calls will tell.
            Err(trouble) => learned.trouble = Some(trouble),
        }
        known.routes = routes(&self.arms, &known.cards);
        drop(known);
        self.round.send_modify(|_| ());
    }

    /// Why there is no way to a contract.
    fn unknown(&self, contract: &ContractRef) -> Failure {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        let mut offered: Vec<_> = known.routes.keys().collect();
        // Other versions first: that is what a caller is most likely to need.
        offered.sort_by_key(|other| (other.name() != contract.name(), *other));
        let offered: Vec<_> = offered.into_iter().map(ToString::to_string).collect();
        let silent: Vec<_> = self
            .arms
            .iter()
            .zip(&known.cards)
            .filter_map(|(arm, learned)| Some((&*arm.id, learned.trouble.as_ref()?)))
            .collect();
        let failure = not_offered("any arm", contract, &offered);
        if silent.is_empty() { failure } else { unknown_without(&silent, &failure.message, &offered) }
    }
}

/// Why there is no way to a contract where some arms did not show their cards. A retry helps, unless all of them refused
/// this caller.
fn unknown_without(silent: &[(&str, &Failure)], not_offered: &str, offered: &[String]) -> Failure {
    let named: Vec<_> = silent.iter().map(|(arm, trouble)| format!("{arm} ({})", trouble.message)).collect();
    let message = format!("{not_offered}; these did not show their cards: {}", named.join(", "));
    let unreachable: Vec<_> =
        silent.iter().map(|(arm, trouble)| json!({ "arm": arm, "reason": trouble.message })).collect();
    let refused = |(_, trouble): &(&str, &Failure)| is_refusal(trouble.kind);
    let kind = match silent.first() {
        Some((_, trouble)) if silent.iter().all(refused) => trouble.kind,
        _ => ErrorKind::Unreachable,
    };
    let mut failure = Failure::new(kind, message).before_execution();
    // The arm may be any of them: a retry can help as soon as one of them can be asked again.
    let wait = silent.iter().map(|(_, trouble)| trouble.retry_after).min().flatten();
    failure.retry_after = wait.filter(|_| failure.retryable);
    failure.details = Some(json!({ "offered": offered, "unreachable": unreachable }));
    failure
}

fn is_refusal(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::Unauthenticated | ErrorKind::InsufficientScope)
}

/// A card that names no endpoint is completed with the one by which its arm is reached.
fn reached_at(mut card: ArmCard, endpoint: Option<&Endpoint>) -> ArmCard {
    if card.endpoint.as_ref().is_none_or(|named| named.trim().is_empty()) {
        card.endpoint = endpoint.map(|endpoint| endpoint.as_str().to_owned());
    }
    card
}

fn routes(arms: &[ConfiguredArm], cards: &[Learned]) -> HashMap<ContractRef, Arc<Route>> {
    let known = arms.iter().zip(cards);
    route::all(known.filter_map(|(arm, learned)| Some((arm, learned.card.as_ref()?))))
}

/// Ends the round however its task ends.
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
    let mut waiting = directory.arms.iter().enumerate().filter(|(_, arm)| arm.card.is_none());
    let one = async |(position, arm)| (position, ask(directory, arm).await);
    let mut answers: FuturesUnordered<_> = waiting.by_ref().take(ASKED_AT_ONCE).map(one).collect();
    while let Some((position, answer)) = answers.next().await {
        if let Err(trouble) = &answer {
            tracing::warn!(arm = %directory.arms[position].id, %trouble, "the arm did not show its card");
        }
        directory.learn(position, round.number, answer);
        answers.extend(waiting.next().map(one));
    }
}

/// Asks the URLs of one arm: the next one as soon as one fails, or is silent for its share of the time limit, since
/// one that leads nowhere must not hide the others.
async fn ask(directory: &Directory, arm: &ConfiguredArm) -> Result<ArmCard, Failure> {
    let limit = directory.time_limit;
    let share = limit / u32::try_from(arm.endpoints.len()).unwrap_or(u32::MAX);
    let asking = async {
        let mut trouble = None;
        let mut asked = FuturesUnordered::new();
        for endpoint in &arm.endpoints {
            asked.push(ask_at(directory, arm, endpoint));
            match Deadline::after(share).run(asked.next()).await {
                Some(Some(Ok(card))) => return Ok(card),
                Some(Some(Err(why))) => trouble = Some(why),
                Some(None) | None => {}
            }
        }
        while let Some(answer) = asked.next().await {
            match answer {
                Ok(card) => return Ok(card),
                Err(why) => trouble = Some(why),
            }
        }
        Err(trouble.unwrap_or_else(|| Failure::of(ErrorKind::Unreachable)))
    };
    Deadline::after(limit)
        .run(asking)
        .await
        .unwrap_or_else(|| Err(Failure::new(ErrorKind::Unreachable, format!("no answer within {limit:?}"))))
}

async fn ask_at(directory: &Directory, arm: &ConfiguredArm, endpoint: &Endpoint) -> Result<ArmCard, Failure> {
    let no_route = || Failure::new(ErrorKind::BadRequest, "no such URL").before_execution();
    let mut request = Request::new(Bytes::new());
    *request.uri_mut() = endpoint.route("/capabilities").ok_or_else(no_route)?;
    let mut parts = ContextParts::new();
    parts.deadline = Some(Deadline::after(directory.time_limit));
    request.headers_mut().insert(HOST, endpoint.host());
    wire::write_parts(&parts, request.headers_mut());
    request.headers_mut().insert(ACCEPT, HeaderValue::from_static("application/json"));
    let terms = Terms { deadline: parts.deadline, work: directory.time_limit };
    let target = || Target {
        arm: Arc::clone(&arm.id),
        endpoint: endpoint.as_str().into(),
        contract: None,
        idempotent: true,
        deadline: parts.deadline,
        work: directory.time_limit,
    };
    let answer = directory.exchanger.send(request, &arm.id, terms, target).await?;
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
    Ok(reached_at(card, Some(endpoint)))
}

impl fmt::Debug for Directory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Directory").field("arms", &self.arms).finish_non_exhaustive()
    }
}
