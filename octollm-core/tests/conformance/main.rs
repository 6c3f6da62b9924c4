//! The public suites on the stores and buses in memory.

mod keys;
mod stores;
