//! octollm.
