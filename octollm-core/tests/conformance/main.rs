//! The public suites on the stores and buses in memory.

mod buses;
mod faulty;
mod keys;
#[path = "../buses/plain.rs"]
mod plain;
mod stores;
