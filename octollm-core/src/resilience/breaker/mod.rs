//! The circuit breaker: the state machine, its metrics, and its layer.

mod circuit;
mod layer;
mod machine;
#[cfg(test)]
mod tests;

pub use self::{
    circuit::{Circuit, OnTransition},
    layer::BreakerLayer,
    machine::{Admitted, Breaker, BreakerLimits, BreakerState, Outcome},
};

use super::{random, sync, window};
