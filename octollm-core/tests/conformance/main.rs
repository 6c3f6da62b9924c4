//! The public suites on the stores and buses in memory.

mod buses;
mod keys;
mod stores;
