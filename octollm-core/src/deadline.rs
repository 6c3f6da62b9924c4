//! Until when work may go on.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    task::Poll,
    time::Duration,
};

use tokio::{
    task::unconstrained,
    time::{Instant, sleep_until},
};

/// A moment after which nobody waits for the result. It crosses the network as the time that is left, never as a
/// clock time, and follows tokio's clock, so that tests can pause it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Deadline(Instant);

/// What cannot be added to a clock is this far away.
const FAR: Duration = Duration::from_secs(365 * 24 * 3600);

impl Deadline {
    /// So long from now.
    pub fn after(duration: Duration) -> Self {
        let now = Instant::now();
        Self(now.checked_add(duration).unwrap_or(now + FAR))
    }

    /// At this moment.
    pub fn at(instant: Instant) -> Self {
        Self(instant)
    }

    /// The moment itself.
    pub fn instant(self) -> Instant {
        self.0
    }

    /// What is left; zero when it has passed.
    pub fn remaining(self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }

    /// Whether it has passed.
    pub fn has_passed(self) -> bool {
        self.remaining().is_zero()
    }

    /// Runs `work` until it ends or this moment passes, whichever comes first. Where both are true at once the work has
    /// ended.
    ///
    /// The timer is polled outside of tokio's cooperative budget: work that spends the budget of every turn is ended all
    /// the same.
    ///
    /// # Errors
    /// [`DeadlinePassed`]; the work was dropped.
    ///
    /// # Cancel safety
    /// Dropping the future drops the work.
    pub async fn run<F: Future>(self, work: F) -> Result<F::Output, DeadlinePassed> {
        let mut work = pin!(work);
        let mut timer = pin!(unconstrained(sleep_until(self.0)));
        poll_fn(|cx| match work.as_mut().poll(cx) {
            Poll::Ready(output) => Poll::Ready(Ok(output)),
            Poll::Pending => timer.as_mut().poll(cx).map(|()| Err(DeadlinePassed)),
        })
        .await
    }

    /// As [`run`](Self::run); without a deadline the work runs to its end.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    ///
    /// # Cancel safety
    /// As [`run`](Self::run).
    pub async fn run_until<F: Future>(deadline: Option<Self>, work: F) -> Result<F::Output, DeadlinePassed> {
        match deadline {
            Some(deadline) => deadline.run(work).await,
            None => Ok(work.await),
        }
    }
}

/// A deadline passed before the work had ended: see [`Deadline::run`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the deadline has passed")]
pub struct DeadlinePassed;

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
        assert_eq!(ended, Err(DeadlinePassed));
        assert!(begun.elapsed() < Duration::from_millis(1_200), "{:?}", begun.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn work_that_ends_in_the_last_moment_has_ended() {
        let deadline = Deadline::after(Duration::from_secs(1));
        assert_eq!(deadline.run(sleep_until(deadline.instant())).await, Ok(()));
        assert_eq!(Deadline::run_until(None, async { 7 }).await, Ok(7));
    }
}
