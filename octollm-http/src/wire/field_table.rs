//! The table of fields that both ends of an HTTP/2 connection remember (HPACK), and the token in it.

use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicBool, Ordering},
};

use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{AUTHORIZATION, Entry},
};

use super::headers::{NOTHING_USED, names};

/// One direction of an HTTP/2 connection, whose ends remember the fields of earlier messages in a table (HPACK).
#[derive(Debug, Default)]
pub(crate) struct FieldTable {
    has_names: AtomicBool,
}

impl FieldTable {
    /// Keeps values that are of one message out of the table, except those of the first message, which enters their names. Both
    /// ends would enter and remove them for nothing, and compare each value with all before it. Returns whether this is the first
    /// message.
    pub(crate) fn spare(&self, head: &mut HeaderMap) -> bool {
        if !self.has_names.load(Ordering::Relaxed) && !self.has_names.swap(true, Ordering::Relaxed) {
            return true;
        }
        for (name, value) in head {
            if is_of_one_message(name, value) {
                // "Never indexed" of RFC 7541.
                value.set_sensitive(true);
            }
        }
        false
    }

    /// Takes the next message for the first one. A token has entered the table, for which the oldest entries are removed.
    fn renew(&self) {
        self.has_names.store(false, Ordering::Relaxed);
    }
}

/// The token in the requests of an HTTP/2 connection.
///
/// The crate h2 never enters an `Authorization` into the table, so that about 1 KiB is coded, sent and decoded with each request. A
/// token is sent in the field [`names::TOKEN`] instead where the server has offered that and the request before had the same token.
#[derive(Debug, Default)]
pub(crate) struct TokenField {
    is_offered: AtomicBool,
    is_refused: AtomicBool,
    last: Mutex<LastToken>,
}

#[derive(Debug, Default)]
struct LastToken {
    value: Option<HeaderValue>,
    is_in_table: bool,
}

impl TokenField {
    /// Moves the token of a request to the field that is entered into the table. Returns whether it did.
    pub(crate) fn write(&self, head: &mut HeaderMap, table: &FieldTable) -> bool {
        if !self.is_offered.load(Ordering::Relaxed) {
            return false;
        }
        let Entry::Occupied(field) = head.entry(AUTHORIZATION) else { return false };
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.value.as_ref() != Some(field.get()) {
            *last = LastToken { value: Some(field.get().clone()), is_in_table: false };
            return false;
        }
        if !std::mem::replace(&mut last.is_in_table, true) {
            table.renew();
        }
        let mut token = field.remove();
        token.set_sensitive(false);
        head.insert(names::TOKEN, token);
        true
    }

    /// Reads from the head of an answer whether the server takes tokens in that field.
    pub(crate) fn read_offer(&self, answer: &HeaderMap) {
        if !self.is_offered.load(Ordering::Relaxed)
            && answer.contains_key(names::TOKEN)
            && !self.is_refused.load(Ordering::Relaxed)
        {
            self.is_offered.store(true, Ordering::Relaxed);
        }
    }

    /// Sends no token in that field any more: what stands before the server may look for an `Authorization`.
    pub(crate) fn refuse(&self) {
        self.is_refused.store(true, Ordering::Relaxed);
        self.is_offered.store(false, Ordering::Relaxed);
    }
}

/// Offers to take tokens in the field that is entered into the table.
pub(crate) fn offer_token_field(answer: &mut HeaderMap) {
    answer.insert(names::TOKEN, HeaderValue::from_static("?1"));
}

/// Makes the token in that field an `Authorization`, beside one that is there already.
pub(crate) fn read_token_field(request: &mut HeaderMap) {
    let Entry::Occupied(field) = request.entry(names::TOKEN) else { return };
    // Two are refused, and so are more.
    let tokens = {
        let mut tokens = field.remove_entry_mult().1;
        [tokens.next(), tokens.next()]
    };
    for mut token in tokens.into_iter().flatten() {
        token.set_sensitive(true);
        request.append(AUTHORIZATION, token);
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
