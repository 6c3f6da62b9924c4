//! The metrics of this process, which a server publishes at `GET /metrics` in the text format of Prometheus.
//!
//! They count from the start of the process, over all servers, clients and brains in it. A label has one of a bounded number of
//! values: ids of arms, contracts that are served or offered, routes as they were added, codes of errors. Ids of requests and
//! tasks, paths, peers and names that a caller has sent are never values of labels.
//!
//! A program adds metrics of its own by registering them with [`prometheus`], in its default registry. They appear on the same
//! page:
//!
//! ```
//! use octollm_core::metrics::{self, prometheus::register_int_counter};
//!
//! let tokens = register_int_counter!("judge_tokens_total", "Tokens that the judge has used.")?;
//! tokens.inc_by(17);
//! assert!(metrics::page().contains("judge_tokens_total 17"));
//! # Ok::<(), metrics::prometheus::Error>(())
//! ```
//!
//! The guide, in its chapter on operations, lists the metrics.

pub use prometheus;
use prometheus::TextEncoder;

/// The page of all metrics of this process, in the text format of Prometheus, version 0.0.4.
pub fn page() -> String {
    let mut page = String::new();
    for family in prometheus::gather() {
        // A family that cannot be written, such as one without samples, is left out.
        let before = page.len();
        if TextEncoder::new().encode_utf8(&[family], &mut page).is_err() {
            page.truncate(before);
        }
    }
    page
}
