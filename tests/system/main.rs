//! Whole systems over sockets, and the example programs as a user runs them.

#[cfg(feature = "otel")]
mod collector;
mod counts;
#[cfg(unix)]
mod ending;
mod examples;
mod hops;
mod logged;
mod quickstart;
mod reports;
mod repository;
mod tasks;
#[cfg(feature = "otel")]
mod traces;
