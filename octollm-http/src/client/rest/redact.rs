//! Secrets that a service repeats in its answers.

use octollm_core::error::Failure;
use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;

/// A shorter text is no secret, and could be a part of any word.
const SHORTEST: usize = 6;

/// Removes these secrets from what a failure says.
pub(super) fn redact<'a>(failure: &mut Failure, secrets: impl Iterator<Item = &'a SecretString>) {
    for secret in
        secrets.map(|secret| secret.expose_secret().trim()).filter(|secret| secret.len() >= SHORTEST)
    {
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

    #[test]
    fn a_secret_is_removed_from_every_part() {
        let mut failure = Failure::new(ErrorKind::Unauthenticated, "no such key: sk-secret, sk-secret");
        failure.details =
            Some(json!({ "code": ["sk-secret"], "a sk-secret b": { "x": "sk-secret" }, "n": 1 }));
        failure.violations = vec![octollm_core::contract::Violation::new("sk-secret", "is sk-secret")];
        redact(&mut failure, [SecretString::from("sk-secret"), SecretString::from("no")].iter());
        assert!(!format!("{failure:?}").contains("sk-secret"), "{failure:?}");
        assert_eq!(failure.message, "no such key: [redacted], [redacted]");
    }
}
