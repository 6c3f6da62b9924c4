//! The context of running work: limits, ids, progress, and calls to other arms.

mod batch;
mod call;
mod stream;

use std::{
    collections::HashSet,
    fmt, iter,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use jiff::Timestamp;
use serde_json::Value;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::call::Steps;
pub use self::{
    batch::{BatchFuture, CALLS_AT_ONCE},
    call::CallFuture,
    stream::CallStream,
};
pub(crate) use self::{
    batch::{Calls, run_calls},
    call::UnsentCall,
};
pub use crate::parts::{Caller, ContextParts, Grant};
use crate::{
    budget::{Budget, Ledger, Usage, narrower},
    card::ArmCard,
    contract::{ContractRef, TaskContract},
    deadline::Deadline,
    error::{ErrorKind, Failure},
    id::{IdempotencyKey, RequestId, TaskId},
    json::{self, read_value},
    size::cut,
    trace::TraceContext,
    transport::{StepKey, Transport},
    update::{Phase, Update, UpdateSink},
};

/// Bytes of the longest message of progress.
const MESSAGE_BYTES: usize = 4096;

/// The context of running work: ids, trace, deadline, budget, caller and cancellation. It reports progress and calls other
/// arms.
///
/// Each limit can only shrink on the way: a call gets at most the time and the budget that are left here. A clone shares
/// everything with its original.
#[derive(Clone)]
pub struct Context(Arc<Shared>);

/// A context that may have ended.
pub(crate) struct WeakContext(Weak<Shared>);

impl WeakContext {
    /// The usage so far; nothing once the context is gone.
    pub(crate) fn used(&self) -> Usage {
        self.upgrade().map(|context| context.used()).unwrap_or_default()
    }

    pub(crate) fn upgrade(&self) -> Option<Context> {
        self.0.upgrade().map(Context)
    }
}

impl fmt::Debug for WeakContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("WeakContext").field(&self.used()).finish()
    }
}

struct Shared {
    parts: ContextParts,
    ledger: Ledger,
    steps: Mutex<Steps>,
    /// `None` where the work cannot be cancelled.
    cancellation: Option<CancellationToken>,
    transport: Arc<dyn Transport>,
    updates: Option<Arc<dyn UpdateSink>>,
    /// When a call with a key was executed, how long it took, and whether that was an earlier one.
    executed: Option<(Timestamp, Duration, bool)>,
    /// The context that this one narrows. What is used here counts there too, and the calls of both are numbered there.
    outer: Option<Context>,
}

impl Context {
    /// The context of new work that calls arms through `transport`.
    pub fn root(transport: Arc<dyn Transport>) -> Self {
        Self::from_parts(ContextParts::new(), transport)
    }

    /// The context of new work without arms to call, for a test of a single arm.
    pub fn detached() -> Self {
        Self::root(Arc::new(()))
    }

    /// A context from the parts of a call.
    pub fn from_parts(parts: ContextParts, transport: Arc<dyn Transport>) -> Self {
        let (ledger, steps) = (Ledger::default(), Mutex::default());
        let (cancellation, updates, executed, outer) = (None, None, None, None);
        Self(Arc::new(Shared { parts, ledger, steps, cancellation, transport, updates, executed, outer }))
    }

    /// A context whose work is cancelled by this token.
    #[must_use]
    pub fn with_cancellation(mut self, token: CancellationToken) -> Self {
        let _ = self.change(|shared| shared.cancellation = Some(token));
        self
    }

    /// A context whose updates are sent to this sink.
    #[must_use]
    pub fn with_updates(mut self, updates: Arc<dyn UpdateSink>) -> Self {
        let _ = self.change(|shared| shared.updates = Some(updates));
        self
    }

    pub(crate) fn downgrade(&self) -> WeakContext {
        WeakContext(Arc::downgrade(&self.0))
    }

    /// Begins an execution with a time limit from now on, and returns the token that cancels it.
    pub(crate) fn begin(&mut self, limit: Duration, now: Instant) -> CancellationToken {
        let begun = self.change(|shared| {
            shared.parts.deadline = narrower(shared.parts.deadline, Some(Deadline::since(now, limit)));
            let token = match &shared.cancellation {
                // The end of this execution must not cancel what is around it.
                Some(token) => token.child_token(),
                None => CancellationToken::new(),
            };
            shared.cancellation.insert(token).clone()
        });
        begun.unwrap_or_default()
    }

    /// Sets the trace that calls and tasks are part of.
    pub(crate) fn set_trace(&mut self, trace: TraceContext) {
        let _ = self.change(|shared| shared.parts.trace = Some(trace));
    }

    /// Counts the usage of an earlier execution, whose answer is returned again.
    pub(crate) fn replay(&mut self, usage: Usage, began: Timestamp, took: Duration) {
        self.count(usage);
        let _ = self.change(|shared| shared.executed = Some((began, took, true)));
    }

    /// Sets when a call with a key was executed.
    pub(crate) fn executed_in(&mut self, began: Timestamp, took: Duration) {
        let _ = self.change(|shared| shared.executed = Some((began, took, false)));
    }

    /// Cancels what is left of an execution that has ended. After a success nothing is left unless the context is shared.
    pub(crate) fn end(&mut self, is_success: bool) {
        if (!is_success || Arc::get_mut(&mut self.0).is_none())
            && let Some(cancellation) = &self.0.cancellation
        {
            cancellation.cancel();
        }
    }

    /// Changes this context alone: if it is shared, it is replaced by one that narrows it.
    fn change<T>(&mut self, change: impl FnOnce(&mut Shared) -> T) -> Option<T> {
        if Arc::get_mut(&mut self.0).is_none() {
            *self = self.narrowed(None, Budget::UNLIMITED);
        }
        Arc::get_mut(&mut self.0).map(change)
    }

    /// A context that ends at this deadline, unless this one ends earlier.
    ///
    /// It shares everything else with this one: calls, arms, cancellation and updates. What is used there counts here too.
    #[must_use]
    pub fn with_deadline(&self, deadline: Deadline) -> Self {
        self.narrowed(Some(deadline), Budget::UNLIMITED)
    }

    /// A context that may use up at most this, and at most what is left here.
    ///
    /// It shares everything else with this one: calls, arms, cancellation and updates. What is used there counts here too.
    #[must_use]
    pub fn with_budget(&self, budget: Budget) -> Self {
        self.narrowed(None, budget)
    }

    /// The parts of the call.
    pub fn parts(&self) -> &ContextParts {
        &self.0.parts
    }

    /// Id of this request.
    pub fn request_id(&self) -> &RequestId {
        &self.0.parts.request_id
    }

    /// Id of the piece of work over all its requests.
    pub fn correlation_id(&self) -> &RequestId {
        &self.0.parts.correlation_id
    }

    /// The task that this work belongs to, where there is one.
    pub fn task_id(&self) -> Option<&TaskId> {
        self.0.parts.task_id.as_ref()
    }

    /// The trace of the caller.
    pub fn trace(&self) -> Option<&TraceContext> {
        self.0.parts.trace.as_ref()
    }

    /// The caller.
    pub fn caller(&self) -> &Caller {
        &self.0.parts.caller
    }

    /// The number of the caller's attempt, from 1.
    pub fn attempt(&self) -> u32 {
        self.0.parts.attempt
    }

    /// The idempotency key of the call, where it has one. An arm can pass it on to a service that honours keys.
    pub fn idempotency_key(&self) -> Option<&IdempotencyKey> {
        self.0.parts.key.as_ref()
    }

    /// The moment after which the result is no longer awaited.
    pub fn deadline(&self) -> Option<Deadline> {
        self.0.parts.deadline
    }

    /// The time that is left; `None` without a deadline.
    pub fn remaining(&self) -> Option<Duration> {
        self.deadline().map(Deadline::remaining)
    }

    /// The budget that is left.
    pub fn budget(&self) -> Budget {
        let left = |Self(shared): &Self| shared.parts.budget.after(shared.ledger.used());
        self.and_outer().map(left).fold(Budget::UNLIMITED, Budget::within)
    }

    /// The usage so far, of this work and all that it called.
    pub fn used(&self) -> Usage {
        self.0.ledger.used()
    }

    /// When the execution of a call with an idempotency key began, and how long it took. `None` before its end, and for other
    /// calls.
    pub fn executed(&self) -> Option<(Timestamp, Duration)> {
        self.0.executed.map(|(began, took, _)| (began, took))
    }

    /// Whether the answer of this call is that of an earlier one with its idempotency key.
    pub fn is_replayed(&self) -> bool {
        matches!(self.0.executed, Some((.., true)))
    }

    /// Adds to the usage.
    ///
    /// # Errors
    /// [`ErrorKind::BudgetExhausted`] when more was used than there was. It is counted all the same.
    pub fn spend(&self, usage: Usage) -> Result<(), Failure> {
        self.count(usage);
        let over = self.and_outer().any(|Self(shared)| {
            let (limit, used) = (shared.parts.budget, shared.ledger.used());
            limit.tokens.is_some_and(|limit| used.tokens > limit)
                || limit.cost.is_some_and(|limit| used.cost > limit)
        });
        if over { Err(Failure::of(ErrorKind::BudgetExhausted)) } else { Ok(()) }
    }

    /// Resolves when the work that an arm was given has ended: the arm returned, the caller disconnected, the task was
    /// cancelled, or the deadline passed. A context that was made by hand is not cancelled.
    ///
    /// The future of the arm is dropped then. This is for work outside of it, such as a thread or a spawned task.
    ///
    /// # Cancel safety
    /// Cancel safe: it can be dropped and called again.
    pub async fn cancelled(&self) {
        match &self.0.cancellation {
            Some(cancellation) => cancellation.cancelled().await,
            None => std::future::pending().await,
        }
    }

    /// Whether the work is cancelled or has ended. Its calls fail with [`ErrorKind::Cancelled`] from then on.
    pub fn is_cancelled(&self) -> bool {
        self.0.cancellation.as_ref().is_some_and(CancellationToken::is_cancelled)
    }

    /// Reports progress: a percentage of at most 100, and the current activity in at most 4 096 bytes. A longer message is cut.
    pub fn progress(&self, percentage: u8, message: impl Into<String>) {
        self.update(|| {
            let mut message = message.into();
            cut(&mut message, MESSAGE_BYTES);
            Update::Progress(percentage.min(100), message)
        });
    }

    /// Reports that a phase of the task begins.
    pub fn phase(&self, phase: Phase) {
        self.update(|| Update::Phase(phase));
    }

    /// Reports how many steps are done, and how many there are.
    pub fn progress_steps(&self, completed: u64, total: u64) {
        self.update(|| Update::Steps(completed, total));
    }

    /// Streams a part of the output of `C`, and returns when there is room for the next one. A chunk that JSON cannot carry
    /// exactly, such as a NaN or an integer beyond `u64` and `i64`, is left out and logged.
    ///
    /// # Cancel safety
    /// A chunk whose future is dropped may or may not have been sent.
    pub async fn chunk<C: TaskContract>(&self, chunk: &C::Chunk) {
        let Some(updates) = &self.0.updates else { return };
        let chunk = json::write(chunk).map_err(|error| error.to_string());
        match chunk.and_then(|chunk| read_value(&chunk).map_err(|error| error.to_string())) {
            Ok(chunk) => updates.chunk(chunk).await,
            Err(error) => tracing::error!(contract = %C::SPEC, error, "chunk left out"),
        }
    }

    /// The sink of the updates, where somebody reads them.
    pub(crate) fn reader(&self) -> Option<Arc<dyn UpdateSink>> {
        self.0.updates.clone().filter(|updates| updates.is_read())
    }

    fn update(&self, update: impl FnOnce() -> Update) {
        if let Some(updates) = &self.0.updates {
            updates.update(update());
        }
    }

    /// Calls the arm that serves `C`: `cx.call(input).within(limit).retry(2).named("judge").await`.
    ///
    /// Under a brain the call is journaled: by its order among the calls of this context, which is taken now, or by the
    /// name that [`named`](CallFuture::named) gives it. So calls may be made first and awaited in any order.
    ///
    /// Calls that run at once, as under `join!`, each start with all that is left of the budget, and may exceed it together.
    /// Those of [`call_all`](Self::call_all) share it.
    pub fn call<C: TaskContract>(&self, input: C) -> CallFuture<C::Output> {
        let step = StepKey::Order(self.order().take(1));
        CallFuture::new(UnsentCall::typed(self.clone(), step, &input), call::read::<C>)
    }

    /// Calls the arm that serves `C`, and streams the chunks of its output:
    ///
    /// ```
    /// # use octollm_core::{Context, contract::TaskContract, error::CallError};
    /// # async fn tell<C: TaskContract<Chunk = String>>(cx: &Context, input: C) -> Result<C::Output, CallError> {
    /// let mut words = cx.stream(input);
    /// while let Some(word) = words.next().await {
    ///     print!("{word} ");
    /// }
    /// let story = words.output().await?;
    /// # Ok(story)
    /// # }
    /// ```
    ///
    /// It is a [`call`](Self::call) in all else.
    pub fn stream<C: TaskContract>(&self, input: C) -> CallStream<C> {
        CallStream::new(self.call(input))
    }

    /// Calls once for each input: `cx.call_all(inputs).at_once(3).await`. The outputs are in the order of the inputs.
    ///
    /// The first failure ends the batch, as [`BatchFuture`] says; with [`each`](BatchFuture::each) every call has a result of its own.
    pub fn call_all<C: TaskContract>(&self, inputs: impl IntoIterator<Item = C>) -> BatchFuture<C::Output> {
        let unnumbered = StepKey::Order(0);
        let mut requests: Vec<_> = inputs
            .into_iter()
            .map(|input| UnsentCall::typed(self.clone(), unnumbered.clone(), &input))
            .collect();
        let first = self.order().take(requests.len());
        for (order, request) in (first..).zip(&mut requests) {
            request.step = StepKey::Order(order);
        }
        BatchFuture::new(self.clone(), requests, call::read::<C>)
    }

    /// Calls an arm by a contract's name, with JSON in and JSON out: for work that is data.
    ///
    /// An output with an integer beyond `u64` and `i64`, which a [`Value`] would round, is a failure.
    pub fn call_json(&self, contract: &ContractRef, input: &Value) -> CallFuture<Value> {
        let step = StepKey::Order(self.order().take(1));
        CallFuture::new(UnsentCall::json(self.clone(), step, contract, input), read_value)
    }

    /// The cards of the arms that can be reached now.
    ///
    /// # Cancel safety
    /// Cancel safe: dropping the future has no effect on calls.
    pub async fn cards(&self) -> Vec<ArmCard> {
        self.0.transport.cards().await
    }

    /// A context with narrower limits.
    fn narrowed(&self, deadline: Option<Deadline>, budget: Budget) -> Self {
        let Shared { parts, cancellation, transport, updates, .. } = &*self.0;
        let parts = ContextParts {
            deadline: narrower(parts.deadline, deadline),
            // What was used of it so far counts in this one, and so in both.
            budget: parts.budget.within(budget),
            ..parts.clone()
        };
        Self(Arc::new(Shared {
            parts,
            ledger: Ledger::default(),
            steps: Mutex::default(),
            cancellation: cancellation.clone(),
            transport: transport.clone(),
            updates: updates.clone(),
            executed: None,
            outer: Some(self.clone()),
        }))
    }

    /// This context, and those that it narrows.
    fn and_outer(&self) -> impl Iterator<Item = &Self> {
        iter::successors(Some(self), |Self(shared)| shared.outer.as_ref())
    }

    fn count(&self, usage: Usage) {
        self.and_outer().for_each(|Self(shared)| shared.ledger.add(usage));
    }

    /// See [`Transport::resumed`].
    pub(crate) fn resumed(&self, batch: &StepKey) -> HashSet<StepKey> {
        self.0.transport.resumed(batch)
    }

    /// How many calls were made without a name of their own.
    pub(crate) fn ordered_calls(&self) -> u32 {
        self.order().count()
    }

    /// The order of the calls of this context and of all that narrow it.
    fn order(&self) -> MutexGuard<'_, Steps> {
        let Self(outermost) = self.and_outer().last().unwrap_or(self);
        outermost.steps.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// However many contexts narrow each other, dropping the last one takes no deeper a stack.
impl Drop for Shared {
    fn drop(&mut self) {
        let mut outer = self.outer.take();
        while let Some(Context(shared)) = outer {
            outer = Arc::into_inner(shared).and_then(|mut shared| shared.outer.take());
        }
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context")
            .field("parts", &self.0.parts)
            .field("used", &self.used())
            .finish_non_exhaustive()
    }
}
