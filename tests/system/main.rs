//! Whole systems over sockets, and the example programs as a user runs them.

mod dependencies;
mod examples;
mod hops;
mod quickstart;
mod tasks;
