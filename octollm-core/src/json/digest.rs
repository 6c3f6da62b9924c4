//! The digest by which two inputs are compared.

use std::{borrow::Cow, fmt};

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{Error as _, MapAccess, Visitor},
};
use serde_json::{Value, value::RawValue};
use sha2::{Digest, Sha256};

use crate::contract::hex;

/// The digest of an input in a journal. It is stored as 32 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct InputDigest([u8; 16]);

impl Serialize for InputDigest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&hex(&self.0))
    }
}

impl<'de> Deserialize<'de> for InputDigest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let number = u128::from_str_radix(&text, 16).ok().filter(|_| text.len() == 32);
        let number = number.ok_or_else(|| D::Error::custom("a digest is 32 hexadecimal digits"))?;
        Ok(Self(number.to_be_bytes()))
    }
}

/// The first half of the SHA-256 of the input with its keys sorted. Numbers keep every digit.
pub(crate) fn digest(input: &[u8]) -> InputDigest {
    InputDigest(digest_to(SORTED_DEPTH, input))
}

/// The same, as text, of an input that comes from the network. The deeper its keys are sorted, the more often it is read, so that of a large
/// one only the outer keys are.
pub(crate) fn bounded_digest(input: &[u8]) -> String {
    const MOST_READ: usize = 4 << 20;
    hex(&digest_to(SORTED_DEPTH.min(MOST_READ / input.len().max(1)), input))
}

fn digest_to(depth: usize, input: &[u8]) -> [u8; 16] {
    let mut text = String::with_capacity(input.len());
    match serde_json::from_slice::<&RawValue>(input) {
        Ok(value) => canonical(value, depth, &mut text),
        Err(_) => text.push_str(&String::from_utf8_lossy(input)),
    }
    let mut half = [0; 16];
    half.copy_from_slice(&Sha256::digest(text)[..16]);
    half
}

/// Below this depth the text is taken as it is.
const SORTED_DEPTH: usize = 64;

/// Sorts the keys down to a depth.
fn canonical(value: &RawValue, depth: usize, text: &mut String) {
    let raw = value.get();
    let sorted = depth > 0;
    if let Some(fields) = sorted.then(|| members(raw)).flatten() {
        text.push('{');
        for (key, value) in fields {
            match key {
                // Without an escape it is written as it was.
                Cow::Borrowed(key) => text.extend(["\"", key, "\":"]),
                Cow::Owned(key) => text.extend([&*Value::String(key).to_string(), ":"]),
            }
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

/// The members of an object, sorted by their keys. Of equal keys the last one counts.
fn members(raw: &str) -> Option<Vec<(Cow<'_, str>, &RawValue)>> {
    if !raw.starts_with('{') {
        return None;
    }
    let mut members = serde_json::Deserializer::from_str(raw).deserialize_map(Members).ok()?;
    if !members.is_sorted_by(|(a, _), (b, _)| a < b) {
        members.reverse();
        members.sort_by(|(a, _), (b, _)| a.cmp(b));
        members.dedup_by(|(later, _), (first, _)| later == first);
    }
    Some(members)
}

struct Members;

impl<'de> Visitor<'de> for Members {
    type Value = Vec<(Cow<'de, str>, &'de RawValue)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut members = Vec::with_capacity(8);
        while let Some(Key(key)) = map.next_key()? {
            members.push((key, map.next_value()?));
        }
        Ok(members)
    }
}

/// A key, which is borrowed where it has no escape.
#[derive(Deserialize)]
struct Key<'a>(#[serde(borrow)] Cow<'a, str>);

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
    fn of_equal_keys_the_last_one_counts_and_escapes_are_read() {
        let of = |text: &str| digest(text.as_bytes());
        assert_eq!(of(r#"{"a":1,"b":2,"a":3}"#), of(r#"{"b":2,"a":3}"#));
        assert_eq!(of(r#"{"\u0061\"":1,"b":2}"#), of(r#"{"b":2,"a\u0022":1}"#));
        assert_ne!(of(r#"{"a\"":1}"#), of(r#"{"a":1}"#));
    }

    #[test]
    fn a_stored_digest_is_recognized() {
        let text = r#"{ "b": {"d": 1, "c": [2]}, "a\n": "x" }"#;
        let canonical = r#"{"a\n":"x","b":{"c":[2,],"d":1,},}"#;
        let stored = serde_json::to_value(digest(text.as_bytes())).unwrap();
        assert_eq!(stored, hex(&Sha256::digest(canonical)[..16]));
        assert_eq!(serde_json::from_value::<InputDigest>(stored).unwrap(), digest(text.as_bytes()));
        assert!(serde_json::from_str::<InputDigest>("\"00ff\"").is_err());
    }

    #[test]
    fn a_bounded_digest_is_the_same_unless_the_input_is_large() {
        let small = r#"{ "b": {"d": 1, "c": [2]}, "a": 1 }"#;
        assert_eq!(bounded_digest(small.as_bytes()), hex(&digest(small.as_bytes()).0));
        let nested = |text: &str| format!("{}{text}{}", "[".repeat(60), "]".repeat(60));
        let large = |inner: &str| nested(&format!(r#""{}",{inner}"#, "x".repeat(1 << 20)));
        let of = |text: String| bounded_digest(text.as_bytes());
        assert_eq!(of(large(r#"{"a":1,"b":2}"#)), of(large(r#"{"a":1,"b":2}"#)));
        assert_ne!(of(large(r#"{"a":1,"b":2}"#)), of(large(r#"{"a":1,"b":3}"#)));
    }
}
