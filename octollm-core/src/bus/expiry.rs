//! When an event stops being worth delivering.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

/// What `expires_at` means for a bus whose clock is monotonic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Expiry {
    Never,
    At(Instant),
    Past,
}

impl Expiry {
    /// Translates a point of the wall clock, which shows `wall` while the monotonic one shows `now`.
    pub(super) fn from_wall(expires_at: Timestamp, wall: Timestamp, now: Instant) -> Self {
        // No difference of two timestamps overflows, and a negative one is no `Duration`.
        match Duration::try_from(expires_at.duration_since(wall)) {
            Ok(Duration::ZERO) | Err(_) => Self::Past,
            // What lies beyond the clock's range is as good as never.
            Ok(left) => now.checked_add(left).map_or(Self::Never, Self::At),
        }
    }

    /// Reads the clocks, if there is anything to translate.
    pub(super) fn of(expires_at: Option<Timestamp>) -> Self {
        expires_at.map_or(Self::Never, |at| Self::from_wall(at, Timestamp::now(), Instant::now()))
    }

    /// Whether it is over at `now`, which is asked for only if it matters.
    pub(super) fn is_over(self, now: impl FnOnce() -> Instant) -> bool {
        match self {
            Self::Never => false,
            Self::At(at) => now() >= at,
            Self::Past => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wall_clock_becomes_the_monotonic_one() {
        let (wall, now) = (Timestamp::UNIX_EPOCH, Instant::now());
        let second = Duration::from_secs(1);
        assert_eq!(Expiry::from_wall(wall + second, wall, now), Expiry::At(now + second));
        assert_eq!(Expiry::from_wall(wall, wall, now), Expiry::Past);
        assert_eq!(Expiry::from_wall(wall - second, wall, now), Expiry::Past);
        assert_ne!(Expiry::from_wall(Timestamp::MAX, Timestamp::MIN, now), Expiry::Past);
    }

    #[test]
    fn it_is_over_from_the_very_moment() {
        let now = Instant::now();
        assert!(Expiry::At(now).is_over(|| now));
        assert!(!Expiry::At(now + Duration::from_millis(1)).is_over(|| now));
        assert!(Expiry::Past.is_over(|| now));
        assert!(!Expiry::Never.is_over(|| now));
    }
}
