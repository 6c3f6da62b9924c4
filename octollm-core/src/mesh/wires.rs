//! Between caller and arm.

use std::{
    fmt,
    future::{Future, pending, poll_fn},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::Poll,
};

use async_trait::async_trait;

use super::{
    calls::{Calls, Ending, Recorder},
    fault::Fault,
    faults::Faults,
};
use crate::{
    budget::Usage,
    card::ArmCard,
    deadline::Deadline,
    dispatcher::{Dispatcher, Outcome, Route, Surroundings, not_offered},
    error::{CallError, ErrorKind, Failure},
    transport::{Call, Reply, Transport, Trip},
};

/// Where an arm of a mesh is.
pub(super) const ENDPOINT: &str = "in-process";

/// Carries the calls of one caller. A clone is the same mesh.
#[derive(Clone)]
pub(super) struct Wires {
    shared: Arc<Shared>,
    from: Option<Arc<str>>,
}

struct Shared {
    arms: Vec<Dispatcher>,
    faults: Mutex<Faults>,
    recorder: Arc<Recorder>,
}

impl Wires {
    pub(super) fn new(arms: Vec<Dispatcher>) -> Self {
        let (faults, recorder) = (Mutex::default(), Arc::new(Recorder::new()));
        Self { shared: Arc::new(Shared { arms, faults, recorder }), from: None }
    }

    /// As the brain calls.
    pub(super) fn of_brain(&self) -> Self {
        self.of("orchestrator")
    }

    fn of(&self, caller: &str) -> Self {
        Self { shared: self.shared.clone(), from: Some(caller.into()) }
    }

    pub(super) fn has_arm(&self, id: &str) -> bool {
        self.shared.arms.iter().any(|arm| arm.card().arm_id == id)
    }

    pub(super) fn forget_calls(&self) {
        self.shared.recorder.forget();
    }

    pub(super) fn calls(&self) -> Calls {
        self.shared.recorder.calls()
    }

    pub(super) fn faults(&self) -> MutexGuard<'_, Faults> {
        self.shared.faults.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, call: &Call) -> Result<(&str, &Route), Failure> {
        let arms = self.shared.arms.iter();
        let mut serving = arms.filter_map(|arm| Some((&*arm.card().arm_id, arm.find(&call.contract).ok()?)));
        serving.next().ok_or_else(|| {
            let routes = self.shared.arms.iter().flat_map(Dispatcher::routes);
            let offered: Vec<_> = routes.map(|route| route.contract().to_string()).collect();
            not_offered("the mesh", &call.contract, &offered)
        })
    }

    async fn carry(
        &self,
        call: Call,
        arm: &str,
        route: &Route,
        fault: Option<Fault>,
    ) -> Result<Reply, (Failure, Usage)> {
        let trip = Trip { attempts: call.parts.attempt, ..Trip::new(arm, ENDPOINT) };
        let work = async {
            let around = Surroundings::new(call.parts, Arc::new(self.of(arm)));
            route.execute(&call.input, around).await
        };
        let outcome = match fault {
            None => work.await,
            Some(fault) => suffer(fault, work, arm).await.map_err(free)?,
        };
        match outcome.result {
            Ok(output) => Ok(Reply::new(output, trip).with_usage(outcome.usage)),
            Err(error) => Err((error.into_failure(), outcome.usage)),
        }
    }
}

/// A failure that tells of no use.
fn free(failure: Failure) -> (Failure, Usage) {
    (failure, Usage::default())
}

/// Lets a fault have its way with the work.
async fn suffer(fault: Fault, work: impl Future<Output = Outcome>, arm: &str) -> Result<Outcome, Failure> {
    let lost = || Failure::new(ErrorKind::ConnectionLost, format!("the connection to {arm} was lost"));
    match fault {
        Fault::Crash => {
            let mut work = std::pin::pin!(work);
            poll_fn(|cx| Poll::Ready(work.as_mut().poll(cx).is_ready())).await;
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

/// After its deadline a caller waits no more, not even where nobody keeps it for them.
async fn in_time<T>(
    deadline: Option<Deadline>,
    work: impl Future<Output = Result<T, (Failure, Usage)>>,
) -> Result<T, (Failure, Usage)> {
    match deadline {
        None => work.await,
        Some(deadline) => match tokio::time::timeout_at(deadline.instant(), work).await {
            Ok(answer) => answer,
            Err(_) => Err(free(Failure::of(ErrorKind::DeadlineExceeded))),
        },
    }
}

#[async_trait]
impl Transport for Wires {
    async fn call(&self, call: Call) -> Result<Reply, CallError> {
        let contract = call.contract.clone();
        let (arm, route) = self.find(&call).map_err(|failure| CallError::new(contract.clone(), failure))?;
        let fault = self.faults().meet(arm, &contract);
        let recording = self.shared.recorder.begin(&call, arm, self.from.as_deref(), fault.clone());
        let answer = in_time(call.parts.deadline, self.carry(call, arm, route, fault)).await;
        recording.end(match &answer {
            Ok(reply) => Ending::Output(reply.output.clone()),
            Err((failure, _)) => Ending::Failure(failure.clone()),
        });
        answer.map_err(|(failure, usage)| {
            CallError::new(contract, failure).with_arm(arm).with_endpoint(ENDPOINT).with_usage(usage)
        })
    }

    async fn cards(&self) -> Vec<ArmCard> {
        self.shared.arms.iter().map(|arm| arm.card().clone()).collect()
    }
}

impl fmt::Debug for Wires {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.shared.arms).finish()
    }
}
