//! The answers that hyper gives by itself to heads it cannot read: a status, and no body.

use bytes::Bytes;
use futures_util::FutureExt;
use http::{HeaderMap, Response};
use http_body_util::BodyExt;
use octollm_core::{
    error::{ErrorKind, Failure},
    parts::ContextParts,
};

use crate::server::{body::ResponseBody, respond::Ids};

/// The same answer with a problem as its body, if `bytes` is one of hyper's own. Ours all carry a request id.
pub(crate) fn completed(bytes: &[u8], long_target: bool) -> Option<Bytes> {
    let rest = bytes.strip_prefix(b"HTTP/1.1 4")?;
    let text = std::str::from_utf8(rest).ok()?;
    if text.contains("x-request-id") || !text.contains("content-length: 0") {
        return None;
    }
    let (kind, words) = match &text[..2] {
        "14" => (ErrorKind::UriTooLong, "the URI is too long"),
        "31" if long_target => (ErrorKind::UriTooLong, "the URI is too long"),
        "31" => (ErrorKind::HeadersTooLarge, "the head is too large"),
        "00" => (ErrorKind::BadRequest, "the head is malformed"),
        _ => return None,
    };
    let ids = Ids::of(&HeaderMap::new(), &ContextParts::new());
    Some(written(ids.respond(Err(Failure::new(kind, words).into()))))
}

fn written(response: Response<ResponseBody>) -> Bytes {
    let (head, body) = response.into_parts();
    let body =
        body.collect().now_or_never().and_then(Result::ok).map(|body| body.to_bytes()).unwrap_or_default();
    let reason = head.status.canonical_reason().unwrap_or("Error");
    let mut text = format!("HTTP/1.1 {} {reason}\r\n", head.status.as_str()).into_bytes();
    for (name, value) in &head.headers {
        for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
            text.extend_from_slice(part);
        }
    }
    text.extend_from_slice(format!("content-length: {}\r\nconnection: close\r\n\r\n", body.len()).as_bytes());
    text.extend_from_slice(&body);
    text.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hypers_own_answers_get_a_body() {
        let own = b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
        let text = String::from_utf8(completed(own, false).unwrap().into()).unwrap();
        assert!(text.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{text}");
        assert!(
            text.contains("application/problem+json") && text.contains("\"code\":\"bad_request\""),
            "{text}"
        );
        let own = b"HTTP/1.1 431 X\r\ncontent-length: 0\r\n\r\n";
        assert!(completed(own, true).unwrap().starts_with(b"HTTP/1.1 414 "));
    }

    #[test]
    fn our_answers_stay_as_they_are() {
        for own in [
            &b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"[..],
            b"HTTP/1.1 400 Bad Request\r\nx-request-id: 1\r\ncontent-length: 0\r\n\r\n",
            b"HTTP/1.1 4",
        ] {
            assert_eq!(completed(own, false), None);
        }
    }
}
