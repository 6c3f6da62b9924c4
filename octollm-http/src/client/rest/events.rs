//! The stream of events of an answer.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use futures_util::Stream;
use octollm_core::error::CallError;

use super::stream::BodyStream;
use crate::client::sse::{LARGEST, LARGEST_NAME, Parser, ServerEvent, TooLarge};

/// The events of an answer, read one at a time. What comes after the last whole event is dropped with the end of the answer.
pub(super) struct Events {
    body: BodyStream,
    parser: Parser,
    /// What has arrived and is not read yet.
    piece: Bytes,
}

impl Events {
    pub(super) fn new(body: BodyStream) -> Self {
        Self { body, parser: Parser::default(), piece: Bytes::new() }
    }
}

impl Stream for Events {
    type Item = Result<ServerEvent, CallError>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        loop {
            match this.parser.next(&mut this.piece) {
                Ok(Some(event)) => return Poll::Ready(Some(Ok(event))),
                Ok(None) => {}
                Err(TooLarge) => {
                    this.piece = Bytes::new();
                    let words = format!(
                        "an event is larger than {LARGEST} bytes, or its name or id than {LARGEST_NAME}"
                    );
                    return Poll::Ready(Some(Err(this.body.fail(words))));
                }
            }
            match ready!(Pin::new(&mut this.body).poll_next(cx)) {
                None => return Poll::Ready(None),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                Some(Ok(piece)) => this.piece = piece,
            }
        }
    }
}
