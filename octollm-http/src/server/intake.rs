//! What every request is checked for, whatever its route.

use http::{Method, request::Parts};
use octollm_core::error::{ErrorKind, Failure};

use super::config::ServerConfig;

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
    check_path(head.uri.path())
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
}
