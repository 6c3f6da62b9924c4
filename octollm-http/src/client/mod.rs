//! Calling arms and orchestrators over HTTP.
// A module uses only what stands before it here.
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

pub use self::{
    arms::{Arms, ArmsBuilder},
    exchange::Target,
    orchestrator_client::{OrchestratorClient, OrchestratorClientBuilder},
    task_handle::TaskHandle,
};
