//! Reading any JSON without rounding.

use serde::de::Error;
use serde_json::Value;

use super::reserved;

/// Reads any JSON, and refuses the integers that a [`Value`] would round: those beyond `u64` and `i64`.
pub(crate) fn read_value(json: &[u8]) -> Result<Value, serde_json::Error> {
    reserved::refuse_bytes(json)?;
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
    Numbers { json, at: 0 }.find(|number| is_rounded(number))
}

/// The values of an `f64` that stand for a number which has another value: `0.99999999999999999` is not 1, and
/// `-9223372036854775809` is not -2^63. Only whole values are listed.
pub(super) fn inexact(json: &[u8]) -> Vec<f64> {
    let written = Numbers { json, at: 0 }.filter_map(|number| str::from_utf8(number).ok());
    // serde_json reads an integer beyond 64 bits as a float.
    let floats = written.filter(|number| number.contains(['.', 'e', 'E']) || is_rounded(number.as_bytes()));
    let parsed = floats.filter_map(|number| Some((number, number.parse::<f64>().ok()?)));
    parsed
        .filter(|(number, float)| float.fract() == 0.0 && !is_exactly(number, *float))
        .map(|(_, float)| float)
        .collect()
}

/// Whether a number is written for this very value, which is whole.
fn is_exactly(number: &str, float: f64) -> bool {
    if float.abs() >= BEYOND_INTEGERS {
        return false;
    }
    let (mantissa, exponent) = number.split_once(['e', 'E']).unwrap_or((number, "0"));
    let (whole, part) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = [whole.trim_start_matches('-'), part].concat();
    let exact = (float.abs() as u128).to_string();
    if digits.trim_matches('0').is_empty() {
        return float == 0.0;
    }
    let Some(shift) = exponent.parse::<i64>().ok().and_then(|by| by.checked_sub(part.len() as i64)) else {
        return false;
    };
    significant(&digits, shift) == significant(&exact, 0)
}

/// Digits without zeros at either end, and by how many places they are shifted.
fn significant(digits: &str, shift: i64) -> (&str, i64) {
    let digits = digits.trim_start_matches('0');
    let short = digits.trim_end_matches('0');
    (short, shift.saturating_add((digits.len() - short.len()) as i64))
}

/// No integer type of Rust has a value from here on.
pub(super) const BEYOND_INTEGERS: f64 = 340_282_366_920_938_463_463_374_607_431_768_211_456.0;

/// The numbers of a valid JSON text, as they are written.
struct Numbers<'j> {
    json: &'j [u8],
    at: usize,
}

impl<'j> Iterator for Numbers<'j> {
    type Item = &'j [u8];

    fn next(&mut self) -> Option<&'j [u8]> {
        while let Some(byte) = self.json.get(self.at) {
            let rest = self.json.get(self.at..).unwrap_or_default();
            match byte {
                b'"' => self.at += string_length(rest),
                b'-' | b'0'..=b'9' => {
                    let length = rest.iter().take_while(|byte| is_of_number(**byte)).count();
                    self.at += length;
                    return rest.get(..length);
                }
                _ => self.at += 1,
            }
        }
        None
    }
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

    #[test]
    fn a_float_is_whole_where_what_is_written_is() {
        let whole = "[3.0, 1e2, -0.0, 120.0e-1, 9007199254740992.0, 1e22, 0.0e999, 1e300, 2.5]";
        assert_eq!(inexact(whole.as_bytes()), [1e300]);
        assert_eq!(inexact(b"[-9223372036854775809, -9223372036854775808]"), [i64::MIN as f64]);
        for number in ["0.99999999999999999", "9007199254740993.0", "3.0000000000000000001", "1e23", "1e-400"]
        {
            let found = inexact(format!("{{\"1.0\": {number}}}").as_bytes());
            assert_eq!(found, [number.parse::<f64>().unwrap()], "{number}");
        }
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
