//! The digest by which two inputs are compared.

use std::collections::BTreeMap;

use serde_json::{Value, value::RawValue};
use sha2::{Digest, Sha256};

use crate::contract::hex;

/// The first half of the SHA-256 of the input with its keys sorted, in hexadecimal digits. Numbers keep every digit.
pub(crate) fn digest(input: &[u8]) -> String {
    digest_to(SORTED_DEPTH, input)
}

/// The same of an input that comes from the network. The deeper its keys are sorted, the more often it is read, so that of a large
/// one only the outer keys are.
pub(crate) fn bounded_digest(input: &[u8]) -> String {
    const MOST_READ: usize = 4 << 20;
    digest_to(SORTED_DEPTH.min(MOST_READ / input.len().max(1)), input)
}

fn digest_to(depth: usize, input: &[u8]) -> String {
    let mut text = String::with_capacity(input.len());
    match serde_json::from_slice::<&RawValue>(input) {
        Ok(value) => canonical(value, depth, &mut text),
        Err(_) => text.push_str(&String::from_utf8_lossy(input)),
    }
    hex(&Sha256::digest(text)[..16])
}

/// Below this depth the text is taken as it is.
const SORTED_DEPTH: usize = 64;

/// Sorts the keys down to a depth.
fn canonical(value: &RawValue, depth: usize, text: &mut String) {
    let raw = value.get();
    let sorted = depth > 0;
    if let Some(fields) = (sorted && raw.starts_with('{')).then(|| read::<BTreeMap<String, &RawValue>>(raw)) {
        text.push('{');
        for (key, value) in fields.into_iter().flatten() {
            text.push_str(&Value::String(key).to_string());
            text.push(':');
            canonical(value, depth - 1, text);
            text.push(',');
        }
        text.push('}');
    } else if let Some(items) = (sorted && raw.starts_with('[')).then(|| read::<Vec<&RawValue>>(raw)) {
        text.push('[');
        for item in items.into_iter().flatten() {
            canonical(item, depth - 1, text);
            text.push(',');
        }
        text.push(']');
    } else {
        text.push_str(raw);
    }
}

/// The text was read as JSON before.
fn read<'a, T: serde::Deserialize<'a>>(raw: &'a str) -> Option<T> {
    serde_json::from_str(raw).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_knows_every_digit_and_no_order_of_keys() {
        let of = |text: &str| digest(text.as_bytes());
        assert_eq!(of(r#"{"a":1,"b":[{"c":2,"d":3}]}"#), of(r#"{ "b": [{"d":3, "c":2}], "a": 1 }"#));
        assert_ne!(of("[18446744073709551617]"), of("[18446744073709551618]"));
        assert_ne!(of(r#"{"a":"1"}"#), of(r#"{"a":1}"#));
        assert_ne!(of(r#"["a,b"]"#), of(r#"["a","b"]"#));
    }

    #[test]
    fn a_bounded_digest_is_the_same_unless_the_input_is_large() {
        let small = r#"{ "b": {"d": 1, "c": [2]}, "a": 1 }"#;
        assert_eq!(bounded_digest(small.as_bytes()), digest(small.as_bytes()));
        let nested = |text: &str| format!("{}{text}{}", "[".repeat(60), "]".repeat(60));
        let large = |inner: &str| nested(&format!(r#""{}",{inner}"#, "x".repeat(1 << 20)));
        let of = |text: String| bounded_digest(text.as_bytes());
        assert_eq!(of(large(r#"{"a":1,"b":2}"#)), of(large(r#"{"a":1,"b":2}"#)));
        assert_ne!(of(large(r#"{"a":1,"b":2}"#)), of(large(r#"{"a":1,"b":3}"#)));
    }
}
