//! Where an arm can be reached.

use std::{fmt, sync::Arc};

use http::{HeaderValue, Uri, uri::PathAndQuery};

/// The URL of a service: `http://host:port`, or a path below it where the service is mounted. Cheap to clone.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Endpoint(Arc<Inner>);

#[derive(PartialEq, Eq)]
struct Inner {
    /// Without a slash at its end.
    url: Arc<str>,
    host: HeaderValue,
}

const MALFORMED: &str = "is not a URL such as http://judge-arm:8103";

impl Endpoint {
    /// # Errors
    /// What is wrong with the URL. The text does not repeat it: it might hold credentials.
    pub(crate) fn parse(url: &str) -> Result<Self, &'static str> {
        let url = url.trim();
        if url.is_empty() {
            return Err("has an empty URL");
        }
        if url.contains(['?', '#']) {
            return Err("has a query or a fragment");
        }
        let uri: Uri = url.parse().map_err(|_| MALFORMED)?;
        match uri.scheme_str() {
            None => return Err("has no scheme: write http://host:port"),
            Some("http") => {}
            Some("https") => {
                return Err(
                    "is https, which is not supported yet: put a TLS proxy beside this service, or use http",
                );
            }
            Some(_) => return Err("has a scheme other than http"),
        }
        let authority = uri.authority().ok_or(MALFORMED)?;
        if authority.as_str().contains('@') {
            return Err("holds credentials, which would end up in logs: use tokens");
        }
        let explicit_port = authority.as_str().len() > authority.host().len();
        if authority.host().is_empty() || (explicit_port && authority.port_u16().is_none_or(|port| port == 0))
        {
            return Err(MALFORMED);
        }
        let host = HeaderValue::from_str(authority.as_str()).map_err(|_| MALFORMED)?;
        let url = format!("http://{authority}{}", uri.path().trim_end_matches('/'));
        Ok(Self(Arc::new(Inner { url: url.into(), host })))
    }

    /// As it was given, without a slash at its end.
    pub(crate) fn as_str(&self) -> &str {
        &self.0.url
    }

    pub(crate) fn shared(&self) -> Arc<str> {
        Arc::clone(&self.0.url)
    }

    /// For the `host` header.
    pub(crate) fn host(&self) -> HeaderValue {
        self.0.host.clone()
    }

    /// The URI of a route, which begins with a slash. `None` where it could be read as anything but a path below this
    /// URL.
    pub(crate) fn route(&self, path: &str) -> Option<Uri> {
        if !path.starts_with('/') || path.starts_with("//") || leads_upwards(path) {
            return None;
        }
        path.parse::<PathAndQuery>().ok()?;
        format!("{}{path}", self.0.url).parse().ok()
    }
}

/// Whether a server, or a proxy before it, could take a segment for a step upwards. Escapes count for what they stand for.
fn leads_upwards(path: &str) -> bool {
    let path = path.split(['?', '#']).next().unwrap_or_default().to_ascii_lowercase();
    let path = path.replace("%2e", ".").replace("%2f", "/").replace("%5c", "/");
    path.split(['/', '\\']).any(|segment| matches!(segment, "." | ".."))
}

impl fmt::Debug for Endpoint {
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
        ] {
            assert_eq!(Endpoint::parse(url).unwrap().as_str(), read);
        }
        let mounted = Endpoint::parse("http://host:1/arms/judge").unwrap();
        assert_eq!(mounted.route("/validate").unwrap(), "http://host:1/arms/judge/validate");
        assert_eq!(mounted.host(), "host:1");
        assert_eq!(mounted.route("/tasks?after=x..").unwrap().query(), Some("after=x.."));
        for path in ["validate", "//elsewhere/x", "", "/with space", "@elsewhere", "/a\r\nb: c"] {
            assert_eq!(mounted.route(path), None, "{path}");
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
        ] {
            assert_eq!(mounted.route(path), None, "{path}");
        }
    }

    #[test]
    fn refuses_what_leads_nowhere() {
        for (url, problem) in [
            ("", "empty"),
            ("  ", "empty"),
            ("judge:8103", "no scheme"),
            ("/judge", "no scheme"),
            ("https://judge", "https"),
            ("ftp://judge", "other than http"),
            ("http://me:secret@judge", "credentials"),
            ("http://judge?x=1", "query"),
            ("http://judge/#x", "query"),
            ("http://", "not a URL"),
            ("http://judge:port", "not a URL"),
            ("http://judge:99999", "not a URL"),
            ("http://ju dge", "not a URL"),
        ] {
            assert!(Endpoint::parse(url).unwrap_err().contains(problem), "{url}");
        }
    }
}
