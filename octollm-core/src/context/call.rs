//! A single call.

use std::{
    collections::BTreeSet,
    fmt,
    future::{Future, poll_fn},
    mem,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context as Poll_, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use serde_json::Value;
use tokio::time::Instant;

use super::Context;
use crate::{
    budget::{Budget, narrower},
    contract::{ContractRef, ContractSpec, Spec, TaskContract},
    deadline::Deadline,
    dropped::Sent,
    error::{CallError, ErrorKind, Failure},
    explain::{CallEvent, CallRecord},
    id::IdempotencyKey,
    json::{self, read_value},
    parts::spent,
    spans::{self, Scope},
    transport::{Call, Reply, StepKey, Transport},
    update::UpdateSink,
};

/// One call to an arm, which is sent when it is first polled: see [`Context::call`].
///
/// Its limits can be narrowed until then. It is a future, so that `join_all`, `buffered` and `tokio::spawn` take it.
/// A limit that is set after the first poll has no effect.
///
/// # Errors
/// A [`CallError`], which names the call's [step](CallError::step): see its `kind`, `retryable` and `may_have_executed`. A
/// call that is refused before it is sent, because its deadline or its budget is spent or the work is cancelled, has not
/// executed. Under a brain a refusal is journaled as any failure is, unless the work is cancelled.
///
/// # Cancel safety
/// Dropping the future cancels the call, and the calls that the arm makes for it. What an arm in this process has used until
/// then counts. For one in another process the usage is unknown, and the call counts as
/// [unmetered](crate::budget::Usage::unmetered).
#[must_use = "a call is sent when it is awaited"]
pub struct CallFuture<T> {
    /// Until the first poll.
    request: Option<UnsentCall>,
    running: Option<Work<Result<T, CallError>>>,
    read: Read<T>,
}

pub(super) type Read<T> = fn(&[u8]) -> Result<T, serde_json::Error>;

/// From the first poll on.
pub(super) type Work<O> = Pin<Box<dyn Future<Output = O> + Send>>;

/// Polls what runs, and drops it once it has ended: a future that is polled again after that stays pending.
pub(super) fn poll_work<O>(running: &mut Option<Work<O>>, cx: &mut Poll_<'_>) -> Poll<O> {
    let Some(work) = running else { return Poll::Pending };
    let output = ready!(work.as_mut().poll(cx));
    *running = None;
    Poll::Ready(output)
}

impl<T> CallFuture<T> {
    pub(super) fn new(request: UnsentCall, read: Read<T>) -> Self {
        Self { request: Some(request), running: None, read }
    }

    /// Limits the time, counted from the first poll. All attempts and the waiting between them count.
    ///
    /// Under a brain the expiry is journaled, unlike that of a `tokio::time::timeout` around the call.
    pub fn within(self, time: Duration) -> Self {
        self.with(|request| request.within = narrower(request.within, Some(time)))
    }

    /// Limits the budget of the call: at most this, and at most what the context has left.
    pub fn budget(self, budget: Budget) -> Self {
        self.with(|request| request.budget = request.budget.within(budget))
    }

    /// Allows up to `retries` further attempts, each only where the failure is retryable and trying again is safe: the call
    /// was never begun, or its contract is idempotent. All attempts together are one step of a journal.
    ///
    /// [`resilience`](crate::resilience) has the rules.
    pub fn retry(self, retries: u32) -> Self {
        self.with(|request| request.retry = Some(retries))
    }

    /// Names the call in the journal, in place of its order.
    ///
    /// Calls whose order can differ from run to run need a name. It is good for one call of a task.
    pub fn named(self, name: impl Into<String>) -> Self {
        self.with(|request| {
            if let StepKey::Order(order) = request.step {
                request.cx.order().give_back(order, 1);
            }
            request.step = StepKey::Name(name.into());
        })
    }

    /// Sets the idempotency key, by which the arm runs the call once: all calls of one caller to one contract with this key, from any
    /// process, have one run and one answer, as long as the arm [retains](crate::idempotency) that. Within the work of a task the
    /// key belongs to the task. Take it from your own data, such as the number of an order. A contract that is idempotent
    /// ignores it.
    ///
    /// With a key the attempts after a lost answer are safe, and are made. The same key with another input is
    /// [`ErrorKind::ValidationFailed`]. What cannot be found out is [`ErrorKind::OutcomeUnknown`], and does not run.
    ///
    /// The call fails, and is not sent, with [`ErrorKind::BadRequest`] if the key is not 1 to 255 printable ASCII characters, and with
    /// [`ErrorKind::NotImplemented`] if the card of an arm that serves the contract states that keys are not honoured. In the program
    /// of a brain it fails with [`ErrorKind::BadRequest`]: a brain gives each call a key of its own, which is the same after a crash.
    pub fn key(self, key: impl Into<String>) -> Self {
        self.with(|request| request.set_key(key.into()))
    }

    /// Declares that an earlier program may have sent the call with its [`key`](Self::key): the arm returns the answer of that
    /// call, or [`ErrorKind::OutcomeUnknown`] if it has no record, and does not run it again. Where the records are
    /// [shared](crate::contract::Keys::Shared), the arm runs a call without a record.
    ///
    /// A program calls this after a restart, where it does not know whether the call was sent before the restart. Without it, an arm that was
    /// restarted meanwhile runs the call a second time. The call fails with [`ErrorKind::BadRequest`] if it has no key.
    pub fn repeated(self) -> Self {
        self.with(|request| request.repeated = true)
    }

    /// Sends the progress and the chunks of the called arm to `sink`, if the transport carries them. Until the first chunk the call is
    /// tried again as any call is. A failure after it is not retryable, and its `details.chunks` is the number of chunks.
    pub fn updates(self, sink: Arc<dyn UpdateSink>) -> Self {
        self.with(|request| request.updates = Some(sink))
    }

    /// Records what happens to the call on its way: where it was sent, what failed, for what it waited. The steps return beside
    /// the answer.
    ///
    /// ```
    /// # use octollm_core::{Context, contract::ContractRef, explain::CallEvent};
    /// # use serde_json::json;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// # let (cx, contract) = (Context::detached(), "code.validate".parse::<ContractRef>().unwrap());
    /// let (answer, steps) = cx.call_json(&contract, &json!({})).retry(2).explained().await;
    /// for (at, what) in steps {
    ///     eprintln!("{at:?}: {what:?}");
    /// }
    /// # }
    /// ```
    ///
    /// # Cancel safety
    /// As that of the call.
    pub async fn explained(self) -> (Result<T, CallError>, Vec<(Duration, CallEvent)>)
    where
        T: 'static,
    {
        let record = CallRecord::new();
        let answer = self.with(|request| request.explain = Some(record.clone())).await;
        if let Err(error) = &answer {
            record.ended(error);
        }
        (answer, record.steps())
    }

    fn with(mut self, change: impl FnOnce(&mut UnsentCall)) -> Self {
        if let Some(request) = &mut self.request {
            change(request);
        }
        self
    }
}

impl CallFuture<Value> {
    /// Sets the spec of a contract that is known at run time only: its time limit, and whether it is idempotent. Without a
    /// spec it is not. The call fails with [`ErrorKind::BadRequest`] if the spec is of another contract.
    pub fn spec(self, spec: Spec) -> Self {
        self.with(|request| {
            if spec.reference() != request.contract {
                request.refuse("the spec is of another contract");
            }
            request.spec = Some(spec);
        })
    }
}

impl<T: 'static> Future for CallFuture<T> {
    type Output = Result<T, CallError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Poll_<'_>) -> Poll<Self::Output> {
        let read = self.read;
        if let Some(request) = self.request.take() {
            self.running = Some(Box::pin(request.answer(read)));
        }
        poll_work(&mut self.running, cx)
    }
}

impl<T> fmt::Debug for CallFuture<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("CallFuture");
        if let Some(request) = &self.request {
            debug.field("contract", &request.contract).field("step", &request.step);
        }
        debug.finish_non_exhaustive()
    }
}

/// A call that was not sent yet.
pub(crate) struct UnsentCall {
    pub(super) cx: Context,
    contract: ContractRef,
    spec: Option<Spec>,
    pub(super) step: StepKey,
    pub(super) batch: Option<StepKey>,
    /// Or why it cannot be sent.
    input: Result<Bytes, CallError>,
    within: Option<Duration>,
    pub(super) budget: Budget,
    pub(super) retry: Option<u32>,
    key: Option<IdempotencyKey>,
    repeated: bool,
    pub(super) updates: Option<Arc<dyn UpdateSink>>,
    explain: Option<Arc<CallRecord>>,
    reads: Read<()>,
}

impl UnsentCall {
    pub(super) fn typed<C: TaskContract>(cx: Context, step: StepKey, input: &C) -> Self {
        let contract = C::SPEC.reference();
        let input = match json::try_write_input(input) {
            Ok(written) => Ok(written.into()),
            Err(error) => {
                let (failure, cause) = *error;
                Err(CallError::new(contract.clone(), failure).with_source(cause))
            }
        };
        let reads: Read<()> = |output| read::<C>(output).map(drop);
        Self { spec: Some(Spec::of::<C>()), reads, ..Self::new(cx, step, contract, input) }
    }

    /// A call by name, without a spec.
    pub(crate) fn json(cx: Context, step: StepKey, contract: &ContractRef, input: &Value) -> Self {
        let input = Ok(Bytes::from(input.to_string()));
        let reads: Read<()> = |output| read_value(output).map(drop);
        Self { reads, ..Self::new(cx, step, contract.clone(), input) }
    }

    fn new(cx: Context, step: StepKey, contract: ContractRef, input: Result<Bytes, CallError>) -> Self {
        Self {
            cx,
            contract,
            spec: None,
            step,
            batch: None,
            input,
            within: None,
            budget: Budget::UNLIMITED,
            retry: None,
            key: None,
            repeated: false,
            updates: None,
            explain: None,
            reads: |_| Ok(()),
        }
    }

    /// Sets the key, or refuses the call if that is malformed.
    pub(super) fn set_key(&mut self, key: String) {
        self.key = IdempotencyKey::new(key);
        if self.key.is_none() {
            self.refuse("the idempotency key is not 1 to 255 printable ASCII characters");
        }
    }

    /// Lets the call fail with these words in place of being sent.
    pub(super) fn refuse(&mut self, words: &str) {
        let failure = Failure::new(ErrorKind::BadRequest, words).before_execution();
        self.input = Err(CallError::new(self.contract.clone(), failure));
    }

    /// Sets the caller's spec of the contract.
    pub(crate) fn with_spec(self, spec: Option<Spec>) -> Self {
        Self { spec, ..self }
    }

    /// Sets the batch that it belongs to, and its share of the batch's budget.
    pub(crate) fn of_batch(mut self, first: StepKey, share: Budget) -> Self {
        self.budget = self.budget.within(share);
        Self { batch: Some(first), ..self }
    }

    /// Whether the caller's spec declares the contract idempotent.
    pub(crate) fn is_idempotent(&self) -> bool {
        self.spec.as_ref().is_some_and(Spec::is_idempotent)
    }

    /// Sends the call and reads its output.
    pub(crate) async fn answer<T>(mut self, read: Read<T>) -> Result<T, CallError> {
        let answer = match self.send().await {
            Ok(reply) => read(&reply.output).map_err(|error| self.unreadable(reply, error)),
            Err(error) => Err(error),
        };
        answer.map_err(|error| error.with_step(self.step))
    }

    async fn send(&mut self) -> Result<Reply, CallError> {
        let budget = self.cx.budget().within(self.budget);
        if self.cx.is_cancelled() {
            let failure = Failure::of(ErrorKind::Cancelled).before_execution();
            return Err(CallError::new(self.contract.clone(), failure));
        }
        let now = Instant::now();
        let call = self.call(budget, now)?;
        let Context(shared) = &self.cx;
        let refusal = spent(call.parts.deadline, budget, now);
        let (is_sent, delivered) = (refusal.is_none(), call.delivered.clone());
        let (span, work) = begin(&*shared.transport, call, refusal);
        let work = pin!(Some(work));
        let mut sent = Sent::new(work, |usage| {
            if is_sent {
                self.cx.count(usage);
            }
        });
        let mut cancelled = pin!(self.cx.cancelled());
        let answer = poll_fn(|task| {
            span.run(|| match sent.poll(task) {
                Poll::Ready(answer) => {
                    self.cx.count(answer.as_ref().map_or_else(CallError::usage, |reply| reply.usage));
                    Poll::Ready(answer)
                }
                Poll::Pending => cancelled.as_mut().poll(task).map(|()| {
                    let error = CallError::new(self.contract.clone(), Failure::of(ErrorKind::Cancelled));
                    let usage = sent.abandon();
                    Err(if is_sent { error.with_usage(usage) } else { error })
                }),
            })
        });
        answer.await.map_err(|error| delivered.failed(error)).inspect_err(|error| span.failed(error.kind()))
    }

    /// The call as the transport gets it.
    fn call(&mut self, budget: Budget, now: Instant) -> Result<Call, CallError> {
        if self.repeated && self.key.is_none() {
            self.refuse("a repeated call has no idempotency key");
        }
        let input = mem::replace(&mut self.input, Ok(Bytes::new()))?;
        let parts = self.cx.parts().next_request(self.deadline(now), budget);
        let mut call = Call::new(self.contract.clone(), self.step.clone(), input, parts);
        call.spec = self.spec.take();
        call.batch = self.batch.take();
        call.retry = self.retry;
        call.run_once = self.key.is_some();
        (call.parts.key, call.parts.repeated) = (self.key.take(), self.repeated);
        if let Some(updates) = self.updates.take() {
            call.deliver_to(updates);
        }
        call.explain = self.explain.take();
        call.reads = self.reads;
        Ok(call)
    }

    /// The deadline of a call that begins now. Without a spec, the time limit of the contract is left to the arm.
    fn deadline(&self, now: Instant) -> Deadline {
        let limits = [self.spec.as_ref().map(Spec::timeout), self.within].into_iter().flatten();
        let limit = limits.min().map(|limit| Deadline::since(now, limit));
        narrower(self.cx.deadline(), limit)
            .unwrap_or_else(|| Deadline::since(now, ContractSpec::DEFAULT_TIMEOUT))
    }

    fn unreadable(&self, reply: Reply, error: serde_json::Error) -> CallError {
        self.cx.0.transport.explain(reply.unreadable(self.contract.clone(), error))
    }
}

/// The future of a transport.
type Sending<'a> = Pin<Box<dyn Future<Output = Result<Reply, CallError>> + Send + 'a>>;

/// Begins a call, or refuses it, within its span. A function of its own, so that the call is no part of the future around it.
fn begin(transport: &dyn Transport, mut call: Call, refusal: Option<Failure>) -> (Scope, Sending<'_>) {
    let span = spans::of_call(&call);
    if let Some(trace) = span.trace() {
        call.parts.trace = Some(trace);
    }
    let work = span.run(|| match refusal {
        Some(refusal) => transport.refuse(call, refusal),
        None => transport.call(call),
    });
    (span, work)
}

pub(super) fn read<C: TaskContract>(output: &[u8]) -> Result<C::Output, serde_json::Error> {
    json::read_output(output)
}

/// Numbers the calls of one piece of work in the order in which they are built.
///
/// A call that is given a name after it was built gives its number back. It is free again once no later number is in use,
/// so that calls that are built and named at once on several threads leave the same numbers in every run.
#[derive(Debug, Default)]
pub(super) struct Steps {
    next: u32,
    /// Given back while a later number was in use.
    returned: BTreeSet<u32>,
}

impl Steps {
    /// How many numbers are taken.
    pub(super) fn count(&self) -> u32 {
        self.next
    }

    /// Takes the numbers of so many calls that follow each other, and returns the first.
    pub(super) fn take(&mut self, calls: usize) -> u32 {
        let first = self.next;
        self.next = after(first, calls);
        first
    }

    /// Gives the numbers of so many calls back.
    pub(super) fn give_back(&mut self, first: u32, calls: usize) {
        self.returned.extend(first..after(first, calls));
        while let Some(last) = self.next.checked_sub(1).filter(|last| self.returned.remove(last)) {
            self.next = last;
        }
    }
}

fn after(first: u32, calls: usize) -> u32 {
    first.saturating_add(u32::try_from(calls).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn names_leave_the_same_numbers_whatever_the_order_in_which_they_are_given(
            counts in prop::collection::vec(1_usize..4, 1..8),
            seed in any::<prop::sample::Index>(),
        ) {
            let mut steps = Steps::default();
            prop_assert_eq!(steps.take(2), 0);
            let mut named: Vec<_> = counts.iter().map(|&count| (steps.take(count), count)).collect();
            while !named.is_empty() {
                let (first, count) = named.swap_remove(seed.index(named.len()));
                steps.give_back(first, count);
            }
            prop_assert_eq!((steps.take(1), steps.returned.len()), (2, 0));
        }
    }

    #[test]
    fn a_number_before_one_in_use_stays_a_hole() {
        let mut steps = Steps::default();
        let (named, unnamed) = (steps.take(1), steps.take(1));
        steps.give_back(named, 1);
        assert_eq!((unnamed, steps.take(1), steps.count()), (1, 2, 3));
    }
}
