//! octollm-http.
