//! The links between entries. Pure.

use std::fmt::Write as _;

use jiff::Timestamp;
use octollm_core::audit::AuditEntry;
use sha2::{Digest, Sha256};

use super::{AuditAnchor, AuditRecord};

/// What was done to an audit log that does not verify.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AuditFault {
    /// The text of the entry was changed.
    #[error("entry {seq} was changed")]
    Changed {
        /// Number of the entry.
        seq: u64,
    },
    /// The entry is not there.
    #[error("entry {seq} is missing")]
    Missing {
        /// Number of the first entry that is missing.
        seq: u64,
    },
    /// Another entry is in the place of this one.
    #[error("entry {found} is in the place of entry {seq}")]
    Moved {
        /// Number of the place.
        seq: u64,
        /// Number of the entry that is there.
        found: u64,
    },
    /// The entry does not have the hash of the one before it: one of them was replaced.
    #[error("entry {seq} does not continue the entry before it: one of the two was replaced")]
    Unlinked {
        /// Number of the later entry.
        seq: u64,
    },
}

impl AuditAnchor {
    /// The beginning of a log.
    pub(super) fn start() -> Self {
        Self { seq: 0, hash: String::new() }
    }
}

/// Follows the entries of a log.
pub(super) struct Chain {
    pub(super) last: AuditAnchor,
}

impl Chain {
    pub(super) fn new(last: AuditAnchor) -> Self {
        Self { last }
    }

    /// Writes the line of the next entry, and continues with it.
    pub(super) fn append(
        &mut self,
        entry: AuditEntry,
        at: Timestamp,
    ) -> Result<(AuditRecord, String), serde_json::Error> {
        let record = AuditRecord { seq: self.last.seq + 1, at, entry, prev: self.last.hash.clone() };
        let line = serde_json::to_string(&record)?;
        self.last = AuditAnchor { seq: record.seq, hash: hash(&line) };
        Ok((record, line))
    }

    /// Checks the entry at the place `seq`, and continues with it.
    pub(super) fn check(&mut self, seq: u64, line: &str, stored: &str) -> Result<(), AuditFault> {
        let expected = self.last.seq + 1;
        if seq > expected {
            return Err(AuditFault::Missing { seq: expected });
        }
        let changed = AuditFault::Changed { seq };
        if hash(line) != stored {
            return Err(changed);
        }
        let record: AuditRecord = serde_json::from_str(line).map_err(|_| changed)?;
        if (record.seq, seq) != (seq, expected) {
            return Err(AuditFault::Moved { seq: expected, found: record.seq });
        }
        if record.prev != self.last.hash {
            return Err(AuditFault::Unlinked { seq });
        }
        self.last = AuditAnchor { seq, hash: stored.to_owned() };
        Ok(())
    }

    /// The number that a line has.
    pub(super) fn seq_of(&self, line: &str) -> Result<u64, AuditFault> {
        let record: Result<AuditRecord, _> = serde_json::from_str(line);
        record.map(|record| record.seq).map_err(|_| AuditFault::Changed { seq: self.last.seq + 1 })
    }
}

fn hash(line: &str) -> String {
    Sha256::digest(line).iter().fold(String::with_capacity(64), |mut text, byte| {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

const HASH: &str = ",\"hash\":\"";

/// A line with its hash as its last member.
pub(super) fn line_with_hash(line: &str, hash: &str) -> String {
    format!("{}{HASH}{hash}\"}}", line.strip_suffix('}').unwrap_or(line))
}

/// Splits what [`line_with_hash`] has joined. `seq` is the number that the line should have.
pub(super) fn line_and_hash(text: &str, seq: u64) -> Result<(String, String), AuditFault> {
    let split = text.trim_end().strip_suffix("\"}").and_then(|text| text.rsplit_once(HASH));
    let (line, hash) = split.ok_or(AuditFault::Changed { seq })?;
    Ok((format!("{line}}}"), hash.to_owned()))
}
