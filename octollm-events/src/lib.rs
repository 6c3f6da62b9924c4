//! octollm-events.
