//! Transports, which carry calls to arms.

use std::{
    collections::HashSet,
    fmt,
    future::{Future, poll_fn},
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
};

use async_trait::async_trait;
use bytes::Bytes;
use serde_json::{Map, Value};
use tower::{Service, ServiceExt};

pub use crate::id::{IdempotencyKey, StepKey};
use crate::{
    budget::Usage,
    card::ArmCard,
    contract::{ContractRef, Spec},
    deadline::Deadline,
    dropped::{Sent, report},
    error::{CallError, ErrorKind, Failure},
    explain::CallRecord,
    parts::ContextParts,
    update::{CountedChunks, UpdateSink},
};

/// One call on its way to an arm.
#[derive(Clone)]
#[non_exhaustive]
pub struct Call {
    /// The contract that is called.
    pub contract: ContractRef,
    /// The caller's own spec of the contract; `None` where it has only a name and JSON. It decides whether the call may be
    /// sent twice: without it, the call may not.
    pub spec: Option<Spec>,
    /// The step: which call of its task this is.
    pub step: StepKey,
    /// The first step of the batch that the call belongs to; `None` for a single call.
    pub batch: Option<StepKey>,
    /// The arm that makes the call, where the transport knows it.
    pub from: Option<Arc<str>>,
    /// The input's JSON.
    pub input: Bytes,
    /// The data that travels with the call. The deadline is always set.
    pub parts: ContextParts,
    /// How many further attempts are allowed where one is safe; `None` for as many as the transport makes by default. Below a
    /// [`RetryLayer`](crate::resilience::RetryLayer), which makes them, it is 0.
    pub retry: Option<u32>,
    /// Whether the caller has set the key, so that the call must run at most once: see [`check_keys`](Self::check_keys). The key of a
    /// journal is sent to every arm.
    pub run_once: bool,
    /// Endpoints that were tried. Another one is preferred.
    pub avoid: Vec<Arc<str>>,
    /// The only endpoint that may get the call: the one that has the record of its key. `None` where any may.
    pub only: Option<Arc<str>>,
    /// The process of the arm that got the first attempt that may have executed. A transport names it in a call with
    /// [`repeated`](ContextParts::repeated), so that no other process takes its records for complete. `None` where it is not known.
    pub instance: Option<Arc<str>>,
    /// Receives the progress and the chunks of the called arm.
    pub updates: Option<Arc<dyn UpdateSink>>,
    pub(crate) delivered: Delivered,
    /// What an earlier attempt reported through [`UpdateSink::handle`]: the transport may go on from it.
    pub handle: Option<String>,
    /// What happens on the way is written to it. `None` where nobody asks: then nothing is recorded.
    pub explain: Option<Arc<CallRecord>>,
    /// Checks that the caller can decode an output. A call whose output it cannot decode has failed, also for a journal.
    pub reads: fn(&[u8]) -> Result<(), serde_json::Error>,
}

impl Call {
    /// A call without a spec, for one attempt, whose output may be any JSON.
    pub fn new(contract: ContractRef, step: StepKey, input: Bytes, parts: ContextParts) -> Self {
        Self {
            contract,
            spec: None,
            step,
            batch: None,
            from: None,
            input,
            parts,
            retry: None,
            run_once: false,
            avoid: Vec::new(),
            only: None,
            instance: None,
            updates: None,
            delivered: Delivered::default(),
            handle: None,
            explain: None,
            reads: |output| serde_json::from_slice::<serde::de::IgnoredAny>(output).map(drop),
        }
    }

    /// Whether the caller's own spec declares the contract idempotent.
    pub fn is_idempotent(&self) -> bool {
        self.spec.as_ref().is_some_and(Spec::is_idempotent)
    }

    /// Sets the sink of the caller, and counts the chunks that it receives.
    pub(crate) fn deliver_to(&mut self, sink: Arc<dyn UpdateSink>) {
        let counted = CountedChunks::new(sink);
        self.updates = Some(counted.clone());
        self.delivered = Delivered(Some(counted));
    }

    /// The failure of an attempt at this call, as its caller gets it. Once the caller has received a chunk, in this attempt or in an
    /// earlier one, the failure is not retryable, the work may have been done, and `details.chunks` is the number of chunks. Else it is
    /// unchanged.
    ///
    /// [`Context`](crate::context::Context) and [`RetryLayer`](crate::resilience::RetryLayer) apply it to what they get from any
    /// transport, so that a transport needs it only below retries of its own.
    #[must_use]
    pub fn failed(&self, mut failure: Failure) -> Failure {
        failure.after_chunks(self.delivered.chunks());
        failure
    }

    /// Checks that arms can run the call as the caller asks: one that [must run once](Self::run_once) is not sent to an arm that
    /// does not honour its key. `are_honoured` is whether every arm that may get the call honours keys, or serves the contract as
    /// idempotent.
    ///
    /// # Errors
    /// [`ErrorKind::NotImplemented`], or [`ErrorKind::OutcomeUnknown`] for a call that may have run before.
    pub fn check_keys(&self, are_honoured: bool) -> Result<(), Failure> {
        if are_honoured || !self.run_once || self.is_idempotent() {
            Ok(())
        } else if self.parts.repeated {
            Err(Failure::of(ErrorKind::OutcomeUnknown))
        } else {
            let words = "the arm does not honour idempotency keys: it could run the call twice";
            Err(Failure::new(ErrorKind::NotImplemented, words).before_execution())
        }
    }
}

impl fmt::Debug for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Call")
            .field("contract", &self.contract)
            .field("step", &self.step)
            .field("parts", &self.parts)
            .field("retry", &self.retry)
            .field("avoid", &self.avoid)
            .finish_non_exhaustive()
    }
}

/// The chunks of a call that its caller has received, over all attempts.
#[derive(Clone, Default)]
pub(crate) struct Delivered(Option<Arc<CountedChunks>>);

impl Delivered {
    fn chunks(&self) -> u64 {
        self.0.as_ref().map_or(0, |counted| counted.count())
    }

    /// The error of the call: see [`Call::failed`].
    pub(crate) fn failed(&self, error: CallError) -> CallError {
        match self.chunks() {
            0 => error,
            chunks => error.map_failure(|failure| failure.after_chunks(chunks)),
        }
    }
}

/// The answer to a call.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Reply {
    /// The output's JSON.
    pub output: Bytes,
    /// What the arm used, with all that it called.
    pub usage: Usage,
    /// The arm that answered.
    pub arm: Arc<str>,
    /// Its endpoint; `in-process/judge` in a mesh.
    pub endpoint: Arc<str>,
    /// The number of attempts, from 1.
    pub attempts: u32,
}

impl Reply {
    /// The output of an arm at the first attempt, without usage.
    pub fn new(output: Bytes, arm: impl Into<Arc<str>>, endpoint: impl Into<Arc<str>>) -> Self {
        Self { output, usage: Usage::default(), arm: arm.into(), endpoint: endpoint.into(), attempts: 1 }
    }

    /// The failure of a caller that cannot decode the output.
    pub(crate) fn unreadable(self, contract: ContractRef, error: serde_json::Error) -> CallError {
        let failure = Failure::new(ErrorKind::BadResponse, format!("the output has another shape: {error}"));
        CallError::new(contract, failure)
            .with_arm(&*self.arm)
            .with_endpoint(&*self.endpoint)
            .with_attempts(self.attempts)
            .with_usage(self.usage)
            .with_source(error)
    }

    /// Sets the usage.
    #[must_use]
    pub fn with_usage(mut self, usage: Usage) -> Self {
        self.usage = usage;
        self
    }
}

/// Carries calls to arms. The HTTP client and the mesh are transports; the journal of a brain wraps one.
///
/// # Cancel safety
/// Dropping the future of a call cancels the call, and with it the work of the arm. The call counts as unmetered, unless a
/// [`Dispatcher`](crate::dispatcher::Dispatcher) runs it within its future: what the arm has used until then counts instead.
#[async_trait]
pub trait Transport: Send + Sync + 'static {
    /// Carries a call and returns its answer. The transport also ends the call at its deadline, as [`Deadline::run`] does, so
    /// that it can record that the deadline passed.
    ///
    /// # Errors
    /// A [`CallError`] with the failure, and the arm and endpoint once they are chosen.
    ///
    /// # Cancel safety
    /// Dropping the future must cancel the call.
    async fn call(&self, call: Call) -> Result<Reply, CallError>;

    /// Answers a call that is not made, because the limits of its caller are spent. A transport that records answers records
    /// this one too, or returns the one that it has recorded.
    ///
    /// # Errors
    /// The `refusal`, unless another answer is recorded.
    ///
    /// # Cancel safety
    /// A refusal whose future is dropped may or may not have been recorded.
    async fn refuse(&self, call: Call, refusal: Failure) -> Result<Reply, CallError> {
        Err(CallError::new(call.contract, refusal))
    }

    /// The recorded steps of a batch, where the outcome of one of them is not known: empty otherwise. A batch that ends at its
    /// first failure makes these calls before others, so that none is sent if it ends with an unknown outcome.
    fn resumed(&self, batch: &StepKey) -> HashSet<StepKey> {
        let _ = batch;
        HashSet::new()
    }

    /// The cards of the arms that can be reached now.
    ///
    /// # Cancel safety
    /// Dropping the future must have no effect on calls.
    async fn cards(&self) -> Vec<ArmCard>;

    /// Adds to the error of an undecodable output what the transport knows, such as that the schemas differ.
    fn explain(&self, error: CallError) -> CallError {
        error
    }

    /// The ids of the arms that the configuration of the transport names: nothing that registers or is found by itself takes their
    /// place. None by default.
    fn configured_arms(&self) -> Vec<String> {
        Vec::new()
    }

    /// The public key, as a JWK, of what the transport signs on behalf of the arm that calls through it. It belongs on the card
    /// of that arm.
    fn public_key(&self) -> Option<Map<String, Value>> {
        None
    }
}

#[async_trait]
impl<T: Transport + ?Sized> Transport for Arc<T> {
    async fn call(&self, call: Call) -> Result<Reply, CallError> {
        (**self).call(call).await
    }

    async fn refuse(&self, call: Call, refusal: Failure) -> Result<Reply, CallError> {
        (**self).refuse(call, refusal).await
    }

    fn resumed(&self, batch: &StepKey) -> HashSet<StepKey> {
        (**self).resumed(batch)
    }

    async fn cards(&self) -> Vec<ArmCard> {
        (**self).cards().await
    }

    fn explain(&self, error: CallError) -> CallError {
        (**self).explain(error)
    }

    fn configured_arms(&self) -> Vec<String> {
        (**self).configured_arms()
    }

    fn public_key(&self) -> Option<Map<String, Value>> {
        (**self).public_key()
    }
}

/// No arms: every call fails with [`ErrorKind::ContractNotOffered`].
#[async_trait]
impl Transport for () {
    async fn call(&self, call: Call) -> Result<Reply, CallError> {
        let failure = Failure::new(ErrorKind::ContractNotOffered, "there are no arms to call");
        Err(CallError::new(call.contract, failure))
    }

    async fn cards(&self) -> Vec<ArmCard> {
        Vec::new()
    }
}

/// A transport is a tower service of calls, for layers to be put around it: see [`from_service`].
impl<T: Transport + ?Sized> Service<Call> for Arc<T> {
    type Response = Reply;
    type Error = CallError;
    type Future = Pin<Box<dyn Future<Output = Result<Reply, CallError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), CallError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, call: Call) -> Self::Future {
        let transport = self.clone();
        Box::pin(async move { (*transport).call(call).await })
    }
}

/// A transport that carries calls by a tower service. The cards are those of `arms`, which also explains errors.
///
/// Each call ends at its deadline, whatever the service does.
///
/// ```
/// # use std::sync::Arc;
/// # use octollm_core::{Context, resilience::RetryLayer, transport::{Transport, from_service}};
/// # use tower::Layer;
/// # let arms: Arc<dyn Transport> = Arc::new(());
/// let retrying = from_service(RetryLayer::new().layer(arms.clone()), arms);
/// let cx = Context::root(Arc::new(retrying));
/// ```
pub fn from_service<S>(service: S, arms: Arc<dyn Transport>) -> impl Transport + Clone
where
    S: Service<Call, Response = Reply, Error = CallError> + Clone + Send + Sync + 'static,
    S::Future: Send,
{
    FromService { service, arms }
}

/// See [`from_service`].
#[derive(Clone)]
struct FromService<S> {
    service: S,
    arms: Arc<dyn Transport>,
}

/// Awaits a call until its deadline, and drops it then. If it is dropped before it has ended, `dropped` receives its usage.
#[doc(hidden)]
pub async fn sent_until(
    deadline: Option<Deadline>,
    contract: &ContractRef,
    work: impl Future<Output = Result<Reply, CallError>>,
    dropped: impl FnMut(Usage),
) -> Result<Reply, CallError> {
    let work = pin!(Some(work));
    let mut sent = Sent::new(work, dropped);
    let answer = Deadline::run_until(deadline, poll_fn(|task| sent.poll(task))).await;
    answer.unwrap_or_else(|| {
        let failure = Failure::of(ErrorKind::DeadlineExceeded);
        Err(CallError::new(contract.clone(), failure).with_usage(sent.abandon()))
    })
}

#[async_trait]
impl<S> Transport for FromService<S>
where
    S: Service<Call, Response = Reply, Error = CallError> + Clone + Send + Sync + 'static,
    S::Future: Send,
{
    async fn call(&self, call: Call) -> Result<Reply, CallError> {
        let (contract, deadline) = (call.contract.clone(), call.parts.deadline);
        sent_until(deadline, &contract, self.service.clone().oneshot(call), report).await
    }

    async fn cards(&self) -> Vec<ArmCard> {
        self.arms.cards().await
    }

    fn configured_arms(&self) -> Vec<String> {
        self.arms.configured_arms()
    }

    fn explain(&self, error: CallError) -> CallError {
        self.arms.explain(error)
    }
}
