//! The wire of octollm: servers and clients for task contracts over HTTP.
// A module uses only what stands before it here; `client` and `server` never import each other.
pub mod wire;
pub mod client;
pub mod server;

pub use self::{
    client::{Arms, ClientConfig, ConfigError, OrchestratorClient},
    server::{ArmServer, BoundServer, OrchestratorServer, ReflexServer, ServeError, ServerConfig},
};
