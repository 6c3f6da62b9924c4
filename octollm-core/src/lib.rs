//! octollm-core.
