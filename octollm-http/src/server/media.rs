//! Media types and codings: what a caller sends, and what it takes.

use http::{HeaderMap, HeaderValue, header};
use octollm_core::error::{ErrorKind, Failure};

pub(crate) const JSON: HeaderValue = HeaderValue::from_static("application/json");
pub(crate) const PROBLEM: HeaderValue = HeaderValue::from_static("application/problem+json");

/// Checks that the body is JSON, in UTF-8, and in no coding.
pub(crate) fn check_content(head: &HeaderMap) -> Result<(), Failure> {
    for coding in head.get_all(header::CONTENT_ENCODING) {
        if !coding.as_bytes().eq_ignore_ascii_case(b"identity") {
            return Err(unsupported("a body in a content coding is not understood"));
        }
    }
    let mut types = head.get_all(header::CONTENT_TYPE).iter();
    match (types.next(), types.next()) {
        (Some(one), None) if one == "application/json" => Ok(()),
        (Some(one), None) if one.to_str().is_ok_and(is_json) => Ok(()),
        (None, _) => Err(unsupported("the content type is missing; it is application/json")),
        _ => Err(unsupported("the content type is not application/json in UTF-8")),
    }
}

fn unsupported(message: &str) -> Failure {
    Failure::new(ErrorKind::UnsupportedMediaType, message)
}

/// `application/json` or `application/…+json`, in UTF-8.
fn is_json(value: &str) -> bool {
    let mut parts = value.split(';').map(str::trim);
    let essence = parts.next().unwrap_or_default().to_ascii_lowercase();
    let Some(subtype) = essence.strip_prefix("application/") else { return false };
    let named = subtype == "json" || subtype.strip_suffix("+json").is_some_and(|name| !name.is_empty());
    named
        && parts.all(|parameter| match parameter.split_once('=') {
            Some((name, value)) if name.eq_ignore_ascii_case("charset") => {
                value.trim_matches('"').eq_ignore_ascii_case("utf-8")
            }
            _ => true,
        })
}

/// Checks that the caller takes `application/json`.
pub(crate) fn check_accept(head: &HeaderMap) -> Result<(), Failure> {
    let mut values = head.get_all(header::ACCEPT).iter();
    match (values.next(), values.next()) {
        (None, _) => return Ok(()),
        // What most callers send costs no more than a look.
        (Some(one), None) if one == "*/*" || one == "application/json" => return Ok(()),
        _ => {}
    }
    // The most specific range that fits decides (RFC 9110 §12.5.1).
    let mut best: Option<(u8, bool)> = None;
    for value in head.get_all(header::ACCEPT) {
        for range in value.to_str().unwrap_or_default().split(',') {
            if let Some(found) = range_for_json(range)
                && best.is_none_or(|best| found.0 > best.0)
            {
                best = Some(found);
            }
        }
    }
    match best {
        Some((_, true)) => Ok(()),
        _ => Err(Failure::new(ErrorKind::NotAcceptable, "the answer is application/json")),
    }
}

/// How specific the range is, if it covers `application/json`, and whether it lets it through.
fn range_for_json(range: &str) -> Option<(u8, bool)> {
    let mut parts = range.split(';').map(str::trim);
    let specific = match parts.next()?.to_ascii_lowercase().as_str() {
        "*/*" => 0,
        "application/*" => 1,
        "application/json" => 2,
        _ => return None,
    };
    let weight = parts.find_map(|parameter| {
        let (name, value) = parameter.split_once('=')?;
        name.eq_ignore_ascii_case("q").then(|| value.parse::<f32>().unwrap_or(0.0))
    });
    Some((specific, weight.is_none_or(|weight| weight > 0.0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(name: http::HeaderName, values: &[&'static str]) -> HeaderMap {
        values.iter().map(|value| (name.clone(), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn json_by_any_of_its_names() {
        for value in [
            "application/json",
            "Application/JSON; charset=UTF-8",
            "application/json;charset=\"utf-8\"",
            "application/cloudevents+json",
            "application/json; profile=x",
        ] {
            assert!(check_content(&head(header::CONTENT_TYPE, &[value])).is_ok(), "{value}");
        }
        for values in [
            &["text/plain"][..],
            &["application/json; charset=latin1"],
            &["application/+json"],
            &["application/x-www-form-urlencoded"],
            &["application/json", "application/json"],
            &["json"],
            &[],
        ] {
            assert!(check_content(&head(header::CONTENT_TYPE, values)).is_err(), "{values:?}");
        }
    }

    #[test]
    fn no_coding_but_identity() {
        let mut head = head(header::CONTENT_TYPE, &["application/json"]);
        head.insert(header::CONTENT_ENCODING, HeaderValue::from_static("identity"));
        assert!(check_content(&head).is_ok());
        head.append(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        assert_eq!(check_content(&head).unwrap_err().kind, ErrorKind::UnsupportedMediaType);
    }

    #[test]
    fn the_most_specific_range_decides() {
        for values in [
            &[][..],
            &["*/*"],
            &["text/html, application/json;q=0.1"],
            &["text/html", "application/*"],
            &["application/json, */*;q=0"],
        ] {
            assert!(check_accept(&head(header::ACCEPT, values)).is_ok(), "{values:?}");
        }
        for values in [
            &["text/html"][..],
            &["*/*, application/json;q=0"],
            &["*/*", "application/json;q=0"],
            &["application/json;q=0", "*/*"],
            &["application/json;q=0.000"],
            &[""],
            &["text/*"],
        ] {
            assert!(check_accept(&head(header::ACCEPT, values)).is_err(), "{values:?}");
        }
    }
}
