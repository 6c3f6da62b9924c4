//! Suites of tests for a user's own stores and buses. They are for test programs: a case that does not hold panics with a message
//! that says what was expected.
//!
//! A suite runs against a [`Subject`], a type of a few lines that opens what is tested. The macro of the suite writes one test
//! for each case, which has the name of the case:
//!
//! ```
//! use std::sync::Arc;
//!
//! use async_trait::async_trait;
//! use octollm_core::{conformance::{Subject, task_store_tests}, store::{MemoryStore, TaskStore}};
//!
//! struct Memory(Arc<MemoryStore>);
//!
//! #[async_trait]
//! impl Subject<dyn TaskStore> for Memory {
//!     async fn open(&self) -> Arc<dyn TaskStore> {
//!         self.0.clone()
//!     }
//! }
//!
//! task_store_tests! { #[tokio::test(start_paused = true)] Memory(Arc::new(MemoryStore::new())) }
//! # fn main() {}
//! ```
//!
//! The expression is evaluated once for each test, so each has a store of its own, which is empty. The attributes before it are
//! those of each test; without any it is `#[tokio::test]`. A store in memory can pause tokio's clock. Other stores have their own
//! clock: their tests wait for leases of some 100 ms, and in one case for ten seconds.

mod bus;
mod keys;
mod store;
mod support;

use std::sync::Arc;

use async_trait::async_trait;

pub use self::{
    bus::{BrokerFault, BusSubject, bus},
    keys::idempotency_store,
    store::task_store,
};
pub use crate::{bus_tests, idempotency_store_tests, task_store_tests};

/// What a suite tests: a store or a bus of the kind `S`, such as `dyn TaskStore`.
///
/// # Panics
/// Where it cannot be opened: the test fails.
#[async_trait]
pub trait Subject<S: ?Sized>: Send + Sync + 'static {
    /// Opens the subject. Each call returns a further handle, as another process would have it: all handles have the same data,
    /// also those that are opened when the earlier ones are dropped.
    async fn open(&self) -> Arc<S>;
}

/// Writes a test for each case of a suite: see [`conformance`](crate::conformance).
#[doc(hidden)]
#[macro_export]
macro_rules! __conformance_tests {
    ([$suite:ident $attributes:tt $subject:expr] $($module:ident: $($case:ident)*;)*) => {
        $($($crate::__conformance_test! { $attributes $suite $case $subject })*)*
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __conformance_test {
    ([$($attributes:tt)*] $suite:ident $case:ident $subject:expr) => {
        $($attributes)*
        async fn $case() {
            $crate::conformance::$suite(::core::stringify!($case), $subject).await;
        }
    };
}

/// Runs the case of this name.
#[doc(hidden)]
#[macro_export]
macro_rules! __conformance_run {
    ([$name:ident $subject:ident] $($module:ident: $($case:ident)*;)*) => {
        match $name {
            $($(stringify!($case) => $crate::conformance::support::case($name, $module::$case($subject)).await,)*)*
            _ => panic!("the suite has no case {}", $name),
        }
    };
}
