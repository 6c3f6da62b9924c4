//! The wire of octollm: servers and clients for task contracts over HTTP.
//!
//! ```
//! use async_trait::async_trait;
//! use octollm_core::{Arm, Context, error::ArmError};
//! use octollm_http::{Server, Arms};
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
//! # async fn main() -> Result<(), octollm_core::error::Error> {
//! let server = Server::new("scribe").arm(Scribe).bind("127.0.0.1:0").await?;
//! let arms = Arms::builder().endpoint("scribe", server.url()).build()?;
//! tokio::spawn(server.run());
//! assert_eq!(arms.call(CountWords { text: "ten arms".into() }).await?, 2);
//! # Ok(())
//! # }
//! ```
//!
//! What crosses the network is written down in `docs/wire.md`. Most programs depend on `octollm`, which brings this crate
//! along.
// A module uses only what stands before it here; `client` and `server` never import each other.
mod limits;
pub mod io;
pub mod wire;
#[cfg(feature = "tokens")]
pub mod token;
pub mod resolve;
pub mod registry;
pub mod client;
pub mod server;
mod environment;
#[cfg(feature = "otel")]
pub mod otel;

pub use self::{
    client::{Arms, OrchestratorClient, RestClient},
    registry::Registry,
    server::{Authenticate, BoundServer, Server},
};
