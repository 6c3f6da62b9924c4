//! The body of a request: whole, or as it is produced.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::Request;
use http_body::{Body, Frame, SizeHint};
use http_body_util::{Full, combinators::UnsyncBoxBody};
use tower::BoxError;

/// The body of a request.
pub(crate) enum Upload {
    Whole(Full<Bytes>),
    /// Sent once: a request with it is not repeated after its first byte was written.
    Streamed(UnsyncBoxBody<Bytes, BoxError>),
}

impl From<Bytes> for Upload {
    fn from(body: Bytes) -> Self {
        Self::Whole(Full::new(body))
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self.get_mut() {
            Self::Whole(body) => {
                Pin::new(body).poll_frame(cx).map(|frame| frame.map(|frame| frame.map_err(Into::into)))
            }
            Self::Streamed(body) => Pin::new(body).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(body) => body.is_end_stream(),
            Self::Streamed(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(body) => body.size_hint(),
            Self::Streamed(body) => body.size_hint(),
        }
    }
}

/// The same request, where its body is whole. Extensions stay with the first one.
pub(super) fn repeated(request: &Request<Upload>) -> Option<Box<Request<Upload>>> {
    let Upload::Whole(body) = request.body() else { return None };
    let mut again = Request::new(Upload::Whole(body.clone()));
    *again.method_mut() = request.method().clone();
    *again.uri_mut() = request.uri().clone();
    *again.headers_mut() = request.headers().clone();
    Some(Box::new(again))
}
