//! Whether the peer of an HTTP/2 connection is still there, as a state machine without I/O and clock.

use std::time::Duration;

use tokio::time::Instant;

/// The time limits of a connection.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Silence after which a PING is sent, while a stream is open.
    pub(super) ping_interval: Duration,
    /// Time for its answer.
    pub(super) ping_timeout: Duration,
    /// Time for which the socket may take no byte.
    pub(super) write_idle: Duration,
    /// Time at which the connection takes no more streams.
    pub(super) retires: Instant,
}

/// What was observed of a connection.
#[derive(Debug, Clone, Copy)]
pub(super) struct Signs {
    /// Bytes read and written so far.
    pub(super) read: u64,
    pub(super) written: u64,
    /// Whether the last write found no room.
    pub(super) is_blocked: bool,
    pub(super) has_streams: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Check again then, and after each event.
    Wait(Instant),
    /// Send a PING.
    Ping,
    /// Begin no more streams.
    Retire,
    /// Close the connection: the peer does not answer.
    Silent,
    /// Close the connection: the peer does not read.
    Stuck,
}

/// The state of the checks.
#[derive(Debug)]
pub(super) struct Health {
    limits: Limits,
    read: u64,
    /// Time of the last byte, or of the first stream after a time without any.
    heard: Instant,
    has_streams: bool,
    pinged: Option<Instant>,
    written: u64,
    blocked: Option<Instant>,
    is_retired: bool,
}

impl Health {
    pub(super) fn new(limits: Limits, now: Instant) -> Self {
        Self {
            limits,
            read: 0,
            heard: now,
            has_streams: false,
            pinged: None,
            written: 0,
            blocked: None,
            is_retired: false,
        }
    }

    pub(super) fn check(&mut self, now: Instant, signs: Signs) -> Verdict {
        if signs.read != self.read || (signs.has_streams && !self.has_streams) {
            (self.read, self.heard, self.pinged) = (signs.read, now, None);
        }
        self.has_streams = signs.has_streams;
        if !signs.is_blocked {
            self.blocked = None;
        } else if self.blocked.is_none() || signs.written != self.written {
            self.blocked = Some(now);
        }
        self.written = signs.written;

        // Beyond every other time.
        let mut next = now + Duration::from_secs(24 * 3600);
        if let Some(blocked) = self.blocked {
            if now >= blocked + self.limits.write_idle {
                return Verdict::Stuck;
            }
            next = next.min(blocked + self.limits.write_idle);
        }
        if self.has_streams {
            let due = match self.pinged {
                Some(pinged) if now >= pinged + self.limits.ping_timeout => return Verdict::Silent,
                Some(pinged) => pinged + self.limits.ping_timeout,
                None if now >= self.heard + self.limits.ping_interval => {
                    self.pinged = Some(now);
                    return Verdict::Ping;
                }
                None => self.heard + self.limits.ping_interval,
            };
            next = next.min(due);
        }
        if !self.is_retired {
            if now >= self.limits.retires {
                self.is_retired = true;
                return Verdict::Retire;
            }
            next = next.min(self.limits.retires);
        }
        Verdict::Wait(next)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn secs(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn limits(begin: Instant) -> Limits {
        Limits {
            ping_interval: secs(15),
            ping_timeout: secs(10),
            write_idle: secs(10),
            retires: begin + secs(300),
        }
    }

    const QUIET: Signs = Signs { read: 1, written: 1, is_blocked: false, has_streams: true };

    #[tokio::test(start_paused = true)]
    async fn a_silent_peer_is_given_up_25_s_after_the_last_byte() {
        let begin = Instant::now();
        let mut health = Health::new(limits(begin), begin);
        assert_eq!(health.check(begin, QUIET), Verdict::Wait(begin + secs(15)));
        assert_eq!(health.check(begin + secs(15), QUIET), Verdict::Ping);
        assert_eq!(health.check(begin + secs(15), QUIET), Verdict::Wait(begin + secs(25)));
        assert_eq!(health.check(begin + secs(25), QUIET), Verdict::Silent);
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_stream_there_is_no_ping_and_the_silence_before_the_first_one_does_not_count() {
        let begin = Instant::now();
        let mut health = Health::new(limits(begin), begin);
        let idle = Signs { has_streams: false, ..QUIET };
        assert_eq!(health.check(begin + secs(100), idle), Verdict::Wait(begin + secs(300)));
        assert_eq!(health.check(begin + secs(100), QUIET), Verdict::Wait(begin + secs(115)));
        assert_eq!(health.check(begin + secs(301), idle), Verdict::Retire);
        let Verdict::Wait(_) = health.check(begin + secs(301), idle) else { panic!("retires once") };
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_does_not_read_is_given_up_after_the_write_limit() {
        let begin = Instant::now();
        let mut health = Health::new(limits(begin), begin);
        let blocked = |read, written| Signs { read, written, is_blocked: true, has_streams: true };
        assert_eq!(health.check(begin, blocked(1, 5)), Verdict::Wait(begin + secs(10)));
        assert_eq!(health.check(begin + secs(9), blocked(2, 6)), Verdict::Wait(begin + secs(19)));
        assert_eq!(health.check(begin + secs(19), blocked(3, 6)), Verdict::Stuck);
    }

    proptest! {
        /// Against a reference that keeps the whole history: the connection is closed exactly where the history has so long a silence.
        #[test]
        fn verdicts_are_those_of_the_history(
            steps in proptest::collection::vec((0_u64..12, any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>()), 1..60),
        ) {
            let begin = Instant::now();
            let far = Limits { retires: begin + secs(100_000), ..limits(begin) };
            let mut health = Health::new(far, begin);
            let (mut now, mut read, mut written) = (begin, 0, 0);
            let (mut heard, mut had_streams, mut stuck, mut pinged) = (begin, false, None, None::<Instant>);
            for (wait, reads, writes, is_blocked, has_streams) in steps {
                now += secs(wait);
                read += u64::from(reads);
                written += u64::from(writes);
                if reads || (has_streams && !had_streams) {
                    (heard, pinged) = (now, None);
                }
                had_streams = has_streams;
                stuck = match stuck {
                    _ if !is_blocked => None,
                    Some(since) if !writes => Some(since),
                    _ => Some(now),
                };
                let expected = if stuck.is_some_and(|since| now - since >= secs(10)) {
                    Verdict::Stuck
                } else if has_streams && pinged.is_some_and(|at| now - at >= secs(10)) {
                    Verdict::Silent
                } else if has_streams && pinged.is_none() && now - heard >= secs(15) {
                    pinged = Some(now);
                    Verdict::Ping
                } else {
                    let next = [
                        stuck.map(|since| since + secs(10)),
                        has_streams.then(|| pinged.map_or(heard + secs(15), |at| at + secs(10))),
                        Some((begin + secs(100_000)).min(now + secs(24 * 3600))),
                    ];
                    Verdict::Wait(next.into_iter().flatten().min().unwrap())
                };
                let verdict = health.check(now, Signs { read, written, is_blocked, has_streams });
                prop_assert_eq!(verdict, expected);
                if matches!(verdict, Verdict::Stuck | Verdict::Silent) {
                    break;
                }
            }
        }
    }
}
