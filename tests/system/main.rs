//! Whole systems over sockets, and the example programs as a user runs them.

mod examples;
mod hops;
mod quickstart;
mod repository;
mod tasks;
