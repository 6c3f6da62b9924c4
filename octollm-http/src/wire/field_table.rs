//! The table of fields that both ends of an HTTP/2 connection remember (HPACK).

use std::sync::atomic::{AtomicBool, Ordering};

use http::{HeaderMap, HeaderName, HeaderValue};

use super::headers::NOTHING_USED;

/// One direction of an HTTP/2 connection, whose ends remember the fields of earlier messages in a table (HPACK).
#[derive(Debug, Default)]
pub(crate) struct FieldTable {
    has_names: AtomicBool,
}

impl FieldTable {
    /// Keeps values that are of one message out of the table, except those of the first message, which enters their names. Both
    /// ends would enter and remove them for nothing, and compare each value with all before it.
    pub(crate) fn spare(&self, head: &mut HeaderMap) {
        if !self.has_names.swap(true, Ordering::Relaxed) {
            return;
        }
        for (name, value) in head {
            if is_of_one_message(name, value) {
                // "Never indexed" of RFC 7541.
                value.set_sensitive(true);
            }
        }
    }
}

fn is_of_one_message(name: &HeaderName, value: &HeaderValue) -> bool {
    match name.as_str() {
        "x-request-id"
        | "x-correlation-id"
        | "octollm-task-id"
        | "idempotency-key"
        | "traceparent"
        | "octollm-timeout"
        | "octollm-budget"
        | "octollm-proof"
        | "x-ratelimit-remaining"
        | "x-ratelimit-reset" => true,
        "octollm-usage" => value != NOTHING_USED,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_one_message_stay_out_of_the_table_of_a_connection_after_the_first() {
        let (table, usage) = (FieldTable::default(), "octollm-usage");
        for (is_first, used) in [(true, "tokens=7"), (false, "tokens=7"), (false, NOTHING_USED)] {
            let fields = [("x-request-id", "a"), ("accept", "application/json"), (usage, used)];
            let field = |(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value));
            let mut head: HeaderMap = fields.into_iter().map(field).collect();
            table.spare(&mut head);
            let is_spared = |name: &str| head[name].is_sensitive();
            assert_eq!(is_spared("x-request-id"), !is_first);
            assert_eq!(is_spared(usage), !is_first && used != NOTHING_USED);
            assert!(!is_spared("accept"));
        }
    }
}
