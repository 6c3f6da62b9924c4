//! What every request is checked for, whatever its route.

use http::{HeaderMap, Method, header, request::Parts};
use octollm_core::error::{ErrorKind, Failure};

use super::config::ServerConfig;
use crate::wire::names;

/// Checks the head as far as it can be judged without a route.
pub(crate) fn check_head(head: &Parts, config: &ServerConfig) -> Result<(), Failure> {
    let target = head.uri.path().len() + head.uri.query().map_or(0, |query| query.len() + 1);
    if target > config.max_uri {
        return Err(Failure::new(
            ErrorKind::UriTooLong,
            format!("the URI is longer than {} bytes", config.max_uri),
        ));
    }
    if head.headers.len() > config.max_headers {
        let message = format!("the head has more than {} fields", config.max_headers);
        return Err(Failure::new(ErrorKind::HeadersTooLarge, message));
    }
    if !is_known(&head.method) {
        return Err(Failure::new(ErrorKind::NotImplemented, "no route knows this method"));
    }
    check_path(head.uri.path())?;
    check_fields(&head.headers)
}

fn is_known(method: &Method) -> bool {
    const KNOWN: [Method; 9] = [
        Method::POST,
        Method::GET,
        Method::HEAD,
        Method::DELETE,
        Method::PUT,
        Method::PATCH,
        Method::OPTIONS,
        Method::TRACE,
        Method::CONNECT,
    ];
    KNOWN.contains(method)
}

/// Refuses escapes that stand for no character, for a control character, or for a step upwards: whatever handles the
/// path before or behind this server might take it for another one.
fn check_path(path: &str) -> Result<(), Failure> {
    if !path.contains('%') {
        return Ok(());
    }
    let refused = || Failure::new(ErrorKind::BadRequest, "the path holds an escape that is not allowed");
    let decoded = percent_decoded(path.as_bytes()).ok_or_else(refused)?;
    let text = std::str::from_utf8(&decoded).map_err(|_| refused())?;
    if text.chars().any(char::is_control)
        || text.split(['/', '\\']).any(|segment| matches!(segment, "." | ".."))
    {
        return Err(refused());
    }
    Ok(())
}

/// The bytes that the escapes stand for; `None` where one is malformed.
pub(crate) fn percent_decoded(text: &[u8]) -> Option<Vec<u8>> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut bytes = text.iter();
    while let Some(&byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => hex(*bytes.next()?)? << 4 | hex(*bytes.next()?)?,
            byte => byte,
        });
    }
    Some(decoded)
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

fn check_fields(head: &HeaderMap) -> Result<(), Failure> {
    let refused = |message: &str| Err(Failure::new(ErrorKind::BadRequest, message));
    if head.get_all(header::AUTHORIZATION).iter().nth(1).is_some() {
        return refused("Authorization stands twice");
    }
    let mut keys = head.get_all(names::IDEMPOTENCY_KEY).iter();
    if let Some(key) = keys.next()
        && (keys.next().is_some() || !is_quoted_string(key.as_bytes()))
    {
        return refused("malformed header idempotency-key: it is one quoted string of 1 to 255 characters");
    }
    if head
        .get_all(header::EXPECT)
        .iter()
        .any(|value| !value.as_bytes().eq_ignore_ascii_case(b"100-continue"))
    {
        return Err(Failure::new(ErrorKind::ExpectationFailed, "only 100-continue can be expected"));
    }
    Ok(())
}

/// A string of RFC 8941 §3.3.3 that holds 1 to 255 characters.
fn is_quoted_string(value: &[u8]) -> bool {
    let Some(inner) = value.strip_prefix(b"\"").and_then(|rest| rest.strip_suffix(b"\"")) else {
        return false;
    };
    let mut characters = 0;
    let mut bytes = inner.iter();
    while let Some(byte) = bytes.next() {
        let fits = match byte {
            b'\\' => matches!(bytes.next(), Some(b'"' | b'\\')),
            b'"' => false,
            byte => (b' '..=b'~').contains(byte),
        };
        if !fits {
            return false;
        }
        characters += 1;
    }
    (1..=255).contains(&characters)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_that_hide_something_are_refused() {
        for path in
            ["/a%00", "/%2e%2e/b", "/a/%2E", "/a%2f..%2fb", "/a%5c..", "/%", "/%4", "/%zz", "/%ff", "/%0d%0a"]
        {
            assert!(check_path(path).is_err(), "{path}");
        }
        for path in ["/a", "/a%20b", "/%C3%A9", "/..a%2e.b"] {
            assert!(check_path(path).is_ok(), "{path}");
        }
    }

    #[test]
    fn a_key_is_one_quoted_string() {
        let long = |n: usize| format!("\"{}\"", "k".repeat(n));
        for key in ["\"a\"", "\"a b\"", r#""a\"b\\""#, &long(255)] {
            assert!(is_quoted_string(key.as_bytes()), "{key}");
        }
        for key in ["", "a", "\"", "\"\"", "\"a", r#""a"b""#, r#""a\""#, r#""a\n""#, "\"é\"", &long(256)] {
            assert!(!is_quoted_string(key.as_bytes()), "{key}");
        }
    }
}
