//! How long to wait for a server that does nothing.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use octollm_core::{contract::ContractSpec, deadline::Deadline};
use tokio::time::{Instant, Sleep};

use super::{Terms, meter::Meter};

/// The limits on doing nothing while a request is sent and its answer read.
///
/// A timer is made only when something has to wait, and none where the caller's own deadline comes first: most calls
/// make none.
pub(super) struct Patience {
    /// Until the head of the answer has come.
    work: Duration,
    is_answering: bool,
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
    /// A contract that may take longer than is usual may be silent for as long.
    pub(super) fn new(read: Duration, write: Duration, terms: Terms) -> Self {
        let work = if terms.work > ContractSpec::DEFAULT_TIMEOUT { read.max(terms.work) } else { read };
        Self { work, is_answering: false, read, write, deadline: terms.deadline, timer: None }
    }

    /// The head of the answer has come.
    pub(super) fn answering(&mut self) {
        self.is_answering = true;
    }

    fn limit(&self, is_write_blocked: bool) -> Duration {
        match (is_write_blocked, self.is_answering) {
            (true, _) => self.write,
            (false, true) => self.read,
            (false, false) => self.work,
        }
    }

    /// To be asked whenever nothing can be done: ready when nothing moved for too long.
    pub(super) fn poll(&mut self, meter: &Meter, cx: &mut Context<'_>) -> Poll<Idle> {
        let blocked = meter.is_write_blocked();
        let limit = self.limit(blocked);
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

    fn patience(deadline: Option<Deadline>, work: Duration) -> Patience {
        Patience::new(READ, WRITE, Terms { deadline, work })
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_server_is_given_up_after_the_read_limit() {
        let (meter, began) = (Meter::default(), Instant::now());
        let mut patience = patience(None, WRITE);
        assert_eq!(poll_fn(|cx| patience.poll(&meter, cx)).await, Idle::Read);
        assert_eq!(began.elapsed(), READ);
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_may_work_as_long_as_its_contract_says_but_not_pause_in_its_answer() {
        let (meter, began) = (Meter::default(), Instant::now());
        let mut patience = patience(None, READ * 20);
        let until = |patience: &mut Patience| {
            let limit = patience.limit(false);
            assert!(patience.poll(&meter, &mut Context::from_waker(Waker::noop())).is_pending());
            limit
        };
        assert_eq!(until(&mut patience), READ * 20);
        patience.answering();
        assert_eq!(until(&mut patience), READ);
        assert_eq!(poll_fn(|cx| patience.poll(&meter, cx)).await, Idle::Read);
        assert_eq!(began.elapsed(), READ);
    }

    #[tokio::test(start_paused = true)]
    async fn no_timer_is_made_where_the_deadline_comes_first() {
        let meter = Meter::default();
        let mut patience = patience(Some(Deadline::after(READ)), READ);
        assert!(patience.poll(&meter, &mut Context::from_waker(Waker::noop())).is_pending());
        assert!(patience.timer.is_none());
    }
}
