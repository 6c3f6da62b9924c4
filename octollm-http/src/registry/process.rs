//! One process of an arm that is registered, and the proofs that it has shown.

use std::{sync::Arc, time::Duration};

use octollm_core::{
    card::{ArmCard, ArmStatus},
    error::{ErrorKind, Failure},
};
use tokio::time::Instant;

/// Most proofs of one process that are remembered. With the shortest lifetime a process sends about 75 in two minutes.
pub(super) const MOST_PROOFS: usize = 256;
/// Seconds by which the proofs of one arm may differ at one time.
pub(super) const SPREAD: i64 = 120;

#[derive(Debug)]
pub(super) struct Process {
    pub(super) card: Arc<ArmCard>,
    pub(super) bytes: usize,
    /// Later registrations of an endpoint take its place.
    pub(super) number: u64,
    /// `None` where it has left or was not renewed.
    pub(super) until: Option<Instant>,
    /// The proofs that it has shown, by when they were signed.
    pub(super) proofs: Vec<(i64, String)>,
}

impl Process {
    pub(super) fn is_alive(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| now < until)
    }

    pub(super) fn accepts_work(&self, now: Instant) -> bool {
        self.is_alive(now) && self.card.status != ArmStatus::Unavailable
    }

    /// Seconds of the last proof.
    pub(super) fn latest(&self) -> Option<i64> {
        self.proofs.iter().map(|(at, _)| *at).max()
    }

    /// Refuses a proof that was shown before, or is so old that it is not remembered whether it was.
    pub(super) fn check_proof(&self, id: &str, at: i64, time: i64) -> Result<(), Failure> {
        // Where the clock of this machine was set back, proofs of its future do not count.
        let latest = self.latest().filter(|latest| *latest <= time.saturating_add(SPREAD));
        let is_old = latest.is_some_and(|latest| at < latest.saturating_sub(SPREAD));
        if is_old || self.proofs.iter().any(|(_, shown)| shown == id) {
            let words = "the proof is not valid: it was used before";
            return Err(Failure::new(ErrorKind::Unauthenticated, words).before_execution());
        }
        if self.proofs.len() >= MOST_PROOFS && self.proofs.iter().all(|(shown, _)| !is_past(*shown, time)) {
            let words = "the process registers too often: once in a third of its lifetime is enough";
            let mut failure = Failure::new(ErrorKind::RateLimited, words).before_execution();
            failure.retry_after = Some(Duration::from_secs(30));
            return Err(failure);
        }
        Ok(())
    }

    pub(super) fn add_proof(&mut self, proof: Option<(String, i64)>, time: i64) {
        let Some((id, at)) = proof else { return };
        self.proofs.retain(|(shown, _)| !is_past(*shown, time));
        self.proofs.push((at, id));
    }
}

/// Whether a proof of that time would be refused for its age.
fn is_past(signed: i64, time: i64) -> bool {
    signed < time.saturating_sub(SPREAD)
}
