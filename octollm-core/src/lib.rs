//! The ideas of octollm, without I/O: what can be asked, who does it, what travels along, and how work survives failure.
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
//!     async fn execute(&self, task: CountWords, _: &Context) -> Result<usize, ArmError> {
//!         Ok(task.text.split_whitespace().count())
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
//! Most programs depend on `octollm`, which brings this crate along. Read the modules in the order in which they stand: each
//! uses only those before it.
//!
//! # Features
//!
//! `mesh` has the in-process mesh for tests; `full` is all there is.
// A module uses only what stands before it here.
mod invalid;
pub mod id;
pub mod budget;
pub mod deadline;
pub mod trace;
pub mod contract;
pub mod card;
pub mod error;
pub mod json;
pub mod update;
pub mod parts;
pub mod transport;
pub mod resilience;
pub mod context;
pub mod arm;
pub mod dispatcher;
pub mod event;
pub mod bus;
pub mod clock;
pub mod task;
pub mod store;
pub mod orchestrator;
pub mod brain;
pub mod reflex;
pub mod plan;
#[cfg(feature = "mesh")]
pub mod mesh;

pub use self::{arm::Arm, context::Context};

#[doc(hidden)]
#[path = "private/mod.rs"]
pub mod __private;
