//! The journal: calls that were answered once are not made again.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use jiff::Timestamp;
use serde_json::Value;
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};

use super::{
    entry::{Draft, digest, outcome_unknown, own_times, replay, trip_of},
    recall::{Known, State},
    sequence::Turn,
};
use crate::{
    card::ArmCard,
    clock::Clock,
    contract::ContractRef,
    deadline::Deadline,
    error::{CallError, ErrorKind, Failure},
    id::StepKey,
    json::RawJson,
    store::{JournalEntry, Recorded, Run, StoreError, TaskStore},
    task::TaskRecord,
    transport::{Call, Reply, Transport},
    update::{Update, UpdateSink},
};

/// Carries the calls of one run of a task: from its journal where they were answered before, else by the transport,
/// and then into the journal.
///
/// What is recorded is what the caller sees: no answer is returned before it was stored, and each is returned in the order
/// in which it was stored. A run that cannot record any more is stopped.
#[derive(Clone)]
pub(super) struct Journal(Arc<Inner>);

struct Inner {
    run: Run,
    record: TaskRecord,
    store: Arc<dyn TaskStore>,
    transport: Arc<dyn Transport>,
    clock: Clock,
    /// When the task was claimed, by the store's clock and by tokio's.
    claimed: (Timestamp, Instant),
    hold: Hold,
    /// How long the program took before each recorded answer without waiting for any.
    own_time: HashMap<u64, Duration>,
    state: Mutex<State>,
    /// Changes with the sequence.
    moved: watch::Sender<()>,
}

/// A recorded answer that the program does not ask for is left out after so long without any other movement, and the time
/// that the program took before it asked for it first. Further ones are left out after that time alone.
const LEFT_OUT: Duration = Duration::from_secs(1);
/// An answer that is being recorded is waited for no longer than this, since its future may not be polled any more.
const STUCK: Duration = Duration::from_secs(30);
/// A write is tried once more after so long, then each time after twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// After this pause a write is given up, and the run with it.
const LAST_PAUSE: Duration = Duration::from_millis(1_600);

/// What a journal runs with.
pub(super) struct Backing {
    pub(super) store: Arc<dyn TaskStore>,
    pub(super) transport: Arc<dyn Transport>,
    pub(super) clock: Clock,
    /// When the task was claimed, by the store's clock.
    pub(super) claimed_at: Timestamp,
    pub(super) hold: Hold,
}

/// A run's hold on its task.
pub(super) struct Hold {
    /// Whether it lasts, as far as is known here.
    pub(super) lasts: Box<dyn Fn() -> bool + Send + Sync>,
    /// Gives it up, and stops the run.
    pub(super) lose: Box<dyn Fn() + Send + Sync>,
}

impl Journal {
    /// The journal of a claimed task.
    pub(super) fn new(record: TaskRecord, entries: Vec<JournalEntry>, backing: Backing) -> Self {
        let Backing { store, transport, clock, claimed_at, hold } = backing;
        let claimed = (claimed_at, Instant::now());
        let own_time = own_times(&record, &entries);
        let state = Mutex::new(State::new(entries));
        let run = Run::new(record.id().clone(), record.run());
        let moved = watch::Sender::new(());
        Self(Arc::new(Inner { run, record, store, transport, clock, claimed, hold, own_time, state, moved }))
    }

    /// The arms that answered, in the order of their first answer.
    pub(super) fn arms_used(&self) -> Vec<String> {
        self.0.state().arms.clone()
    }

    /// Whether a step of this run ended with a failure.
    pub(super) fn has_failed(&self, step: &StepKey) -> bool {
        self.0.state().failed.contains(step)
    }

    /// Why this run does not fit its journal: a call that differed, or, once the run has ended well with so many ordered
    /// `calls`, a recorded step after those. A call that was made and dropped before it was polled, because another one
    /// had failed, is none. Named steps may be left out: that is what names are for. So may steps that were recorded after a
    /// failure whose call was made again: what the program did because of it, it does not do where the call succeeds.
    pub(super) fn mismatch(&self, calls: Option<u32>) -> Option<Failure> {
        self.0.state().mismatch(calls, self.0.record.made_again())
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A call that does not fit the journal fails the whole task, whatever the arm makes of the failure.
    fn recall(&self, call: &Call, digest: &str) -> Result<Known, CallError> {
        let mut state = self.state();
        let known = state.recall(call, digest).map_err(|failure| {
            state.mismatch.get_or_insert_with(|| failure.clone());
            CallError::new(call.contract.clone(), failure.before_execution())
        });
        drop(state);
        self.moved.send_replace(());
        known
    }

    /// Waits until the answer of this number may be returned.
    async fn turn(&self, seq: u64) {
        let (mut moved, mut wait_limit) = (self.moved.subscribe(), LEFT_OUT);
        loop {
            moved.mark_unchanged();
            let before = self.state().sequence.turn(seq);
            let limit = match before {
                Turn::Now => return,
                Turn::NotAsked(first) => wait_limit + self.own_time.get(&first).copied().unwrap_or_default(),
                Turn::Pending(_) => STUCK,
            };
            if timeout(limit, moved.changed()).await.is_ok() {
                wait_limit = LEFT_OUT;
            } else {
                wait_limit = Duration::ZERO;
                if self.state().sequence.skip(before) {
                    self.moved.send_replace(());
                }
            }
        }
    }

    /// Returns a recorded answer when it is its turn.
    async fn replayed(&self, entry: JournalEntry) -> Result<Reply, CallError> {
        let _placed = Placed(self, entry.seq);
        self.turn(entry.seq).await;
        replay(entry)
    }

    /// Writes an entry, again where the store is away. What cannot be written stops the run: an answer that is not
    /// recorded is never returned.
    async fn write(&self, entry: JournalEntry) -> Result<(), CallError> {
        let mut pause = FIRST_PAUSE;
        loop {
            let error = match self.store.append(&self.run, entry.clone()).await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            if !matches!(error, StoreError::Unavailable(_)) || pause > LAST_PAUSE {
                tracing::warn!(task = %self.run.task, step = %entry.step, %error, "journal not written; the run stops");
                return Err(self.lose(entry.contract));
            }
            sleep(pause).await;
            pause *= 2;
        }
    }

    fn lose(&self, contract: ContractRef) -> CallError {
        (self.hold.lose)();
        CallError::new(contract, Failure::of(ErrorKind::Cancelled))
    }

    /// Whether every arm that offers the contract remembers keys for long enough, over its restarts.
    async fn keys_are_honoured(&self, entry: &JournalEntry) -> bool {
        let (claimed_at, since) = self.claimed;
        let age = claimed_at.duration_since(entry.at);
        let Some(age) = Duration::try_from(age).ok().and_then(|age| age.checked_add(since.elapsed())) else {
            return false;
        };
        let cards = self.transport.cards().await;
        let mut offers = cards.iter().filter_map(|card| card.contract(&entry.contract)).peekable();
        offers.peek().is_some() && offers.all(|offer| offer.honours_keys_for(age))
    }
}

/// Gives the place of an answer up, however its call ends.
struct Placed<'a>(&'a Inner, u64);

impl Drop for Placed<'_> {
    fn drop(&mut self) {
        self.0.state().sequence.leave(self.1);
        self.0.moved.send_replace(());
    }
}

#[async_trait]
impl Transport for Journal {
    async fn call(&self, mut call: Call) -> Result<Reply, CallError> {
        let inner = &*self.0;
        let draft = Draft::of(&call, digest(&call.input));
        match inner.recall(&call, &draft.input_digest)? {
            Known::Answer(entry) => return inner.replayed(*entry).await,
            Known::Begun(entry) => match entry.recorded {
                Recorded::Handle(handle) => call.handle = Some(handle),
                _ if inner.keys_are_honoured(&entry).await => {}
                _ => return self.answered(draft, Err(outcome_unknown(&call))).await,
            },
            Known::Nothing if !call.is_idempotent() => {
                let begun = draft.entry(inner.state().sequence.number(), Recorded::Begun, inner.clock);
                inner.write(begun).await?;
                // The write may have taken longer than the lease.
                if !(inner.hold.lasts)() {
                    return Err(inner.lose(call.contract));
                }
            }
            Known::Nothing => {}
        }
        call.key = inner.record.idempotency_key(&call.step);
        call.updates =
            Some(Arc::new(Handles { journal: self.clone(), draft: draft.clone(), to: call.updates.take() }));
        let (contract, reads, deadline) = (call.contract.clone(), call.reads, call.parts.deadline);
        let answer = Deadline::run_until(deadline, inner.transport.call(call)).await.unwrap_or_else(|| {
            Err(CallError::new(contract.clone(), Failure::of(ErrorKind::DeadlineExceeded)))
        });
        let answer = answer.and_then(|reply| match reads(&reply.output) {
            Ok(()) => Ok(reply),
            Err(error) => Err(inner.transport.explain(reply.unreadable(contract, error))),
        });
        match answer {
            // It is not known to have ended: whoever cancelled it is not waiting for an answer.
            Err(error) if error.kind() == ErrorKind::Cancelled => Err(error),
            answer => self.answered(draft, answer).await,
        }
    }

    async fn refuse(&self, call: Call, refusal: Failure) -> Result<Reply, CallError> {
        let draft = Draft::of(&call, digest(&call.input));
        let refusal = match self.0.recall(&call, &draft.input_digest)? {
            Known::Answer(entry) => return self.0.replayed(*entry).await,
            Known::Begun(_) => Failure { may_have_executed: true, ..refusal },
            Known::Nothing => refusal,
        };
        self.answered(draft, Err(CallError::new(call.contract, refusal))).await
    }

    async fn cards(&self) -> Vec<ArmCard> {
        self.0.transport.cards().await
    }

    fn explain(&self, error: CallError) -> CallError {
        self.0.transport.explain(error)
    }
}

impl Journal {
    /// Records an answer, and returns it when it is its turn.
    async fn answered(&self, draft: Draft, answer: Result<Reply, CallError>) -> Result<Reply, CallError> {
        let inner = &*self.0;
        let answer = answer.and_then(|reply| match RawJson::from_slice(&reply.output) {
            Ok(output) => Ok((reply, output)),
            Err(error) => Err(reply.unreadable(draft.contract.clone(), error)),
        });
        let (recorded, served_by, usage) = match &answer {
            Ok((reply, output)) => (Recorded::Output(output.clone()), reply.served_by.clone(), reply.usage),
            Err(error) => {
                let failure = Box::new(error.failure().clone());
                (Recorded::Failure(failure), trip_of(error), error.usage())
            }
        };
        let placed = {
            let mut state = inner.state();
            state.used_arm(&served_by.arm);
            if answer.is_err() {
                state.failed.insert(draft.step.clone());
            }
            let held = state.again.get(&draft.step).copied();
            Placed(inner, state.sequence.enter(held))
        };
        let entry = JournalEntry { served_by, usage, ..draft.entry(placed.1, recorded, inner.clock) };
        inner.write(entry.clone()).await?;
        inner.turn(placed.1).await;
        match answer {
            Ok((reply, _)) => Ok(reply),
            // As a replay will return it: without its cause on this side.
            Err(error) => {
                let cause = std::error::Error::source(&error).and_then(std::error::Error::source);
                tracing::debug!(step = %entry.step, %error, cause, "call failed");
                replay(entry)
            }
        }
    }
}

/// Stores the handle that a transport reports, and passes everything else on.
struct Handles {
    journal: Journal,
    draft: Draft,
    to: Option<Arc<dyn UpdateSink>>,
}

#[async_trait]
impl UpdateSink for Handles {
    fn update(&self, update: Update) {
        if let Some(to) = &self.to {
            to.update(update);
        }
    }

    async fn chunk(&self, chunk: Value) {
        if let Some(to) = &self.to {
            to.chunk(chunk).await;
        }
    }

    async fn handle(&self, handle: String) -> Result<(), Failure> {
        let inner = &*self.journal.0;
        let number = inner.state().sequence.number();
        let entry = self.draft.entry(number, Recorded::Handle(handle), inner.clock);
        inner.write(entry).await.map_err(|error| error.failure().clone())
    }
}
