//! The body of an answer that is read as it arrives.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::{Body, Frame};
use octollm_core::{
    deadline::Deadline,
    error::{ErrorKind, Failure},
};
use tokio::{
    task::{Unconstrained, unconstrained},
    time::{Sleep, sleep_until},
};

use super::{
    ExchangeError,
    checkout::{Answer, Place},
    meter::WaitLimit,
};

/// The body of an answer. It has its connection until it ends, and gives it back then. Dropped before that, it closes the connection, or
/// resets the stream.
pub(crate) struct Download {
    /// `None` after the end. The body is dropped before its place.
    receiving: Option<(Answer, Place)>,
    wait_limit: WaitLimit,
    deadline: Option<Deadline>,
    /// From the first wait on. It is polled outside of tokio's cooperative budget, which a server that sends without end spends in every
    /// turn.
    timer: Option<Pin<Box<Unconstrained<Sleep>>>>,
}

impl Download {
    pub(super) fn new(place: Place, body: Answer, wait_limit: WaitLimit, deadline: Option<Deadline>) -> Self {
        let mut download = Self { receiving: Some((body, place)), wait_limit, deadline, timer: None };
        download.end_if_over();
        download
    }

    fn end_if_over(&mut self) {
        if self.receiving.as_ref().is_some_and(|(body, _)| body.is_end_stream()) {
            self.end();
        }
    }

    fn end(&mut self) {
        if let Some((body, place)) = self.receiving.take() {
            place.give_back(body);
        }
    }

    fn has_time(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(deadline) = self.deadline else { return true };
        let begin = || Box::pin(unconstrained(sleep_until(deadline.instant())));
        self.timer.get_or_insert_with(begin).as_mut().poll(cx).is_pending()
    }
}

impl Body for Download {
    type Data = Bytes;
    type Error = ExchangeError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ExchangeError>>> {
        let this = self.get_mut();
        let Some((body, place)) = &mut this.receiving else { return Poll::Ready(None) };
        let failed = match place.poll_frame(body, &mut this.wait_limit, cx) {
            // It is there whenever it is read: without a wait, the timer would not be polled.
            Poll::Ready(Some(Ok(_))) if this.deadline.is_some_and(Deadline::has_passed) => {
                Failure::of(ErrorKind::DeadlineExceeded).into()
            }
            Poll::Ready(Some(Ok(frame))) => {
                this.end_if_over();
                return Poll::Ready(Some(Ok(frame)));
            }
            Poll::Ready(None) => {
                this.end();
                return Poll::Ready(None);
            }
            Poll::Ready(Some(Err(error))) => error,
            Poll::Pending if this.has_time(cx) => return Poll::Pending,
            Poll::Pending => Failure::of(ErrorKind::DeadlineExceeded).into(),
        };
        this.receiving = None;
        Poll::Ready(Some(Err(failed)))
    }

    fn is_end_stream(&self) -> bool {
        self.receiving.is_none()
    }
}
