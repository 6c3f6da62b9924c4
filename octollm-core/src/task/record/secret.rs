//! The secret of a task, and the idempotency keys that are made with it.

use hmac::{Hmac, KeyInit, Mac};
use serde::{Deserialize, Serialize};
use sha2::Sha256;

use crate::{contract::hex, id::StepKey, random, transport::IdempotencyKey};

/// What the idempotency keys of a task are made with. Its text shows in no output but the stored record.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Secret(pub(super) String);

impl Secret {
    pub(super) fn new() -> Self {
        Self(hex(&random::bits()))
    }

    pub(super) fn keys(&self) -> Option<StepKeys> {
        Hmac::new_from_slice(self.0.as_bytes()).ok().map(StepKeys)
    }
}

/// Makes the idempotency keys of the steps of a task.
#[derive(Clone)]
pub(crate) struct StepKeys(Hmac<Sha256>);

impl StepKeys {
    /// The idempotency key of a step, in one generation of the journal.
    pub(crate) fn of(&self, step: &StepKey, generation: u32) -> Option<IdempotencyKey> {
        let mut mac = self.0.clone();
        let kind: &[u8] = match step {
            StepKey::Order(_) => b"order",
            StepKey::Name(_) => b"name",
        };
        mac.update(kind);
        mac.update(&generation.to_be_bytes());
        mac.update(step.to_string().as_bytes());
        IdempotencyKey::new(hex(&mac.finalize().into_bytes()[..16]))
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}
