//! Passwords in URLs: `scheme://user:password@host`.

use super::{Found, SecretKind};

/// What documentation writes for a password.
const EXAMPLES: [&str; 8] = ["pass", "passwd", "password", "passw0rd", "pwd", "pw", "secret", "token"];

/// Finds the passwords alone: the rest of the URL is no secret.
pub(super) fn find(text: &str) -> Vec<Found> {
    text.match_indices("://").filter_map(|(marks, _)| password(text, marks)).collect()
}

fn password(text: &str, marks: usize) -> Option<Found> {
    let scheme = text.get(..marks)?.chars().next_back();
    let start = marks + 3;
    let rest = text.get(start..)?;
    let authority = rest.get(..rest.find(ends_authority).unwrap_or(rest.len()))?;
    let (user_info, host) = authority.rsplit_once('@')?;
    let (user, password) = user_info.split_once(':')?;
    let hosted =
        host.starts_with(|first: char| first.is_ascii_alphanumeric() || matches!(first, '[' | '{' | '$'));
    let real = scheme?.is_ascii_alphanumeric() && hosted && !is_example(password);
    let start = start + user.len() + 1;
    real.then_some(Found { kind: SecretKind::UrlPassword, start, end: start + password.len() })
}

fn ends_authority(character: char) -> bool {
    character.is_whitespace()
        || matches!(character, '/' | '?' | '#' | '"' | '\'' | '`' | '<' | '>' | '\\' | '|' | ',')
}

/// Whether a password is none: the word for it, one character again and again, or a place that a program
/// fills in.
fn is_example(password: &str) -> bool {
    let filled =
        password.starts_with(['$', '%']) || password.contains(['{', '}', '(', ')', '[', ']', '…', '*']);
    let first = password.chars().next();
    let repeated = password.chars().all(|character| Some(character) == first);
    filled || repeated || EXAMPLES.iter().any(|example| password.eq_ignore_ascii_case(example))
}

#[cfg(test)]
mod tests {
    use super::find;

    /// Puts `user:password@` into a URL, in parts, so that this file has none.
    fn url(scheme: &str, user_info: &str, host: &str) -> String {
        format!("{scheme}:{}{user_info}@{host}", "//")
    }

    #[test]
    fn passwords_are_found_alone() {
        for (user, password) in
            [("admin", "hunter2"), ("", "s3cr3t"), ("a@b", "x:y"), ("u", "p%40ss"), ("u", "pass1")]
        {
            for host in ["db", "127.0.0.1:80/x", "[::1]", "host/@", "{host}\"", "h'"] {
                let text = format!("é \"{}", url("postgres", &format!("{user}:{password}"), host));
                let found = find(&text);
                assert_eq!(found.len(), 1, "{text}");
                assert_eq!(&text[found[0].start..found[0].end], password);
            }
        }
    }

    #[test]
    fn examples_and_places_to_fill_in_are_none() {
        for user_info in
            ["user:pass", "u:PASSWORD", "u:{password}", "u:$PASSWORD", "u:****", "u:xxxx", "u:%s", "u:", "u"]
        {
            assert!(find(&url("http", user_info, "host")).is_empty(), "{user_info}");
        }
    }

    #[test]
    fn what_is_no_url_is_none() {
        for text in [
            "a://b:c d@e",
            "http://host:80/x@y",
            "://a:bcd@e",
            "http://a:bcd@",
            "http://a:b\"@c",
            "http://host:80?a@b",
        ] {
            assert!(find(text).is_empty(), "{text}");
        }
    }
}
