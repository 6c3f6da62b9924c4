//! Secrets that a service repeats in its answers.

use bytes::Bytes;
use octollm_core::{error::Failure, json::read_output};
use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;

use super::path::escaped;
use crate::client::foreign::MOST_READ;

/// A shorter text is no secret, and could be a part of any word.
const SHORTEST: usize = 6;

/// Secrets, in the forms in which they can be in a text.
#[derive(Clone, Default)]
pub(super) struct Secrets(Vec<SecretString>);

impl Secrets {
    /// Adds the value of a header field: as a whole, and without the scheme before it (`Basic …`).
    pub(super) fn add(&mut self, value: &SecretString) {
        let value = value.expose_secret().trim();
        let parts = [Some(value), value.split_once(' ').map(|(_, secret)| secret.trim())];
        for secret in parts.into_iter().flatten().filter(|secret| secret.len() >= SHORTEST) {
            let (json, url) = (serde_json::Value::from(secret).to_string(), escaped(secret));
            for form in [secret, json.trim_matches('"'), &url] {
                if !self.0.iter().any(|known| known.expose_secret() == form) {
                    self.0.push(form.into());
                }
            }
        }
        // A part of another one must not remain of that.
        self.0.sort_by_key(|secret| std::cmp::Reverse(secret.expose_secret().len()));
    }

    fn texts(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(ExposeSecret::expose_secret)
    }

    fn are_in(&self, value: &Value) -> bool {
        let in_text = |text: &str| self.texts().any(|secret| text.contains(secret));
        match value {
            Value::String(text) => in_text(text),
            Value::Array(items) => items.iter().any(|item| self.are_in(item)),
            Value::Object(members) => members.iter().any(|(name, value)| in_text(name) || self.are_in(value)),
            _ => false,
        }
    }

    /// Removes them from a body, before anything of it is cut off.
    pub(super) fn remove_from_body(&self, body: Bytes) -> Bytes {
        if self.0.is_empty() || body.len() > MOST_READ {
            return body;
        }
        let body = match String::from_utf8_lossy(&body) {
            text if self.texts().any(|secret| text.contains(secret)) => {
                let mut text = text.into_owned();
                self.texts().for_each(|secret| replace(&mut text, secret));
                text.into()
            }
            _ => body,
        };
        // JSON can write each character of a text in several ways.
        match read_output::<Value>(&body) {
            Ok(mut json) if self.are_in(&json) => {
                self.texts().for_each(|secret| within(&mut json, secret));
                json.to_string().into()
            }
            _ => body,
        }
    }

    /// Removes them from what a failure says.
    pub(super) fn remove_from(&self, failure: &mut Failure) {
        for secret in self.texts() {
            replace(&mut failure.message, secret);
            for violation in &mut failure.violations {
                replace(&mut violation.path, secret);
                replace(&mut violation.message, secret);
            }
            if let Some(details) = &mut failure.details {
                within(details, secret);
            }
        }
    }
}

fn within(value: &mut Value, secret: &str) {
    match value {
        Value::String(text) => replace(text, secret),
        Value::Array(items) => items.iter_mut().for_each(|item| within(item, secret)),
        Value::Object(members) => {
            if members.keys().any(|name| name.contains(secret)) {
                *members = std::mem::take(members)
                    .into_iter()
                    .map(|(mut name, value)| {
                        replace(&mut name, secret);
                        (name, value)
                    })
                    .collect();
            }
            members.values_mut().for_each(|value| within(value, secret));
        }
        _ => {}
    }
}

fn replace(text: &mut String, secret: &str) {
    if text.contains(secret) {
        *text = text.replace(secret, "[redacted]");
    }
}

#[cfg(test)]
mod tests {
    use octollm_core::error::ErrorKind;
    use serde_json::json;

    use super::*;

    fn secrets(values: &[&str]) -> Secrets {
        let mut secrets = Secrets::default();
        values.iter().for_each(|value| secrets.add(&SecretString::from(*value)));
        secrets
    }

    #[test]
    fn a_secret_is_removed_from_a_body_in_each_form() {
        let secrets = secrets(&["Basic dXNlcjpwYXNz", "pass\"wörd/1", "sk-secret", "sk-secret-longer"]);
        for (body, redacted) in [
            ("no such user: dXNlcjpwYXNz", "no such user: [redacted]"),
            ("not Basic dXNlcjpwYXNz", "not [redacted]"),
            (r#"{"error":"not pass\"wörd/1"}"#, r#"{"error":"not [redacted]"}"#),
            (r#"{"error":"not sk-secre\u0074"}"#, r#"{"error":"not [redacted]"}"#),
            (r#"{"sk\u002dsecret":1}"#, r#"{"[redacted]":1}"#),
            ("GET /x?key=pass%22w%C3%B6rd%2F1", "GET /x?key=[redacted]"),
            ("sk-secret-longer, sk-secret", "[redacted], [redacted]"),
            (r#"{"a":1,"a":2}"#, r#"{"a":1,"a":2}"#),
            ("sk-secre", "sk-secre"),
        ] {
            let read = secrets.remove_from_body(Bytes::from(body.to_owned()));
            assert_eq!(String::from_utf8_lossy(&read), redacted);
        }
    }

    #[test]
    fn a_secret_is_removed_from_every_part() {
        let mut failure = Failure::new(ErrorKind::Unauthenticated, "no such key: sk-secret, sk-secret");
        failure.details =
            Some(json!({ "code": ["sk-secret"], "a sk-secret b": { "x": "sk-secret" }, "n": 1 }));
        failure.violations = vec![octollm_core::contract::Violation::new("sk-secret", "is sk-secret")];
        secrets(&["sk-secret", "no"]).remove_from(&mut failure);
        assert!(!format!("{failure:?}").contains("sk-secret"), "{failure:?}");
        assert_eq!(failure.message, "no such key: [redacted], [redacted]");
    }
}
