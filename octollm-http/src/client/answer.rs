//! What an arm answered.

use std::time::SystemTime;

use bytes::Bytes;
use http::{
    HeaderMap, Response,
    header::{CONTENT_ENCODING, CONTENT_TYPE},
};
use octollm_core::{
    budget::Usage,
    error::{ErrorKind, Failure},
};
use serde::de::IgnoredAny;

use super::foreign;
use crate::wire;

/// The output, or the failure that the arm reported; and what it used, either way.
pub(super) fn read(response: Response<Bytes>) -> (Result<Bytes, Failure>, Usage) {
    let usage = wire::read_usage(response.headers());
    (output(response), usage)
}

fn output(response: Response<Bytes>) -> Result<Bytes, Failure> {
    let (head, body) = response.into_parts();
    if !head.status.is_success() {
        return Err(foreign::failure(head.status, &head.headers, &body, SystemTime::now()));
    }
    let bad = |message: String| Err(Failure::new(ErrorKind::BadResponse, message));
    // None was asked for: undoing one could only make an answer larger than the limit.
    if head.headers.get(CONTENT_ENCODING).is_some_and(|coding| coding != "identity") {
        return bad("the answer is in a content coding that was not asked for".into());
    }
    if !is_declared_json(&head.headers) && serde_json::from_slice::<IgnoredAny>(&body).is_err() {
        return bad(format!("answered {} with what is not JSON", head.status.as_u16()));
    }
    Ok(body)
}

/// Services that send JSON under another name are believed once their answer has been looked through.
fn is_declared_json(head: &HeaderMap) -> bool {
    head.get(CONTENT_TYPE).is_some_and(|media_type| {
        media_type == "application/json"
            || media_type.to_str().is_ok_and(|text| {
                let text = text.split(';').next().unwrap_or_default().trim();
                text.eq_ignore_ascii_case("application/json") || text.ends_with("+json")
            })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_json_by_name_or_by_look_is_an_output() {
        let told = |media_type: &str, body: &'static str| {
            let response = Response::builder().header(CONTENT_TYPE, media_type);
            read(response.body(Bytes::from(body)).unwrap()).0.map_err(|failure| failure.kind)
        };
        for media_type in
            ["application/json", "application/JSON; charset=utf-8", "application/x+json", "text/plain"]
        {
            assert_eq!(told(media_type, "{}").unwrap(), "{}", "{media_type}");
        }
        assert_eq!(told("text/html", "<html>"), Err(ErrorKind::BadResponse));
        assert_eq!(told("text/plain", ""), Err(ErrorKind::BadResponse));
        let packed =
            Response::builder().header(CONTENT_TYPE, "application/json").header(CONTENT_ENCODING, "gzip");
        assert_eq!(read(packed.body(Bytes::new()).unwrap()).0.unwrap_err().kind, ErrorKind::BadResponse);
    }
}
