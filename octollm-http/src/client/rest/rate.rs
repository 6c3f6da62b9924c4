//! The rate limit that a service states in its answers, as a function of time.

use std::time::{Duration, SystemTime};

use http::{
    HeaderMap, StatusCode,
    header::{DATE, HeaderValue},
};
use tokio::time::Instant;

use crate::client::foreign::retry_after;

/// When the next request may be sent.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct RateGate {
    /// `None` until a service has refused, or allowed nothing further.
    until: Option<Instant>,
}

/// The longest time for which one answer holds back further requests. A mistaken reset would stop the client for good.
const LONGEST: Duration = Duration::from_secs(3600);

impl RateGate {
    /// How long to wait before a request is sent; `None` if it may be sent now.
    pub(super) fn wait(&self, now: Instant) -> Option<Duration> {
        self.until?.checked_duration_since(now).filter(|wait| !wait.is_zero())
    }

    /// Takes what an answer states. `date` is the clock of this machine.
    pub(super) fn observe(&mut self, status: StatusCode, head: &HeaderMap, now: Instant, date: SystemTime) {
        let Some(wait) = stated(status, head, date) else { return };
        let until = now + wait.min(LONGEST);
        self.until = Some(self.until.map_or(until, |known| known.max(until)));
    }
}

/// The wait that an answer asks for: after a refusal `Retry-After`, and where no request is left the time of the reset.
fn stated(status: StatusCode, head: &HeaderMap, date: SystemTime) -> Option<Duration> {
    let refused = matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE);
    let asked = if refused { retry_after(head, date) } else { None };
    let limited =
        [("ratelimit-remaining", "ratelimit-reset"), ("x-ratelimit-remaining", "x-ratelimit-reset")]
            .into_iter()
            .filter(|(remaining, _)| head.get(*remaining).and_then(number) == Some(0.0))
            .filter_map(|(_, reset)| until_reset(head.get(reset).and_then(number)?, head, date));
    // A refusal says itself how long it holds.
    asked.or_else(|| limited.max())
}

/// A reset is in seconds, or a time in seconds or milliseconds since 1970, which is compared with the clock of the service if it states
/// that.
fn until_reset(reset: f64, head: &HeaderMap, date: SystemTime) -> Option<Duration> {
    const EPOCH_SECONDS: f64 = 1e9;
    const EPOCH_MILLISECONDS: f64 = 1e12;
    let at = match reset {
        seconds if seconds < EPOCH_SECONDS => return Duration::try_from_secs_f64(seconds).ok(),
        milliseconds if milliseconds >= EPOCH_MILLISECONDS => milliseconds / 1000.0,
        seconds => seconds,
    };
    let theirs = head.get(DATE).and_then(|date| httpdate::parse_http_date(date.to_str().ok()?).ok());
    let now = theirs.unwrap_or(date).duration_since(SystemTime::UNIX_EPOCH).ok()?;
    Some(Duration::try_from_secs_f64(at).ok()?.saturating_sub(now))
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
        let (now, date) = (Instant::now(), SystemTime::UNIX_EPOCH + Duration::from_secs(2_000_000_000));
        let mut gate = RateGate::default();
        gate.observe(StatusCode::from_u16(status).unwrap(), &head, now, date);
        gate.wait(now).map(|wait| wait.as_secs())
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
                    ("x-ratelimit-reset", "784111797"),
                    ("date", "Sun, 06 Nov 1994 08:49:37 GMT"),
                ],
                Some(3600),
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
            (429, &[("retry-after", "99999999999999999999")], Some(3600)),
            (200, &[("x-ratelimit-remaining", "0"), ("x-ratelimit-reset", "soon")], None),
            (200, &[("x-ratelimit-remaining", "0"), ("x-ratelimit-reset", "-1")], None),
            (200, &[("x-ratelimit-remaining", "0")], None),
            (200, &[("x-ratelimit-remaining", ""), ("x-ratelimit-reset", "5")], None),
        ] {
            assert_eq!(seconds(status, fields), wait, "{status} {fields:?}");
        }
    }

    proptest! {
        /// Against the list of all waits that were stated.
        #[test]
        fn the_gate_opens_when_all_stated_waits_have_passed(
            steps in prop::collection::vec((0_u64..50, prop::option::of(0_u64..100)), 0..40)
        ) {
            let (mut now, date) = (Instant::now(), SystemTime::UNIX_EPOCH);
            let (mut gate, mut ends) = (RateGate::default(), Vec::new());
            for (passed, stated) in steps {
                now += Duration::from_secs(passed);
                if let Some(wait) = stated {
                    let head = HeaderMap::from_iter([(http::header::RETRY_AFTER, wait.into())]);
                    gate.observe(StatusCode::TOO_MANY_REQUESTS, &head, now, date);
                    ends.push(now + Duration::from_secs(wait));
                }
                let expected = ends.iter().filter(|end| **end > now).map(|end| *end - now).max();
                prop_assert_eq!(gate.wait(now), expected);
            }
        }
    }
}
