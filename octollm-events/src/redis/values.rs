//! The values of replies and arguments.

use std::time::Duration;

use bytes::Bytes;

use super::reply::Reply;

pub(super) fn items(reply: Reply) -> Vec<Reply> {
    match reply {
        Reply::List(items) => items,
        _ => Vec::new(),
    }
}

pub(super) fn bytes(reply: Reply) -> Bytes {
    match reply {
        Reply::Text(bytes) => bytes,
        Reply::Number(number) => number.to_string().into(),
        _ => Bytes::new(),
    }
}

pub(super) fn text(reply: Reply) -> String {
    String::from_utf8_lossy(&bytes(reply)).into_owned()
}

pub(super) fn number(reply: &Reply) -> i64 {
    match reply {
        Reply::Number(number) => *number,
        Reply::Text(digits) => {
            std::str::from_utf8(digits).ok().and_then(|text| text.parse().ok()).unwrap_or(0)
        }
        _ => 0,
    }
}

/// Rounded up: nothing is early.
pub(super) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_micros().div_ceil(1_000)).unwrap_or(u64::MAX).min(1 << 52)
}
