//! Where an arm can be reached.

use std::{fmt, sync::Arc};

use http::{HeaderValue, Uri, uri::PathAndQuery};

use super::config::UrlProblem;

/// The URL of a service: `http://host:port`, or a path below it where the service is mounted. Cheap to clone.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Endpoint(Arc<Inner>);

#[derive(PartialEq, Eq)]
struct Inner {
    /// Without a slash at its end.
    url: Arc<str>,
    host: HeaderValue,
}

impl Endpoint {
    pub(crate) fn parse(url: &str) -> Result<Self, UrlProblem> {
        let url = url.trim();
        if url.is_empty() {
            return Err(UrlProblem::Empty);
        }
        if url.contains(['?', '#']) {
            return Err(UrlProblem::Query);
        }
        let uri: Uri = url.parse().map_err(|_| UrlProblem::Malformed)?;
        match uri.scheme_str() {
            None => return Err(UrlProblem::NoScheme),
            Some("http") => {}
            Some("https") => return Err(UrlProblem::TlsNotSupported),
            Some(_) => return Err(UrlProblem::OtherScheme),
        }
        let authority = uri.authority().ok_or(UrlProblem::Malformed)?;
        if authority.as_str().contains('@') {
            return Err(UrlProblem::Credentials);
        }
        let explicit_port = authority.as_str().len() > authority.host().len();
        if authority.host().is_empty() || (explicit_port && authority.port_u16().is_none_or(|port| port == 0))
        {
            return Err(UrlProblem::Malformed);
        }
        let host = HeaderValue::from_str(authority.as_str()).map_err(|_| UrlProblem::Malformed)?;
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
        use UrlProblem::*;
        for (url, problem) in [
            ("", Empty),
            ("  ", Empty),
            ("judge:8103", NoScheme),
            ("/judge", NoScheme),
            ("https://judge", TlsNotSupported),
            ("ftp://judge", OtherScheme),
            ("http://me:secret@judge", Credentials),
            ("http://judge?x=1", Query),
            ("http://judge/#x", Query),
            ("http://", Malformed),
            ("http://judge:port", Malformed),
            ("http://judge:99999", Malformed),
            ("http://ju dge", Malformed),
        ] {
            assert_eq!(Endpoint::parse(url), Err(problem), "{url}");
        }
    }
}
