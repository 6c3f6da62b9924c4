//! Writes the native JSON form of an event, as serde does, in fewer steps: names are written with their punctuation, and a text without
//! escapes is copied.

use std::borrow::Cow;

use jiff::{Timestamp, tz::Offset};
use serde::Serialize;
use serde_json::Value;

use super::attributes::SPECVERSION;
use super::{Channel, Event, invalid};
use crate::error::InvalidValue;

impl Event {
    /// Appends the native JSON form to a buffer: the bytes that serde writes. Returns the [size](Self::size) of the event.
    ///
    /// # Errors
    /// [`InvalidValue`] when the event cannot be written. The buffer may then have a part of it.
    pub fn write_json(&self, out: &mut Vec<u8>) -> Result<usize, InvalidValue> {
        self.write(out).map_err(|error| invalid(error.to_string()))
    }

    /// Appends the data as compact JSON to a buffer.
    ///
    /// # Errors
    /// [`InvalidValue`] when the data cannot be written. The buffer may then have a part of it.
    pub fn write_data(&self, out: &mut Vec<u8>) -> Result<(), InvalidValue> {
        write_value(self.data(), out).map_err(|error| invalid(error.to_string()))
    }

    fn write(&self, out: &mut Vec<u8>) -> serde_json::Result<usize> {
        out.extend_from_slice(b"{\"event_type\":\"");
        out.extend_from_slice(self.event_type().as_bytes());
        out.extend_from_slice(b"\",\"timestamp\":\"");
        out.extend_from_slice(rfc3339(self.timestamp(), &mut [0; 30]).as_bytes());
        out.extend_from_slice(b"\",\"source\":");
        write_text(self.source(), out)?;
        out.extend_from_slice(b",\"data\":");
        let start = out.len();
        write_value(self.data(), out)?;
        let size = self.size_with(out.len() - start);
        out.extend_from_slice(b",\"id\":");
        write_text(self.id(), out)?;
        out.extend_from_slice(b",\"specversion\":\"");
        out.extend_from_slice(SPECVERSION.as_bytes());
        out.push(b'"');
        for (name, text) in [
            (",\"subject\":", self.subject()),
            (",\"correlation_id\":", self.correlation_id()),
            (",\"causation_id\":", self.causation_id()),
            (",\"traceparent\":", self.traceparent()),
            (",\"partition_key\":", self.partition_key()),
        ] {
            if let Some(text) = text {
                out.extend_from_slice(name.as_bytes());
                write_text(text, out)?;
            }
        }
        if let Some(at) = self.expires_at() {
            out.extend_from_slice(b",\"expires_at\":\"");
            out.extend_from_slice(rfc3339(at, &mut [0; 30]).as_bytes());
            out.push(b'"');
        }
        let domain = self.channel().domain();
        if domain != Channel::DEFAULT_DOMAIN {
            out.extend_from_slice(b",\"domain\":");
            write_text(domain, out)?;
        }
        out.push(b'}');
        Ok(size)
    }
}

fn write_value(value: &Value, out: &mut Vec<u8>) -> serde_json::Result<()> {
    match value {
        Value::String(text) => write_text(text, out)?,
        Value::Array(items) => {
            out.push(b'[');
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    out.push(b',');
                }
                write_value(item, out)?;
            }
            out.push(b']');
        }
        Value::Object(members) => {
            out.push(b'{');
            for (index, (name, value)) in members.iter().enumerate() {
                if index > 0 {
                    out.push(b',');
                }
                write_text(name, out)?;
                out.push(b':');
                write_value(value, out)?;
            }
            out.push(b'}');
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {
            value.serialize(&mut serde_json::Serializer::new(out))?
        }
    }
    Ok(())
}

fn write_text(text: &str, out: &mut Vec<u8>) -> serde_json::Result<()> {
    if needs_escapes(text.as_bytes()) {
        return text.serialize(&mut serde_json::Serializer::new(out));
    }
    out.reserve(text.len() + 2);
    out.push(b'"');
    out.extend_from_slice(text.as_bytes());
    out.push(b'"');
    Ok(())
}

/// Whether a text has quotation marks, backslashes or control characters, of eight bytes at once.
pub(super) fn needs_escapes(text: &[u8]) -> bool {
    match text.last_chunk() {
        // The last bytes may be looked at twice.
        Some(last) => {
            text.as_chunks().0.iter().fold(escapes(*last), |found, word| found | escapes(*word)) != 0
        }
        None => text.iter().any(|byte| *byte < b' ' || *byte == b'"' || *byte == b'\\'),
    }
}

/// Is 0 if none of the bytes needs an escape.
fn escapes(bytes: [u8; 8]) -> u64 {
    const ONES: u64 = u64::MAX / 255;
    let word = u64::from_ne_bytes(bytes);
    // The top bits of the bytes that are less than 128 or less. Their borrows can set those of others as well.
    let has_less = |word: u64, than: u8| word.wrapping_sub(ONES * u64::from(than)) & !word & (ONES << 7);
    let has = |byte: u8| has_less(word ^ (ONES * u64::from(byte)), 1);
    has_less(word, b' ') | has(b'"') | has(b'\\')
}

/// The text of a time in RFC 3339, as jiff has it. It is in the buffer for the years 0 to 9999.
fn rfc3339(at: Timestamp, buffer: &mut [u8; 30]) -> Cow<'_, str> {
    let time = Offset::UTC.to_datetime(at);
    let Ok(year) = u32::try_from(time.year()) else { return Cow::Owned(at.to_string()) };
    *buffer = *b"0000-00-00T00:00:00.000000000Z";
    let mut put = |from: usize, to: usize, mut number: u32| {
        for place in buffer[from..to].iter_mut().rev() {
            *place = b'0' + (number % 10) as u8;
            number /= 10;
        }
    };
    put(0, 4, year);
    put(20, 29, time.subsec_nanosecond().unsigned_abs());
    let parts = [time.month(), time.day(), time.hour(), time.minute(), time.second()];
    for (from, part) in [5, 8, 11, 14, 17].into_iter().zip(parts) {
        put(from, from + 2, part.unsigned_abs().into());
    }
    // The last digits that are not zero, and neither digits nor the point without any.
    let mut end = 29;
    while buffer[end - 1] == b'0' && end > 20 {
        end -= 1;
    }
    if end == 20 {
        end = 19;
    }
    buffer[end] = b'Z';
    Cow::Borrowed(std::str::from_utf8(&buffer[..=end]).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn each_byte_that_serde_escapes_needs_escapes() {
        for byte in 0..128_u8 {
            for (plain, place) in (0..=20).flat_map(|length| (0..=length).map(move |place| (length, place))) {
                let mut text: String = "é~plain text, ü plain".chars().take(plain).collect();
                let at = text.char_indices().nth(place).map_or(text.len(), |(at, _)| at);
                text.insert(at, char::from(byte));
                let escaped = serde_json::to_string(&text).unwrap().len() > text.len() + 2;
                assert_eq!(needs_escapes(text.as_bytes()), escaped, "{text:?}");
            }
        }
        assert!(!needs_escapes(b""));
    }

    fn written(at: Timestamp) -> String {
        rfc3339(at, &mut [0; 30]).into_owned()
    }

    #[test]
    fn times_at_limits_are_those_of_jiff() {
        for text in [
            "1970-01-01T00:00:00Z",
            "1969-12-31T23:59:59.5Z",
            "2000-02-29T23:59:59.9Z",
            "2100-02-28T12:00:00.000000001Z",
            "2100-03-01T00:00:00Z",
            "9999-12-30T21:59:59.999999999Z",
            "-000001-01-01T00:00:00Z",
        ] {
            let at: Timestamp = text.parse().unwrap();
            assert_eq!(written(at), at.to_string());
        }
        for at in [Timestamp::MIN, Timestamp::MAX] {
            assert_eq!(written(at), at.to_string());
        }
    }

    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            any::<String>().prop_map(Value::from),
            "[ -~]{0,30}".prop_map(Value::from),
            "[\\x00-\\x7f]{0,30}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 5, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                prop::collection::btree_map(any::<String>(), inner, 0..5).prop_map(|map| json!(map)),
            ]
        })
    }

    proptest! {
        #[test]
        fn times_are_those_of_jiff(seconds in -377_705_023_201_i64..=253_402_207_200, nanoseconds in 0..1_000_000_000_i32, zeros in 0..9_u32) {
            let nanoseconds = nanoseconds / 10_i32.pow(zeros) * 10_i32.pow(zeros);
            let at = Timestamp::new(seconds, nanoseconds).unwrap();
            prop_assert_eq!(written(at), at.to_string());
            let at = Timestamp::new(seconds.abs() % 4_102_444_800, nanoseconds).unwrap();
            prop_assert_eq!(written(at), at.to_string());
        }

        #[test]
        fn the_bytes_are_those_of_serde(data in value(), texts: [String; 6], domain in "(events|[a-z]{1,3})", set: [bool; 6]) {
            let channel = Channel::new(&domain, "task", "completed").unwrap();
            let [source, id, subject, correlation, trace, key] = texts.map(|text| format!("a{text}"));
            let mut event = Event::on(channel, source, data).unwrap();
            for (index, text) in [id, subject, correlation, trace, key].into_iter().enumerate() {
                event = match index {
                    _ if !set[index] => event,
                    0 => event.with_id(text).unwrap(),
                    1 => event.with_subject(text),
                    2 => event.with_correlation_id(text.clone()).with_causation_id(text),
                    3 => event.with_traceparent(text),
                    _ => event.with_partition_key(text),
                };
            }
            if set[5] {
                let expires_at = event.timestamp();
                event = event.with_expires_at(expires_at);
            }
            let mut bytes = Vec::new();
            prop_assert_eq!(event.write_json(&mut bytes).unwrap(), event.size());
            prop_assert_eq!(String::from_utf8(bytes).unwrap(), serde_json::to_string(&event).unwrap());
        }
    }
}
