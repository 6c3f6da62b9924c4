//! octollm-core.

pub mod event;
