//! How large values are, and texts that are cut to a size.

use std::io;

use serde_json::{Map, Value};

/// Bytes of a value as JSON text, without white space.
pub(crate) fn text(value: &Value) -> usize {
    struct Counted(usize);
    impl io::Write for Counted {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut counted = Counted(0);
    // A value has text keys, and the writer does not fail.
    let _ = serde_json::to_writer(&mut counted, value);
    counted.0
}

/// Bytes of a value in memory, estimated: up to a hundred times those of its text.
pub(crate) fn memory(value: &Value) -> usize {
    /// A node of a map has room for so many members.
    const NODE: usize = 11;
    const MEMBER: usize = size_of::<(String, Value)>();
    let (mut bytes, mut left) = (0, vec![value]);
    while let Some(value) = left.pop() {
        bytes += size_of::<Value>();
        match value {
            Value::String(text) => bytes += text.len(),
            Value::Array(items) => left.extend(items),
            Value::Object(members) => {
                bytes += members.keys().map(String::len).sum::<usize>();
                bytes += Map::len(members).next_multiple_of(NODE) * MEMBER;
                left.extend(members.values());
            }
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }
    bytes
}

/// Shortens a text to at most so many bytes.
pub(crate) fn cut(text: &mut String, bytes: usize) {
    const MARK: char = '…';
    if text.len() <= bytes {
        return;
    }
    let mut end = bytes.saturating_sub(MARK.len_utf8());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
    text.push(MARK);
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_value_has_the_size_of_its_text() {
        let value = json!({ "a": [1, "zwölf", null], "b": { "c": 0.5 } });
        assert_eq!(text(&value), value.to_string().len());
        assert!(memory(&value) > 2 * 11 * size_of::<(String, Value)>());
        assert!(memory(&json!("x".repeat(1000))) >= 1000);
    }

    #[test]
    fn a_text_is_cut_between_characters() {
        for (bytes, expected) in
            [(20, "Größe und mehr"), (16, "Größe und mehr"), (7, "Grö…"), (6, "Gr…"), (3, "…")]
        {
            let mut text = "Größe und mehr".to_owned();
            cut(&mut text, bytes);
            assert_eq!(text, expected, "{bytes}");
            assert!(text.len() <= bytes.max(3));
        }
    }
}
