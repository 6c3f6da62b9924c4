//! The transport of a mesh: how a call reaches its arm.

use std::{
    fmt,
    future::{Future, pending, poll_fn},
    pin::{Pin, pin},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak},
    task::Poll,
};

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;
use tower::{Layer, service_fn, util::BoxCloneSyncService};

use super::{
    calls::{Ending, Recorder},
    fault::{ChunkLimit, Fault, Faults},
};
use crate::{
    budget::Usage,
    card::ArmCard,
    context::Context,
    contract::Keys,
    deadline::Deadline,
    dispatcher::{Dispatcher, not_offered},
    dropped::Reports,
    error::{ArmError, CallError, ErrorKind, Failure},
    explain::CallEvent,
    resilience::RetryLayer,
    transport::{Call, Reply, Transport, from_service},
};

/// The endpoint of an arm of a mesh.
pub(super) fn endpoint(arm: &str) -> String {
    format!("in-process/{arm}")
}

/// The calls, within layers of the user.
pub(super) type CallService = BoxCloneSyncService<Call, Reply, CallError>;

/// Adds a layer of the user around the calls.
pub(super) type CallLayer = Box<dyn FnOnce(CallService) -> CallService + Send>;

/// The transport of one caller. A clone is of the same mesh.
#[derive(Clone)]
pub(super) struct MeshTransport {
    shared: Arc<Shared>,
    /// The layers of the user, the retry, and the choice of an arm.
    stack: Arc<dyn Transport>,
    from: Option<Arc<str>>,
}

struct Shared {
    arms: Vec<MeshArm>,
    faults: Mutex<Faults>,
    recorder: Arc<Recorder>,
    /// For the calls of the arms.
    stack: OnceLock<Weak<dyn Transport>>,
}

struct MeshArm {
    endpoint: String,
    id: Arc<str>,
    dispatcher: Dispatcher,
}

impl MeshTransport {
    /// The layer added last is the outermost.
    pub(super) fn new(arms: Vec<Dispatcher>, layers: Vec<CallLayer>) -> Self {
        let arm = |dispatcher: Dispatcher| {
            let id = dispatcher.card().arm_id.as_str();
            MeshArm { endpoint: endpoint(id), id: id.into(), dispatcher }
        };
        let (arms, recorder) = (arms.into_iter().map(arm).collect(), Arc::new(Recorder::new()));
        let shared = Arc::new(Shared { arms, faults: Mutex::default(), recorder, stack: OnceLock::new() });
        let stack = stack(&shared, layers);
        // It was not set before.
        let _ = shared.stack.set(Arc::downgrade(&stack));
        Self { shared, stack, from: None }
    }

    /// The transport of the brain.
    pub(super) fn of_brain(&self) -> Self {
        Self { from: Some("orchestrator".into()), ..self.clone() }
    }

    pub(super) fn has_arm(&self, id: &str) -> bool {
        self.shared.arms.iter().any(|arm| *arm.id == *id)
    }

    pub(super) fn recorder(&self) -> &Recorder {
        &self.shared.recorder
    }

    pub(super) fn faults(&self) -> MutexGuard<'_, Faults> {
        self.shared.faults()
    }
}

impl Transport for MeshTransport {
    // Written out: the future of the stack is returned as it is, in place of one more around it.
    fn call<'a, 'b>(
        &'a self,
        mut call: Call,
    ) -> Pin<Box<dyn Future<Output = Result<Reply, CallError>> + Send + 'b>>
    where
        'a: 'b,
        Self: 'b,
    {
        call.from.clone_from(&self.from);
        self.stack.call(call)
    }

    fn cards<'a, 'b>(&'a self) -> Pin<Box<dyn Future<Output = Vec<ArmCard>> + Send + 'b>>
    where
        'a: 'b,
        Self: 'b,
    {
        self.stack.cards()
    }
}

/// The choice of an arm, and what is above it.
fn stack(shared: &Arc<Shared>, layers: Vec<CallLayer>) -> Arc<dyn Transport> {
    let choice = Choice(shared.clone());
    let cards = Arc::new(choice.clone());
    let honouring = shared.clone();
    let retry = RetryLayer::new().retries(0).without_budget().keys_honoured(move |call| honouring.keys(call));
    let service = retry.layer(service_fn(move |call| {
        let choice = choice.clone();
        async move { choice.carry(call).await }
    }));
    if layers.is_empty() {
        return Arc::new(from_service(service, cards));
    }
    let service = layers.into_iter().fold(CallService::new(service), |service, layer| layer(service));
    Arc::new(from_service(service, cards))
}

/// Sends a call to one of the arms that serve its contract.
#[derive(Clone)]
struct Choice(Arc<Shared>);

#[async_trait]
impl Transport for Choice {
    async fn call(&self, call: Call) -> Result<Reply, CallError> {
        self.carry(call).await
    }

    async fn cards(&self) -> Vec<ArmCard> {
        self.0.arms.iter().map(|arm| arm.dispatcher.card().clone()).collect()
    }
}

impl Choice {
    async fn carry(&self, call: Call) -> Result<Reply, CallError> {
        let (contract, shared) = (call.contract.clone(), &*self.0);
        let arm = shared.choose(&call).map_err(|failure| CallError::new(contract.clone(), failure))?;
        let offered = arm.dispatcher.card().contract(&contract);
        let honoured = offered.is_some_and(|offered| offered.idempotent || offered.keys != Keys::None);
        call.check_keys(honoured).map_err(|failure| CallError::new(contract.clone(), failure))?;
        if let Some(record) = &call.explain {
            let (attempt, scopes) = (call.parts.attempt, Vec::new());
            record.add(CallEvent::Sent {
                arm: arm.id.clone(),
                endpoint: (&*arm.endpoint).into(),
                attempt,
                scopes,
            });
        }
        let fault = shared.faults().apply(&arm.id, &call);
        // The arm reports what it has used, if the call is dropped after it has begun.
        let mut in_process = Reports(Some(Usage::ZERO));
        let recording = shared.recorder.begin(&call, &arm.id, fault.clone());
        let deadline = call.parts.deadline;
        let mut cx = Context::from_parts(call.parts, self.calls_of(arm));
        let mut limit_reached = CancellationToken::new();
        if let Some(Fault::CrashAfterChunks(chunks)) = fault {
            let limit = ChunkLimit::new(chunks, call.updates);
            limit_reached = limit.reached();
            cx = cx.with_updates(limit);
        } else if let Some(updates) = call.updates {
            cx = cx.with_updates(updates);
        }
        let work = pin!(async {
            let result = arm.dispatcher.execute(&call.contract, &call.input, &mut cx).await;
            (result.map_err(ArmError::into_failure), cx.used())
        });
        // As above the layers, but here the arm is known.
        let outcome = Deadline::run_until(deadline, with_fault(fault, work, limit_reached, &arm.id)).await;
        let outcome = outcome.unwrap_or_else(|| Err(Failure::of(ErrorKind::DeadlineExceeded)));
        let (result, usage) = outcome.unwrap_or_else(|failure| (Err(failure), Usage::default()));
        in_process.0 = None;
        recording.end(match &result {
            Ok(output) => Ending::Output(output.clone()),
            Err(failure) => Ending::Failure(failure.clone()),
        });
        match result {
            Ok(output) => Ok(Reply::new(output, &*arm.id, &*arm.endpoint).with_usage(usage)),
            Err(failure) => {
                let error = CallError::new(contract, failure).with_usage(usage);
                Err(error.with_arm(&*arm.id).with_endpoint(&*arm.endpoint))
            }
        }
    }

    /// The transport of an arm.
    fn calls_of(&self, arm: &MeshArm) -> Arc<dyn Transport> {
        match self.0.stack.get().and_then(Weak::upgrade) {
            Some(stack) => {
                Arc::new(MeshTransport { shared: self.0.clone(), stack, from: Some(arm.id.clone()) })
            }
            None => Arc::new(()),
        }
    }
}

impl Shared {
    /// Whether all arms of the contract honour keys. Each has a record of its own.
    fn keys(&self, call: &Call) -> Keys {
        let cards = self.arms.iter().map(|arm| arm.dispatcher.card());
        let mut offers = cards.filter_map(|card| card.contract(&call.contract)).peekable();
        let honoured = offers.peek().is_some() && offers.all(|offer| offer.keys != Keys::None);
        if honoured { Keys::Instance } else { Keys::None }
    }

    /// The only arm that may get the call, if there is one. Else the first arm of the contract that is not to be avoided, else any
    /// but the last one that was tried, else the first.
    fn choose(&self, call: &Call) -> Result<&MeshArm, Failure> {
        let may = |arm: &&MeshArm| call.only.as_ref().is_none_or(|only| **only == arm.endpoint);
        let serving = || self.arms.iter().filter(|arm| arm.dispatcher.serves(&call.contract)).filter(may);
        let avoided = |arm: &MeshArm| call.avoid.iter().any(|endpoint| **endpoint == arm.endpoint);
        let last = |arm: &MeshArm| call.avoid.last().is_some_and(|endpoint| **endpoint == arm.endpoint);
        let fresh = serving().find(|arm| !avoided(arm)).or_else(|| serving().find(|arm| !last(arm)));
        fresh.or_else(|| serving().next()).ok_or_else(|| {
            let specs = self.arms.iter().flat_map(|arm| arm.dispatcher.specs());
            let offered: Vec<_> = specs.map(ToString::to_string).collect();
            not_offered("the mesh", &call.contract, &offered)
        })
    }

    fn faults(&self) -> MutexGuard<'_, Faults> {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs the work of an arm under a fault. `limit` is cancelled by a chunk that does not reach the caller.
async fn with_fault<T>(
    fault: Option<Fault>,
    mut work: Pin<&mut (impl Future<Output = T> + Send)>,
    limit: CancellationToken,
    arm: &str,
) -> Result<T, Failure> {
    let lost = || Failure::new(ErrorKind::ConnectionLost, format!("the connection to {arm} was lost"));
    let Some(fault) = fault else { return Ok(work.await) };
    match fault {
        Fault::Crash => {
            poll_fn(|cx| Poll::Ready(work.as_mut().poll(cx).is_ready())).await;
            Err(lost())
        }
        Fault::CrashAfterChunks(_) => {
            tokio::select! {
                biased;
                _ = work => {}
                () = limit.cancelled() => {}
            }
            Err(lost())
        }
        Fault::Hang => pending().await,
        Fault::Slow(by) => {
            tokio::time::sleep(by).await;
            Ok(work.await)
        }
        Fault::Error(failure) => Err(failure),
        Fault::DropReply => {
            work.await;
            Err(lost())
        }
    }
}

impl fmt::Debug for MeshTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.shared.arms.iter().map(|arm| &arm.dispatcher)).finish()
    }
}
