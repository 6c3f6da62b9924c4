//! `Retry-After`: seconds, or a date.

use std::time::{Duration, SystemTime};

use http::{HeaderMap, header::RETRY_AFTER};

/// How long a server asks to wait. What it says is ignored where it is neither seconds nor a date; a date gone by is no
/// wait at all.
pub(super) fn read(head: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let value = head.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit()) {
        return value.parse().ok().map(Duration::from_secs);
    }
    let until = httpdate::parse_http_date(value).ok()?;
    Some(until.duration_since(now).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_seconds_and_dates_and_ignores_the_rest() {
        let now = httpdate::parse_http_date("Sun, 06 Nov 1994 08:49:37 GMT").unwrap();
        for (value, wait) in [
            ("2", Some(2)),
            ("0", Some(0)),
            ("86400", Some(86_400)),
            ("Sun, 06 Nov 1994 08:49:47 GMT", Some(10)),
            ("Sunday, 06-Nov-94 08:49:47 GMT", Some(10)),
            ("Sun, 06 Nov 1994 08:49:27 GMT", Some(0)),
            ("abc", None),
            ("-1", None),
            ("1.5", None),
            ("+1", None),
            ("", None),
            ("99999999999999999999999", None),
        ] {
            let head = HeaderMap::from_iter([(RETRY_AFTER, value.parse().unwrap())]);
            assert_eq!(read(&head, now), wait.map(Duration::from_secs), "{value}");
        }
        assert_eq!(read(&HeaderMap::new(), now), None);
    }
}
