//! Calling arms and orchestrators over HTTP.
// A module uses only what stands before it here.
mod config_error;
mod config;
mod endpoint;
mod env;
mod exchange_error;
mod pool;
mod exchange;
mod assembly;
mod retry_after;
mod foreign;
mod answer;
mod route;
mod directory;
mod arms;
mod watch;
mod orchestrator_client;
mod builder;

pub use self::{
    arms::Arms,
    builder::{ArmsBuilder, OrchestratorClientBuilder},
    config::ClientConfig,
    config_error::{ConfigError, UrlProblem},
    exchange::{Exchange, Target},
    exchange_error::ExchangeError,
    orchestrator_client::OrchestratorClient,
};
