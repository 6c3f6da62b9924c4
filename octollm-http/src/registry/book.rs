//! The arms that are registered: who may register again, until when each registration holds, and what changed. It does no I/O.

use std::{
    collections::{BTreeMap, HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use octollm_core::{
    card::{ArmCard, ArmStatus},
    error::{ErrorKind, Failure},
};
use tokio::time::Instant;

use super::{
    change::{Change, Gone, Kind},
    process::{Process, SPREAD},
};
use crate::limits::RegistryConfig;

/// Shortest and longest time for which a registration holds without being renewed.
pub(crate) const LIFETIMES: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(300));
/// Changes that are not published yet. Beyond it the oldest are lost.
const MOST_CHANGES: usize = 4096;
/// Who has registered an arm first. Nobody else can, until an administrator clears it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Holder {
    /// First issuer and subject of the caller. `None` where callers are not checked.
    pub(crate) subject: Option<(Option<String>, String)>,
    /// Thumbprint of the key on the card.
    pub(crate) key: Option<Arc<str>>,
}

impl Holder {
    /// Whether the other one has everything to which the id is bound. It may have more, to which the id is bound by then: an arm that
    /// was registered without a key gets one.
    fn admits(&self, other: &Self) -> bool {
        let is_subject = self.subject.is_none() || self.subject == other.subject;
        is_subject && (self.key.is_none() || self.key == other.key)
    }
}

/// A registration that was checked, but for what others have registered.
#[derive(Debug, Clone)]
pub(crate) struct Claim {
    pub(crate) holder: Holder,
    /// Its endpoint is in the only form of a URL.
    pub(crate) card: ArmCard,
    /// Bytes of the card as JSON.
    pub(crate) bytes: usize,
    /// Zero for an arm that leaves.
    pub(crate) lifetime: Duration,
    /// Id of the proof, and when it was signed, in seconds since 1970.
    pub(crate) proof: Option<(String, i64)>,
    /// The time of day, in seconds since 1970.
    pub(crate) time: i64,
}

/// Endpoint and instance of a process.
type ProcessId = (String, String);

/// All registrations, with what is remembered of those that have ended.
#[derive(Debug)]
pub(crate) struct Book {
    config: RegistryConfig,
    /// Ids that nobody can register.
    reserved: HashSet<String>,
    arms: BTreeMap<String, Arm>,
    bytes: usize,
    /// Number of the next new registration.
    next: u64,
    changes: VecDeque<Change>,
    /// Changes with each change of what [`offered`](Self::offered) returns.
    version: u64,
}

#[derive(Debug)]
struct Arm {
    holder: Holder,
    /// At least one: where none lives, the last one, as long as the arm is not cleared.
    processes: BTreeMap<ProcessId, Process>,
    /// Whether it has accepted work at the last change.
    is_available: bool,
}

impl Book {
    pub(crate) fn new(config: RegistryConfig, reserved: HashSet<String>) -> Self {
        let (arms, changes) = (BTreeMap::new(), VecDeque::new());
        Self { config, reserved, arms, bytes: 0, next: 0, changes, version: 0 }
    }

    pub(crate) fn reserve(&mut self, ids: impl IntoIterator<Item = String>) {
        self.reserved.extend(ids);
    }

    /// The time for which a registration holds that asks for this, in whole seconds.
    pub(crate) fn lifetime(&self, asked: Option<u64>) -> Duration {
        let (least, most) = LIFETIMES;
        match asked {
            None => self.config.lifetime,
            Some(0) => Duration::ZERO,
            Some(seconds) => Duration::from_secs(seconds).clamp(least, most),
        }
    }

    /// Registers a process, renews it, or ends its registration. Returns whether it was not registered before.
    ///
    /// # Errors
    /// The id is not free, the proof was shown before, or there is no room.
    pub(crate) fn register(&mut self, now: Instant, claim: Claim) -> Result<bool, Failure> {
        self.expire(now, claim.time);
        let (id, process) = (claim.card.arm_id.clone(), process_of(&claim.card));
        if self.reserved.contains(&id) {
            return Err(conflict(
                "the id is that of the orchestrator, of an issuer, or of an arm that is configured",
            ));
        }
        let known = self.arms.get(&id);
        if known.is_some_and(|arm| !arm.holder.admits(&claim.holder)) {
            return Err(conflict(
                "the id is registered by another subject or with another key, until an administrator clears it with \
                 DELETE /arms/{id}",
            ));
        }
        let before = known.and_then(|arm| arm.processes.get(&process));
        if let (Some((id, at)), Some(before)) = (&claim.proof, before) {
            before.check_proof(id, *at, claim.time)?;
        }
        if claim.lifetime.is_zero() {
            self.leave(now, &id, &process, claim);
            return Ok(false);
        }
        self.check_room(&id, &process, claim.bytes)?;
        let is_new = before_is_dead(known, &process, now);
        self.enter(now, id, process, claim, is_new);
        Ok(is_new)
    }

    fn check_room(&self, id: &str, process: &ProcessId, bytes: usize) -> Result<(), Failure> {
        let RegistryConfig { max_registered, max_registered_bytes, max_registered_card, .. } = self.config;
        if bytes > max_registered_card {
            let words = format!(
                "the card has {bytes} bytes, and this registry lists at most {max_registered_card} of one"
            );
            return Err(Failure::new(ErrorKind::PayloadTooLarge, words).before_execution());
        }
        let processes = self.arms.get(id).map(|arm| &arm.processes);
        let before = processes.and_then(|processes| processes.get(process));
        let (is_new, freed) = (before.is_none(), before.map_or(0, |process| process.bytes));
        let of_arm = processes.map_or(0, BTreeMap::len);
        let in_all: usize = self.arms.values().map(|arm| arm.processes.len()).sum();
        let bytes_of_arm: usize =
            processes.into_iter().flat_map(BTreeMap::values).map(|process| process.bytes).sum();
        let full = if is_new && of_arm >= max_registered.div_ceil(4)
            || bytes_of_arm - freed + bytes > max_registered_bytes / 4
        {
            "no more processes of this arm can be registered here: it has a quarter of the places, or its cards a quarter of the bytes"
        } else if is_new && in_all >= max_registered || self.bytes - freed + bytes > max_registered_bytes {
            "no more processes can be registered here: all places are taken, or the cards have too many bytes"
        } else {
            return Ok(());
        };
        let mut failure = Failure::new(ErrorKind::Overloaded, full).before_execution();
        failure.retry_after = Some(Duration::from_secs(30));
        Err(failure)
    }

    fn enter(&mut self, now: Instant, id: String, process: ProcessId, claim: Claim, is_new: bool) {
        let Claim { holder, card, bytes, lifetime, proof, time } = claim;
        let arm = self.arms.entry(id.clone()).or_insert_with(|| Arm {
            holder: Holder::default(),
            processes: BTreeMap::new(),
            is_available: false,
        });
        arm.holder = holder;
        let has_history = !arm.processes.is_empty();
        let entry = arm.processes.entry(process.clone()).or_insert_with(|| Process {
            card: Arc::new(card.clone()),
            bytes: 0,
            number: 0,
            until: None,
            proofs: Vec::new(),
        });
        self.bytes = self.bytes + bytes - entry.bytes;
        entry.bytes = bytes;
        let is_changed = is_new || *entry.card != card;
        if is_changed {
            entry.card = Arc::new(card);
        }
        if is_new {
            entry.number = self.next;
            self.next += 1;
        }
        entry.until = Some(now + lifetime);
        entry.add_proof(proof, time);
        if is_new {
            self.change(&id, &process, Kind::Registered);
        }
        if is_changed {
            self.version += 1;
        }
        self.settle(now, &id, &process, Gone::Reported, has_history);
    }

    fn leave(&mut self, now: Instant, id: &str, process: &ProcessId, claim: Claim) {
        let Some(entry) = self.arms.get_mut(id).and_then(|arm| arm.processes.get_mut(process)) else {
            return;
        };
        entry.add_proof(claim.proof, claim.time);
        if entry.until.take().is_some() {
            self.version += 1;
        }
        self.settle(now, id, process, Gone::Left, true);
        self.forget(now, claim.time);
    }

    /// Ends the registrations that were not renewed. `time` is the time of day, in seconds since 1970.
    pub(crate) fn expire(&mut self, now: Instant, time: i64) {
        let ended = |process: &Process| process.until.is_some() && !process.is_alive(now);
        let of = |(id, arm): (&String, &Arm)| {
            let ended = arm.processes.iter().filter(|(_, process)| ended(process));
            ended.map(|(process, _)| (id.clone(), process.clone())).collect::<Vec<_>>()
        };
        let all: Vec<_> = self.arms.iter().flat_map(of).collect();
        for (id, process) in &all {
            if let Some(entry) = self.arms.get_mut(id).and_then(|arm| arm.processes.get_mut(process)) {
                entry.until = None;
            }
            self.version += 1;
        }
        for (id, process) in &all {
            self.settle(now, id, process, Gone::Expired, true);
        }
        self.forget(now, time);
    }

    /// Drops what has ended, but for the last process of an arm, and those whose proofs could still be shown again.
    fn forget(&mut self, now: Instant, time: i64) {
        for arm in self.arms.values_mut() {
            let last = arm.processes.values().max_by_key(|process| (process.is_alive(now), process.number));
            let last = last.map(|process| process.number);
            let bytes = &mut self.bytes;
            arm.processes.retain(|_, process| {
                let is_over = process.latest().is_none_or(|latest| latest < time.saturating_sub(SPREAD));
                let stays = process.is_alive(now) || Some(process.number) == last || !is_over;
                if !stays {
                    *bytes -= process.bytes;
                }
                stays
            });
        }
    }

    /// Forgets an arm and who holds it. Returns its endpoints that were registered; `None` where there is no such arm.
    pub(crate) fn clear(&mut self, now: Instant, id: &str) -> Option<Vec<String>> {
        let arm = self.arms.remove(id)?;
        self.bytes -= arm.processes.values().map(|process| process.bytes).sum::<usize>();
        self.version += 1;
        let last = arm.processes.iter().max_by_key(|(_, process)| process.number);
        if let Some((process, _)) = last.filter(|_| arm.is_available) {
            self.change(id, process, Kind::Unavailable(Gone::Cleared));
        }
        let alive = arm.processes.iter().filter(|(_, process)| process.is_alive(now));
        let mut endpoints: Vec<_> = alive.map(|((endpoint, _), _)| endpoint.clone()).collect();
        endpoints.dedup();
        Some(endpoints)
    }

    /// Notes whether an arm accepts work, and the change of that.
    fn settle(&mut self, now: Instant, id: &str, process: &ProcessId, gone: Gone, has_history: bool) {
        let Some(arm) = self.arms.get_mut(id) else { return };
        let is_available = arm.processes.values().any(|process| process.accepts_work(now));
        let was_available = std::mem::replace(&mut arm.is_available, is_available);
        match (was_available, is_available) {
            (true, false) => self.change(id, process, Kind::Unavailable(gone)),
            (false, true) if has_history => self.change(id, process, Kind::Recovered),
            _ => {}
        }
    }

    fn change(&mut self, arm: &str, (endpoint, instance): &ProcessId, kind: Kind) {
        if self.changes.len() == MOST_CHANGES {
            self.changes.pop_front();
        }
        let (arm, endpoint) = (arm.to_owned(), endpoint.clone());
        let instance = Some(instance.clone()).filter(|instance| !instance.is_empty());
        self.changes.push_back(Change { arm, endpoint, instance, kind });
    }

    /// The changes since the last call.
    pub(crate) fn take_changes(&mut self) -> Vec<Change> {
        self.changes.drain(..).collect()
    }

    /// Changes with what [`offered`](Self::offered) returns, but for what expires.
    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    /// When the next registration ends, if it is not renewed.
    pub(crate) fn next_end(&self, now: Instant) -> Option<Instant> {
        let processes = self.arms.values().flat_map(|arm| arm.processes.values());
        processes.filter(|process| process.is_alive(now)).filter_map(|process| process.until).min()
    }

    /// The cards of the processes that accept work, one for each endpoint: that of the process that has registered last.
    pub(crate) fn offered(&self, now: Instant) -> Vec<Arc<ArmCard>> {
        let offered = |arm: &Arm| newest(arm, |process| process.accepts_work(now));
        self.arms.values().flat_map(offered).collect()
    }

    /// The cards of all arms: those of the processes that are registered, one for each endpoint. An arm without any has its last
    /// card, with the status that it is unavailable.
    pub(crate) fn cards(&self, now: Instant) -> Vec<ArmCard> {
        let of = |arm: &Arm| {
            let alive = newest(arm, |process| process.is_alive(now));
            if !alive.is_empty() {
                return alive.iter().map(|card| (**card).clone()).collect();
            }
            let last = arm.processes.values().max_by_key(|process| process.number);
            let unavailable = |process: &Process| {
                let mut card = (*process.card).clone();
                card.status = ArmStatus::Unavailable;
                card
            };
            last.map(unavailable).into_iter().collect::<Vec<_>>()
        };
        self.arms.values().flat_map(of).collect()
    }

    /// The numbers of arms that are healthy, degraded and unavailable.
    pub(crate) fn counts(&self, now: Instant) -> [usize; 3] {
        let mut counts = [0; 3];
        for arm in self.arms.values() {
            let mut working = arm.processes.values().filter(|process| process.accepts_work(now));
            let at = match working.next().map(|process| process.card.status) {
                None => 2,
                Some(ArmStatus::Healthy) => 0,
                Some(_) => usize::from(!working.any(|process| process.card.status == ArmStatus::Healthy)),
            };
            counts[at] += 1;
        }
        counts
    }
}

/// The cards of an arm by endpoint, each of the process that has registered last.
fn newest(arm: &Arm, is_one: impl Fn(&Process) -> bool) -> Vec<Arc<ArmCard>> {
    let mut found: BTreeMap<&str, &Process> = BTreeMap::new();
    for ((endpoint, _), process) in arm.processes.iter().filter(|(_, process)| is_one(process)) {
        let known = found.entry(endpoint).or_insert(process);
        if known.number < process.number {
            *known = process;
        }
    }
    found.into_values().map(|process| Arc::clone(&process.card)).collect()
}

fn process_of(card: &ArmCard) -> ProcessId {
    (card.endpoint.clone().unwrap_or_default(), card.instance.clone().unwrap_or_default())
}

fn before_is_dead(arm: Option<&Arm>, process: &ProcessId, now: Instant) -> bool {
    !arm.and_then(|arm| arm.processes.get(process)).is_some_and(|process| process.is_alive(now))
}

fn conflict(words: &str) -> Failure {
    Failure::new(ErrorKind::Conflict, words).before_execution()
}

#[cfg(test)]
mod tests;
