//! An arm with all its contracts, for any transport.

mod keyed;

use std::{
    any::Any,
    fmt,
    future::{Future, poll_fn},
    marker::PhantomData,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    sync::{Arc, LazyLock},
    task::Poll,
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::FutureExt;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::keyed::{honour_keys, honours_keys, outcome_unknown};
use crate::{
    arm::Arm,
    card::ArmCard,
    context::Context,
    contract::{ContractCard, ContractRef, ContractSpec, TaskContract},
    deadline::Deadline,
    dropped,
    error::{ArmError, ConfigError, ErrorKind, Failure},
    idempotency::{IdempotencyStore, MemoryIdempotencyStore},
    json,
    meters::{Counter, Counters, Durations, Spent, outcome},
    panics::discard,
    parts::spent,
    spans::{self, Scope, Within},
};

/// An arm's identity and the contracts it serves, without their types: what a server or a mesh runs.
///
/// It reads and checks the input, enforces the time limit, catches panics, and writes the output. A call with an
/// [idempotency key](crate::parts::ContextParts::key) runs once, unless its contract is idempotent: see
/// [`idempotency`](Self::idempotency).
pub struct Dispatcher {
    card: ArmCard,
    served: Vec<Served>,
    keys: Arc<dyn IdempotencyStore>,
    refused: Vec<ConfigError>,
}

/// One contract, and the arm that serves it.
struct Served {
    spec: ContractSpec,
    contract: ContractRef,
    handler: Box<dyn Handler>,
    meter: Meter,
}

impl Dispatcher {
    /// An arm that serves nothing yet.
    pub fn new(arm_id: impl Into<String>) -> Self {
        let (card, keys) = (ArmCard::new(arm_id).started(), Arc::new(MemoryIdempotencyStore::new()));
        Self { card, served: Vec::new(), keys, refused: Vec::new() }
    }

    /// Sets the store of the records of calls with an idempotency key. The default is a [`MemoryIdempotencyStore`]; with `()` keys
    /// are ignored.
    pub fn idempotency(&mut self, store: impl IdempotencyStore) {
        self.keys = Arc::new(store);
        for card in &mut self.card.contracts {
            honour_keys(card, &*self.keys);
        }
    }

    /// Adds a contract. It replaces the same contract; one that cannot be served is [`refused`](Self::refused).
    pub fn serve<C: TaskContract>(&mut self, arm: impl Arm<C>) {
        let mut card = match ContractCard::checked::<C>() {
            Ok(card) => card,
            Err(error) => {
                tracing::error!(error = &error as &dyn std::error::Error, "a contract is not served");
                return self.refused.push(error);
            }
        };
        honour_keys(&mut card, &*self.keys);
        let (spec, contract) = (C::SPEC, C::SPEC.reference());
        self.served.retain(|served| served.contract != contract);
        self.card.contracts.retain(|card| card.reference().as_ref() != Some(&contract));
        self.card.contracts.push(card);
        if !self.card.capabilities.iter().any(|name| name == spec.name) {
            self.card.capabilities.push(spec.name.into());
        }
        let handler = Box::new(Typed { arm, contract: PhantomData::<fn(C)> });
        let meter = Meter::new(&self.card.arm_id, &contract);
        self.served.push(Served { spec, contract, handler, meter });
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

    /// The specs of the contracts that it serves, in the order in which they were added.
    pub fn specs(&self) -> impl Iterator<Item = &ContractSpec> {
        self.served.iter().map(|served| &served.spec)
    }

    /// The spec of one contract.
    ///
    /// # Errors
    /// [`ErrorKind::ContractNotOffered`], with the list of what is offered.
    pub fn spec(&self, contract: &ContractRef) -> Result<&ContractSpec, Failure> {
        self.find(contract).map(|served| &served.spec)
    }

    /// Whether it serves a contract.
    pub fn serves(&self, contract: &ContractRef) -> bool {
        self.served.iter().any(|served| served.contract == *contract)
    }

    /// Checks an input without running it. The scope of its caller is checked by [`Caller::may`](crate::parts::Caller::may).
    ///
    /// # Errors
    /// As [`spec`](Self::spec); [`ErrorKind::BadRequest`] or [`ErrorKind::ValidationFailed`]; [`ErrorKind::ArmPanicked`]
    /// where the contract's own code did.
    pub fn check(&self, contract: &ContractRef, input: &[u8]) -> Result<(), Failure> {
        let served = self.find(contract)?;
        catch_unwind(AssertUnwindSafe(|| served.handler.check(input)))
            .unwrap_or_else(|panic| Err(panicked(panic)))
    }

    /// Runs the arm of a contract once, and returns the JSON of its output. What it used is [`Context::used`], in either case.
    ///
    /// The caller needs the scope of the contract. The earlier of the context's deadline and the contract's time limit applies,
    /// and becomes the deadline of the context. If the deadline has passed or the budget is spent, the arm does not run.
    ///
    /// A call with a key is answered from the record of the key, if there is one: [`Context::is_replayed`] returns whether it was,
    /// and the recorded usage counts. No progress and no chunks are sent again.
    ///
    /// # Errors
    /// As [`spec`](Self::spec) and [`Caller::may`](crate::parts::Caller::may); the error of the arm;
    /// [`ErrorKind::DeadlineExceeded`], [`ErrorKind::BudgetExhausted`], [`ErrorKind::Cancelled`] and
    /// [`ErrorKind::ArmPanicked`]. For a call with a key also the recorded failure; [`ErrorKind::Conflict`] while another one
    /// runs, [`ErrorKind::OutcomeUnknown`] where one may have run, [`ErrorKind::ValidationFailed`] where the key had
    /// another input, [`ErrorKind::Overloaded`] where the store is full and [`ErrorKind::Unavailable`] where it failed.
    ///
    /// # Cancel safety
    /// Dropping the future drops the future of the arm. Its context is cancelled then, as at any other end. The outcome of a call
    /// with a key is unknown from then on.
    pub async fn execute(
        &self,
        contract: &ContractRef,
        input: &[u8],
        cx: &mut Context,
    ) -> Result<Bytes, ArmError> {
        let served = self.find(contract)?;
        served.execute(input, cx, served.spec.timeout, &*self.keys).await
    }

    /// As [`execute`](Self::execute), with a time limit in place of the contract's own.
    pub(crate) async fn execute_within(
        &self,
        limit: Duration,
        contract: &ContractRef,
        input: &[u8],
        cx: &mut Context,
    ) -> Result<Bytes, ArmError> {
        self.find(contract)?.execute(input, cx, limit, &*self.keys).await
    }

    fn find(&self, contract: &ContractRef) -> Result<&Served, Failure> {
        self.served.iter().find(|served| served.contract == *contract).ok_or_else(|| {
            let offered: Vec<_> = self.served.iter().map(|served| served.contract.to_string()).collect();
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

impl Served {
    async fn execute(
        &self,
        input: &[u8],
        cx: &mut Context,
        limit: Duration,
        keys: &dyn IdempotencyStore,
    ) -> Result<Bytes, ArmError> {
        cx.caller().may(self.spec.scope)?;
        let now = Instant::now();
        if let Some(failure) = spent(cx.deadline(), cx.budget(), now) {
            return Err(failure.into());
        }
        if cx.parts().key.is_some() && honours_keys(self.spec.idempotent, keys) {
            // Boxed, since the future of every call is as large as its largest part.
            return Box::pin(self.run_once(input, cx, limit, keys)).await;
        }
        if cx.parts().repeated && cx.parts().key.is_some() && !self.spec.idempotent {
            // It may have run where records were held.
            return Err(outcome_unknown().into());
        }
        self.run(input, cx, limit, now).await
    }

    async fn run(
        &self,
        input: &[u8],
        cx: &mut Context,
        limit: Duration,
        begun: Instant,
    ) -> Result<Bytes, ArmError> {
        let cancellation = cx.begin(limit, begun);
        let used_before = cx.used();
        let span = spans::of_arm(&self.contract, cx.parts());
        if let Some(trace) = span.trace() {
            cx.set_trace(trace);
        }
        let mut execution = Execution { cx, meter: &self.meter, begun, outcome: None };
        let result = self.guarded(input, execution.cx, &cancellation, &span).await;
        execution.outcome = Some(result.as_ref().map(drop).map_err(ArmError::kind));
        result.map_err(|error| {
            let cx = &*execution.cx;
            span.failed(error.kind());
            span.run(|| log(&self.contract, cx, &error));
            let error = error.bounded();
            // Usage proves execution, whatever the arm's error has.
            if cx.used() == used_before { error } else { error.executed() }
        })
    }

    async fn guarded(
        &self,
        input: &[u8],
        cx: &Context,
        cancellation: &CancellationToken,
        span: &Scope,
    ) -> Result<Bytes, ArmError> {
        let run = Within::new(self.handler.run(input, cx), span);
        let mut work = AssertUnwindSafe(run).catch_unwind();
        let mut cancelled = pin!(cancellation.cancelled());
        // Cancellation comes before the arm, which would see its calls fail and could answer with what it has. Neither is
        // polled within tokio's cooperative budget, which the arm may spend.
        let ended = Deadline::run_until(
            cx.deadline(),
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

/// One execution of an arm. Its end cancels its context.
struct Execution<'a> {
    cx: &'a mut Context,
    meter: &'a Meter,
    begun: Instant,
    /// `None` while it runs.
    outcome: Option<Result<(), ErrorKind>>,
}

impl Drop for Execution<'_> {
    fn drop(&mut self) {
        self.cx.end(self.outcome == Some(Ok(())));
        if self.outcome.is_none() {
            dropped::report(self.cx.used());
        }
        self.meter.count(self.outcome.unwrap_or(Err(ErrorKind::Cancelled)), self.begun.elapsed());
    }
}

/// The metrics of a contract that an arm serves.
struct Meter {
    arm: String,
    contract: String,
    /// Runs that returned an output.
    ok: Counter,
    durations: Spent,
}

static RUNS: LazyLock<Counters> = LazyLock::new(|| {
    let help = "Runs of arms that have ended, by their outcome: ok, or the code of the error.";
    Counters::new("octollm_arm_runs_total", help, &["arm", "contract", "code"])
});
static DURATIONS: LazyLock<Durations> = LazyLock::new(|| {
    let help = "Durations of the runs of arms.";
    Durations::new("octollm_arm_run_duration_seconds", help, &["arm", "contract"])
});

impl Meter {
    fn new(arm: &str, contract: &ContractRef) -> Self {
        let (arm, contract) = (arm.to_owned(), contract.to_string());
        let ok = RUNS.with(&[&arm, &contract, "ok"]);
        let durations = DURATIONS.with(&[&arm, &contract]);
        Self { arm, contract, ok, durations }
    }

    fn count(&self, result: Result<(), ErrorKind>, time: Duration) {
        self.durations.count(time);
        match result {
            Ok(()) => self.ok.count(),
            Err(_) => RUNS.with(&[&self.arm, &self.contract, outcome(result)]).count(),
        }
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
        let contracts: Vec<_> = self.served.iter().map(|served| &served.contract).collect();
        f.debug_struct("Dispatcher")
            .field("arm_id", &self.card.arm_id)
            .field("contracts", &contracts)
            .finish()
    }
}

#[cfg(test)]
mod tests;
