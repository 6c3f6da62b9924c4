//! Servers for arms, orchestrators and reflexes.
//!
//! ```
//! use octollm_core::{Arm, Context, contract::TaskContract, error::ArmError};
//! use octollm_http::Server;
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
//!     async fn execute(&self, input: Shout, _: &Context) -> Result<String, ArmError> {
//!         Ok(input.text.to_uppercase())
//!     }
//! }
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), octollm_core::error::Error> {
//! let server = Server::new("shouter").arm(Loud).bind("127.0.0.1:0").await?;
//! println!("POST {}/shout", server.url());
//! server.run_until(async { /* until it is to end */ }).await;
//! # Ok(())
//! # }
//! ```
//!
//! A request's head is checked, a route found, the caller established, the body read; whatever goes wrong is a problem
//! ([`wire::Problem`](crate::wire::Problem)). [`HttpService`] is that service by itself, to mount into a server that exists
//! already; [`BoundServer`] serves it over an [`Acceptor`](crate::io::Acceptor), with limits on what a connection may do.
// A module uses only what stands before it here.
mod config;
mod limited;
mod streams;
mod request_body;
mod response_body;
mod reply;
mod head;
mod identity;
mod routes;
mod service;
mod arm;
mod tasks;
mod openapi;
mod connection;
mod listen;
mod builder;

pub use self::{
    builder::Server, identity::Authenticate, listen::BoundServer, request_body::RequestBody,
    response_body::ResponseBody, service::HttpService,
};
