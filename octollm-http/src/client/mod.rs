//! Calling arms and orchestrators over HTTP.
// A module uses only what stands before it here.
mod config_error;
mod config;
mod endpoint;
mod env;
mod exchange_error;
mod pool;
mod exchange;
mod retry_after;
mod foreign;
mod answer;
mod route;
mod directory;
mod arms;
mod builder;

pub use self::{
    arms::Arms,
    builder::ArmsBuilder,
    config::ClientConfig,
    config_error::{ConfigError, UrlProblem},
    exchange::{Exchange, Target},
    exchange_error::ExchangeError,
};
