//! What a client knows of its arms: their endpoints, from configuration and resolvers, with their cards, and the offers on these.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    fmt::Write as _,
    sync::Arc,
    time::Duration,
};

use octollm_core::{
    card::ArmCard,
    contract::ContractRef,
    dispatcher::not_offered,
    error::{ErrorKind, Failure},
    resilience::RetryBudget,
};
use serde_json::json;
use tokio::time::Instant;

use super::{
    base_url::BaseUrl,
    offers::{self, Offers},
    site::{Listed, Listing, Site},
};

/// The arms of a client.
pub(super) struct Known {
    arms: Vec<Arm>,
    pub(super) offers: HashMap<ContractRef, Arc<Offers>>,
    /// The configuration, then the resolvers.
    sources: Vec<Source>,
    /// Endpoints and arms that are listed no longer, since when.
    gone: HashMap<Listing, (Learned, Instant)>,
    gone_arms: HashMap<Arc<str>, (Arm, Instant)>,
    /// The percentage and the attempts per second of the retry budget of each arm.
    retries: (u32, u32),
    /// For how long their health and their budget are remembered, so that one that comes and goes does not begin anew each time.
    remembered: Duration,
}

/// A source of endpoints.
struct Source {
    /// Sources of one group count together. Of those of several groups the first one that lists an arm has it.
    group: usize,
    /// Its last set: `None` before its first answer.
    set: Option<Vec<Listed>>,
    /// Why it has failed since.
    trouble: Option<String>,
}

/// The most endpoints and arms that are remembered.
const MOST_GONE: usize = 4096;

struct Arm {
    id: Arc<str>,
    /// For the retries of calls to any of its endpoints.
    budget: RetryBudget,
    /// The last card, for endpoints that are new when all others are gone.
    last_card: Option<ArmCard>,
    endpoints: Vec<Learned>,
}

/// An endpoint, and its last answer.
struct Learned {
    site: Arc<Site>,
    /// Whether configuration or a resolver has its card.
    is_fixed: bool,
    /// Last card.
    card: Option<ArmCard>,
    /// Failure of the last round, if it failed.
    trouble: Option<Failure>,
    /// Last round in which it was asked for its card, and in which it answered. 0 is none.
    asked: u64,
    answered: u64,
}

/// The answer of an endpoint that was asked for its card.
pub(super) type CardAnswer = (Arc<Site>, Result<ArmCard, Failure>);

impl Known {
    /// What is known before the first answer of the resolvers, with the group of each source.
    pub(super) fn new(
        groups: impl IntoIterator<Item = usize>,
        remembered: Duration,
        retries: (u32, u32),
    ) -> Self {
        let sources = groups.into_iter().map(|group| Source { group, set: None, trouble: None }).collect();
        let (gone, gone_arms) = (HashMap::new(), HashMap::new());
        Self { arms: Vec::new(), offers: HashMap::new(), sources, gone, gone_arms, remembered, retries }
    }

    /// Replaces the endpoints of one source. Endpoints that stay have their cards, their health and their connections still, and so
    /// have, but for connections, those that come back in time. Returns those that are listed no longer.
    pub(super) fn replace(
        &mut self,
        source: usize,
        set: Vec<Listed>,
        now: Instant,
        create: impl Fn(&Listed, &RetryBudget) -> Arc<Site>,
    ) -> Vec<Arc<Site>> {
        if let Some(source) = self.sources.get_mut(source) {
            (source.set, source.trouble) = (Some(set), None);
        }
        self.forget(now);
        let mut before: HashMap<Listing, Learned> = HashMap::new();
        let mut arms: HashMap<Arc<str>, Arm> = HashMap::new();
        for mut arm in self.arms.drain(..) {
            arm.last_card = arm.endpoints.iter().find_map(|learned| learned.card.clone()).or(arm.last_card);
            before.extend(arm.endpoints.drain(..).map(|learned| (learned.site.listing(), learned)));
            arms.insert(arm.id.clone(), arm);
        }
        let (mut places, mut listings) = (HashMap::new(), HashSet::new());
        let (mut group, mut first) = (0, 0);
        for source in &self.sources {
            if group != source.group {
                // The arms of earlier groups are before these.
                (group, first) = (source.group, self.arms.len());
            }
            for listed in source.set.iter().flatten() {
                let place = *places.entry(listed.arm.clone()).or_insert_with(|| {
                    let gone = || self.gone_arms.remove(&listed.arm).map(|(arm, _)| arm);
                    let arm = arms.remove(&listed.arm).or_else(gone);
                    self.arms.push(arm.unwrap_or_else(|| Arm::new(&listed.arm, self.retries)));
                    self.arms.len() - 1
                });
                let listing = listed.listing();
                if place < first || !listings.insert(listing.clone()) {
                    continue;
                }
                let arm = &mut self.arms[place];
                let gone = || self.gone.remove(&listing).map(|(gone, _)| gone.unasked());
                let learned = before.remove(&listing).or_else(gone);
                let learned = learned.unwrap_or_else(|| Learned::new(create(listed, &arm.budget)));
                arm.endpoints.push(learned.listed_as(listed));
            }
        }
        self.list_offers();
        let gone = before.values().map(|gone| gone.site.clone()).collect();
        self.gone.extend(before.into_iter().map(|(listing, gone)| (listing, (gone, now))).take(MOST_GONE));
        self.gone_arms.extend(arms.into_iter().map(|(id, arm)| (id, (arm, now))).take(MOST_GONE));
        gone
    }

    /// Forgets what is gone for too long, and the rest where that is too much.
    pub(super) fn forget(&mut self, now: Instant) {
        let remembered = self.remembered;
        let is_recent = |since: Instant| now < since + remembered;
        self.gone.retain(|_, (_, since)| is_recent(*since));
        self.gone_arms.retain(|_, (_, since)| is_recent(*since));
        if self.gone.len() > MOST_GONE {
            self.gone.clear();
        }
        if self.gone_arms.len() > MOST_GONE {
            self.gone_arms.clear();
        }
    }

    /// When there is something to forget.
    pub(super) fn forgets_at(&self) -> Option<Instant> {
        let endpoints = self.gone.values().map(|(_, since)| *since);
        let oldest = endpoints.chain(self.gone_arms.values().map(|(_, since)| *since)).min();
        Some(oldest? + self.remembered)
    }

    /// Whether a resolver has not answered yet.
    pub(super) fn is_incomplete(&self) -> bool {
        self.sources.iter().any(|source| source.set.is_none())
    }

    /// Counts a resolver that has failed at its first answer as one without endpoints.
    pub(super) fn has_failed(&mut self, source: usize, why: String) {
        if let Some(source) = self.sources.get_mut(source) {
            source.set.get_or_insert_default();
            source.trouble = Some(why);
        }
    }

    /// Number of arms.
    pub(super) fn len(&self) -> usize {
        self.arms.len()
    }

    /// Stores the answers of endpoints, as far as they are still listed.
    pub(super) fn learn(&mut self, round: u64, answers: Vec<CardAnswer>) {
        let mut answers: HashMap<_, _> =
            answers.into_iter().map(|(site, answer)| (Arc::as_ptr(&site), (site, answer))).collect();
        let mut is_any_card_new = false;
        for learned in self.arms.iter_mut().flat_map(|arm| &mut arm.endpoints) {
            let Some((site, answer)) = answers.remove(&Arc::as_ptr(&learned.site)) else { continue };
            learned.answered = round;
            // Its last offers may still hold.
            learned.trouble = answer.as_ref().err().cloned();
            match &learned.trouble {
                Some(failure) if learned.card.is_none() => site.has_no_card(failure),
                None if learned.card.is_none() => site.has_card(),
                _ => {}
            }
            if let Ok(card) = answer {
                let card = Some(reached_at(card, &site.url));
                if learned.card != card {
                    is_any_card_new = true;
                    card.iter().for_each(|card| offers::log_left_out(&site.arm, card));
                }
                learned.card = card;
            }
        }
        if is_any_card_new {
            self.list_offers();
        }
    }

    /// Whether these endpoints answered in a round.
    pub(super) fn learned_in(&self, round: u64, sites: &[Arc<Site>]) -> bool {
        let sites: HashSet<_> = sites.iter().map(Arc::as_ptr).collect();
        let all = self.arms.iter().flat_map(|arm| &arm.endpoints);
        all.filter(|learned| sites.contains(&Arc::as_ptr(&learned.site)))
            .all(|learned| learned.answered == round)
    }

    /// The endpoints to ask for their cards that were not yet asked in this round: the first ones of all arms, then the second ones.
    pub(super) fn ask_in(&mut self, round: u64) -> Vec<Arc<Site>> {
        let of_arm = |arm: &'_ mut Arm| {
            let asked =
                arm.endpoints.iter_mut().filter(|learned| !learned.is_fixed && learned.asked != round);
            let asked = asked.map(|learned| {
                learned.asked = round;
                learned.site.clone()
            });
            asked.enumerate().collect::<Vec<_>>()
        };
        let mut sites: Vec<_> = self.arms.iter_mut().flat_map(of_arm).collect();
        sites.sort_by_key(|(turn, _)| *turn);
        sites.into_iter().map(|(_, site)| site).collect()
    }

    /// All endpoints.
    pub(super) fn sites(&self) -> impl Iterator<Item = &Arc<Site>> {
        self.arms.iter().flat_map(|arm| &arm.endpoints).map(|learned| &learned.site)
    }

    /// Whether an endpoint has never answered when it was asked for its card, nor failed to.
    pub(super) fn has_unasked(&self) -> bool {
        self.arms.iter().flat_map(|arm| &arm.endpoints).any(Learned::is_unasked)
    }

    /// Whether there is an endpoint to ask for its card.
    pub(super) fn asks(&self) -> bool {
        self.arms.iter().flat_map(|arm| &arm.endpoints).any(|learned| !learned.is_fixed)
    }

    /// The cards of the arms that answered in the last round, without contracts that cannot be called. Of several endpoints of an arm
    /// the first that answered counts.
    pub(super) fn cards(&self) -> Vec<ArmCard> {
        let usable = |card: &ArmCard| {
            let mut card = card.clone();
            card.contracts.retain(|contract| offers::unusable(contract).is_none());
            card
        };
        let first = |arm: &Arm| {
            let mut reachable = arm.endpoints.iter().filter(|learned| learned.trouble.is_none());
            reachable.find_map(|learned| learned.card.as_ref().map(usable))
        };
        self.arms.iter().filter_map(first).collect()
    }

    fn list_offers(&mut self) {
        self.offers = offers::all(self.arms.iter().map(Arm::cards));
    }

    /// The failure for a contract without offers, when the next round can begin after `wait`.
    pub(super) fn unknown(&self, contract: &ContractRef, wait: Duration) -> Failure {
        let mut offered: Vec<_> = self.offers.keys().collect();
        // Other versions first, which a caller needs most likely.
        offered.sort_by_key(|other| (other.name() != contract.name(), *other));
        let offered: Vec<_> = offered.into_iter().map(ToString::to_string).collect();
        let silent: Vec<_> = self.arms.iter().filter_map(|arm| Some((&*arm.id, arm.trouble()?))).collect();
        let mut failure = not_offered("any arm", contract, &offered);
        if self.arms.is_empty() {
            failure = self.without_arms(contract, failure);
        }
        for arm in &self.arms {
            let cards = arm.endpoints.iter().filter_map(|learned| learned.card.as_ref());
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

    /// Without a resolver this is a mistake of configuration. A resolver may find an arm later.
    fn without_arms(&self, contract: &ContractRef, mut failure: Failure) -> Failure {
        if self.sources.len() > 1 {
            let mut message = String::from("no endpoint of any arm is found");
            // Source 0 is the configuration.
            for (number, source) in self.sources.iter().enumerate() {
                if let Some(trouble) = &source.trouble {
                    let trouble: String = trouble.chars().take(300).collect();
                    let _ = write!(message, "; resolver {number} has failed: {trouble}");
                }
            }
            return Failure::new(ErrorKind::Unavailable, message).before_execution();
        }
        failure.message = format!(
            "{contract} is not offered: no arm is set; set OCTOLLM_ARM_<ID>=http://host:port for `Arms::from_env()`, \
             or call `.endpoint(id, url)` of `Arms::builder()`"
        );
        failure
    }
}

impl Arm {
    fn new(id: &Arc<str>, (percent, per_second): (u32, u32)) -> Self {
        Self {
            id: id.clone(),
            budget: RetryBudget::new(percent, per_second),
            last_card: None,
            endpoints: Vec::new(),
        }
    }

    /// Its endpoints with their cards, of which at least one is not empty if the arm has ever had a card.
    fn cards(&self) -> Vec<(&Arc<Site>, Option<&ArmCard>)> {
        let own = self.endpoints.iter().map(|learned| (&learned.site, learned.card.as_ref()));
        let mut cards: Vec<_> = own.collect();
        if cards.iter().all(|(_, card)| card.is_none())
            && let Some((_, first)) = cards.first_mut()
        {
            *first = self.last_card.as_ref();
        }
        cards
    }

    /// The failure of an arm none of whose endpoints has returned its card. One that a retry can help comes first.
    fn trouble(&self) -> Option<&Failure> {
        let troubles: Option<Vec<_>> =
            self.endpoints.iter().map(|learned| learned.trouble.as_ref()).collect();
        troubles?.into_iter().min_by_key(|trouble| is_refusal(trouble))
    }
}

impl Learned {
    fn new(site: Arc<Site>) -> Self {
        Self { site, is_fixed: false, card: None, trouble: None, asked: 0, answered: 0 }
    }

    /// Takes over what its source says now.
    fn listed_as(mut self, listed: &Listed) -> Self {
        self.site.set_weight(listed.weight);
        match &listed.card {
            Some(card) => {
                (self.is_fixed, self.trouble) = (true, None);
                self.card = Some(reached_at(card.clone(), &listed.url));
            }
            // The source that had its card is gone.
            None if self.is_fixed => self = self.unasked(),
            None => {}
        }
        self
    }

    /// The same endpoint, which is to be asked for its card. The one that is known holds until it answers.
    fn unasked(self) -> Self {
        Self { is_fixed: false, trouble: None, asked: 0, answered: 0, ..self }
    }

    fn is_unasked(&self) -> bool {
        !self.is_fixed && self.answered == 0
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
fn reached_at(mut card: ArmCard, endpoint: &BaseUrl) -> ArmCard {
    if card.endpoint.as_ref().is_none_or(|named| named.trim().is_empty()) {
        card.endpoint = Some(endpoint.as_str().to_owned());
    }
    card
}

#[cfg(test)]
mod tests;
