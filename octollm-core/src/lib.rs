//! octollm-core.

pub mod bus;
pub mod event;
