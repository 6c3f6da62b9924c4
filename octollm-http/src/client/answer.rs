//! Reading the answer to a call.

use std::time::SystemTime;

use bytes::Bytes;
use http::{
    Response, StatusCode,
    header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE},
    response::Parts,
};
use octollm_core::{
    budget::Usage,
    error::{ErrorKind, Failure},
};
use serde::de::IgnoredAny;

use super::foreign;
use crate::wire;

/// Reads the output or the failure, and the usage. Usage that is not reported, or cannot be read whole, is unmetered; for work
/// that has not run it is zero.
///
/// `reads` decides whether an answer without a body is an output.
pub(super) fn read(
    response: Response<Bytes>,
    reads: impl FnOnce(&[u8]) -> Result<(), serde_json::Error>,
) -> (Result<Bytes, Failure>, Usage) {
    let reported = wire::read_usage(response.headers());
    match (output(response, reads), reported) {
        (Ok(_), Some((usage, false))) => {
            let failure = Failure::new(ErrorKind::BadResponse, "the usage in the answer cannot be read");
            (Err(failure), usage.plus(Usage::UNMETERED))
        }
        (read, Some((usage, true))) => (read, usage),
        (read, Some((usage, false))) => (read, usage.plus(Usage::UNMETERED)),
        (Err(failure), None) if !failure.may_have_executed => (Err(failure), Usage::ZERO),
        (read, None) => (read, Usage::UNMETERED),
    }
}

/// The `reads` of an answer that always has a body.
pub(super) fn never_nothing(_: &[u8]) -> Result<(), serde_json::Error> {
    Err(serde::de::Error::custom("an answer is due"))
}

/// The failure for an output that the caller cannot decode.
pub(super) fn unreadable(error: &serde_json::Error) -> Failure {
    Failure::new(ErrorKind::BadResponse, format!("the output has another shape: {error}"))
}

fn output(
    response: Response<Bytes>,
    reads: impl FnOnce(&[u8]) -> Result<(), serde_json::Error>,
) -> Result<Bytes, Failure> {
    let (head, body) = response.into_parts();
    if !head.status.is_success() {
        return Err(foreign::failure(head.status, &head.headers, &body, SystemTime::now()));
    }
    let bad = |message: String| Err(Failure::new(ErrorKind::BadResponse, message));
    if body.is_empty() && has_no_content(&head) {
        return match reads(NOTHING) {
            Ok(()) => Ok(Bytes::from_static(NOTHING)),
            Err(_) => bad(format!("answered {} where an output is due", head.status.as_u16())),
        };
    }
    // No coding was requested. Decoding one could make the answer larger than the limit.
    if head.headers.get(CONTENT_ENCODING).is_some_and(|coding| coding != "identity") {
        return bad("the answer is in a content coding that was not asked for".into());
    }
    // JSON under another name is an output too, once it was parsed.
    let is_declared = head.headers.get(CONTENT_TYPE).is_some_and(wire::is_json);
    if !is_declared && serde_json::from_slice::<IgnoredAny>(&body).is_err() {
        return bad(format!("answered {} with what is not JSON", head.status.as_u16()));
    }
    Ok(body)
}

/// The output `()`.
const NOTHING: &[u8] = b"null";

/// Whether an answer has no body on purpose: by its status, or because it succeeded with a length of 0 and no content type, as
/// frameworks answer for a handler without output. Without the length the answer could be incomplete.
fn has_no_content(head: &Parts) -> bool {
    match head.status {
        StatusCode::NO_CONTENT | StatusCode::RESET_CONTENT => true,
        StatusCode::OK | StatusCode::CREATED => {
            let fields = &head.headers;
            !fields.contains_key(CONTENT_TYPE)
                && fields.get(CONTENT_LENGTH).is_some_and(|length| length == "0")
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;

    #[test]
    fn what_is_json_by_name_or_by_look_is_an_output() {
        let answered = |media_type: &str, body: &'static str| {
            let response = Response::builder().header(CONTENT_TYPE, media_type);
            read(response.body(Bytes::from(body)).unwrap(), |_| Ok(())).0.map_err(|failure| failure.kind)
        };
        for media_type in
            ["application/json", "application/JSON; charset=utf-8", "application/x+json", "text/plain"]
        {
            assert_eq!(answered(media_type, "{}").unwrap(), "{}", "{media_type}");
        }
        assert_eq!(answered("text/html", "<html>"), Err(ErrorKind::BadResponse));
        assert_eq!(answered("text/plain", ""), Err(ErrorKind::BadResponse));
        let packed =
            Response::builder().header(CONTENT_TYPE, "application/json").header(CONTENT_ENCODING, "gzip");
        assert_eq!(
            read(packed.body(Bytes::new()).unwrap(), |_| Ok(())).0.unwrap_err().kind,
            ErrorKind::BadResponse
        );
    }

    #[test]
    fn an_answer_without_a_body_is_the_output_that_is_nothing() {
        let answer = |status: u16| Response::builder().status(status).body(Bytes::new()).unwrap();
        let unit = |output: &[u8]| serde_json::from_slice::<()>(output);
        let number = |output: &[u8]| serde_json::from_slice::<u32>(output).map(drop);
        for status in [204, 205] {
            assert_eq!(read(answer(status), unit).0.unwrap(), "null");
            assert_eq!(read(answer(status), number).0.unwrap_err().kind, ErrorKind::BadResponse);
        }
        // With a length the answer is whole; a type promises content, and what is only accepted is not done.
        for (status, fields, is_nothing) in [
            (200, &[("content-length", "0")][..], true),
            (201, &[("content-length", "0")], true),
            (204, &[("content-encoding", "gzip")], true),
            (200, &[], false),
            (200, &[("content-length", "0"), ("content-type", "application/json")], false),
            (202, &[("content-length", "0")], false),
        ] {
            let mut response = answer(status);
            response.headers_mut().extend(
                fields
                    .iter()
                    .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))),
            );
            assert_eq!(
                read(response, unit).0.is_ok_and(|output| output == "null"),
                is_nothing,
                "{status} {fields:?}"
            );
        }
    }

    #[test]
    fn a_usage_that_cannot_be_read_is_a_bad_response_and_what_can_be_is_counted() {
        let answered = |usage: &str| {
            let response = Response::builder().header(CONTENT_TYPE, "application/json");
            let response = response.header(wire::names::USAGE, usage).body(Bytes::from("{}")).unwrap();
            read(response, |_| Ok(()))
        };
        assert_eq!(answered("tokens=10.0").1, Usage::tokens(10));
        let (output, usage) = answered("tokens=7;cost_usd=abc");
        let seven = Usage::tokens(7).plus(Usage::UNMETERED);
        assert_eq!((output.unwrap_err().kind, usage), (ErrorKind::BadResponse, seven));
        assert_eq!(answered("tokens=-5").1, Usage::UNMETERED);
    }

    #[test]
    fn work_whose_usage_is_not_reported_is_unmetered_unless_it_has_not_run() {
        for (status, usage) in [
            (200, Usage::UNMETERED),
            (500, Usage::UNMETERED),
            (302, Usage::UNMETERED),
            (422, Usage::ZERO),
            (503, Usage::ZERO),
        ] {
            let response = Response::builder().status(status).header(CONTENT_TYPE, "application/json");
            let response = response.body(Bytes::from("{}")).unwrap();
            assert_eq!(read(response, |_| Ok(())).1, usage, "{status}");
        }
    }
}
