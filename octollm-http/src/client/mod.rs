//! Calling arms and orchestrators over HTTP.
// A module uses only what stands before it here.
mod config;
mod endpoint;
mod exchange_error;
mod pool;
mod exchange;
mod foreign;
mod answer;
mod route;
mod directory;
mod stack;
mod arms;
mod orchestrator_client;
mod task_handle;
mod builder;

pub use self::{
    arms::Arms,
    builder::{ArmsBuilder, OrchestratorClientBuilder},
    config::ClientConfig,
    exchange::{Exchange, Target},
    exchange_error::ExchangeError,
    orchestrator_client::OrchestratorClient,
    task_handle::TaskHandle,
};
