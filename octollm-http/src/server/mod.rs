//! Servers for arms, orchestrators and reflexes.
//!
//! ```
//! use octollm_core::{Arm, Context, contract::TaskContract, error::ArmError};
//! use octollm_http::ArmServer;
//! use octollm_macros::TaskContract;
//! use schemars::JsonSchema;
//! use serde::{Deserialize, Serialize};
//!
//! #[derive(Serialize, Deserialize, JsonSchema, TaskContract)]
//! #[task(name = "text.shout", output = String, idempotent)]
//! struct Shout {
//!     text: String,
//! }
//!
//! struct Loud;
//!
//! #[async_trait::async_trait]
//! impl Arm<Shout> for Loud {
//!     async fn execute(&self, task: Shout, _: &Context) -> Result<String, ArmError> {
//!         Ok(task.text.to_uppercase())
//!     }
//! }
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), octollm_core::error::Error> {
//! let server = ArmServer::new("shouter").arm::<Shout>(Loud).bind("127.0.0.1:0").await?;
//! println!("POST {}/shout", server.url());
//! server.run_until(async { /* until it is to end */ }).await;
//! # Ok(())
//! # }
//! ```
//!
//! All three are the same service: a request's head is checked, a route found, its body read, and whatever goes wrong
//! is a problem ([`wire::Problem`](crate::wire::Problem)). [`HttpService`] is that service by itself, to mount into a
//! server that exists already; [`BoundServer`] puts it behind a listener, with limits on what a connection may do.
// A module uses only what stands before it here.
mod config;
mod error;
mod body;
mod media;
mod intake;
mod respond;
mod fields;
mod routes;
mod service;
mod vitals;
mod endpoints;
mod connection;
mod openapi;
mod serve;
mod setup;
mod arm_server;
mod orchestrator_server;
mod reflex_server;

pub use self::{
    arm_server::ArmServer,
    body::ResponseBody,
    config::{InvalidConfig, ServerConfig},
    error::ServeError,
    orchestrator_server::OrchestratorServer,
    reflex_server::ReflexServer,
    serve::BoundServer,
    service::{HttpService, ResponseFuture},
};
