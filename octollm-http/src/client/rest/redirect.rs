//! The decision whether a redirect is followed, and where to.

use http::{HeaderMap, Method, StatusCode, Uri, header::LOCATION};

/// The most redirects of one request that are followed.
pub(super) const MOST_REDIRECTS: usize = 5;

/// A request that was answered, as far as it matters here.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sent<'a> {
    pub(super) method: &'a Method,
    pub(super) uri: &'a Uri,
    /// The URL of the client.
    pub(super) base: &'a Uri,
    /// Whether the request has a body.
    pub(super) has_body: bool,
    /// Whether the body can be sent again.
    pub(super) repeatable: bool,
    /// Whether redirects to other origins are followed.
    pub(super) elsewhere: bool,
}

/// Where an answer redirects a request to; `None` if it does not. `true` if that is the origin of the client.
///
/// # Errors
/// The reason why it is not followed.
pub(super) fn next(
    status: StatusCode,
    head: &HeaderMap,
    sent: &Sent<'_>,
) -> Result<Option<(Uri, bool)>, &'static str> {
    let repeats = match status.as_u16() {
        301..=303 => false,
        307 | 308 => true,
        _ => return Ok(None),
    };
    let Some(location) = head.get(LOCATION) else { return Err("without a location") };
    let to = location.to_str().ok().and_then(|location| join(sent.uri, location));
    let Some(to) = to else { return Err("to a malformed location") };
    if sent.uri.scheme_str() == Some("https") && to.scheme_str() != Some("https") {
        return Err("from https to http, which is not followed");
    }
    let is_own = origin(&to) == origin(sent.base);
    let only_reads = matches!(*sent.method, Method::GET | Method::HEAD);
    if !only_reads && !repeats {
        return Err("to another request than this one, which is not followed");
    }
    if !is_own && !sent.elsewhere {
        return Err("to another origin, which is followed with `follow_elsewhere()` only");
    }
    if !is_own && (!only_reads || sent.has_body) {
        return Err("to another origin, where no body is sent");
    }
    if sent.has_body && !sent.repeatable {
        return Err("and the body was sent already, as a stream");
    }
    Ok(Some((to, is_own)))
}

/// Scheme, host and port.
fn origin(uri: &Uri) -> Option<(&str, String, u16)> {
    let scheme = uri.scheme_str()?;
    let port = uri.port_u16().unwrap_or(if scheme == "https" { 443 } else { 80 });
    Some((scheme, uri.host()?.to_ascii_lowercase(), port))
}

/// The location below the URI that it was found at (RFC 3986 §5.2), without its fragment. `None` unless it is one of HTTP, without
/// credentials.
fn join(from: &Uri, location: &str) -> Option<Uri> {
    let location = location.split('#').next().unwrap_or_default();
    let first = location.split(['/', '?']).next().unwrap_or_default();
    let joined: Uri = if first.contains(':') {
        location.parse().ok()?
    } else {
        let (scheme, authority) = (from.scheme_str()?, from.authority()?);
        let absolute = |path: &str| format!("{scheme}://{authority}{path}");
        let text = if location.starts_with("//") {
            format!("{scheme}:{location}")
        } else if location.starts_with('/') {
            absolute(location)
        } else if location.starts_with('?') {
            absolute(&format!("{}{location}", from.path()))
        } else if location.is_empty() {
            return Some(from.clone());
        } else {
            let folder = from.path().rsplit_once('/').map_or("", |(folder, _)| folder);
            absolute(&format!("{folder}/{location}"))
        };
        text.parse().ok()?
    };
    let authority = joined.authority()?;
    let is_http = matches!(joined.scheme_str(), Some("http" | "https"));
    if !is_http || authority.host().is_empty() || authority.as_str().contains('@') {
        return None;
    }
    let path = without_dots(joined.path());
    let query = joined.query().map(|query| format!("?{query}")).unwrap_or_default();
    format!("{}://{authority}{path}{query}", joined.scheme_str()?).parse().ok()
}

/// A path without `.` and `..` as segments (RFC 3986 §5.2.4).
fn without_dots(path: &str) -> String {
    let mut segments: Vec<&str> = Vec::new();
    let mut rest = path.split('/').skip(1).peekable();
    while let Some(segment) = rest.next() {
        let is_last = rest.peek().is_none();
        match segment {
            "." => {}
            ".." => drop(segments.pop()),
            segment => segments.push(segment),
        }
        if is_last && matches!(segment, "." | "..") {
            segments.push("");
        }
    }
    format!("/{}", segments.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn joins_as_the_standard_does() {
        let from: Uri = "http://a/b/c/d;p?q".parse().unwrap();
        for (location, joined) in [
            ("g", "http://a/b/c/g"),
            ("./g", "http://a/b/c/g"),
            ("g/", "http://a/b/c/g/"),
            ("/g", "http://a/g"),
            ("//g", "http://g/"),
            ("?y", "http://a/b/c/d;p?y"),
            ("g?y#s", "http://a/b/c/g?y"),
            ("#s", "http://a/b/c/d;p?q"),
            (";x", "http://a/b/c/;x"),
            (".", "http://a/b/c/"),
            ("..", "http://a/b/"),
            ("../g", "http://a/b/g"),
            ("../../../g", "http://a/g"),
            ("/./g", "http://a/g"),
            ("g/../h", "http://a/b/c/h"),
            ("g;x=1/../y", "http://a/b/c/y"),
            ("https://h:1/x", "https://h:1/x"),
        ] {
            assert_eq!(join(&from, location).unwrap(), joined, "{location}");
        }
        for location in ["mailto:x", "ftp://h/x", "http://me:secret@h/", "http:///x", "file:///x", "/a b"] {
            assert_eq!(join(&from, location), None, "{location}");
        }
    }

    #[test]
    fn each_redirect_is_followed_or_says_why_not() {
        let decide = |status: u16, location: &str, method: Method, body: bool, elsewhere: bool| {
            let (base, uri) = ("https://a/v1".parse().unwrap(), "https://a/v1/x".parse().unwrap());
            let head = HeaderMap::from_iter([(LOCATION, location.parse().unwrap())]);
            let sent =
                Sent { method: &method, uri: &uri, base: &base, has_body: body, repeatable: true, elsewhere };
            let decided = next(StatusCode::from_u16(status).unwrap(), &head, &sent);
            decided.map(|to| to.map(|(uri, is_own)| (uri.to_string(), is_own))).map_err(str::len)
        };
        let (get, post) = (Method::GET, Method::POST);
        let own = Ok(Some(("https://a/y".to_owned(), true)));
        for status in [301, 302, 303, 307, 308] {
            assert_eq!(decide(status, "/y", get.clone(), false, false), own);
            assert!(decide(status, "https://A:443/y", get.clone(), false, false).unwrap().unwrap().1);
            assert_eq!(decide(status, "/y", post.clone(), true, false).is_ok(), status >= 307, "{status}");
            assert!(decide(status, "https://b/y", get.clone(), false, false).is_err());
            let elsewhere = decide(status, "https://b/y", get.clone(), false, true);
            assert_eq!(elsewhere, Ok(Some(("https://b/y".to_owned(), false))));
            assert!(decide(status, "https://b/y", post.clone(), true, true).is_err());
            assert!(decide(status, "https://b/y", get.clone(), true, true).is_err());
            assert!(decide(status, "https://a:444/y", get.clone(), false, false).is_err());
            assert!(decide(status, "http://a/y", get.clone(), false, true).is_err());
        }
        for status in [200, 300, 304, 305] {
            assert_eq!(decide(status, "/y", get.clone(), false, true), Ok(None));
        }
    }
}
