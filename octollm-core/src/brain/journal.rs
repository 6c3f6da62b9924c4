//! How calls are journaled: a call that was answered once is not made again.

use std::{
    collections::{HashMap, HashSet},
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use jiff::Timestamp;
use serde_json::Value;
use tokio::{
    sync::watch,
    time::{Instant, timeout},
};

use super::{
    Inner, grants, repeated,
    replay::{Known, State, Turn},
    running::{Run, Stop},
};
use crate::{
    budget::Usage,
    card::ArmCard,
    clock::Clock,
    contract::{ContractRef, Keys},
    dropped::{Reports, report},
    error::{CallError, ErrorKind, Failure},
    explain::CallEvent,
    id::StepKey,
    json::{InputDigest, RawJson, digest},
    meters::Counter,
    store::{Draft, JournalEntry, Recorded, TaskStore, outcome_unknown, own_times, replay, served_by},
    task::{StepKeys, TaskRecord},
    transport::{Call, Reply, Transport, sent_until},
    update::{Update, UpdateSink},
};

/// The transport of one run of a task. It answers a call from the journal of the task where it was answered before. Otherwise it
/// sends the call, and records the answer.
///
/// An answer is returned after it was stored, and in the order in which it was stored. A run that cannot store an answer is
/// stopped.
#[derive(Clone)]
pub(super) struct Journal(Arc<Shared>);

struct Shared {
    brain: Weak<Inner>,
    run: Run,
    record: Arc<TaskRecord>,
    /// Makes the idempotency keys of the calls.
    keys: Option<StepKeys>,
    store: Arc<dyn TaskStore>,
    transport: Arc<dyn Transport>,
    clock: Clock,
    /// When the task was claimed, by the store's clock and by tokio's.
    claimed: (Timestamp, Instant),
    /// Time that the program took before each recorded answer without waiting for one.
    own_time: HashMap<u64, Duration>,
    state: Mutex<State>,
    /// Calls that were sent and have not ended.
    in_flight: Arc<AtomicUsize>,
    /// Counts the records that are stored.
    written: Counter,
    /// Changes with the sequence.
    moved: watch::Sender<()>,
}

/// A recorded answer that the program does not ask for is skipped after so long without any other movement, and after the time
/// that the program took before it asked for it first. Further ones are skipped after that time alone.
const SKIPPED_AFTER: Duration = Duration::from_secs(1);
/// How long others wait for an answer that is being recorded: its future may not be polled any more.
const STUCK: Duration = Duration::from_secs(30);

impl Journal {
    /// The journal of a task that was claimed at this time of the store's clock.
    pub(super) fn new(
        brain: &Arc<Inner>,
        record: Arc<TaskRecord>,
        entries: Vec<JournalEntry>,
        claimed_at: Timestamp,
    ) -> Self {
        let own_time = own_times(&record, &entries);
        Self(Arc::new(Shared {
            brain: Arc::downgrade(brain),
            run: (record.id().clone(), record.run()),
            keys: record.step_keys(),
            record,
            store: brain.store.clone(),
            transport: brain.transport.clone(),
            clock: brain.clock.clone(),
            claimed: (claimed_at, Instant::now()),
            own_time,
            state: Mutex::new(State::new(entries)),
            in_flight: Arc::default(),
            written: brain.meters.writes.clone(),
            moved: watch::Sender::new(()),
        }))
    }

    /// The number of calls that were sent and have not ended.
    pub(super) fn in_flight(&self) -> Arc<AtomicUsize> {
        self.0.in_flight.clone()
    }

    /// The arms that answered, in the order of their first answer.
    pub(super) fn arms_used(&self) -> Vec<String> {
        self.0.state().arms.clone()
    }

    /// Whether a step of this run ended with a failure.
    pub(super) fn has_failed(&self, step: &StepKey) -> bool {
        self.0.state().failed.contains(step)
    }

    /// The failure of a run that does not match its journal: a call differs, or a run that has ended well with so many ordered
    /// `calls` has not made a recorded one after those. A call that was dropped before it was polled does not count. A run may
    /// leave out named steps, and steps that were recorded after a failure whose call is made again.
    pub(super) fn mismatch(&self, calls: Option<u32>) -> Option<Failure> {
        self.0.state().mismatch(calls, self.0.record.made_again())
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A call that does not match the journal fails the task, also where the arm handles the failure.
    fn recall(&self, call: &Call, digest: InputDigest) -> Result<Known, CallError> {
        let mut state = self.state();
        let known = state.recall(call, digest).map_err(|failure| {
            state.mismatch.get_or_insert_with(|| failure.clone());
            CallError::new(call.contract.clone(), failure.before_execution())
        });
        drop(state);
        self.moved();
        known
    }

    /// Reports that the sequence has changed. Whoever waits subscribes before it reads the sequence.
    fn moved(&self) {
        if self.moved.receiver_count() > 0 {
            self.moved.send_replace(());
        }
    }

    /// Waits until the answer with this number may be returned.
    async fn turn(&self, seq: u64) {
        if self.state().sequence.turn(seq) != Turn::Now {
            Box::pin(self.waited_turn(seq)).await;
        }
    }

    async fn waited_turn(&self, seq: u64) {
        let (mut moved, mut wait_limit) = (self.moved.subscribe(), SKIPPED_AFTER);
        loop {
            moved.mark_unchanged();
            let before = self.state().sequence.turn(seq);
            let limit = match before {
                Turn::Now => return,
                Turn::NotAsked(first) => wait_limit + self.own_time.get(&first).copied().unwrap_or_default(),
                Turn::Pending(_) => STUCK,
            };
            if timeout(limit, moved.changed()).await.is_ok() {
                wait_limit = SKIPPED_AFTER;
            } else {
                wait_limit = Duration::ZERO;
                if self.state().sequence.skip(before) {
                    self.moved();
                }
            }
        }
    }

    /// Returns a recorded answer in its turn.
    async fn replayed(&self, call: &Call, entry: JournalEntry) -> Result<Reply, CallError> {
        if let Some(record) = &call.explain {
            record.add(CallEvent::Replayed);
        }
        let _placed = Placed(self, entry.seq);
        let mut replays = Reports(Some(entry.usage));
        self.turn(entry.seq).await;
        replays.0 = None;
        replay(entry)
    }

    /// Writes an entry, again where the store is not available. Where it cannot be written, the run is stopped.
    async fn write(&self, entry: &JournalEntry) -> Result<(), CallError> {
        // Not that of the `Arc`, which boxes the future once more.
        let store = &*self.store;
        let append = || store.append(&self.run.0, self.run.1, entry.clone());
        let Err(error) = repeated(append).await else {
            self.written.count();
            return Ok(());
        };
        tracing::warn!(task = %self.run.0, step = %entry.step, %error, "journal not written; the run stops");
        Err(self.lose(entry.contract.clone()))
    }

    /// Whether the run holds its task, as far as is known here.
    fn is_held(&self) -> bool {
        self.brain.upgrade().is_some_and(|brain| brain.running.is_held(&self.run, Instant::now()))
    }

    /// Whether the run was stopped, or has ended.
    fn is_stopped(&self) -> bool {
        self.brain.upgrade().is_none_or(|brain| brain.running.stopped(&self.run).is_some())
    }

    /// Stops the run.
    fn lose(&self, contract: ContractRef) -> CallError {
        if let Some(brain) = self.brain.upgrade() {
            brain.running.stop_run(&self.run, Stop::Lost);
        }
        CallError::new(contract, Failure::of(ErrorKind::Cancelled))
    }

    /// Records that a call is about to be made, and returns the position of the record.
    async fn begins(&self, call: &Call, draft: &Draft) -> Result<u64, CallError> {
        let number = self.state().sequence.number();
        self.write(&draft.entry(number, Recorded::Begun, self.claimed)).await?;
        // The write may have taken longer than the lease.
        if self.is_held() { Ok(number) } else { Err(self.lose(call.contract.clone())) }
    }

    /// Prepares a call that was begun to be sent again, where it cannot run twice.
    async fn resumes(&self, call: &mut Call, entry: JournalEntry) -> Resumed {
        if let Recorded::Handle(handle) = entry.recorded {
            call.handle = Some(handle);
            return Resumed::Again(None);
        }
        let unknown = outcome_unknown(call).with_usage(entry.usage);
        if self.keys_are_honoured(&entry).await {
            call.parts.repeated = true;
            Resumed::Again(Some(unknown))
        } else {
            Resumed::Unknown(unknown)
        }
    }

    /// Sends a call. An output that its caller cannot decode is a failure.
    fn sent(&self, call: Call) -> impl Future<Output = Result<Reply, CallError>> {
        let (contract, reads, deadline) = (call.contract.clone(), call.reads, call.parts.deadline);
        let delivered = call.delivered.clone();
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        let in_flight = InFlight(&self.in_flight);
        // Not that of the `Arc`, which boxes the future once more.
        let work = (*self.transport).call(call);
        async move {
            let answer = sent_until(deadline, &contract, work, report).await;
            drop(in_flight);
            let read = answer.and_then(|reply| match reads(&reply.output) {
                Ok(()) => Ok(reply),
                Err(error) => Err(self.transport.explain(reply.unreadable(contract, error))),
            });
            read.map_err(|error| delivered.failed(error))
        }
    }

    /// Whether every arm that offers the contract has a record of the call if it ran there: for long enough and over its restarts,
    /// or else it answers a repeated call from that record alone.
    async fn keys_are_honoured(&self, entry: &JournalEntry) -> bool {
        let (claimed_at, since) = self.claimed;
        let age = claimed_at.duration_since(entry.at);
        let Some(age) = Duration::try_from(age).ok().and_then(|age| age.checked_add(since.elapsed())) else {
            return false;
        };
        let cards = self.transport.cards().await;
        let mut offers = cards.iter().filter_map(|card| card.contract(&entry.contract)).peekable();
        offers.peek().is_some()
            && offers.all(|offer| offer.keys == Keys::Instance || offer.honours_keys_for(age))
    }
}

/// How a call that was begun goes on.
enum Resumed {
    /// It is sent again. If its outcome is then unknown, it ends with this error where there is one.
    Again(Option<CallError>),
    /// Its outcome is unknown.
    Unknown(CallError),
}

/// Counts a call that has ended, also where it is dropped.
struct InFlight<'a>(&'a AtomicUsize);

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Leaves the position of an answer, also where its call is dropped.
struct Placed<'a>(&'a Shared, u64);

impl Drop for Placed<'_> {
    fn drop(&mut self) {
        self.0.state().sequence.leave(self.1);
        self.0.moved();
    }
}

type Answering<'a> = Pin<Box<dyn Future<Output = Result<Reply, CallError>> + Send + 'a>>;

#[async_trait]
impl Transport for Journal {
    // Not an `async fn`, whose future has the call twice.
    fn call<'a, 'f>(&'a self, mut call: Call) -> Answering<'f>
    where
        'a: 'f,
        Self: 'f,
    {
        Box::pin(async move {
            if call.run_once {
                let words = "a call of a brain's program has the key of its step: leave `key` out";
                return self
                    .refuse(call, Failure::new(ErrorKind::BadRequest, words).before_execution())
                    .await;
            }
            let inner = &*self.0;
            let mut draft = Draft::of(&call, digest(&call.input), inner.record.generation());
            let mut not_sent = Reports(Some(Usage::ZERO));
            let known = inner.recall(&call, draft.input_digest)?;
            // What is rare is boxed: the future of every call is as large as its largest part.
            if let Err(refusal) = grants::check(&inner.record, call.spec.as_ref(), &inner.clock) {
                return Box::pin(self.unauthorized(call, draft, known, refusal)).await;
            }
            let (mut begun, mut unknown) = (None, None);
            match known {
                Known::Answer(entry) => return Box::pin(inner.replayed(&call, *entry)).await,
                Known::Begun(entry) => {
                    (draft.generation, begun) = (entry.generation, Some(entry.seq));
                    match Box::pin(inner.resumes(&mut call, *entry)).await {
                        Resumed::Again(error) => unknown = error,
                        Resumed::Unknown(error) => {
                            return Box::pin(self.answered(&draft, begun, Err(error))).await;
                        }
                    }
                }
                Known::Nothing if !call.is_idempotent() => {
                    begun = Some(Box::pin(inner.begins(&call, &draft)).await?);
                }
                Known::Nothing => {}
            }
            call.parts.key = inner.keys.as_ref().and_then(|keys| keys.of(&call.step, draft.generation));
            let updates = StoresHandle { journal: self.clone(), draft, begun, to: call.updates.take() };
            let updates = Arc::new(updates);
            call.updates = Some(updates.clone());
            not_sent.0 = None;
            let (unknown_at, answer) = match inner.sent(call).await {
                // The run is cancelled, and not the call by its arm: nobody waits for an answer.
                Err(error) if error.kind() == ErrorKind::Cancelled && inner.is_stopped() => {
                    return Err(error);
                }
                Err(error) if error.kind() == ErrorKind::OutcomeUnknown && unknown.is_some() => {
                    (begun, Err(unknown.unwrap_or(error)))
                }
                answer => (None, answer),
            };
            Box::pin(self.answered(&updates.draft, unknown_at, answer)).await
        })
    }

    async fn refuse(&self, call: Call, refusal: Failure) -> Result<Reply, CallError> {
        let draft = Draft::of(&call, digest(&call.input), self.0.record.generation());
        match self.0.recall(&call, draft.input_digest)? {
            Known::Answer(entry) => self.0.replayed(&call, *entry).await,
            Known::Begun(entry) => self.refused(call, draft, Some(*entry), refusal).await,
            Known::Nothing => self.refused(call, draft, None, refusal).await,
        }
    }

    fn resumed(&self, batch: &StepKey) -> HashSet<StepKey> {
        self.0.state().resumed(batch)
    }

    async fn cards(&self) -> Vec<ArmCard> {
        self.0.transport.cards().await
    }

    fn explain(&self, error: CallError) -> CallError {
        self.0.transport.explain(error)
    }
}

impl Journal {
    /// Answers a call that the grant of the task does not cover. A recorded answer remains recorded.
    async fn unauthorized(
        &self,
        call: Call,
        draft: Draft,
        known: Known,
        refusal: Failure,
    ) -> Result<Reply, CallError> {
        match known {
            Known::Answer(entry) => {
                let _placed = Placed(&self.0, entry.seq);
                self.0.turn(entry.seq).await;
                Err(CallError::new(call.contract, refusal))
            }
            Known::Begun(entry) => self.refused(call, draft, Some(*entry), refusal).await,
            Known::Nothing => self.refused(call, draft, None, refusal).await,
        }
    }

    /// Records the refusal of a call that has no answer. One that was begun may have run, and its usage stays unknown.
    async fn refused(
        &self,
        call: Call,
        mut draft: Draft,
        begun: Option<JournalEntry>,
        mut refusal: Failure,
    ) -> Result<Reply, CallError> {
        let Some(begun) = begun else {
            return self.answered(&draft, None, Err(CallError::new(call.contract, refusal))).await;
        };
        draft.generation = begun.generation;
        refusal.may_have_executed = true;
        let refused = CallError::new(call.contract, refusal).with_usage(begun.usage);
        self.answered(&draft, Some(begun.seq), Err(refused)).await
    }

    /// Records an answer, and returns it in its turn. `unknown` is the position where the call was begun, if the answer does not
    /// say how that ended.
    async fn answered(
        &self,
        draft: &Draft,
        unknown: Option<u64>,
        answer: Result<Reply, CallError>,
    ) -> Result<Reply, CallError> {
        let inner = &*self.0;
        let answer = answer.and_then(|reply| match RawJson::from_slice(&reply.output) {
            Ok(output) => Ok((reply, output)),
            Err(error) => Err(reply.unreadable(draft.contract.clone(), error)),
        });
        let served_by = served_by(answer.as_ref().map(|(reply, _)| reply));
        let (recorded, usage) = match &answer {
            Ok((reply, output)) => (Recorded::Output(output.clone()), reply.usage),
            Err(error) => (Recorded::Failure(Box::new(error.failure().clone())), error.usage()),
        };
        let mut answered = Reports(Some(usage));
        let placed = {
            let mut state = inner.state();
            state.used_arm(&served_by.arm);
            if answer.is_err() {
                state.failed.insert(draft.step.clone());
            }
            let held = state.again.get(&draft.step).copied();
            Placed(inner, state.sequence.enter(held))
        };
        let entry = draft.entry(placed.1, recorded, inner.claimed);
        let entry = JournalEntry { served_by, usage, begun: unknown, ..entry };
        inner.write(&entry).await?;
        inner.turn(placed.1).await;
        answered.0 = None;
        match answer {
            Ok((reply, _)) => Ok(reply),
            // As a replay returns it: without its source.
            Err(error) => {
                let cause = std::error::Error::source(&error).and_then(std::error::Error::source);
                tracing::debug!(step = %entry.step, %error, cause, "call failed");
                replay(entry)
            }
        }
    }
}

/// Stores the handle that a transport reports, and forwards all updates.
struct StoresHandle {
    journal: Journal,
    draft: Draft,
    /// Position of the begun entry.
    begun: Option<u64>,
    to: Option<Arc<dyn UpdateSink>>,
}

#[async_trait]
impl UpdateSink for StoresHandle {
    fn update(&self, update: Update) {
        self.to.update(update);
    }

    async fn chunk(&self, chunk: Value) {
        self.to.chunk(chunk).await;
    }

    fn is_read(&self) -> bool {
        self.to.is_read()
    }

    async fn handle(&self, handle: String) -> Result<(), Failure> {
        let inner = &*self.journal.0;
        let number = self.begun.unwrap_or_else(|| inner.state().sequence.number());
        let entry = self.draft.entry(number, Recorded::Handle(handle), inner.claimed);
        inner.write(&entry).await.map_err(|error| error.failure().clone())
    }
}
