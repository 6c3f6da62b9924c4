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
//! For each request the server checks the head, finds the route, authenticates the caller and reads the body. Every failure is
//! answered with a [`Problem`](crate::wire::Problem). [`HttpService`] is this service alone, to mount into another server.
//! [`BoundServer`] serves it over an [`Acceptor`](crate::io::Acceptor), with limits on each connection.
// A module uses only what stands before it here.
mod config;
mod limited;
mod streams;
mod request_body;
mod body;
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
    body::HttpBody, builder::Server, identity::Authenticate, listen::BoundServer, service::HttpService,
};
