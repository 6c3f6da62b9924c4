//! Calling arms and orchestrators over HTTP.
// A module uses only what stands before it here.
mod config;
mod endpoint;
mod exchange;
mod pool;
mod requests;
mod foreign;
mod answer;
mod offers;
mod directory;
mod stack;
mod arms;
mod orchestrator_client;
mod task_handle;
mod builder;

pub use self::{
    arms::Arms,
    builder::{ArmsBuilder, OrchestratorClientBuilder},
    exchange::Target,
    orchestrator_client::OrchestratorClient,
    requests::Exchange,
    task_handle::TaskHandle,
};
