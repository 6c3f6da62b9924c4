//! The context: what travels with every task, and the way to call on.

mod step;

use std::{
    fmt,
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::{FutureExt, StreamExt, stream};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

pub use self::step::Step;
pub use crate::parts::{Caller, ContextParts, Grant};
use crate::{
    budget::{Budget, BudgetExhausted, Ledger, Usage},
    card::ArmCard,
    contract::{ContractRef, ContractSpec, Spec, TaskContract},
    deadline::Deadline,
    error::{CallError, ErrorKind, Failure},
    id::{RequestId, TaskId},
    parts::spent,
    trace::TraceContext,
    transport::{Call, NoArms, Reply, StepKey, Transport},
    update::{Phase, Update, UpdateSink},
};

/// What travels with a task: ids, trace, deadline, budget, caller and cancellation; and the way to report progress
/// and to call other arms.
///
/// Each limit can only shrink on the way: a call gets no more time and no more budget than is left here. A clone
/// shares everything with its original.
#[derive(Clone)]
pub struct Context(Arc<Shared>);

struct Shared {
    parts: ContextParts,
    ledger: Ledger,
    steps: AtomicU32,
    cancellation: CancellationToken,
    transport: Arc<dyn Transport>,
    updates: Option<Arc<dyn UpdateSink>>,
}

/// How many calls of one [`Context::call_all`] run at a time.
pub const CALLS_AT_ONCE: usize = 16;

impl Context {
    /// The beginning of a piece of work that calls arms through `transport`.
    pub fn root(transport: Arc<dyn Transport>) -> Self {
        Self::from_parts(ContextParts::new(), transport)
    }

    /// A context of its own, with no arms to call: for testing an arm by itself.
    pub fn detached() -> Self {
        Self::root(Arc::new(NoArms))
    }

    /// A context from what travelled.
    pub fn from_parts(parts: ContextParts, transport: Arc<dyn Transport>) -> Self {
        Self::assemble(parts, transport, CancellationToken::new(), None)
    }

    pub(crate) fn assemble(
        parts: ContextParts,
        transport: Arc<dyn Transport>,
        cancellation: CancellationToken,
        updates: Option<Arc<dyn UpdateSink>>,
    ) -> Self {
        let (ledger, steps) = (Ledger::default(), AtomicU32::new(0));
        Self(Arc::new(Shared { parts, ledger, steps, cancellation, transport, updates }))
    }

    /// All that travelled here.
    pub fn parts(&self) -> &ContextParts {
        &self.0.parts
    }

    /// Names this request alone.
    pub fn request_id(&self) -> &RequestId {
        &self.0.parts.request_id
    }

    /// Names the piece of work over all its requests.
    pub fn correlation_id(&self) -> &RequestId {
        &self.0.parts.correlation_id
    }

    /// The task that this work belongs to, where there is one.
    pub fn task_id(&self) -> Option<&TaskId> {
        self.0.parts.task_id.as_ref()
    }

    /// The caller's trace.
    pub fn trace(&self) -> Option<&TraceContext> {
        self.0.parts.trace.as_ref()
    }

    /// Who calls.
    pub fn caller(&self) -> &Caller {
        &self.0.parts.caller
    }

    /// 1 for the caller's first try.
    pub fn attempt(&self) -> u32 {
        self.0.parts.attempt
    }

    /// After this moment nobody waits any more.
    pub fn deadline(&self) -> Option<Deadline> {
        self.0.parts.deadline
    }

    /// How much time is left; `None` without a deadline.
    pub fn remaining(&self) -> Option<Duration> {
        self.deadline().map(Deadline::remaining)
    }

    /// What may still be used up.
    pub fn budget(&self) -> Budget {
        self.0.parts.budget.after(self.0.ledger.used())
    }

    /// What was used up so far, by this work and all that it called.
    pub fn used(&self) -> Usage {
        self.0.ledger.used()
    }

    /// Counts what was used up.
    ///
    /// # Errors
    /// [`BudgetExhausted`] when more was used than there was. It is counted all the same.
    pub fn spend(&self, usage: Usage) -> Result<(), BudgetExhausted> {
        self.0.ledger.add(usage);
        let (limit, used) = (self.0.parts.budget, self.0.ledger.used());
        let over = limit.tokens.is_some_and(|limit| used.tokens > limit)
            || limit.cost.is_some_and(|limit| used.cost > limit);
        if over { Err(BudgetExhausted) } else { Ok(()) }
    }

    /// Resolves when the work that an arm was given is cancelled: the caller went away, the task was cancelled, or the
    /// deadline passed. A context that was made by hand is not cancelled.
    ///
    /// An arm's own future is dropped then, without having to ask. This is for work that it handed elsewhere, such
    /// as a thread or a spawned task.
    ///
    /// # Cancel safety
    /// Safe to drop and to ask again.
    pub async fn cancelled(&self) {
        self.0.cancellation.cancelled().await;
    }

    /// Whether the work is cancelled.
    pub fn is_cancelled(&self) -> bool {
        self.0.cancellation.is_cancelled()
    }

    /// Tells how far the work is: percent (100 at most), and what it is doing.
    pub fn progress(&self, percentage: u8, message: impl Into<String>) {
        self.update(|| Update::Progress(percentage.min(100), message.into()));
    }

    /// Tells which phase of a task begins.
    pub fn phase(&self, phase: Phase) {
        self.update(|| Update::Phase(phase));
    }

    /// Tells how many steps are done, and how many there are.
    pub fn steps(&self, completed: u64, total: u64) {
        self.update(|| Update::Steps(completed, total));
    }

    /// Streams a part of the output of `C`. A chunk that cannot be written as JSON is left out and logged.
    pub fn chunk<C: TaskContract>(&self, chunk: &C::Chunk) {
        if self.0.updates.is_some() {
            match serde_json::to_value(chunk) {
                Ok(value) => self.update(|| Update::Chunk(value)),
                Err(error) => tracing::error!(contract = %C::SPEC, %error, "chunk left out"),
            }
        }
    }

    fn update(&self, update: impl FnOnce() -> Update) {
        if let Some(updates) = &self.0.updates {
            updates.update(update());
        }
    }

    /// Calls the arm that serves `C`.
    ///
    /// Under a brain the call is journaled: by its order among the calls of this context, or by the name that
    /// [`step`](Self::step) gives it.
    ///
    /// # Errors
    /// A [`CallError`]: see its `kind`, `retryable` and `may_have_executed`.
    ///
    /// # Cancel safety
    /// Dropping the future gives the call up, and what the arm was calling for it.
    pub fn call<C: TaskContract>(
        &self,
        task: C,
    ) -> impl Future<Output = Result<C::Output, CallError>> + Send + use<C> {
        self.typed_call(self.next_step(), task)
    }

    /// Calls once for each task, [`CALLS_AT_ONCE`] at a time; the outputs are in the order of the tasks.
    ///
    /// # Errors
    /// The failure that comes first in time; the calls still running are given up then.
    ///
    /// # Cancel safety
    /// Dropping the future gives all calls up.
    pub async fn call_all<C: TaskContract>(
        &self,
        tasks: impl IntoIterator<Item = C>,
    ) -> Result<Vec<C::Output>, CallError> {
        let calls: Vec<_> = tasks.into_iter().map(|task| self.call(task)).collect();
        in_order(calls).await
    }

    /// Like [`call_all`](Self::call_all), but goes on when calls fail: each has its own result.
    pub async fn call_each<C: TaskContract>(
        &self,
        tasks: impl IntoIterator<Item = C>,
    ) -> Vec<Result<C::Output, CallError>> {
        let calls: Vec<_> = tasks.into_iter().map(|task| self.call(task)).collect();
        stream::iter(calls).buffered(CALLS_AT_ONCE).collect().await
    }

    /// Calls an arm by a contract's name, with JSON in and JSON out: for plans and other work that is data.
    ///
    /// # Errors
    /// As [`call`](Self::call).
    ///
    /// # Cancel safety
    /// As [`call`](Self::call).
    pub fn call_json(
        &self,
        contract: &ContractRef,
        input: &Value,
    ) -> impl Future<Output = Result<Value, CallError>> + Send + use<> {
        self.json_call(self.next_step(), contract, input)
    }

    /// Gives the next call a name of its own in the journal, in place of its order.
    ///
    /// Calls whose order can differ from run to run need one. A name is good for one call of a task.
    pub fn step(&self, name: impl Into<String>) -> Step {
        Step::new(self.clone(), name.into())
    }

    /// The cards of the arms that can be reached now.
    pub async fn cards(&self) -> Vec<ArmCard> {
        self.0.transport.cards().await
    }

    /// How many calls were made without a name of their own.
    pub(crate) fn ordered_calls(&self) -> u32 {
        self.0.steps.load(Ordering::Relaxed)
    }

    fn next_step(&self) -> StepKey {
        StepKey::Order(self.0.steps.fetch_add(1, Ordering::Relaxed))
    }

    /// The typed shell: the work in between is compiled once.
    fn typed_call<C: TaskContract>(
        &self,
        step: StepKey,
        task: C,
    ) -> impl Future<Output = Result<C::Output, CallError>> + Send + use<C> {
        let cx = self.clone();
        let contract = C::SPEC.reference();
        let mut input = Vec::with_capacity(USUAL_INPUT);
        let written = serde_json::to_writer(&mut input, &task);
        async move {
            written.map_err(|error| unwritable(&contract, error))?;
            let timeout = C::SPEC.timeout;
            let mut call = Call::new(contract.clone(), step, input.into(), cx.parts().clone());
            call.spec = Some(Spec::Static(&C::SPEC));
            call.reads = |output| serde_json::from_slice::<C::Output>(output).map(drop);
            let reply = cx.send(call, timeout).await?;
            serde_json::from_slice(&reply.output).map_err(|error| unreadable(contract, reply, error))
        }
    }

    fn json_call(
        &self,
        step: StepKey,
        contract: &ContractRef,
        input: &Value,
    ) -> impl Future<Output = Result<Value, CallError>> + Send + use<> {
        let (cx, contract, input) = (self.clone(), contract.clone(), Bytes::from(input.to_string()));
        async move {
            // The arm knows its own limit; ours is only for arms that do not keep it.
            let timeout = cx.remaining().unwrap_or(ContractSpec::DEFAULT_TIMEOUT);
            let call = Call::new(contract.clone(), step, input, cx.parts().clone());
            let reply = cx.send(call, timeout).await?;
            serde_json::from_slice(&reply.output).map_err(|error| unreadable(contract, reply, error))
        }
    }

    async fn send(self, mut call: Call, timeout: Duration) -> Result<Reply, CallError> {
        let (budget, contract) = (self.budget(), call.contract.clone());
        if let Some(failure) = self.refusal(budget) {
            return Err(CallError::new(contract, failure));
        }
        let limit = Deadline::after(timeout);
        let deadline = self.deadline().map_or(limit, |deadline| deadline.min(limit));
        call.parts = self.parts().next_request(deadline, budget);
        tokio::select! {
            biased;
            // The transport's own: through that of the `Arc` around it, the future would be boxed twice.
            answer = (*self.0.transport).call(call) => {
                self.0.ledger.add(answer.as_ref().map_or_else(CallError::usage, |reply| reply.usage));
                answer
            }
            () = self.cancelled() => Err(CallError::new(contract, Failure::of(ErrorKind::Cancelled))),
        }
    }

    /// Why nothing may be called any more.
    fn refusal(&self, budget: Budget) -> Option<Failure> {
        if self.is_cancelled() {
            return Some(Failure::of(ErrorKind::Cancelled).before_execution());
        }
        spent(self.deadline(), budget)
    }
}

/// Most inputs fit without their buffer having to grow.
const USUAL_INPUT: usize = 1024;

async fn in_order<F, T>(calls: Vec<F>) -> Result<Vec<T>, CallError>
where
    F: Future<Output = Result<T, CallError>> + Send,
    T: Send,
{
    let mut answers: Vec<Option<T>> = calls.iter().map(|_| None).collect();
    let calls = calls.into_iter().enumerate().map(|(place, call)| call.map(move |answer| (place, answer)));
    let mut running = stream::iter(calls).buffer_unordered(CALLS_AT_ONCE);
    while let Some((place, answer)) = running.next().await {
        answers[place] = Some(answer?);
    }
    Ok(answers.into_iter().flatten().collect())
}

fn unwritable(contract: &ContractRef, error: serde_json::Error) -> CallError {
    let failure = Failure::new(ErrorKind::BadRequest, "the input cannot be written as JSON");
    CallError::new(contract.clone(), failure).with_source(error)
}

fn unreadable(contract: ContractRef, reply: Reply, error: serde_json::Error) -> CallError {
    let failure = Failure::new(ErrorKind::BadResponse, format!("the output has another shape: {error}"));
    CallError::new(contract, failure)
        .with_arm(reply.trip.arm)
        .with_endpoint(reply.trip.endpoint)
        .with_source(error)
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context")
            .field("parts", &self.0.parts)
            .field("used", &self.used())
            .finish_non_exhaustive()
    }
}
