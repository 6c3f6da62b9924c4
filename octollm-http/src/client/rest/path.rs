//! The paths and queries of requests: what a caller adds can end up nowhere but below the base URL.

use http::Uri;

use crate::client::base_url::{BaseUrl, is_path};

/// A path below a base URL, with a query.
#[derive(Debug, Clone, Default)]
pub(super) struct Target {
    path: String,
    query: String,
}

impl Target {
    /// A path as a program has it, with slashes between its segments. A slash at its beginning means nothing.
    pub(super) fn new(path: &str) -> Self {
        let path = path.strip_prefix('/').unwrap_or(path);
        let mut target = Self::default();
        if !path.is_empty() {
            target.path.push('/');
            encode_path(&mut target.path, path);
        }
        target
    }

    /// Adds one segment: a text that is not escaped yet, so that each escape in it stands for itself.
    pub(super) fn segment(&mut self, segment: &str) {
        if !self.path.ends_with('/') {
            self.path.push('/');
        }
        encode(&mut self.path, segment, |_| false);
        if segment.is_empty() {
            // Two slashes, which no path may have.
            self.path.push('/');
        }
    }

    pub(super) fn query(&mut self, name: &str, value: &str) {
        self.query.push(if self.query.is_empty() { '?' } else { '&' });
        encode(&mut self.query, name, |_| false);
        self.query.push('=');
        encode(&mut self.query, value, |_| false);
    }

    /// The URI below a URL. `None` if a server could read it as another place than one below the URL.
    pub(super) fn uri(&self, base: &BaseUrl) -> Option<Uri> {
        let Self { path, query } = self;
        if path.contains("//") || !(path.is_empty() || is_path(path)) {
            return None;
        }
        format!("{}{path}{query}", base.as_str()).parse().ok()
    }
}

/// Escapes what cannot be in a path. Escapes that are there already stay.
fn encode_path(out: &mut String, path: &str) {
    let bytes = path.as_bytes();
    let is_escape =
        |at: usize| bytes.get(at + 1..at + 3).is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit));
    for (at, byte) in bytes.iter().enumerate() {
        match byte {
            b'%' if is_escape(at) => out.push('%'),
            byte => push(out, *byte, |byte| b"/!$&'()*+,;=:@".contains(&byte)),
        }
    }
}

/// A text as it is in a query.
pub(super) fn escaped(text: &str) -> String {
    let mut out = String::new();
    encode(&mut out, text, |_| false);
    out
}

fn encode(out: &mut String, text: &str, is_allowed: impl Fn(u8) -> bool + Copy) {
    text.bytes().for_each(|byte| push(out, byte, is_allowed));
}

/// Appends a byte, escaped unless it is unreserved (RFC 3986 §2.3) or allowed.
fn push(out: &mut String, byte: u8, is_allowed: impl Fn(u8) -> bool) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) || is_allowed(byte) {
        out.push(char::from(byte));
    } else {
        out.push('%');
        out.push(char::from(HEX[usize::from(byte >> 4)]));
        out.push(char::from(HEX[usize::from(byte & 15)]));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn uri(path: &str, segments: &[&str], query: &[(&str, &str)]) -> Option<String> {
        let base = BaseUrl::parse("http://memory/v1").unwrap();
        let mut target = Target::new(path);
        segments.iter().for_each(|segment| target.segment(segment));
        query.iter().for_each(|(name, value)| target.query(name, value));
        target.uri(&base).map(|uri| uri.to_string())
    }

    #[test]
    fn what_is_added_is_escaped() {
        for (path, segments, query, expected) in [
            ("search", &[][..], &[("q", "a b&c=d")][..], "/v1/search?q=a%20b%26c%3Dd"),
            ("/search", &[], &[("q", "ü"), ("n", "1")], "/v1/search?q=%C3%BC&n=1"),
            ("files", &["a/b?c#d%e"], &[], "/v1/files/a%2Fb%3Fc%23d%25e"),
            ("files/", &["x"], &[], "/v1/files/x"),
            ("notes/", &[], &[], "/v1/notes/"),
            ("a%20b/50%?x#y", &[], &[], "/v1/a%20b/50%25%3Fx%23y"),
            ("", &[], &[("a", "")], "/v1?a="),
            ("chat:run", &["..x"], &[], "/v1/chat:run/..x"),
            // A segment is a text, and what looks like an escape in it is a part of it.
            ("files", &["100%", "a%20b", "..%2"], &[], "/v1/files/100%25/a%2520b/..%252"),
            ("files", &["a;b=..", "...", "line\n"], &[], "/v1/files/a%3Bb%3D../.../line%0A"),
        ] {
            assert_eq!(uri(path, segments, query).unwrap(), format!("http://memory{expected}"));
        }
    }

    #[test]
    fn nothing_leads_out_of_the_base_url() {
        for (path, segments) in [
            ("..", &[][..]),
            ("a/../../x", &[]),
            ("a/%2e%2E/x", &[]),
            ("a/%2e./x", &[]),
            ("a/%252e%252e/x", &[]),
            ("./x", &[]),
            ("//elsewhere/x", &[]),
            ("a//b", &[]),
            ("a\\..\\b", &[]),
            ("files", &[".."]),
            ("files", &["."]),
            ("files", &[""]),
            ("files", &["../x"]),
            ("files", &["%2e%2e"]),
            // Read once it is the name `..%2fx`, and read twice `../x`.
            ("files", &["..%2fx"]),
            ("files/..%2fx", &[]),
            ("files", &["..;"]),
            ("files", &["..;v=1", "x"]),
            ("files/..;/x", &[]),
            ("files", &["..\\x"]),
            ("files", &["..\0"]),
            ("files", &["%00"]),
        ] {
            assert_eq!(uri(path, segments, &[]), None, "{path} {segments:?}");
        }
    }

    proptest! {
        #[test]
        fn a_segment_is_one_segment(segment in "\\PC{1,20}", value in "\\PC{0,20}") {
            if let Some(uri) = uri("files", &[&segment], &[("v", &value)]) {
                let uri: Uri = uri.parse().unwrap();
                prop_assert_eq!(uri.path().split('/').count(), 4);
                prop_assert!(uri.path().starts_with("/v1/files/"));
                prop_assert_eq!(uri.query().unwrap().split(['&', '=']).count(), 2);
            }
        }

        #[test]
        fn any_path_is_below_the_base(
            path in "[a-z./%2e\\\\:@?#]{0,20}",
            names in prop::collection::vec("(\\.|;|/|x|%2e|%2f|%5c|%25|%00){0,6}", 0..3),
        ) {
            let names: Vec<_> = names.iter().map(|name| &**name).collect();
            if let Some(uri) = uri(&path, &names, &[]) {
                prop_assert!(uri.starts_with("http://memory/v1"));
                let uri: Uri = uri.parse().unwrap();
                // However often somebody on the way reads its escapes.
                let mut read = uri.path().to_ascii_lowercase();
                for _ in 0..8 {
                    let mut segments = read.split(['/', '\\']).map(|segment| segment.split(';').next());
                    prop_assert!(!segments.any(|name| matches!(name, Some("." | ".."))), "{}", uri);
                    for (escape, byte) in [("%2e", "."), ("%2f", "/"), ("%5c", "\\"), ("%3b", ";"), ("%25", "%")] {
                        read = read.replace(escape, byte);
                    }
                }
            }
        }
    }
}
