//! Reading any JSON without rounding.

use serde::de::Error;
use serde_json::Value;

/// Reads any JSON, and refuses the integers that a [`Value`] would round: those beyond `u64` and `i64`.
pub(crate) fn read_value(json: &[u8]) -> Result<Value, serde_json::Error> {
    let value = serde_json::from_slice(json)?;
    match rounded_integer(json) {
        Some(integer) => {
            let integer = String::from_utf8_lossy(integer);
            Err(Error::custom(format_args!("{integer} is beyond the integers that are handed on exactly")))
        }
        None => Ok(value),
    }
}

/// The first integer of a valid JSON text that is neither a `u64` nor an `i64`.
fn rounded_integer(json: &[u8]) -> Option<&[u8]> {
    let mut at = 0;
    while let Some(byte) = json.get(at) {
        let rest = json.get(at..).unwrap_or_default();
        at += match byte {
            b'"' => string_length(rest),
            b'-' | b'0'..=b'9' => {
                let length = rest.iter().take_while(|byte| is_of_number(**byte)).count();
                let number = rest.get(..length).unwrap_or_default();
                if is_rounded(number) {
                    return Some(number);
                }
                length
            }
            _ => 1,
        };
    }
    None
}

/// With both quotes.
fn string_length(json: &[u8]) -> usize {
    let mut escaped = false;
    let inside = json.iter().skip(1).take_while(|byte| {
        let ends = **byte == b'"' && !escaped;
        escaped = **byte == b'\\' && !escaped;
        !ends
    });
    inside.count() + 2
}

fn is_of_number(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E')
}

fn is_rounded(number: &[u8]) -> bool {
    // A u64 has 20 digits at most, and what is shorter than 19 always fits.
    if number.len() < 19 || number.iter().any(|byte| matches!(byte, b'.' | b'e' | b'E')) {
        return false;
    }
    let text = str::from_utf8(number).unwrap_or_default();
    text.parse::<u64>().is_err() && text.parse::<i64>().is_err()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn what_a_value_would_round_is_refused_wherever_it_is() {
        for json in [
            "18446744073709551616",
            "[1, {\"a\": -9223372036854775809}]",
            "{\"\\\"x\\\\\":340282366920938463463374607431768211455}",
        ] {
            let error = read_value(json.as_bytes()).unwrap_err().to_string();
            assert!(error.contains("is beyond the integers"), "{json}: {error}");
        }
        let text = "[18446744073709551615, -9223372036854775808, 1e300, 0.30000000000000004, \"340282366920938463463374607431768211455\\\"\"]";
        let max = "340282366920938463463374607431768211455\"";
        assert_eq!(
            read_value(text.as_bytes()).unwrap(),
            json!([u64::MAX, i64::MIN, 1e300, 0.30000000000000004, max])
        );
    }

    proptest! {
        #[test]
        fn an_integer_is_exact_or_refused(number: i128, text in "\\PC{0,20}") {
            let json = format!("[{}, {number}]", Value::from(text));
            let read = read_value(json.as_bytes());
            let fits = u64::try_from(number).is_ok() || i64::try_from(number).is_ok();
            prop_assert_eq!(read.is_ok(), fits);
        }
    }
}
