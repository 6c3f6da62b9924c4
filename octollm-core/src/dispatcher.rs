//! An arm with all its contracts, for any transport.

use std::{
    any::Any,
    fmt,
    future::{Future, poll_fn},
    marker::PhantomData,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    sync::Arc,
    task::Poll,
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::FutureExt;
use tokio_util::sync::CancellationToken;

use crate::{
    arm::Arm,
    budget::{Usage, narrower},
    card::ArmCard,
    context::Context,
    contract::{ContractCard, ContractRef, ContractSpec, TaskContract},
    deadline::Deadline,
    error::{ArmError, ConfigError, ErrorKind, Failure},
    json,
    panics::discard,
    parts::{Caller, ContextParts, spent},
    transport::Transport,
    update::UpdateSink,
};

/// An arm's identity and the contracts it serves, without their types: what a server or a mesh runs.
///
/// It reads and checks the input, enforces the time limit, catches panics, and writes the output.
pub struct Dispatcher {
    card: ArmCard,
    routes: Vec<Route>,
    refused: Vec<ConfigError>,
}

/// One contract that a [`Dispatcher`] serves.
pub struct Route {
    spec: ContractSpec,
    contract: ContractRef,
    handler: Box<dyn Handler>,
}

/// The result of an execution.
#[derive(Debug)]
pub struct Outcome {
    /// The output's JSON, or the error of the arm.
    pub result: Result<Bytes, ArmError>,
    /// What was used, in either case.
    pub usage: Usage,
    /// The number of calls without a name that the arm made.
    pub calls: u32,
}

/// The environment of an execution.
#[non_exhaustive]
pub struct Execution {
    /// The parts of the call.
    pub parts: ContextParts,
    /// The arms it may call.
    pub transport: Arc<dyn Transport>,
    /// Cancels the work from outside.
    pub cancellation: CancellationToken,
    /// Receives its updates.
    pub updates: Option<Arc<dyn UpdateSink>>,
    /// The time limit, in place of the contract's own.
    pub time_limit: Option<Duration>,
}

impl Execution {
    /// An execution with the parts of a call, and the arms that it may call.
    pub fn new(parts: ContextParts, transport: Arc<dyn Transport>) -> Self {
        Self { parts, transport, cancellation: CancellationToken::new(), updates: None, time_limit: None }
    }
}

impl Dispatcher {
    /// An arm that serves nothing yet.
    pub fn new(arm_id: impl Into<String>) -> Self {
        Self { card: ArmCard::new(arm_id).started(), routes: Vec::new(), refused: Vec::new() }
    }

    /// Adds a contract. It replaces the same contract; one that cannot be served is [`refused`](Self::refused).
    pub fn serve<C: TaskContract>(&mut self, arm: impl Arm<C>) {
        let card = match ContractCard::checked::<C>() {
            Ok(card) => card,
            Err(error) => {
                tracing::error!(error = &error as &dyn std::error::Error, "a contract is not served");
                return self.refused.push(error);
            }
        };
        let (spec, contract) = (C::SPEC, C::SPEC.reference());
        self.routes.retain(|route| route.contract != contract);
        self.card.contracts.retain(|card| card.reference().as_ref() != Some(&contract));
        self.card.contracts.push(card);
        if !self.card.capabilities.iter().any(|name| name == spec.name) {
            self.card.capabilities.push(spec.name.into());
        }
        let handler = Box::new(Typed { arm, contract: PhantomData::<fn(C)> });
        self.routes.push(Route { spec, contract, handler });
    }

    /// The card of the arm.
    pub fn card(&self) -> &ArmCard {
        &self.card
    }

    /// The card, to set what it has beside the contracts.
    pub fn card_mut(&mut self) -> &mut ArmCard {
        &mut self.card
    }

    /// The errors of contracts that [`serve`](Self::serve) refused. A server that starts without them answers that they are
    /// not offered, so check this first.
    pub fn refused(&self) -> &[ConfigError] {
        &self.refused
    }

    /// The contracts it serves.
    pub fn routes(&self) -> &[Route] {
        &self.routes
    }

    /// The route of one contract.
    ///
    /// # Errors
    /// [`ErrorKind::ContractNotOffered`], with the list of what is offered.
    pub fn find(&self, contract: &ContractRef) -> Result<&Route, Failure> {
        self.routes.iter().find(|route| route.contract == *contract).ok_or_else(|| {
            let offered: Vec<_> = self.routes.iter().map(|route| route.contract.to_string()).collect();
            not_offered(&self.card.arm_id, contract, &offered)
        })
    }
}

/// The failure of asking for a contract that an arm, or any arm of a group, does not serve.
pub fn not_offered(by: &str, contract: &ContractRef, offered: &[String]) -> Failure {
    let listed = if offered.is_empty() { "nothing".to_owned() } else { offered.join(", ") };
    let message = format!("{contract} is not offered by {by}; offered: {listed}");
    Failure {
        details: Some(serde_json::json!({ "offered": offered })),
        ..Failure::new(ErrorKind::ContractNotOffered, message)
    }
}

impl Route {
    /// The contract.
    pub fn contract(&self) -> &ContractRef {
        &self.contract
    }

    /// The spec of the contract.
    pub fn spec(&self) -> &ContractSpec {
        &self.spec
    }

    /// Checks that a caller has the contract's scope.
    ///
    /// # Errors
    /// As [`Caller::may`].
    pub fn admit(&self, caller: &Caller) -> Result<(), Failure> {
        caller.may(self.spec.scope)
    }

    /// Checks an input without running it.
    ///
    /// # Errors
    /// [`ErrorKind::BadRequest`] or [`ErrorKind::ValidationFailed`]; [`ErrorKind::ArmPanicked`] where the contract's own
    /// code did.
    pub fn check(&self, input: &[u8]) -> Result<(), Failure> {
        catch_unwind(AssertUnwindSafe(|| self.handler.check(input)))
            .unwrap_or_else(|panic| Err(panicked(panic)))
    }

    /// Runs the arm once.
    ///
    /// The earlier of the caller's deadline and the contract's time limit applies. If the deadline has passed or the budget is
    /// spent, the arm does not run.
    ///
    /// # Cancel safety
    /// Dropping the future drops the future of the arm, and cancels its context.
    pub async fn execute(&self, input: &[u8], execution: Execution) -> Outcome {
        let Execution { mut parts, transport, cancellation, updates, time_limit } = execution;
        let refused = self.admit(&parts.caller).err().or_else(|| spent(parts.deadline, parts.budget));
        if let Some(failure) = refused {
            return Outcome { result: Err(failure.into()), usage: Usage::default(), calls: 0 };
        }
        let limit = time_limit.unwrap_or(self.spec.timeout);
        parts.deadline = narrower(parts.deadline, Some(Deadline::after(limit)));
        let limit = parts.deadline;
        let guard = cancellation.clone().drop_guard();
        let cx = Context::assemble(parts, transport, Some(cancellation.clone()), updates);
        let result = self.guarded(input, &cx, &cancellation, limit).await;
        if result.is_ok() {
            guard.disarm();
        }
        if let Err(error) = &result {
            log(&self.contract, &cx, error);
        }
        let usage = cx.used();
        // Usage proves execution, whatever the arm's error has.
        let result = result.map_err(|error| if usage == Usage::default() { error } else { error.executed() });
        Outcome { result, usage, calls: cx.ordered_calls() }
    }

    async fn guarded(
        &self,
        input: &[u8],
        cx: &Context,
        cancellation: &CancellationToken,
        limit: Option<Deadline>,
    ) -> Result<Bytes, ArmError> {
        let mut work = AssertUnwindSafe(self.handler.run(input, cx)).catch_unwind();
        let mut cancelled = pin!(cancellation.cancelled());
        // Cancellation comes before the arm, which would see its calls fail and could answer with what it has. Neither is
        // polled within tokio's cooperative budget, which the arm may spend.
        let ended = Deadline::run_until(
            limit,
            poll_fn(|task| {
                if cancellation.is_cancelled() {
                    return Poll::Ready(None);
                }
                match work.poll_unpin(task) {
                    Poll::Ready(answer) => Poll::Ready(Some(answer)),
                    Poll::Pending => cancelled.as_mut().poll(task).map(|()| None),
                }
            }),
        );
        let kind = match ended.await {
            Some(Some(answer)) => return answer.unwrap_or_else(|panic| Err(panicked(panic).into())),
            Some(None) => ErrorKind::Cancelled,
            None => ErrorKind::DeadlineExceeded,
        };
        cancellation.cancel();
        // What the arm holds may panic as well, on its way out.
        let dropped = catch_unwind(AssertUnwindSafe(|| drop(work)));
        if let Err(panic) = dropped {
            discard(panic);
            tracing::error!(contract = %self.contract, "the arm panicked while it was dropped");
        }
        Err(Failure::of(kind).into())
    }
}

fn panicked(panic: Box<dyn Any + Send>) -> Failure {
    discard(panic);
    Failure::of(ErrorKind::ArmPanicked)
}

/// Logs the cause, which is not sent to the caller.
fn log(contract: &ContractRef, cx: &Context, error: &ArmError) {
    let (request, kind) = (cx.request_id(), error.kind());
    match error.source() {
        Some(source) => {
            let cause: &dyn std::error::Error = source;
            tracing::warn!(%contract, %request, %kind, %error, cause, "arm failed");
        }
        None => tracing::debug!(%contract, %request, %kind, %error, "arm failed"),
    }
}

#[async_trait]
trait Handler: Send + Sync {
    fn check(&self, input: &[u8]) -> Result<(), Failure>;
    async fn run(&self, input: &[u8], cx: &Context) -> Result<Bytes, ArmError>;
}

struct Typed<C, A> {
    arm: A,
    contract: PhantomData<fn(C)>,
}

#[async_trait]
impl<C: TaskContract, A: Arm<C>> Handler for Typed<C, A> {
    fn check(&self, input: &[u8]) -> Result<(), Failure> {
        json::read_contract::<C>(input).map(drop)
    }

    async fn run(&self, input: &[u8], cx: &Context) -> Result<Bytes, ArmError> {
        let input = json::read_contract::<C>(input)?;
        let output = self.arm.execute(input, cx).await?;
        let bytes = json::try_write(&output).map_err(|error| {
            let (failure, cause) = *error;
            ArmError::failed(format!("the output cannot be written: {failure}")).with_source(cause)
        })?;
        Ok(bytes.into())
    }
}

impl fmt::Debug for Dispatcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dispatcher").field("arm_id", &self.card.arm_id).field("routes", &self.routes).finish()
    }
}

impl fmt::Debug for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Route").field(&self.contract).finish()
    }
}

impl fmt::Debug for Execution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Execution").field("parts", &self.parts).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
