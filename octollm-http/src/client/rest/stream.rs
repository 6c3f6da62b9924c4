//! The body of an answer as a stream.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use futures_util::Stream;
use http_body::Body;
use octollm_core::error::{CallError, ErrorKind, Failure};

use super::attempts::Place;
use crate::client::{exchange::Received, pool::ExchangeError};

/// Resolves when the caller has ended.
pub(super) type Cancelled = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The pieces of a body as they arrive. After an error it has ended.
pub(super) struct BodyStream {
    body: Option<Received>,
    place: Place,
    cancelled: Option<Cancelled>,
}

impl BodyStream {
    pub(super) fn new(body: Received, place: Place, cancelled: Option<Cancelled>) -> Self {
        Self { body: Some(body), place, cancelled }
    }

    /// Ends the stream with a bad response.
    pub(super) fn fail(&mut self, problem: String) -> CallError {
        self.body = None;
        self.place.error(ExchangeError::new(ErrorKind::BadResponse, problem))
    }
}

impl Stream for BodyStream {
    type Item = Result<Bytes, CallError>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        loop {
            let download = match &mut this.body {
                None => return Poll::Ready(None),
                Some(Received::Whole(whole)) => {
                    let whole = std::mem::take(whole);
                    this.body = None;
                    return Poll::Ready((!whole.is_empty()).then_some(Ok(whole)));
                }
                Some(Received::Streaming(download)) => download,
            };
            if let Some(cancelled) = &mut this.cancelled
                && cancelled.as_mut().poll(cx).is_ready()
            {
                this.body = None;
                return Poll::Ready(Some(Err(this.place.error(Failure::of(ErrorKind::Cancelled).into()))));
            }
            match Pin::new(&mut **download).poll_frame(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) if !data.is_empty() => return Poll::Ready(Some(Ok(data))),
                    // Trailers.
                    _ => {}
                },
                Poll::Ready(Some(Err(error))) => {
                    this.body = None;
                    return Poll::Ready(Some(Err(this.place.error(error))));
                }
                Poll::Ready(None) => {
                    this.body = None;
                    return Poll::Ready(None);
                }
            }
        }
    }
}
