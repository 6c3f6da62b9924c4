//! The ideas of octollm, without I/O: contracts, arms, contexts, tasks, brains, events.
//!
//! ```
//! use async_trait::async_trait;
//! use octollm_core::{Arm, Context, error::ArmError};
//! use octollm_macros::TaskContract;
//! use schemars::JsonSchema;
//! use serde::{Deserialize, Serialize};
//!
//! /// Counts the words of a text.
//! #[derive(Serialize, Deserialize, JsonSchema, TaskContract)]
//! #[task(name = "text.count", output = usize, idempotent)]
//! struct CountWords {
//!     text: String,
//! }
//!
//! struct Scribe;
//!
//! #[async_trait]
//! impl Arm<CountWords> for Scribe {
//!     async fn execute(&self, input: CountWords, _: &Context) -> Result<usize, ArmError> {
//!         Ok(input.text.split_whitespace().count())
//!     }
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! let count = Scribe.execute(CountWords { text: "ten arms".into() }, &Context::detached()).await;
//! assert_eq!(count.ok(), Some(2));
//! # }
//! ```
//!
//! Most programs depend on `octollm`, which re-exports this crate. Each module uses only those that precede it in this file.
//!
//! # Features
//!
//! `mesh` adds the in-process mesh, and `conformance` the suites for a user's own stores and buses, both for tests. `full` is
//! `mesh`.
// A module uses only those above it.
mod clock;
mod invalid;
mod panics;
mod size;
mod random;
pub mod id;
pub mod budget;
mod dropped;
pub mod deadline;
pub mod trace;
pub mod contract;
pub mod card;
pub mod error;
mod settings;
mod meters;
pub mod metrics;
pub mod json;
pub mod update;
mod scope;
pub mod parts;
pub mod limit;
pub mod idempotency;
pub mod explain;
pub mod transport;
mod spans;
pub mod resilience;
pub mod context;
pub mod arm;
pub mod dispatcher;
pub mod audit;
pub mod event;
pub mod bus;
pub mod worker;
pub mod task;
pub mod store;
pub mod orchestrator;
pub mod brain;
pub mod reflex;
pub mod plan;
#[cfg(feature = "mesh")]
pub mod mesh;
#[cfg(feature = "conformance")]
pub mod conformance;
// For a file that the tests have in common with the suites.
#[cfg(feature = "conformance")]
extern crate self as octollm_core;

pub use self::{arm::Arm, context::Context};

#[doc(hidden)]
#[path = "private/mod.rs"]
pub mod __private;
