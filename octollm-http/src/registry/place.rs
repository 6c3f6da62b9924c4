//! The endpoints at which arms may be registered: URLs in one form only, and the prefixes that allow them.

use std::{
    fmt,
    net::{Ipv4Addr, Ipv6Addr},
};

/// The URL of an endpoint, in its only form: lower case, without a default port, without a slash at its end.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    is_https: bool,
    host: String,
    port: u16,
    segments: Vec<String>,
}

/// A prefix of allowed endpoints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Prefix {
    is_https: bool,
    host: Host,
    /// `None` for any port.
    port: Option<u16>,
    segments: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Host {
    Name(String),
    /// One more label, whatever it is, before these.
    OneBelow(String),
}

const MALFORMED: &str = "is not a URL such as http://judge-arm:8103";

/// Scheme, host, port and path of a URL.
type Parts<'u> = (bool, &'u str, Option<&'u str>, &'u str);

/// Takes a URL apart. What it leaves out of URLs, others could read in two ways: credentials, queries, fragments, and backslashes.
fn parts(url: &str) -> Result<Parts<'_>, &'static str> {
    let (scheme, rest) = url.split_once("://").ok_or("has no scheme: write http://host:port")?;
    let is_https = match () {
        () if scheme.eq_ignore_ascii_case("http") => false,
        () if scheme.eq_ignore_ascii_case("https") => true,
        () => return Err("has a scheme other than http and https"),
    };
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    if let Some(inner) = authority.strip_prefix('[') {
        let (host, rest) = inner.split_once(']').ok_or(MALFORMED)?;
        let port = match rest.strip_prefix(':') {
            None if rest.is_empty() => None,
            None => return Err(MALFORMED),
            port => port,
        };
        host.parse::<Ipv6Addr>().map_err(|_| MALFORMED)?;
        return Ok((is_https, host, port, path));
    }
    match authority.split_once(':') {
        None => Ok((is_https, authority, None, path)),
        Some((host, port)) => Ok((is_https, host, Some(port), path)),
    }
}

/// A host name or an address, in lower case.
fn host(text: &str) -> Result<String, &'static str> {
    if let Ok(address) = text.parse::<Ipv6Addr>() {
        return Ok(format!("[{address}]"));
    }
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    let are_labels = text.split('.').all(|label| !label.is_empty() && label.bytes().all(is_allowed));
    if !are_labels || text.len() > 253 {
        return Err(MALFORMED);
    }
    // Some resolvers read `127.1` and `0x7f000001` as addresses.
    let last = text.rsplit('.').next().unwrap_or_default();
    let is_number = last.bytes().all(|byte| byte.is_ascii_digit())
        || last.strip_prefix("0x").or_else(|| last.strip_prefix("0X")).is_some_and(is_hexadecimal);
    if is_number && text.parse::<Ipv4Addr>().is_err() {
        return Err("has a host that is a number, but not an address");
    }
    Ok(text.to_ascii_lowercase())
}

fn is_hexadecimal(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn port(text: &str) -> Result<u16, &'static str> {
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|port| is_number && *port > 0).ok_or(MALFORMED)
}

/// The segments of a path, none of which a server or a proxy could read as another one.
fn segments(path: &str) -> Result<Vec<String>, &'static str> {
    let path = path.strip_prefix('/').unwrap_or(path);
    let path = path.strip_suffix('/').unwrap_or(path);
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    let one = |segment: &str| {
        let is_plain = !matches!(segment, "" | "." | "..") && segment.bytes().all(is_allowed);
        is_plain.then(|| segment.to_owned()).ok_or("has a path with other than letters, digits and `-._~`")
    };
    if path.is_empty() { Ok(Vec::new()) } else { path.split('/').map(one).collect() }
}

fn default_port(is_https: bool) -> u16 {
    if is_https { 443 } else { 80 }
}

impl Place {
    /// # Errors
    /// The problem of the URL. The text does not repeat the URL, which could hold credentials.
    pub(crate) fn parse(url: &str) -> Result<Self, &'static str> {
        let (is_https, name, number, path) = parts(url)?;
        let port = number.map_or(Ok(default_port(is_https)), port)?;
        Ok(Self { is_https, host: host(name)?, port, segments: segments(path)? })
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { is_https, host, port, segments } = self;
        write!(f, "{}://{host}", if *is_https { "https" } else { "http" })?;
        if *port != default_port(*is_https) {
            write!(f, ":{port}")?;
        }
        segments.iter().try_for_each(|segment| write!(f, "/{segment}"))
    }
}

impl Prefix {
    /// # Errors
    /// The problem of the prefix.
    pub(crate) fn parse(url: &str) -> Result<Self, &'static str> {
        let (is_https, name, number, path) = parts(url)?;
        let port = match number {
            None => Some(default_port(is_https)),
            Some("*") => None,
            Some(number) => Some(port(number)?),
        };
        let host = match name.strip_prefix("*.") {
            None => Host::Name(host(name)?),
            Some(rest) if rest.parse::<Ipv4Addr>().is_ok() || rest.parse::<Ipv6Addr>().is_ok() => {
                return Err(MALFORMED);
            }
            Some(rest) => Host::OneBelow(host(rest)?),
        };
        Ok(Self { is_https, host, port, segments: segments(path)? })
    }

    /// The endpoints of this machine alone.
    pub(crate) fn loopback() -> Vec<Self> {
        let all = ["http", "https"].into_iter().flat_map(|scheme| {
            ["localhost", "127.0.0.1", "[::1]"].map(|host| Self::parse(&format!("{scheme}://{host}:*")).ok())
        });
        all.flatten().collect()
    }

    /// Whether an endpoint is below the prefix: of the same scheme, host and port, and of a path that begins with its segments.
    pub(crate) fn allows(&self, place: &Place) -> bool {
        let is_host = match &self.host {
            Host::Name(name) => *name == place.host,
            Host::OneBelow(rest) => place.host.split_once('.').is_some_and(|(_, below)| below == rest),
        };
        self.is_https == place.is_https
            && is_host
            && self.port.is_none_or(|port| port == place.port)
            && place.segments.starts_with(&self.segments)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn allows(prefix: &str, url: &str) -> bool {
        Place::parse(url).is_ok_and(|place| Prefix::parse(prefix).unwrap().allows(&place))
    }

    #[test]
    fn a_prefix_allows_its_origin_and_the_paths_below_its_own() {
        for (prefix, url) in [
            ("http://judge", "http://judge"),
            ("http://judge", "http://JUDGE:80/"),
            ("HTTP://Judge/", "http://judge/arms/judge/"),
            ("http://judge:8103/arms", "http://judge:8103/arms"),
            ("http://judge:8103/arms/", "http://judge:8103/arms/judge"),
            ("https://judge", "https://judge:443"),
            ("http://judge:*", "http://judge:1"),
            ("http://*.judge:8103", "http://judge-0.judge:8103"),
            ("http://*.judge.ns.svc", "http://judge-0.judge.ns.svc"),
            ("http://[::1]:*", "http://[0:0:0:0:0:0:0:1]:9"),
            ("http://10.0.0.1:*", "http://10.0.0.1:8103"),
            ("http://judge_arm", "http://judge_arm"),
        ] {
            assert!(allows(prefix, url), "{prefix} {url}");
        }
    }

    #[test]
    fn what_only_looks_like_the_prefix_is_not_allowed() {
        for (prefix, url) in [
            ("http://judge", "http://judge.evil.com"),
            ("http://judge", "http://judge:8103"),
            ("http://judge", "http://judge@evil.com"),
            ("http://judge", "http://judge:80@evil.com"),
            ("http://judge", "http://evil.com/http://judge"),
            ("http://judge", "http://evil.com#@judge"),
            ("http://judge", "http://evil.com?judge"),
            ("http://judge", "http://judge\\.evil.com"),
            ("http://judge", "http://judge%2eevil.com"),
            ("http://judge", "http://judge."),
            ("http://judge", "https://judge"),
            ("http://judge", "http:///judge"),
            ("http://judge", "http://evil-judge"),
            ("http://judge", "judge"),
            ("http://judge", " http://judge"),
            ("http://judge", "http://judge\n"),
            ("http://judge/arms", "http://judge/arms-evil"),
            ("http://judge/arms", "http://judge/arm"),
            ("http://judge/arms", "http://judge/arms/../admin"),
            ("http://judge/arms", "http://judge/arms/%2e%2e/admin"),
            ("http://judge/arms", "http://judge/arms/..%2fadmin"),
            ("http://judge/arms", "http://judge/arms/;x"),
            ("http://judge/arms", "http://judge/arms//x"),
            ("http://judge/arms", "http://judge/ARMS"),
            ("http://*.judge", "http://judge"),
            ("http://*.judge", "http://a.b.judge"),
            ("http://*.judge", "http://.judge"),
            ("http://*.judge", "http://evil.com.judge.evil.com"),
            ("http://*.judge", "http://*.judge"),
            ("http://127.0.0.1:*", "http://127.1:80"),
            ("http://127.0.0.1:*", "http://2130706433"),
            ("http://127.0.0.1:*", "http://0x7f000001"),
            ("http://127.0.0.1:*", "http://127.0.0.01"),
            ("http://127.0.0.1:*", "http://[::ffff:127.0.0.1]"),
            ("http://judge:*", "http://judge:*"),
            ("http://judge:*", "http://judge:0"),
            ("http://judge:*", "http://judge:65536"),
            ("http://judge:*", "http://judge:+80"),
            ("http://judge:*", "http://judge:"),
        ] {
            assert!(!allows(prefix, url), "{prefix} {url}");
        }
    }

    #[test]
    fn an_endpoint_has_one_form() {
        for (url, form) in [
            ("http://Judge-Arm:8103/", "http://judge-arm:8103"),
            ("http://judge:80", "http://judge"),
            ("https://judge:443/a/b/", "https://judge/a/b"),
            ("http://judge:443", "http://judge:443"),
            ("http://[0::1]:80/x", "http://[::1]/x"),
        ] {
            let place = Place::parse(url).unwrap();
            assert_eq!(place.to_string(), form);
            assert_eq!(Place::parse(form).unwrap(), place);
        }
    }

    #[test]
    fn a_prefix_that_could_be_meant_otherwise_is_refused() {
        for prefix in [
            "judge",
            "ftp://judge",
            "http://*",
            "http://*judge",
            "http://a.*.b",
            "http://*.10.0.0.1",
            "http://j?x",
        ] {
            assert!(Prefix::parse(prefix).is_err(), "{prefix}");
        }
        assert_eq!(Prefix::loopback().len(), 6);
    }
}
