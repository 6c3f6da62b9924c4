//! The end of a subscription that a listener holds.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures_core::Stream;

use super::feed::Line;
use super::{Ended, Signal};

/// What a listener hears: a stream of [`Signal`]s in the order they came. Dropping it ends it.
#[derive(Debug)]
#[must_use = "a subscription that is dropped hears nothing"]
pub struct Subscription {
    line: Arc<Line>,
}

impl Subscription {
    pub(super) fn new(line: Arc<Line>) -> Self {
        Self { line }
    }

    /// The next signal, or `None` when the subscription has ended and all that waited was delivered.
    ///
    /// # Cancel safety
    /// Dropped before it is done, it has taken nothing.
    pub async fn next(&mut self) -> Option<Signal> {
        poll_fn(|cx| self.poll_signal(cx)).await
    }

    /// How it ended, and `None` while it goes on. It may have ended while signals still wait.
    pub fn ended(&self) -> Option<Ended> {
        self.line.ended()
    }

    fn poll_signal(&mut self, cx: &mut Context<'_>) -> Poll<Option<Signal>> {
        // A listener that always finds something must still let others run.
        let budget = ready!(tokio::task::coop::poll_proceed(cx));
        let signal = ready!(self.line.poll_take(cx));
        budget.made_progress();
        Poll::Ready(signal)
    }
}

impl Stream for Subscription {
    type Item = Signal;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Signal>> {
        self.poll_signal(cx)
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.line.abandon();
    }
}
