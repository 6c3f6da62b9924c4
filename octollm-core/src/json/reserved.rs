//! Names of members that serde_json takes for its own.
//!
//! serde_json passes raw text and long numbers through serde as objects with one member, whose name begins with
//! `$serde_json::private::`. A `serde_json::Value` recognizes these names in any input: it parses the text in such a
//! member as JSON, which is then neither checked nor bounded in depth. No input may have them.
//!
//! Where keys are watched as they are read, they are refused there. Other readers search the text first.

use std::sync::LazyLock;

use memchr::memmem::Finder;
use serde::de::Error;

use super::unique;

/// The beginning of these names.
const PREFIX: &str = "$serde_json::private::";

/// Whether the name is reserved.
pub(super) fn is_reserved(name: &str) -> bool {
    name.starts_with(PREFIX)
}

/// Refuses JSON in which a member has a reserved name, also where the name is written with escapes.
///
/// # Errors
/// Names the member. A text that is not JSON, has a key twice or is too deep is refused as well where it has to be parsed.
pub(super) fn refuse(text: &str) -> Result<(), serde_json::Error> {
    if may_have_one(text) { unique::check(text) } else { Ok(()) }
}

/// As [`refuse`]; text that is not UTF-8 is left to the parser.
pub(super) fn refuse_bytes(bytes: &[u8]) -> Result<(), serde_json::Error> {
    std::str::from_utf8(bytes).map_or(Ok(()), refuse)
}

/// Whether it has the name, or an escape by which it could be written. Few texts do.
fn may_have_one(text: &str) -> bool {
    static NAME: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new("$serde_json"));
    static ESCAPE: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new("\\u00"));
    let text = text.as_bytes();
    let is_letter = |at: usize| text.get(at + 4).is_some_and(|digit| (b'2'..=b'7').contains(digit));
    NAME.find(text).is_some() || ESCAPE.find_iter(text).any(is_letter)
}

/// The error for a reserved name.
pub(super) fn error<E: Error>(name: &str) -> E {
    E::custom(format_args!("`{name}` is a reserved name"))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::{
        event::Event,
        json::{RawJson, read_input, read_output, read_value},
        plan::Plan,
    };

    const NAME: &str = "$serde_json::private::RawValue";
    const ESCAPED: &str = "\\u0024serde_json::private::\\u0052awValue";

    #[test]
    fn no_reader_takes_a_reserved_name() {
        for name in [NAME, ESCAPED, "$serde_json::private::Number"] {
            let text = format!(r#"{{"a":[{{"{name}":"{{\"x\":1}}"}}]}}"#);
            let bytes = text.as_bytes();
            let refused = [
                read_input::<Value>(bytes).unwrap_err().message,
                read_output::<Value>(bytes).unwrap_err().to_string(),
                read_value(bytes).unwrap_err().to_string(),
                RawJson::from_slice(bytes).unwrap_err().to_string(),
                serde_json::from_str::<RawJson>(&text).unwrap_err().to_string(),
            ];
            for message in refused {
                assert!(message.contains("is a reserved name"), "{message}");
            }
            let plan = format!(r#"{{"steps":[{{"id":"a","contract":"a.b","input":{text}}}]}}"#);
            assert!(plan.parse::<Plan>().is_err());
            let event = Event::new("task.completed", "brain", json!(0)).unwrap();
            let event =
                serde_json::to_string(&event).unwrap().replace("\"data\":0", &format!("\"data\":{text}"));
            assert!(event.contains("private") && Event::from_json(event.as_bytes()).is_err(), "{event}");
        }
    }

    #[test]
    fn values_and_other_escapes_are_not_names() {
        for text in [
            format!(r#"{{"a":"{NAME}","b":"{ESCAPED}"}}"#),
            r#"{"\u0061":"\u00e4\u003c"}"#.to_owned(),
            r#"{"$serde_json":1}"#.to_owned(),
        ] {
            let read = read_input::<Value>(text.as_bytes()).unwrap();
            assert_eq!(read, serde_json::from_str::<Value>(&text).unwrap());
            assert!(RawJson::from_slice(text.as_bytes()).is_ok());
        }
    }

    #[test]
    fn the_text_of_a_reserved_name_does_not_hide_depth() {
        let mut text = "0".to_owned();
        for _ in 0..40 {
            let deep = format!("{}{text}{}", "[".repeat(100), "]".repeat(100));
            text = format!("{{{}:{}}}", Value::from(NAME), Value::from(deep));
            if text.len() > 1_000_000 {
                break;
            }
        }
        assert!(read_input::<Value>(text.as_bytes()).is_err());
        assert!(read_output::<Value>(text.as_bytes()).is_err());
    }
}
