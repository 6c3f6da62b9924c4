//! What a request's head is checked for: HTTP's own rules, the target, and media types.

use http::{HeaderMap, HeaderValue, Method, Version, header, request::Parts};
use octollm_core::error::{ErrorKind, Failure};

use super::{config::ServerConfig, reply::Refusal};
use crate::wire::names;

const CODINGS: &str = "the only transfer coding understood is chunked";

/// The fields that decide whether a request is taken.
#[derive(Debug, Default)]
pub(crate) struct Fields<'h> {
    hosts: usize,
    codings: Stands<'h>,
    authorization: Stands<'h>,
    content_type: Stands<'h>,
    key: Stands<'h>,
    accepts: Accepts,
    coded: bool,
    expects: bool,
}

/// How a request came here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// Through somebody else's server, which judges the framing.
    Mounted,
    Http1,
    Http2,
}

/// A field that may stand once.
#[derive(Debug, Default, Clone, Copy)]
enum Stands<'h> {
    #[default]
    Nowhere,
    Once(&'h HeaderValue),
    Twice,
}

impl<'h> Stands<'h> {
    fn add(&mut self, value: &'h HeaderValue) {
        *self = if matches!(self, Self::Nowhere) { Self::Once(value) } else { Self::Twice };
    }
}

impl<'h> Fields<'h> {
    pub(crate) fn of(head: &'h HeaderMap) -> Self {
        let mut fields = Self::default();
        for (name, value) in head {
            match *name {
                header::HOST => fields.hosts += 1,
                header::TRANSFER_ENCODING => fields.codings.add(value),
                header::AUTHORIZATION => fields.authorization.add(value),
                header::CONTENT_TYPE => fields.content_type.add(value),
                header::ACCEPT => fields.accepts.add(value),
                header::CONTENT_ENCODING => {
                    fields.coded |= !value.as_bytes().eq_ignore_ascii_case(b"identity")
                }
                header::EXPECT => fields.expects |= !value.as_bytes().eq_ignore_ascii_case(b"100-continue"),
                _ if *name == names::IDEMPOTENCY_KEY => fields.key.add(value),
                _ => {}
            }
        }
        fields
    }

    /// Refuses what another server, reading the same bytes, might take for another request. Nothing more is taken over
    /// that connection. A request with two lengths is hyper's to judge: it reads chunks and closes the connection.
    pub(crate) fn check_framing(&self, arrival: Arrival, version: Version) -> Result<(), Refusal> {
        let words = match (arrival, self.codings, self.hosts) {
            (Arrival::Mounted, ..) => return Ok(()),
            (Arrival::Http2, _, 0 | 1) => return Ok(()),
            (_, Stands::Once(coding), _) if !coding.as_bytes().eq_ignore_ascii_case(b"chunked") => CODINGS,
            (_, Stands::Twice, _) => CODINGS,
            (_, _, 1) => return Ok(()),
            (_, _, 0) if version < Version::HTTP_11 => return Ok(()),
            (_, _, 0) => "Host is missing",
            _ => "Host stands twice",
        };
        let refusal = Refusal::from(Failure::new(ErrorKind::BadRequest, words));
        // It has no place in HTTP/2, whose streams are framed apart.
        Err(match arrival {
            Arrival::Http1 => refusal.header(header::CONNECTION, HeaderValue::from_static("close")),
            _ => refusal,
        })
    }

    /// Checks what no route may be asked with.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        let refused = |message: &str| Err(Failure::new(ErrorKind::BadRequest, message));
        if let Stands::Twice = self.authorization {
            return refused("Authorization stands twice");
        }
        let key_fits = match self.key {
            Stands::Nowhere => true,
            Stands::Once(key) => is_quoted_string(key.as_bytes()),
            Stands::Twice => false,
        };
        if !key_fits {
            return refused(
                "malformed header idempotency-key: it is one quoted string of 1 to 255 characters",
            );
        }
        if self.expects {
            return Err(Failure::new(ErrorKind::ExpectationFailed, "only 100-continue can be expected"));
        }
        Ok(())
    }

    /// What the caller takes.
    pub(crate) fn accepts(&self) -> Accepts {
        self.accepts
    }

    /// Checks that the body is JSON, in UTF-8, and in no coding.
    pub(crate) fn check_content(&self) -> Result<(), Failure> {
        let refused = |message: &str| Err(Failure::new(ErrorKind::UnsupportedMediaType, message));
        if self.coded {
            return refused("a body in a content coding is not understood");
        }
        match self.content_type {
            Stands::Once(media) if media == "application/json" || media.to_str().is_ok_and(is_json) => Ok(()),
            Stands::Nowhere => refused("the content type is missing; it is application/json"),
            _ => refused("the content type is not application/json in UTF-8"),
        }
    }
}

/// A string of RFC 8941 §3.3.3 that holds 1 to 255 characters.
pub(super) fn is_quoted_string(value: &[u8]) -> bool {
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

/// Refuses steps upwards, and escapes that stand for no character, for a control character, or for such a step: whatever
/// handles the path before or after this server might take it for another one.
fn check_path(path: &str) -> Result<(), Failure> {
    let refused = |words: &str| Failure::new(ErrorKind::BadRequest, words);
    if has_steps(path) {
        return Err(refused("the path holds a segment `.` or `..`"));
    }
    if !path.contains('%') {
        return Ok(());
    }
    let decoded = percent_decoded(path.as_bytes()).and_then(|decoded| String::from_utf8(decoded).ok());
    match decoded {
        Some(text) if !text.chars().any(char::is_control) && !has_steps(&text) => Ok(()),
        _ => Err(refused("the path holds an escape that is not allowed")),
    }
}

/// Whether a segment is `.` or `..`.
fn has_steps(path: &str) -> bool {
    path.contains('.') && path.split(['/', '\\']).any(|segment| matches!(segment, "." | ".."))
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

/// Whether a content type is `application/json` or `application/…+json`, in UTF-8.
pub(crate) fn is_json(value: &str) -> bool {
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

/// What a caller says of `application/json` in its `Accept` fields, taken together.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Accepts {
    /// The most specific range that fits decides (RFC 9110 §12.5.1).
    best: Option<(u8, bool)>,
    stands: bool,
}

impl Accepts {
    pub(crate) fn add(&mut self, value: &HeaderValue) {
        self.stands = true;
        for range in value.to_str().unwrap_or_default().split(',') {
            if let Some(found) = range_for_json(range)
                && self.best.is_none_or(|best| found.0 > best.0)
            {
                self.best = Some(found);
            }
        }
    }

    /// Whether it takes `application/json`.
    pub(crate) fn json(self) -> bool {
        !self.stands || self.best.is_some_and(|(_, taken)| taken)
    }
}

/// How specific the range is, if it covers `application/json`, and whether it lets it through.
fn range_for_json(range: &str) -> Option<(u8, bool)> {
    let mut parts = range.split(';').map(str::trim);
    let media = parts.next()?;
    let specific = ["*/*", "application/*", "application/json"]
        .iter()
        .position(|known| media.eq_ignore_ascii_case(known))
        .and_then(|position| u8::try_from(position).ok())?;
    let weight = parts.find_map(|parameter| {
        let (name, value) = parameter.split_once('=')?;
        name.eq_ignore_ascii_case("q").then(|| value.parse::<f32>().unwrap_or(0.0))
    });
    Some((specific, weight.is_none_or(|weight| weight > 0.0)))
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn escapes_that_hide_something_are_refused() {
        for path in [
            "/a%00",
            "/%2e%2e/b",
            "/a/%2E",
            "/a%2f..%2fb",
            "/a%5c..",
            "/%",
            "/%4",
            "/%zz",
            "/%ff",
            "/%0d%0a",
            "/..",
            "/a/../b",
            "/./a",
            "/a\\..",
        ] {
            assert!(check_path(path).is_err(), "{path}");
        }
        for path in ["/a", "/a%20b", "/%C3%A9", "/..a%2e.b", "/...", "/a.b/.c"] {
            assert!(check_path(path).is_ok(), "{path}");
        }
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
            assert!(is_json(value), "{value}");
        }
        for value in [
            "text/plain",
            "application/json; charset=latin1",
            "application/+json",
            "application/x-www-form-urlencoded",
            "json",
            "",
        ] {
            assert!(!is_json(value), "{value}");
        }
    }

    #[test]
    fn the_most_specific_range_decides() {
        let takes = |values: &[&'static str]| {
            let mut accepts = Accepts::default();
            values.iter().for_each(|value| accepts.add(&HeaderValue::from_static(value)));
            accepts.json()
        };
        for values in [
            &[][..],
            &["*/*"],
            &["text/html, Application/JSON;q=0.1"],
            &["text/html", "application/*"],
            &["application/json, */*;q=0"],
        ] {
            assert!(takes(values), "{values:?}");
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
            assert!(!takes(values), "{values:?}");
        }
    }
}
