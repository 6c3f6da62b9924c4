//! The rate limit that a service states in its answers, as a function of time.

use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderValue, StatusCode};
use tokio::time::Instant;

use crate::client::foreign::{clock, retry_after};

/// When the next request may be sent.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct RateGate {
    /// `None` until a service has refused, or allowed nothing further.
    until: Option<Instant>,
}

impl RateGate {
    /// How long to wait before a request is sent; `None` if it may be sent now.
    pub(super) fn wait(&self, now: Instant) -> Option<Duration> {
        self.until?.checked_duration_since(now).filter(|wait| !wait.is_zero())
    }

    /// Holds back further requests for this time, from which on they may be sent.
    pub(super) fn hold(&mut self, wait: Duration, now: Instant) {
        let until = now + wait;
        self.until = Some(self.until.map_or(until, |known| known.max(until)));
    }
}

/// The wait that an answer asks for: after a refusal `Retry-After`, and where nothing is left of a limit the time of its reset. `date`
/// is the clock of this machine.
pub(super) fn stated(status: StatusCode, head: &HeaderMap, date: SystemTime) -> Option<Duration> {
    let refused = matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE);
    let asked = if refused { milliseconds(head).or_else(|| retry_after(head, date)) } else { None };
    // A refusal says itself how long it holds.
    asked.or_else(|| by_fields(head, date).chain(by_lists(head)).max())
}

/// `retry-after-ms`, as some models have it.
fn milliseconds(head: &HeaderMap) -> Option<Duration> {
    Duration::try_from_secs_f64(head.get("retry-after-ms").and_then(number)? / 1000.0).ok()
}

/// The resets of limits with fields of their own, of which nothing is left: `X-RateLimit-Remaining` and `X-RateLimit-Reset`,
/// `x-ratelimit-remaining-tokens`, `anthropic-ratelimit-requests-remaining`, and others of this form.
fn by_fields(head: &HeaderMap, date: SystemTime) -> impl Iterator<Item = Duration> {
    head.iter().filter_map(move |(name, left)| {
        let name = name.as_str();
        let is_limit = name.contains("ratelimit") || name.contains("rate-limit");
        if !is_limit || !name.contains("remaining") || number(left) != Some(0.0) {
            return None;
        }
        until_reset(head.get(name.replacen("remaining", "reset", 1))?, head, date)
    })
}

/// The resets in `RateLimit`, a list such as `"day";r=0;t=30`, or `limit=9, remaining=0, reset=30` in earlier drafts. A limit
/// without a reset holds for the window that `RateLimit-Policy` has for it.
fn by_lists(head: &HeaderMap) -> impl Iterator<Item = Duration> {
    let seconds = |text: &str| Duration::try_from_secs_f64(text.parse().ok()?).ok();
    let policies: Vec<_> = items(head, "ratelimit-policy").map(parameters).collect();
    let mut waits = Vec::new();
    let (mut is_spent, mut reset) = (false, None);
    for item in items(head, "ratelimit") {
        let limit = parameters(item);
        match limit.first() {
            Some(("remaining", left)) => is_spent = *left == "0",
            Some(("reset", time)) => reset = seconds(time),
            Some((name, "")) => {
                let policy =
                    policies.iter().find(|policy| policy.first().is_some_and(|(known, _)| known == name));
                let of_policy = |name| policy.and_then(|policy| value(policy, name));
                // Such a limit ends with a request, and not with a time.
                if value(&limit, "r") == Some("0") && of_policy("qu") != Some("concurrent-requests") {
                    waits.extend(value(&limit, "t").or_else(|| of_policy("w")).and_then(seconds));
                }
            }
            _ => {}
        }
    }
    waits.extend(reset.filter(|_| is_spent));
    waits.into_iter()
}

/// The items of a list (RFC 9651 §3.1).
fn items<'a>(head: &'a HeaderMap, name: &'static str) -> impl Iterator<Item = &'a str> {
    head.get_all(name).iter().filter_map(|value| value.to_str().ok()).flat_map(|value| split(value, ','))
}

/// The name and the parameters of an item, without quotes.
fn parameters(item: &str) -> Vec<(&str, &str)> {
    let pair = |part| {
        let mut pair = split(part, '=').map(|text| text.trim_matches('"'));
        (pair.next().unwrap_or_default(), pair.next().unwrap_or_default())
    };
    split(item, ';').map(pair).collect()
}

fn value<'a>(parameters: &[(&'a str, &'a str)], name: &str) -> Option<&'a str> {
    parameters.iter().skip(1).find(|(known, _)| *known == name).map(|(_, value)| *value)
}

/// The parts between separators outside of quotes.
fn split(text: &str, separator: char) -> impl Iterator<Item = &str> {
    let (mut is_quoted, mut is_escaped) = (false, false);
    text.split(move |c| {
        let is_escape = std::mem::take(&mut is_escaped);
        match c {
            '\\' if is_quoted => is_escaped = !is_escape,
            '"' if !is_escape => is_quoted = !is_quoted,
            c => return c == separator && !is_quoted,
        }
        false
    })
    .map(str::trim)
}

/// The time until a reset: in seconds, as a duration such as `6m0s`, or as a time. That is a date, or in seconds or milliseconds since 1970,
/// and is compared with the clock of the service if it states that.
fn until_reset(reset: &HeaderValue, head: &HeaderMap, date: SystemTime) -> Option<Duration> {
    const EPOCH_SECONDS: f64 = 1e9;
    const EPOCH_MILLISECONDS: f64 = 1e12;
    let epoch = SystemTime::UNIX_EPOCH;
    let at = match number(reset) {
        Some(seconds) if seconds < EPOCH_SECONDS => return Duration::try_from_secs_f64(seconds).ok(),
        Some(milliseconds) if milliseconds >= EPOCH_MILLISECONDS => {
            Duration::try_from_secs_f64(milliseconds / 1000.0).ok()?
        }
        Some(seconds) => Duration::try_from_secs_f64(seconds).ok()?,
        None => {
            let text = reset.to_str().ok()?.trim();
            if let Some(duration) = duration(text) {
                return Some(duration);
            }
            let date = text.parse().map(|date: jiff::Timestamp| date.into()).ok();
            date.or_else(|| httpdate::parse_http_date(text).ok())?.duration_since(epoch).ok()?
        }
    };
    let now = clock(head, date).duration_since(epoch).ok()?;
    Some(at.saturating_sub(now))
}

/// A duration with units: `1h2m3.5s`, `20ms`.
fn duration(text: &str) -> Option<Duration> {
    let (mut rest, mut sum) = (text, 0.0);
    while !rest.is_empty() {
        let unit = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..unit].parse().ok()?;
        let end = rest[unit..].find(|c: char| c.is_ascii_digit()).map_or(rest.len(), |end| unit + end);
        sum += number
            * match &rest[unit..end] {
                "d" => 86_400.0,
                "h" => 3600.0,
                "m" => 60.0,
                "s" => 1.0,
                "ms" => 1e-3,
                "us" | "µs" => 1e-6,
                "ns" => 1e-9,
                _ => return None,
            };
        rest = &rest[end..];
    }
    if text.is_empty() { None } else { Duration::try_from_secs_f64(sum).ok() }
}

/// The number at the beginning of a value: `0`, or `0, 0;w=60`.
fn number(value: &HeaderValue) -> Option<f64> {
    let text = value.to_str().ok()?.split([',', ';']).next()?.trim();
    let is_number = text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    if is_number { text.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use http::HeaderName;
    use proptest::prelude::*;

    use super::*;

    fn seconds(status: u16, fields: &[(&'static str, &str)]) -> Option<u64> {
        let head = fields
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap()))
            .collect();
        milliseconds_of(status, head).map(|wait| (wait / 1000) as u64).filter(|wait| *wait > 0)
    }

    fn milliseconds_of(status: u16, head: HeaderMap) -> Option<u128> {
        let date = SystemTime::UNIX_EPOCH + Duration::from_secs(2_000_000_000);
        stated(StatusCode::from_u16(status).unwrap(), &head, date).map(|wait| wait.as_millis())
    }

    #[test]
    fn reads_what_services_state() {
        for (status, fields, wait) in [
            (429, &[("retry-after", "7")][..], Some(7)),
            (503, &[("retry-after", "7")], Some(7)),
            (200, &[("retry-after", "7")], None),
            (429, &[], None),
            (200, &[("ratelimit-remaining", "0"), ("ratelimit-reset", "9")], Some(9)),
            (200, &[("ratelimit-remaining", "1"), ("ratelimit-reset", "9")], None),
            (200, &[("ratelimit-remaining", "0, 0;w=60"), ("ratelimit-reset", "9;w=60")], Some(9)),
            (404, &[("x-ratelimit-remaining", "0"), ("x-ratelimit-reset", "2000000030")], Some(30)),
            (200, &[("x-ratelimit-remaining", "0"), ("x-ratelimit-reset", "2000000030000")], Some(30)),
            (200, &[("x-ratelimit-remaining", "0"), ("x-ratelimit-reset", "1999999999")], None),
            // Without a clock in common: 20 s by that of the service.
            (
                403,
                &[
                    ("x-ratelimit-remaining", "0"),
                    ("x-ratelimit-reset", "1000000020"),
                    ("date", "Sun, 09 Sep 2001 01:46:40 GMT"),
                ],
                Some(20),
            ),
            (
                403,
                &[
                    ("x-ratelimit-remaining", "0"),
                    ("x-ratelimit-reset", "1700000020"),
                    ("date", "Tue, 14 Nov 2023 22:13:20 GMT"),
                ],
                Some(20),
            ),
            (
                429,
                &[("retry-after", "3"), ("x-ratelimit-remaining", "0"), ("x-ratelimit-reset", "60")],
                Some(3),
            ),
            (429, &[("retry-after", "99999999999999999999")], Some(u64::MAX)),
            (200, &[("x-ratelimit-remaining", "0"), ("x-ratelimit-reset", "soon")], None),
            (200, &[("x-ratelimit-remaining", "0"), ("x-ratelimit-reset", "-1")], None),
            (200, &[("x-ratelimit-remaining", "0")], None),
            (200, &[("x-ratelimit-remaining", ""), ("x-ratelimit-reset", "5")], None),
        ] {
            assert_eq!(seconds(status, fields), wait, "{status} {fields:?}");
        }
    }

    #[test]
    fn reads_the_limits_of_models_and_of_drafts() {
        for (fields, milliseconds) in [
            (
                &[("x-ratelimit-remaining-requests", "0"), ("x-ratelimit-reset-requests", "6m0s")][..],
                Some(360_000),
            ),
            (&[("x-ratelimit-remaining-tokens", "0"), ("x-ratelimit-reset-tokens", "20ms")], Some(20)),
            (
                &[("x-ratelimit-remaining-tokens", "0"), ("x-ratelimit-reset-tokens", "1h2m3.5s")],
                Some(3_723_500),
            ),
            // That of one limit is not that of another.
            (
                &[
                    ("x-ratelimit-remaining-requests", "9"),
                    ("x-ratelimit-reset-requests", "1h"),
                    ("x-ratelimit-remaining-tokens", "0"),
                    ("x-ratelimit-reset-tokens", "2s"),
                ],
                Some(2000),
            ),
            (&[("x-ratelimit-remaining-tokens", "0"), ("x-ratelimit-reset-requests", "1s")], None),
            (&[("x-ratelimit-remaining-tokens", "0"), ("x-ratelimit-reset-tokens", "1y")], None),
            (&[("x-ratelimit-remaining-tokens", "0"), ("x-ratelimit-reset-tokens", "s")], None),
            (
                &[
                    ("anthropic-ratelimit-requests-remaining", "0"),
                    ("anthropic-ratelimit-requests-reset", "2033-05-18T03:33:50Z"),
                ],
                Some(30_000),
            ),
            (
                &[
                    ("anthropic-ratelimit-input-tokens-remaining", "0"),
                    ("anthropic-ratelimit-input-tokens-reset", "2033-05-18T03:33:21Z"),
                ],
                Some(1000),
            ),
            (
                &[
                    ("anthropic-ratelimit-tokens-remaining", "1"),
                    ("anthropic-ratelimit-tokens-reset", "2033-05-18T03:33:50Z"),
                ],
                None,
            ),
            (&[("x-rate-limit-remaining", "0"), ("x-rate-limit-reset", "5")], Some(5000)),
            (&[("ratelimit", "limit=10, remaining=0, reset=7")], Some(7000)),
            (&[("ratelimit", "limit=10, remaining=1, reset=7")], None),
            (&[("ratelimit", r#""burst";r=0;t=3, "day";r=50;t=900"#)], Some(3000)),
            (&[("ratelimit", r#""burst";r=0;t=3, "day";r=0;t=900"#)], Some(900_000)),
            (&[("ratelimit", r#""a,b;r=0;t=9\"";r=1;t=9"#)], None),
            (&[("ratelimit", r#"default;r=0;t=4"#)], Some(4000)),
            (
                &[("ratelimit-policy", r#""a";q=10;w=60, "b";q=9;w=5"#), ("ratelimit", r#""b";r=0"#)],
                Some(5000),
            ),
            (
                &[
                    ("ratelimit-policy", r#""a";q=10;w=60;qu="concurrent-requests""#),
                    ("ratelimit", r#""a";r=0;t=60"#),
                ],
                None,
            ),
            (&[("ratelimit", r#""a";r=0"#)], None),
            (&[("ratelimit", r#""a;r=0"#)], None),
        ] {
            let head: HeaderMap = fields
                .iter()
                .map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap()))
                .collect();
            assert_eq!(milliseconds_of(200, head), milliseconds, "{fields:?}");
        }
        let refused =
            [("retry-after-ms", "1500"), ("retry-after", "2"), ("x-ratelimit-remaining-tokens", "0")];
        assert_eq!(seconds(429, &refused), Some(1));
    }

    proptest! {
        /// Against the list of all waits that were stated.
        #[test]
        fn the_gate_opens_when_all_stated_waits_have_passed(
            steps in prop::collection::vec((0_u64..50, prop::option::of(0_u64..100)), 0..40)
        ) {
            let mut now = Instant::now();
            let (mut gate, mut ends) = (RateGate::default(), Vec::new());
            for (passed, stated) in steps {
                now += Duration::from_secs(passed);
                if let Some(wait) = stated {
                    gate.hold(Duration::from_secs(wait), now);
                    ends.push(now + Duration::from_secs(wait));
                }
                let expected = ends.iter().filter(|end| **end > now).map(|end| *end - now).max();
                prop_assert_eq!(gate.wait(now), expected);
            }
        }

        #[test]
        fn any_field_is_read_without_harm(name in "(x-)?ratelimit(-remaining|-reset|-policy)?", value in "[ -~]{0,40}") {
            let head = HeaderMap::from_iter([
                (name.parse::<HeaderName>().unwrap(), HeaderValue::try_from(value).unwrap()),
                (HeaderName::from_static("x-ratelimit-remaining"), HeaderValue::from_static("0")),
            ]);
            let _ = stated(StatusCode::OK, &head, SystemTime::UNIX_EPOCH);
        }
    }
}
