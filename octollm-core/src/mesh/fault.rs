//! What can go wrong with a call.

use std::{fmt, time::Duration};

use crate::{
    contract::{ContractRef, TaskContract},
    error::{ErrorKind, Failure},
};

/// What goes wrong with a call to an arm. One of [`once`](Self::once), [`times`](Self::times) and
/// [`always`](Self::always) says how often.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Fault {
    /// The arm dies in the middle: it starts, and is dropped where it first waits. The caller's connection is lost,
    /// and nobody knows how much was done.
    Crash,
    /// The arm takes the call and never answers. It does not start; the caller's deadline ends the wait.
    Hang,
    /// The arm starts only after so long. A caller that gives up before that keeps it from starting.
    Slow(Duration),
    /// The arm does not start and answers this.
    Error(Failure),
    /// The arm runs to its end and its answer is lost, and the caller's connection with it.
    DropReply,
}

impl Fault {
    /// Answers a failure of this kind, with what is usual for it.
    pub fn error(kind: ErrorKind) -> Self {
        Self::Error(Failure::of(kind))
    }

    /// For the next call.
    pub fn once(self) -> FaultPlan {
        self.times(1)
    }

    /// For the next so many calls.
    pub fn times(self, calls: usize) -> FaultPlan {
        FaultPlan { left: Some(calls), ..self.always() }
    }

    /// For every call from now on.
    pub fn always(self) -> FaultPlan {
        FaultPlan { fault: self, contract: None, skip: 0, left: None, fired: false }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Crash => f.write_str("crash"),
            Self::Hang => f.write_str("hang"),
            Self::Slow(by) => write!(f, "slow by {by:?}"),
            Self::Error(failure) => write!(f, "error {}", failure.kind),
            Self::DropReply => f.write_str("drop the reply"),
        }
    }
}

/// A fault, and which calls it is for.
#[derive(Debug, Clone, PartialEq)]
#[must_use = "a fault does nothing until a mesh is given it"]
pub struct FaultPlan {
    fault: Fault,
    contract: Option<ContractRef>,
    /// Calls that pass before.
    skip: usize,
    /// Calls that it is still for; `None` is all.
    left: Option<usize>,
    fired: bool,
}

impl FaultPlan {
    /// Lets so many calls pass first.
    pub fn after(self, calls: usize) -> Self {
        Self { skip: calls, ..self }
    }

    /// Only for calls of one contract; others are not counted either.
    pub fn on<C: TaskContract>(self) -> Self {
        Self { contract: Some(C::SPEC.reference()), ..self }
    }

    /// What becomes of the next call, as far as this plan goes.
    pub(super) fn meet(&mut self, contract: &ContractRef) -> Option<Fault> {
        if self.is_over() || self.contract.as_ref().is_some_and(|only| only != contract) {
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

    pub(super) fn is_over(&self) -> bool {
        self.left == Some(0)
    }

    pub(super) fn has_fired(&self) -> bool {
        self.fired
    }
}

impl fmt::Display for FaultPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.fault.fmt(f)
    }
}
