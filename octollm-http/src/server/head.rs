//! Checks of a request's head: the rules of HTTP, the target, and media types.

use http::{HeaderMap, HeaderValue, Method, Uri, Version, header, request::Parts};
use octollm_core::error::{ErrorKind, Failure};

use super::routes::{Arrival, Refusal};
use crate::{
    limits::ServerConfig,
    wire::{is_json, names},
};

const CODINGS: &str = "the only transfer coding that is supported is chunked";

/// The header fields that are checked.
#[derive(Debug, Default)]
pub(crate) struct Fields<'h> {
    host: Stands<'h>,
    codings: Stands<'h>,
    authorization: Stands<'h>,
    content_type: Stands<'h>,
    key: Stands<'h>,
    accepts: Accepts,
    content_coding: Stands<'h>,
    expects: bool,
}

/// A field that may occur once.
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
                header::HOST => fields.host.add(value),
                header::TRANSFER_ENCODING => fields.codings.add(value),
                header::AUTHORIZATION => fields.authorization.add(value),
                header::CONTENT_TYPE => fields.content_type.add(value),
                header::ACCEPT => fields.accepts.add(value),
                header::CONTENT_ENCODING if !value.as_bytes().eq_ignore_ascii_case(b"identity") => {
                    fields.content_coding.add(value);
                }
                header::EXPECT => fields.expects |= !value.as_bytes().eq_ignore_ascii_case(b"100-continue"),
                _ if *name == names::IDEMPOTENCY_KEY => fields.key.add(value),
                _ => {}
            }
        }
        fields
    }

    /// Refuses a head that another server could read as another request, and closes the connection. hyper itself handles a
    /// request with two lengths: it reads the chunks and closes the connection.
    pub(crate) fn check_framing(&self, arrival: Arrival, version: Version, uri: &Uri) -> Result<(), Refusal> {
        let words = match (arrival, self.codings, self.host) {
            (Arrival::Mounted, ..) | (Arrival::Http2, _, Stands::Nowhere) => return Ok(()),
            // RFC 9113 §8.3.1.
            (Arrival::Http2, _, Stands::Once(host)) => match uri.authority() {
                Some(authority) if !host.as_bytes().eq_ignore_ascii_case(authority.as_str().as_bytes()) => {
                    "Host is not that of the request"
                }
                _ => return Ok(()),
            },
            (_, Stands::Once(coding), _) if !coding.as_bytes().eq_ignore_ascii_case(b"chunked") => CODINGS,
            (_, Stands::Twice, _) => CODINGS,
            (_, _, Stands::Once(_)) => return Ok(()),
            (_, _, Stands::Nowhere) if version < Version::HTTP_11 => return Ok(()),
            (_, _, Stands::Nowhere) => "Host is missing",
            _ => "there is more than one Host",
        };
        let refusal = Refusal::from(Failure::new(ErrorKind::BadRequest, words));
        // HTTP/2 has no such field: its streams are framed separately.
        Err(match arrival {
            Arrival::Http1 => refusal.header(header::CONNECTION, HeaderValue::from_static("close")),
            _ => refusal,
        })
    }

    /// Checks the fields that are the same for every route.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        let refused = |message: &str| Err(Failure::new(ErrorKind::BadRequest, message));
        if let Stands::Twice = self.authorization {
            return refused("there is more than one Authorization");
        }
        let key_fits = match self.key {
            Stands::Nowhere => true,
            Stands::Once(key) => is_key(key.as_bytes()),
            Stands::Twice => false,
        };
        if !key_fits {
            return refused(
                "malformed header idempotency-key: it is one text of 1 to 255 characters, quoted if it has a quote or a comma",
            );
        }
        if self.expects {
            return Err(Failure::new(
                ErrorKind::ExpectationFailed,
                "the only expectation that is supported is 100-continue",
            ));
        }
        Ok(())
    }

    /// Whether the caller accepts `application/json`.
    pub(crate) fn accepts_json(&self) -> bool {
        self.accepts.json()
    }

    /// Checks that the body is declared as JSON in UTF-8, without a content coding or in gzip. Returns whether it is in gzip.
    pub(crate) fn check_content(&self, accepts_gzip: bool) -> Result<bool, Failure> {
        let refused = |message: &str| Err(Failure::new(ErrorKind::UnsupportedMediaType, message));
        let is_coded = match self.content_coding {
            Stands::Nowhere => false,
            Stands::Once(coding) if accepts_gzip && coding.as_bytes().eq_ignore_ascii_case(b"gzip") => true,
            _ => {
                return refused(
                    "the body is in a content coding, which is not supported: send it without one",
                );
            }
        };
        match self.content_type {
            Stands::Once(media_type) if is_json(media_type) => Ok(is_coded),
            Stands::Nowhere => refused("the content type is missing: set it to application/json"),
            _ => refused("the content type is not application/json in UTF-8"),
        }
    }
}

/// The key of a call: a string of RFC 8941, or, as most other APIs have it, 1 to 255 characters without quotes. A quote at the start decides
/// which of both it is. A text without quotes has no comma, since a proxy could join two fields to it.
pub(super) fn is_key(value: &[u8]) -> bool {
    if value.starts_with(b"\"") {
        return is_quoted_string(value);
    }
    let fits = |byte: &u8| (b' '..=b'~').contains(byte) && !matches!(byte, b'"' | b',');
    (1..=255).contains(&value.len()) && value.iter().all(fits)
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

/// Checks the parts of a head that need no route.
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

/// Refuses steps upwards, and escapes of a control character, of a step or of no character: a proxy could read such a path as
/// another one.
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

/// Decodes percent escapes. Returns `None` for a malformed one.
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

/// Whether the `Accept` fields of a caller, taken together, include `application/json`.
#[derive(Debug, Clone, Copy, Default)]
struct Accepts {
    /// Specificity and verdict of the most specific range that matches (RFC 9110 §12.5.1).
    best: Option<(u8, bool)>,
    stands: bool,
}

impl Accepts {
    fn add(&mut self, value: &HeaderValue) {
        self.stands = true;
        for range in value.to_str().unwrap_or_default().split(',') {
            if let Some(found) = range_for_json(range)
                && self.best.is_none_or(|best| found.0 > best.0)
            {
                self.best = Some(found);
            }
        }
    }

    /// Whether the caller accepts `application/json`.
    fn json(self) -> bool {
        !self.stands || self.best.is_some_and(|(_, taken)| taken)
    }
}

/// The specificity of a range that matches `application/json`, and whether its weight is above zero.
fn range_for_json(range: &str) -> Option<(u8, bool)> {
    let mut parts = range.split(';').map(str::trim);
    let media = parts.next()?;
    let specific = ["*/*", "application/*", "application/json"]
        .iter()
        .position(|known| media.eq_ignore_ascii_case(known))
        .and_then(|position| u8::try_from(position).ok())?;
    Some((specific, weight_of(parts) > 0.0))
}

/// The weight of a range, by its parameters.
fn weight_of<'a>(mut parameters: impl Iterator<Item = &'a str>) -> f32 {
    let weight = parameters.find_map(|parameter| {
        let (name, value) = parameter.split_once('=')?;
        name.eq_ignore_ascii_case("q").then(|| value.parse::<f32>().unwrap_or(0.0))
    });
    weight.unwrap_or(1.0)
}

/// Whether the answer is to be server-sent events. Where it can be JSON as well, the caller has to name them, with a weight that is
/// not less.
pub(crate) fn wants_events(head: &HeaderMap, or_json: bool) -> bool {
    let (mut events, mut json, mut any, mut stands) = (None, None, None, false);
    for value in head.get_all(header::ACCEPT) {
        stands = true;
        for range in value.to_str().unwrap_or_default().split(',') {
            let mut parts = range.split(';').map(str::trim);
            let media = parts.next().unwrap_or_default();
            let is = |known: &str| media.eq_ignore_ascii_case(known);
            if is("application/json") {
                json = Some(weight_of(parts));
            } else if is("text/event-stream") {
                events = Some(weight_of(parts));
            } else if is("text/*") || is("*/*") {
                any = Some(weight_of(parts));
            }
        }
    }
    if or_json {
        events.is_some_and(|weight| weight > 0.0 && json.is_none_or(|json| json <= weight))
    } else {
        !stands || events.or(any).is_some_and(|weight| weight > 0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_one_text_with_or_without_quotes() {
        let long = |n: usize| format!("\"{}\"", "k".repeat(n));
        for key in ["\"a\"", "\"a b\"", r#""a\"b\\""#, &long(255)] {
            assert!(is_key(key.as_bytes()), "{key}");
        }
        for key in ["a", "order-7", "a b", r"a\b", "a;b=1", &"k".repeat(255)] {
            assert!(is_key(key.as_bytes()), "{key}");
        }
        for key in ["a\"", "a, b", r#"a"b"#, "é", &"k".repeat(256)] {
            assert!(!is_key(key.as_bytes()), "{key}");
        }
        for key in ["", "\"", "\"\"", "\"a", r#""a"b""#, r#""a\""#, r#""a\n""#, "\"é\"", &long(256)] {
            assert!(!is_key(key.as_bytes()), "{key}");
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
    fn server_sent_events_are_asked_for_by_name() {
        let wants = |value: &'static str, or_json| {
            let head = HeaderMap::from_iter([(header::ACCEPT, HeaderValue::from_static(value))]);
            wants_events(&head, or_json)
        };
        for (value, or_json, only_events) in [
            ("text/event-stream", true, true),
            ("Text/Event-Stream, application/json;q=0.5", true, true),
            ("text/event-stream, application/json", true, true),
            ("text/event-stream;q=0.5, application/json", false, true),
            ("text/event-stream;q=0, */*", false, false),
            ("*/*", false, true),
            ("text/*", false, true),
            ("application/json", false, false),
            ("", false, false),
        ] {
            assert_eq!((wants(value, true), wants(value, false)), (or_json, only_events), "{value}");
        }
        assert!(!wants_events(&HeaderMap::new(), true) && wants_events(&HeaderMap::new(), false));
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
