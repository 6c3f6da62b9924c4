//! How long to wait for a server that does nothing.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use octollm_core::deadline::Deadline;
use tokio::time::{Instant, Sleep};

use super::meter::Meter;

/// The limits on doing nothing while a request is sent and its answer read.
///
/// A timer is made only when something has to wait, and none where the caller's own deadline comes first: most calls
/// make none.
pub(super) struct Patience {
    read: Duration,
    write: Duration,
    deadline: Option<Deadline>,
    timer: Option<Timer>,
}

struct Timer {
    sleep: Pin<Box<Sleep>>,
    limit: Duration,
    last_move: Instant,
    moved: u64,
}

/// What the server did not do in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Idle {
    Read,
    Write,
}

impl Patience {
    pub(super) fn new(read: Duration, write: Duration, deadline: Option<Deadline>) -> Self {
        Self { read, write, deadline, timer: None }
    }

    /// To be asked whenever nothing can be done: ready when nothing moved for too long.
    pub(super) fn poll(&mut self, meter: &Meter, cx: &mut Context<'_>) -> Poll<Idle> {
        let blocked = meter.is_write_blocked();
        let limit = if blocked { self.write } else { self.read };
        let moved = meter.moved();
        let timer = match &mut self.timer {
            Some(timer) => timer,
            None => {
                let now = Instant::now();
                if self.deadline.is_some_and(|deadline| deadline.instant() <= now + limit) {
                    return Poll::Pending;
                }
                let sleep = Box::pin(tokio::time::sleep_until(now + limit));
                self.timer.insert(Timer { sleep, limit, last_move: now, moved })
            }
        };
        if timer.moved != moved || timer.limit != limit {
            timer.moved = moved;
            timer.limit = limit;
            timer.last_move = Instant::now();
            timer.sleep.as_mut().reset(timer.last_move + limit);
        }
        timer.sleep.as_mut().poll(cx).map(|()| if blocked { Idle::Write } else { Idle::Read })
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, task::Waker};

    use super::*;

    const READ: Duration = Duration::from_secs(30);
    const WRITE: Duration = Duration::from_secs(10);

    #[tokio::test(start_paused = true)]
    async fn a_silent_server_is_given_up_after_the_read_limit() {
        let (meter, began) = (Meter::default(), Instant::now());
        let mut patience = Patience::new(READ, WRITE, None);
        assert_eq!(poll_fn(|cx| patience.poll(&meter, cx)).await, Idle::Read);
        assert_eq!(began.elapsed().as_secs(), 30);
    }

    #[tokio::test(start_paused = true)]
    async fn no_timer_is_made_where_the_deadline_comes_first() {
        let meter = Meter::default();
        let mut patience = Patience::new(READ, WRITE, Some(Deadline::after(READ)));
        assert!(patience.poll(&meter, &mut Context::from_waker(Waker::noop())).is_pending());
        assert!(patience.timer.is_none());
    }
}
