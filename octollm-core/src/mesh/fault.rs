//! The faults of calls.

use std::{
    fmt,
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::{
    contract::{ContractRef, TaskContract},
    error::{ErrorKind, Failure},
    transport::Call,
    update::{Update, UpdateSink},
};

/// A fault of a call to an arm. [`once`](Self::once), [`times`](Self::times) or [`always`](Self::always) sets how often it
/// applies.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Fault {
    /// The arm starts, and is dropped where it first waits. The connection of the caller is lost, and the work may have run.
    Crash,
    /// The caller receives so many chunks, and then its connection is lost. The arm is dropped where it sends the next one; of an arm
    /// that sends no more, the answer is lost. The work may have run.
    CrashAfterChunks(u64),
    /// The arm does not start, and the call never returns. The deadline of the caller ends it.
    Hang,
    /// The arm starts after this time, unless the caller drops the call before.
    Slow(Duration),
    /// The arm does not start, and returns this failure.
    Error(Failure),
    /// The arm runs to its end, and its answer is lost with the connection of the caller.
    DropReply,
}

impl Fault {
    /// The arm returns a failure of this kind.
    pub fn error(kind: ErrorKind) -> Self {
        Self::Error(Failure::of(kind))
    }

    /// Applies to the next call.
    pub fn once(self) -> FaultPlan {
        self.times(1)
    }

    /// Applies to the next `calls` calls.
    pub fn times(self, calls: usize) -> FaultPlan {
        FaultPlan { left: Some(calls), ..self.always() }
    }

    /// Applies to every further call.
    pub fn always(self) -> FaultPlan {
        FaultPlan { fault: self, contract: None, condition: None, skip: 0, left: None, fired: false }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Crash => f.write_str("crash"),
            Self::CrashAfterChunks(chunks) => write!(f, "crash after {chunks} chunks"),
            Self::Hang => f.write_str("hang"),
            Self::Slow(by) => write!(f, "slow by {by:?}"),
            Self::Error(failure) => write!(f, "error {}", failure.kind),
            Self::DropReply => f.write_str("drop the reply"),
        }
    }
}

/// Passes so many chunks on, and then none.
pub(super) struct ChunkLimit {
    to: Option<Arc<dyn UpdateSink>>,
    left: AtomicU64,
    /// Cancelled by the first chunk that is not passed on.
    reached: CancellationToken,
}

impl ChunkLimit {
    pub(super) fn new(chunks: u64, to: Option<Arc<dyn UpdateSink>>) -> Arc<Self> {
        Arc::new(Self { to, left: AtomicU64::new(chunks), reached: CancellationToken::new() })
    }

    pub(super) fn reached(&self) -> CancellationToken {
        self.reached.clone()
    }
}

#[async_trait]
impl UpdateSink for ChunkLimit {
    fn update(&self, update: Update) {
        self.to.update(update);
    }

    async fn chunk(&self, chunk: Value) {
        let left = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        if left.is_err() {
            self.reached.cancel();
            pending::<()>().await;
        }
        self.to.chunk(chunk).await;
    }

    fn is_read(&self) -> bool {
        self.to.is_read()
    }
}

/// A fault, and the calls that it applies to.
#[derive(Clone)]
#[must_use = "a fault has no effect until it is added to a mesh"]
pub struct FaultPlan {
    fault: Fault,
    contract: Option<ContractRef>,
    /// Of the input.
    condition: Option<Condition>,
    /// Calls that pass first.
    skip: usize,
    /// Calls that it still applies to. `None` for all.
    left: Option<usize>,
    fired: bool,
}

type Condition = Arc<dyn Fn(&[u8]) -> bool + Send + Sync>;

impl FaultPlan {
    /// Lets `calls` calls pass first.
    pub fn after(self, calls: usize) -> Self {
        Self { skip: calls, ..self }
    }

    /// Applies only to calls of one contract. Others do not count.
    pub fn on<C: TaskContract>(self) -> Self {
        Self { contract: Some(C::SPEC.reference()), ..self }
    }

    /// Applies only to calls whose input meets a condition. Others do not count. The input is read as the type that the condition
    /// takes: `|input: &ValidateCode| input.code.is_empty()`, or `|input: &serde_json::Value| ..`. An input that cannot be read as
    /// this type does not meet it.
    pub fn when<T: DeserializeOwned>(self, condition: impl Fn(&T) -> bool + Send + Sync + 'static) -> Self {
        let met = move |input: &[u8]| serde_json::from_slice(input).is_ok_and(|input: T| condition(&input));
        Self { condition: Some(Arc::new(met)), ..self }
    }

    /// The fault of the next call.
    fn apply(&mut self, call: &Call) -> Option<Fault> {
        if self.is_over()
            || self.contract.as_ref().is_some_and(|only| *only != call.contract)
            || self.condition.as_ref().is_some_and(|condition| !condition(&call.input))
        {
            return None;
        }
        if self.skip > 0 {
            self.skip -= 1;
            return None;
        }
        self.left = self.left.map(|left| left - 1);
        self.fired = true;
        Some(self.fault.clone())
    }

    fn is_over(&self) -> bool {
        self.left == Some(0)
    }

    fn has_fired(&self) -> bool {
        self.fired
    }
}

impl fmt::Display for FaultPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.fault.fmt(f)
    }
}

impl fmt::Debug for FaultPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FaultPlan")
            .field("fault", &self.fault)
            .field("contract", &self.contract)
            .field("conditional", &self.condition.is_some())
            .field("skip", &self.skip)
            .field("left", &self.left)
            .finish()
    }
}

/// The faults of a mesh, with their arms.
#[derive(Debug, Default)]
pub(super) struct Faults {
    planned: Vec<(String, FaultPlan)>,
}

impl Faults {
    pub(super) fn plan(&mut self, arm: String, plan: FaultPlan) {
        self.planned.push((arm, plan));
    }

    pub(super) fn heal(&mut self, arm: &str) {
        self.planned.retain(|(planned, _)| planned != arm);
    }

    /// The fault of the next call to an arm.
    pub(super) fn apply(&mut self, arm: &str, call: &Call) -> Option<Fault> {
        let mut plans = self.planned.iter_mut().filter(|(planned, _)| planned == arm);
        let met = plans.find_map(|(_, plan)| plan.apply(call));
        self.planned.retain(|(_, plan)| !plan.is_over() || !plan.has_fired());
        met
    }

    pub(super) fn unfired(&self) -> Vec<String> {
        let unfired = self.planned.iter().filter(|(_, plan)| !plan.has_fired());
        unfired.map(|(arm, plan)| format!("{arm}: {plan}")).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{parts::ContextParts, transport::StepKey};

    fn call(input: &'static str) -> Call {
        let contract = "code.validate".parse().unwrap();
        Call::new(contract, StepKey::Order(0), input.into(), ContextParts::new())
    }

    #[test]
    fn a_fault_can_depend_on_the_input() {
        let mut faults = Faults::default();
        let even = |number: &u64| number.is_multiple_of(2);
        faults.plan("judge".into(), Fault::Crash.times(2).when(even).after(1));
        let mut met = |input| faults.apply("judge", &call(input)).is_some();
        let inputs = ["1", "2", "3", "\"4\"", "4", "5", "6", "8"];
        assert_eq!(inputs.map(&mut met), [false, false, false, false, true, false, true, false]);
    }

    proptest! {
        #[test]
        fn a_plan_is_for_the_calls_that_it_says(after in 0_usize..5, times in prop::option::of(0_usize..5), calls in 0_usize..15) {
            let asked = call("{}");
            let plan = match times {
                Some(times) => Fault::Crash.times(times),
                None => Fault::Crash.always(),
            };
            let mut faults = Faults::default();
            faults.plan("judge".into(), plan.after(after));
            for call in 0..calls {
                prop_assert_eq!(faults.apply("coder", &asked), None);
                let expected = call >= after && times.is_none_or(|times| call < after + times);
                prop_assert_eq!(faults.apply("judge", &asked).is_some(), expected);
            }
            prop_assert_eq!(faults.unfired().is_empty(), calls > after && times != Some(0));
        }
    }

    #[test]
    fn plans_apply_one_after_the_other() {
        let call = call("{}");
        let mut faults = Faults::default();
        faults.plan("judge".into(), Fault::Crash.once());
        faults.plan("judge".into(), Fault::Hang.once().after(1));
        faults.plan("judge".into(), Fault::DropReply.once());
        let met: Vec<_> = (0..4).map(|_| faults.apply("judge", &call)).collect();
        assert_eq!(met, [Some(Fault::Crash), Some(Fault::DropReply), Some(Fault::Hang), None]);
        faults.plan("judge".into(), Fault::Crash.always());
        faults.heal("judge");
        assert_eq!(faults.apply("judge", &call), None);
    }
}
