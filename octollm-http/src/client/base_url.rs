//! The URL of a service, and the requests below it.

use std::{
    borrow::Cow,
    fmt,
    hash::{Hash, Hasher},
    net::SocketAddr,
    sync::Arc,
};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Uri,
    header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST},
    uri::PathAndQuery,
};
use octollm_core::parts::ContextParts;
use tokio::time::Instant;

use crate::{
    resolve::{MALFORMED, ServiceUrl},
    wire,
};

/// The URL of a service: `http://host:port` or `https://host`, with a path if the service is mounted. It is cheap to clone.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct BaseUrl(Arc<Inner>);

#[derive(Clone, PartialEq, Eq)]
struct Inner {
    /// Scheme and authority, and the path without a slash at its end.
    url: Arc<str>,
    /// The URL with the address in place of the host, by which errors and logs name the endpoint; without an address the URL.
    name: Arc<str>,
    host: HeaderValue,
    /// Address of the connections, where it is not that of the host.
    address: Option<SocketAddr>,
    /// Fields of each request.
    fields: Fields,
}

/// Fields of the requests to one arm.
pub(super) type Fields = Vec<(HeaderName, HeaderValue)>;

impl BaseUrl {
    /// # Errors
    /// The problem of the URL. The text does not repeat the URL, which could hold credentials.
    pub(crate) fn parse(url: &str) -> Result<Self, &'static str> {
        let ServiceUrl { scheme, authority, path } = ServiceUrl::parse(url)?;
        let host = HeaderValue::from_str(authority.as_str()).map_err(|_| MALFORMED)?;
        let url: Arc<str> = format!("{scheme}://{authority}{path}").into();
        Ok(Self(Arc::new(Inner { name: url.clone(), url, host, address: None, fields: Vec::new() })))
    }

    /// The same URL, reached at this address. The host is still that of requests and certificates.
    pub(super) fn at(&self, address: SocketAddr) -> Self {
        let mut inner = Inner::clone(&self.0);
        let (scheme, rest) = inner.url.split_once("://").unwrap_or(("http", &inner.url));
        let path = rest.find('/').map_or("", |slash| &rest[slash..]);
        inner.name = format!("{scheme}://{address}{path}").into();
        inner.address = Some(address);
        Self(Arc::new(inner))
    }

    /// Address of the connections, where it is not that of the host.
    pub(super) fn address(&self) -> Option<SocketAddr> {
        self.0.address
    }

    /// The same URL with these fields in each request.
    pub(super) fn with_fields(&self, fields: Fields) -> Self {
        Self(Arc::new(Inner { fields, ..Inner::clone(&self.0) }))
    }

    /// Whether its requests have fields of their own.
    pub(super) fn has_fields(&self) -> bool {
        !self.0.fields.is_empty()
    }

    /// Fields of each request.
    pub(super) fn fields(&self) -> &[(HeaderName, HeaderValue)] {
        &self.0.fields
    }

    /// Whether its requests have an authorization of their own.
    pub(super) fn has_authorization(&self) -> bool {
        self.0.fields.iter().any(|(name, _)| *name == AUTHORIZATION)
    }

    /// The URL without a slash at its end, with the [address](Self::at) in place of its host if there is one.
    pub(super) fn as_str(&self) -> &str {
        &self.0.name
    }

    /// Whether nobody on the network can read what is sent: the URL is `https`, or its host is this machine.
    pub(super) fn is_confidential(&self) -> bool {
        if self.0.url.starts_with("https://") {
            return true;
        }
        if let Some(address) = self.0.address {
            return address.ip().is_loopback();
        }
        let authority: Option<http::uri::Authority> =
            self.0.host.to_str().ok().and_then(|host| host.parse().ok());
        crate::io::is_loopback(authority.as_ref().map_or("", |authority| authority.host()))
    }

    pub(super) fn shared(&self) -> Arc<str> {
        Arc::clone(&self.0.name)
    }

    /// Creates a request for JSON with these parts. The time left until the deadline is that at `now`. `accepts` is whether it states
    /// that it accepts JSON: a server of octollm answers nothing else.
    pub(super) fn request(
        &self,
        (method, uri): (Method, Uri),
        body: Option<Bytes>,
        parts: &ContextParts,
        (accepts, now): (bool, Instant),
    ) -> Request<Bytes> {
        const JSON: HeaderValue = HeaderValue::from_static("application/json");
        let has_few = self.0.fields.is_empty()
            && parts.caller.grant().is_none()
            && parts.task_id.is_none()
            && parts.trace.is_none();
        let mut head = HeaderMap::with_capacity(if has_few { FEW_HEADERS } else { HEADERS });
        for (name, value) in &self.0.fields {
            head.insert(name.clone(), value.clone());
        }
        head.insert(HOST, self.0.host.clone());
        if accepts {
            head.insert(ACCEPT, JSON);
        }
        if body.is_some() {
            head.insert(CONTENT_TYPE, JSON);
        }
        wire::write_parts(parts, &mut head, now);
        let mut request = Request::new(body.unwrap_or_default());
        *request.method_mut() = method;
        *request.uri_mut() = uri;
        *request.headers_mut() = head;
        request
    }

    /// The URI of a path that begins with a slash. `None` if it could be read as anything but a path below this URL.
    pub(super) fn uri(&self, path: &str) -> Option<Uri> {
        if !is_path(path) {
            return None;
        }
        format!("{}{path}", self.0.url).parse().ok()
    }
}

/// Header fields of a usual call, with room for a token.
const HEADERS: usize = 12;
/// Those of a call without a token, a task and a trace. A map of so many is below the size at which allocators are slower.
const FEW_HEADERS: usize = 6;

/// Whether this is the path of a route, which leads nowhere but below its URL.
pub(super) fn is_path(path: &str) -> bool {
    let is_absolute = path.starts_with('/') && !path.starts_with("//");
    is_absolute && !leads_upwards(path) && path.parse::<PathAndQuery>().is_ok()
}

/// Whether a server, or a proxy before it, could read a segment as a step upwards: `..` or `.`, alone or with parameters (`..;x`).
/// Escapes are read as what they stand for, and so are those that appear then, since each program on the way may read them once. An
/// escaped NUL, where some programs end a text, leads anywhere.
fn leads_upwards(path: &str) -> bool {
    /// A path with more layers of escapes than this is refused.
    const LAYERS: usize = 4;
    let path = path.split(['?', '#']).next().unwrap_or_default();
    let mut read = Cow::Borrowed(path.as_bytes());
    for _ in 0..LAYERS {
        let steps_up = |segment: &[u8]| {
            let name = segment.split(|byte| *byte == b';').next().unwrap_or_default();
            matches!(name, b"." | b"..")
        };
        if read.contains(&0) || read.split(|byte| matches!(byte, b'/' | b'\\')).any(steps_up) {
            return true;
        }
        match unescaped(&read) {
            Some(next) => read = Cow::Owned(next),
            None => return false,
        }
    }
    true
}

/// The bytes with their escapes read; `None` without any.
fn unescaped(bytes: &[u8]) -> Option<Vec<u8>> {
    let escape = |at: usize| {
        let digits = bytes.get(at + 1..at + 3).filter(|_| bytes[at] == b'%')?;
        let digit = |byte: u8| char::from(byte).to_digit(16);
        u8::try_from(digit(digits[0])? * 16 + digit(digits[1])?).ok()
    };
    let (mut read, mut at, mut found) = (Vec::with_capacity(bytes.len()), 0, false);
    while at < bytes.len() {
        let escaped = escape(at);
        read.push(escaped.unwrap_or(bytes[at]));
        found |= escaped.is_some();
        at += if escaped.is_some() { 3 } else { 1 };
    }
    found.then_some(read)
}

/// By its name: fields are not hashed.
impl Hash for BaseUrl {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.name.hash(state);
    }
}

impl fmt::Debug for BaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_urls_of_services() {
        for (url, read) in [
            ("http://judge:8103", "http://judge:8103"),
            (" http://judge:8103/ ", "http://judge:8103"),
            ("http://host/arms/judge/", "http://host/arms/judge"),
            ("http://[::1]:80", "http://[::1]:80"),
            #[cfg(feature = "tls")]
            ("HTTPS://judge/", "https://judge"),
        ] {
            assert_eq!(BaseUrl::parse(url).unwrap().as_str(), read);
        }
        let mounted = BaseUrl::parse("http://host:1/arms/judge").unwrap();
        assert_eq!(mounted.uri("/validate").unwrap(), "http://host:1/arms/judge/validate");
        assert_eq!(mounted.0.host, "host:1");
        assert_eq!(mounted.uri("/tasks?after=x..").unwrap().query(), Some("after=x.."));
        for path in ["validate", "//elsewhere/x", "", "/with space", "@elsewhere", "/a\r\nb: c"] {
            assert_eq!(mounted.uri(path), None, "{path}");
        }
        for path in
            ["/a;b/..x", "/a%20b", "/100%25", "/a%252fb", "/...", "/a..;/x", "/;/x", "/%C3%BC", "/%zz", "/a%"]
        {
            assert!(mounted.uri(path).is_some(), "{path}");
        }
        for path in [
            "/../x",
            "/a/..",
            "/./x",
            "/a/%2E%2e/x",
            "/a%2f..%2Fx",
            "/..\\x",
            "/%2e%2e%5cx",
            "/..?x",
            "/..#x",
            "/..;/x",
            "/a/..;v=1/x",
            "/a/.;/x",
            "/a/%2e%2e%3bx/y",
            "/a/..%2fx",
            "/a/..%252fx",
            "/a/%25252e%2e/x",
            "/a/..%255cx",
            "/a/..%00/x",
            "/a%00",
            "/a%2500",
            "/a%2525252541",
        ] {
            assert_eq!(mounted.uri(path), None, "{path}");
        }
    }

    #[test]
    fn refuses_what_leads_nowhere() {
        for (url, problem) in [
            ("", "empty"),
            ("  ", "empty"),
            ("judge:8103", "no scheme"),
            ("/judge", "no scheme"),
            #[cfg(not(feature = "tls"))]
            ("https://judge", "feature `tls`"),
            ("ftp://judge", "other than http"),
            ("http://me:secret@judge", "credentials"),
            ("http://judge?x=1", "query"),
            ("http://judge/#x", "query"),
            ("http://", "not a URL"),
            ("http://judge:port", "not a URL"),
            ("http://judge:99999", "not a URL"),
            ("http://ju dge", "not a URL"),
        ] {
            assert!(BaseUrl::parse(url).unwrap_err().contains(problem), "{url}");
        }
    }
}
