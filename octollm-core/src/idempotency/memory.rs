//! Records in memory.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use jiff::Timestamp;
use tokio::time::Instant;
use uuid::Uuid;

use super::{Begun, IdempotencyStore, KeyedAnswer, KeyedRun};
use crate::{
    budget::Usage,
    contract::Keys,
    error::{ErrorKind, Failure},
};

/// Records of keyed calls in memory, which are lost with the process. Every value of a limit is valid.
///
/// When it has its [number of records](Self::max_records), further calls with a new key are refused until records expire. When
/// the answers exceed [their bytes](Self::max_bytes), the oldest ones are dropped: their calls are then answered that their
/// outcome is unknown, and still run once.
///
/// ```
/// use std::time::Duration;
/// use octollm_core::idempotency::MemoryIdempotencyStore;
///
/// let store = MemoryIdempotencyStore::new().retained_for(Duration::from_secs(3600)).max_records(1_000_000);
/// ```
pub struct MemoryIdempotencyStore {
    limits: Limits,
    keys: Keys,
    records: Mutex<Records>,
}

#[derive(Debug, Clone, Copy)]
struct Limits {
    records: usize,
    bytes: usize,
    retention: Duration,
}

impl Default for MemoryIdempotencyStore {
    fn default() -> Self {
        let limits = Limits { records: 200_000, bytes: 64 << 20, retention: Duration::from_secs(600) };
        Self { limits, keys: Keys::Instance, records: Mutex::default() }
    }
}

impl MemoryIdempotencyStore {
    /// An empty store with the default limits.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets how many records it has at most (default 200 000). One takes about 500 bytes, without its answer.
    #[must_use]
    pub fn max_records(mut self, records: usize) -> Self {
        self.limits.records = records;
        self
    }

    /// Sets how many bytes all answers have at most (default 64 MiB).
    #[must_use]
    pub fn max_bytes(mut self, bytes: usize) -> Self {
        self.limits.bytes = bytes;
        self
    }

    /// Sets how long an answer is retained (default 10 minutes).
    #[must_use]
    pub fn retained_for(mut self, time: Duration) -> Self {
        self.limits.retention = time;
        self
    }

    /// Declares that all instances of the arms that use this store share it, since all of them are in this process and end with
    /// it.
    #[must_use]
    pub fn shared(mut self) -> Self {
        self.keys = Keys::Shared;
        self
    }

    fn records(&self) -> MutexGuard<'_, Records> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl IdempotencyStore for MemoryIdempotencyStore {
    fn keys(&self) -> Keys {
        self.keys
    }

    fn retention(&self) -> Duration {
        self.limits.retention
    }

    async fn begin(&self, run: &KeyedRun, lease: Duration, must_exist: bool) -> Result<Begun, Failure> {
        Ok(self.records().begin(run, lease, must_exist, self.limits, Instant::now()))
    }

    async fn finish(&self, run: &KeyedRun, answer: KeyedAnswer) -> Result<(), Failure> {
        let answer = Stored::of(answer)?;
        self.records().end(run, State::Answered(answer), self.limits, Instant::now());
        Ok(())
    }

    async fn release(&self, run: &KeyedRun, may_have_executed: bool) -> Result<(), Failure> {
        if may_have_executed {
            self.records().end(run, State::Released, self.limits, Instant::now());
        } else {
            self.withdraw(run);
        }
        Ok(())
    }

    fn abandon(&self, run: &KeyedRun) {
        self.records().end(run, State::Unknown, self.limits, Instant::now());
    }

    fn withdraw(&self, run: &KeyedRun) {
        let mut records = self.records();
        records.end(run, State::Released, self.limits, Instant::now());
        records.delete(run);
    }
}

impl fmt::Debug for MemoryIdempotencyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Records { records, bytes, .. } = &*self.records();
        f.debug_struct("MemoryIdempotencyStore")
            .field("limits", &self.limits)
            .field("keys", &self.keys)
            .field("records", &records.len())
            .field("bytes", bytes)
            .finish()
    }
}

/// The records. Every decision takes the time.
#[derive(Debug, Default)]
struct Records {
    records: HashMap<String, Record>,
    /// When each record is deleted.
    ends: BTreeSet<(Instant, String)>,
    /// The records with an answer, the oldest first, which is also the first to end. Each of them is in it once.
    answered: VecDeque<(String, Uuid)>,
    /// Bytes of all answers.
    bytes: usize,
}

#[derive(Debug)]
struct Record {
    input: String,
    run: Uuid,
    state: State,
    end: Instant,
}

#[derive(Debug)]
enum State {
    /// Until the end of its lease.
    Running(Instant),
    Answered(Stored),
    Released,
    Unknown,
}

/// An answer as bytes, so that its size is known.
#[derive(Debug)]
struct Stored {
    is_output: bool,
    /// The output, or the failure as JSON.
    bytes: Bytes,
    usage: Usage,
    began: Timestamp,
    took: Duration,
}

impl Stored {
    fn of(answer: KeyedAnswer) -> Result<Self, Failure> {
        let KeyedAnswer { result, usage, began, took } = answer;
        let is_output = result.is_ok();
        let bytes = match result {
            // The buffer into which it was written may be larger.
            Ok(output) => Bytes::copy_from_slice(&output),
            Err(failure) => match serde_json::to_vec(&failure) {
                Ok(written) => written.into_boxed_slice().into(),
                Err(_) => return Err(Failure::of(ErrorKind::Internal)),
            },
        };
        Ok(Self { is_output, bytes, usage, began, took })
    }

    fn answer(&self) -> KeyedAnswer {
        let result = if self.is_output {
            Ok(self.bytes.clone())
        } else {
            Err(serde_json::from_slice(&self.bytes).unwrap_or_else(|_| Failure::of(ErrorKind::Internal)))
        };
        KeyedAnswer { result, usage: self.usage, began: self.began, took: self.took }
    }
}

impl Records {
    fn begin(
        &mut self,
        run: &KeyedRun,
        lease: Duration,
        must_exist: bool,
        limits: Limits,
        now: Instant,
    ) -> Begun {
        self.purge(now);
        if let Some(ended) = self.records.get(&run.record).map(|record| record.end).filter(|end| *end <= now)
        {
            self.ends.remove(&(ended, run.record.clone()));
            self.forget(&run.record);
        }
        match self.records.get(&run.record) {
            Some(record) if record.input != run.input => return Begun::OtherInput,
            Some(record) => match &record.state {
                State::Running(until) if *until > now => return Begun::Running,
                State::Running(_) | State::Unknown => return Begun::Unknown,
                State::Answered(answer) => return Begun::Answered(answer.answer()),
                State::Released => {}
            },
            None if must_exist => return Begun::Unknown,
            None if self.records.len() >= limits.records => return Begun::Full,
            None => {}
        }
        let until = later(now, lease);
        let (input, state) = (run.input.clone(), State::Running(until));
        let end = later(until, limits.retention);
        let record = Record { input, run: run.run, state, end };
        if let Some(released) = self.records.insert(run.record.clone(), record) {
            self.ends.remove(&(released.end, run.record.clone()));
        }
        self.ends.insert((end, run.record.clone()));
        Begun::Run
    }

    /// Ends a run, unless it has ended.
    fn end(&mut self, run: &KeyedRun, state: State, limits: Limits, now: Instant) {
        self.purge(now);
        let Some(record) = self.records.get_mut(&run.record) else { return };
        if record.run != run.run || !matches!(record.state, State::Running(_)) {
            return;
        }
        let mut entry = (record.end, run.record.clone());
        self.ends.remove(&entry);
        record.end = later(now, limits.retention);
        entry.0 = record.end;
        self.ends.insert(entry);
        if let State::Answered(answer) = &state {
            self.bytes += answer.bytes.len();
            self.answered.push_back((run.record.clone(), run.run));
        }
        record.state = state;
        while self.bytes > limits.bytes && self.drop_oldest_answer() {}
    }

    /// Deletes a record that was released.
    fn delete(&mut self, run: &KeyedRun) {
        if self
            .records
            .get(&run.record)
            .is_some_and(|record| record.run == run.run && matches!(record.state, State::Released))
            && let Some(record) = self.records.remove(&run.record)
        {
            self.ends.remove(&(record.end, run.record.clone()));
        }
    }

    fn drop_oldest_answer(&mut self) -> bool {
        let Some((record, run)) = self.answered.pop_front() else { return false };
        if let Some(record) = self.records.get_mut(&record).filter(|record| record.run == run)
            && let State::Answered(answer) = &record.state
        {
            self.bytes -= answer.bytes.len();
            record.state = State::Unknown;
        }
        true
    }

    /// Deletes records that have ended: some of them, so that no call waits for many.
    fn purge(&mut self, now: Instant) {
        const AT_ONCE: usize = 256;
        for _ in 0..AT_ONCE {
            match self.ends.first() {
                Some((end, _)) if *end <= now => {}
                _ => return,
            }
            if let Some((_, id)) = self.ends.pop_first() {
                self.forget(&id);
            }
        }
    }

    fn forget(&mut self, id: &str) {
        let Some(record) = self.records.remove(id) else { return };
        if let State::Answered(answer) = record.state {
            self.bytes -= answer.bytes.len();
            // It is one of the first: answers end in the order in which they were recorded.
            let position = self.answered.iter().position(|(known, run)| known == id && *run == record.run);
            position.and_then(|position| self.answered.remove(position));
        }
    }
}

/// A time that is too far away to be counted never comes.
fn later(now: Instant, by: Duration) -> Instant {
    const CENTURY: Duration = Duration::from_secs(100 * 365 * 24 * 3600);
    now + by.min(CENTURY)
}
