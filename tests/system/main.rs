//! Whole systems over sockets, and the example programs as a user runs them.

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
