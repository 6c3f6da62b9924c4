//! Deadlines, and the one race against them.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use pin_project_lite::pin_project;
use tokio::{
    task::{Unconstrained, unconstrained},
    time::{Instant, Sleep, sleep_until},
};

/// The moment after which a result is no longer awaited.
///
/// It crosses the network as the time that is left, never as a clock time. It follows tokio's clock, so that tests can
/// pause it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Deadline(Instant);

impl Deadline {
    /// The moment `duration` from now.
    pub fn after(duration: Duration) -> Self {
        Self(later(Instant::now(), duration))
    }

    /// The moment `duration` after `begin`.
    pub fn since(begin: Instant, duration: Duration) -> Self {
        Self(later(begin, duration))
    }

    /// A deadline at `instant`.
    pub fn at(instant: Instant) -> Self {
        Self(instant)
    }

    /// The moment of the deadline.
    pub fn instant(self) -> Instant {
        self.0
    }

    /// The time that is left; zero once the deadline has passed.
    pub fn remaining(self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }

    /// Whether the deadline has passed at `now`.
    pub fn has_passed_at(self, now: Instant) -> bool {
        self.0 <= now
    }

    /// Whether the deadline has passed.
    pub fn has_passed(self) -> bool {
        self.remaining().is_zero()
    }

    /// Runs `work` until it ends or the deadline passes, whichever comes first. If both happen at once, the work has ended.
    ///
    /// The timer is polled outside of tokio's cooperative budget, so that it also ends work that spends the budget of every
    /// turn.
    ///
    /// Returns `None` if the deadline passed. The work is dropped then.
    ///
    /// # Cancel safety
    /// Dropping the future drops the work.
    pub fn run<F: Future>(self, work: F) -> impl Future<Output = Option<F::Output>> {
        Self::run_until(Some(self), work)
    }

    /// As [`run`](Self::run); without a deadline the work runs to its end.
    ///
    /// # Cancel safety
    /// As [`run`](Self::run).
    pub fn run_until<F: Future>(deadline: Option<Self>, work: F) -> impl Future<Output = Option<F::Output>> {
        RunUntil { work, limit: deadline.map(Limit::At), timer: None }
    }
}

/// As [`Deadline::run`], until a time after the first poll at which the work is pending. Work that is ready at once reads no clock.
pub(crate) fn run_within<F: Future>(limit: Duration, work: F) -> impl Future<Output = Option<F::Output>> {
    RunUntil { work, limit: Some(Limit::Within(limit)), timer: None }
}

#[derive(Clone, Copy)]
enum Limit {
    At(Deadline),
    Within(Duration),
}

/// Returns `now + by`, or a time a year from now if the clock cannot represent it.
pub(crate) fn later(now: Instant, by: Duration) -> Instant {
    const FAR: Duration = Duration::from_secs(365 * 24 * 3600);
    now.checked_add(by).unwrap_or(now + FAR)
}

pin_project! {
    /// Work that ends at a deadline: see [`Deadline::run`].
    // A type of its own: the future of an `async fn` stores its arguments twice.
    #[must_use = "futures do nothing unless they are awaited"]
    struct RunUntil<F> {
        #[pin]
        work: F,
        limit: Option<Limit>,
        // From the first pending poll on.
        #[pin]
        timer: Option<Unconstrained<Sleep>>,
    }
}

impl<F: Future> Future for RunUntil<F> {
    type Output = Option<F::Output>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        if let Poll::Ready(output) = this.work.poll(cx) {
            return Poll::Ready(Some(output));
        }
        if let Some(limit) = this.limit.take() {
            let end = match limit {
                Limit::At(deadline) => deadline,
                Limit::Within(time) => Deadline::after(time),
            };
            this.timer.set(Some(unconstrained(sleep_until(end.0))));
        }
        match this.timer.as_pin_mut() {
            Some(timer) => timer.poll(cx).map(|()| None),
            None => Poll::Pending,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn work_that_spends_every_budget_ends_at_the_deadline() {
        let begun = Instant::now();
        let greedy = async {
            // Real time does not pass while nothing waits: the clock is moved on by hand.
            for _ in 0..100 {
                tokio::time::advance(Duration::from_millis(20)).await;
                for _ in 0..1000 {
                    tokio::task::coop::consume_budget().await;
                }
            }
        };
        let ended = Deadline::after(Duration::from_secs(1)).run(greedy).await;
        assert_eq!(ended, None);
        assert!(begun.elapsed() < Duration::from_millis(1_200), "{:?}", begun.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn work_that_ends_in_the_last_moment_has_ended() {
        let deadline = Deadline::after(Duration::from_secs(1));
        assert_eq!(deadline.run(sleep_until(deadline.instant())).await, Some(()));
        assert_eq!(Deadline::run_until(None, async { 7 }).await, Some(7));
    }
}
