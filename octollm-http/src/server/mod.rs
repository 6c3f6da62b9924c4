//! Servers for arms, orchestrators and reflexes.
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
