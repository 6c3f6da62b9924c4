//! octollm-macros.
