//! Records of calls with an idempotency key, by which each of them runs once.
//!
//! A [`Dispatcher`](crate::dispatcher::Dispatcher) begins a record before it runs a call with a key, and ends it with the answer
//! before it returns that. A repeated call gets the recorded answer. Contracts that are idempotent ignore keys.

mod memory;
mod started;

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use jiff::Timestamp;
use sha2::{Digest, Sha256};
use uuid::Uuid;

pub use self::memory::MemoryIdempotencyStore;
pub(crate) use self::started::Started;
use crate::{
    budget::Usage,
    contract::{ContractRef, Keys, hex},
    error::Failure,
    id::{IdempotencyKey, TaskId},
    json::bounded_digest,
    parts::{Caller, ContextParts},
};

/// A store of the records of calls with an idempotency key.
///
/// Each operation is atomic, such as one statement of a database. Times are judged by the store's own clock. The unit `()` is a
/// store without records: keys are ignored.
///
/// A record is running, answered, released or unknown. It is deleted when it has been in the same state for the
/// [retention](Self::retention); a running one becomes unknown when its lease expires.
///
/// # Cancel safety
/// Every operation takes effect as a whole or not at all. A record whose operation was dropped becomes unknown when its lease
/// expires.
#[async_trait]
pub trait IdempotencyStore: Send + Sync + 'static {
    /// Returns who has the records: all instances of an arm, each instance its own, or nobody. The card of the arm states it.
    fn keys(&self) -> Keys;

    /// Returns how long an answer is retained. The card of the arm states it in whole seconds.
    fn retention(&self) -> Duration;

    /// Begins a run, if there is no record or if it was released, with a lease of this length. Otherwise it changes nothing and
    /// returns what the record has. With `must_exist` a run without a record is not begun, and is [`Begun::Unknown`].
    ///
    /// # Errors
    /// The store is not available. The run may or may not have begun.
    ///
    /// # Cancel safety
    /// The run may or may not have begun when the future is dropped.
    async fn begin(&self, run: &KeyedRun, lease: Duration, must_exist: bool) -> Result<Begun, Failure>;

    /// Records the answer of a run. Without effect, unless the record is that of this run and has no end.
    ///
    /// # Errors
    /// The store is not available. The answer may or may not be recorded.
    ///
    /// # Cancel safety
    /// The answer may or may not be recorded when the future is dropped.
    async fn finish(&self, run: &KeyedRun, answer: KeyedAnswer) -> Result<(), Failure>;

    /// Releases the key after a run that may be repeated, as [`finish`](Self::finish) records an answer. `may_have_executed` is
    /// whether that run may have done its work: if not, the record can be deleted.
    ///
    /// # Errors
    /// The store is not available. The key may or may not be released.
    ///
    /// # Cancel safety
    /// The key may or may not be released when the future is dropped.
    async fn release(&self, run: &KeyedRun, may_have_executed: bool) -> Result<(), Failure>;

    /// Records that a run was dropped before it ended: its outcome is unknown. It is called while a future is dropped and must
    /// not block; a store that has to wait can do nothing, because the lease of the run ends it.
    fn abandon(&self, run: &KeyedRun) {
        let _ = run;
    }

    /// Ends a run that was dropped while it began, so that its arm has done nothing: a release of the key. It is called while a
    /// future is dropped and must not block. By default it [abandons](Self::abandon) the run, whose outcome is unknown then.
    fn withdraw(&self, run: &KeyedRun) {
        self.abandon(run);
    }
}

/// One run of a call with an idempotency key, as a store knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct KeyedRun {
    /// Id of the record: a digest of caller, task, contract and key, in 64 hexadecimal digits.
    pub record: String,
    /// Digest of the input, in 32 hexadecimal digits.
    pub input: String,
    /// Id of this run, which no other run has.
    pub run: Uuid,
}

impl KeyedRun {
    /// A new run of a call with these parts; `None` where they have no key.
    ///
    /// Two calls have one record if they have the same caller (issuer and subject, whatever its scopes), task, contract and
    /// key.
    pub fn new(parts: &ContextParts, contract: &ContractRef, input: &[u8]) -> Option<Self> {
        let mut record = of_caller_and_key(&parts.caller, parts.key.as_ref()?);
        add(&mut record, parts.task_id.as_ref().map_or("", TaskId::as_str));
        add(&mut record, contract.name());
        record.update(contract.version().to_be_bytes());
        let record = hex(&record.finalize());
        Some(Self { record, input: bounded_digest(input), run: Uuid::new_v4() })
    }
}

/// The id of a task that follows from caller and key, for a call that needs one and has none: a repeated call has the same.
pub fn task_of_key(caller: &Caller, key: &IdempotencyKey) -> TaskId {
    let digest: [u8; 32] = of_caller_and_key(caller, key).finalize().into();
    TaskId::of_bits(digest.iter().take(16).fold(0, |bits, byte| bits << 8 | u128::from(*byte)))
}

fn of_caller_and_key(caller: &Caller, key: &IdempotencyKey) -> Sha256 {
    let mut digest = Sha256::new();
    match caller {
        Caller::Unchecked => digest.update(b"u"),
        Caller::Anonymous => digest.update(b"a"),
        Caller::Known(grant) => {
            digest.update(if grant.issuer.is_some() { b"i" } else { b"k" });
            add(&mut digest, grant.issuer.as_deref().unwrap_or_default());
            add(&mut digest, &grant.subject);
        }
    }
    add(&mut digest, key.as_str());
    digest
}

/// Adds a text with its length, so that two lists of texts differ in their digests.
fn add(digest: &mut Sha256, text: &str) {
    digest.update((text.len() as u64).to_be_bytes());
    digest.update(text);
}

/// What a store answers to a run that begins.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Begun {
    /// The run has begun.
    Run,
    /// Another run of this call has begun and has not ended.
    Running,
    /// A run of this call has ended with this answer.
    Answered(KeyedAnswer),
    /// The key was used with another input.
    OtherInput,
    /// A run of this call may have been executed, and nothing more is known.
    Unknown,
    /// The store has no room for a further record.
    Full,
}

/// The recorded answer of a call.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct KeyedAnswer {
    /// The output's JSON, or the failure.
    pub result: Result<Bytes, Failure>,
    /// What the run used, with all that it called.
    pub usage: Usage,
    /// When the run began.
    pub began: Timestamp,
    /// How long it took.
    pub took: Duration,
}

impl KeyedAnswer {
    /// An answer of a run that began at this time and took so long.
    pub fn new(result: Result<Bytes, Failure>, usage: Usage, began: Timestamp, took: Duration) -> Self {
        Self { result, usage, began, took }
    }
}

#[async_trait]
impl<S: IdempotencyStore + ?Sized> IdempotencyStore for Arc<S> {
    fn keys(&self) -> Keys {
        (**self).keys()
    }

    fn retention(&self) -> Duration {
        (**self).retention()
    }

    async fn begin(&self, run: &KeyedRun, lease: Duration, must_exist: bool) -> Result<Begun, Failure> {
        (**self).begin(run, lease, must_exist).await
    }

    async fn finish(&self, run: &KeyedRun, answer: KeyedAnswer) -> Result<(), Failure> {
        (**self).finish(run, answer).await
    }

    async fn release(&self, run: &KeyedRun, may_have_executed: bool) -> Result<(), Failure> {
        (**self).release(run, may_have_executed).await
    }

    fn abandon(&self, run: &KeyedRun) {
        (**self).abandon(run);
    }

    fn withdraw(&self, run: &KeyedRun) {
        (**self).withdraw(run);
    }
}

/// No records: keys are ignored.
#[async_trait]
impl IdempotencyStore for () {
    fn keys(&self) -> Keys {
        Keys::None
    }

    fn retention(&self) -> Duration {
        Duration::ZERO
    }

    async fn begin(&self, _: &KeyedRun, _: Duration, _: bool) -> Result<Begun, Failure> {
        Ok(Begun::Run)
    }

    async fn finish(&self, _: &KeyedRun, _: KeyedAnswer) -> Result<(), Failure> {
        Ok(())
    }

    async fn release(&self, _: &KeyedRun, _: bool) -> Result<(), Failure> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parts::Grant;

    #[test]
    fn a_record_belongs_to_caller_task_contract_and_key() {
        let key = |text: &str| IdempotencyKey::new(text).unwrap();
        let of = |caller: Caller, task: Option<&str>, contract: &str, text: &str| {
            let mut parts = ContextParts::new();
            (parts.caller, parts.key) = (caller, Some(key(text)));
            parts.task_id = task.map(|task| task.parse().unwrap());
            KeyedRun::new(&parts, &contract.parse().unwrap(), b"{}").unwrap().record
        };
        let known = |issuer: &str, subject: &str, scope: &str| {
            Caller::Known(Arc::new(Grant::new(subject, [scope]).issuer(issuer)))
        };
        let task = Some("task_0123456789abcdef");
        let records = [
            of(Caller::Unchecked, None, "a.b", "k"),
            of(Caller::Anonymous, None, "a.b", "k"),
            of(Caller::known("me", ["x:y"]), None, "a.b", "k"),
            of(known("", "me", "x:y"), None, "a.b", "k"),
            of(known("i", "me", "x:y"), None, "a.b", "k"),
            of(known("im", "e", "x:y"), None, "a.b", "k"),
            of(Caller::Unchecked, task, "a.b", "k"),
            of(Caller::Unchecked, None, "a.c", "k"),
            of(Caller::Unchecked, None, "a.b@2", "k"),
            of(Caller::Unchecked, None, "a.b", "l"),
        ];
        for (index, record) in records.iter().enumerate() {
            assert_eq!(records.iter().position(|other| other == record), Some(index), "{index}");
        }
        assert_eq!(of(known("i", "me", "x:z"), None, "a.b", "k"), records[4], "scopes are not part of it");
        assert!(KeyedRun::new(&ContextParts::new(), &"a.b".parse().unwrap(), b"{}").is_none());
    }

    #[test]
    fn the_task_of_a_key_is_always_the_same() {
        let of = |key: &str| task_of_key(&Caller::Anonymous, &IdempotencyKey::new(key).unwrap());
        assert_eq!(of("a"), of("a"));
        assert_ne!(of("a"), of("b"));
        assert_eq!(of("a").as_str().parse(), Ok(of("a")));
    }
}
