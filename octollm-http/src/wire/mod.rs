//! Header fields, bodies and error bodies: see `docs/wire.md`.

mod field_table;
mod headers;
mod problem;
#[cfg(feature = "ws")]
pub(crate) mod socket;

use bytes::{Bytes, BytesMut};
use http::HeaderValue;

pub(crate) use self::field_table::{FieldTable, TokenField, offer_token_field, read_token_field};
pub use self::headers::names;
pub(crate) use self::headers::{
    decimal, read_parts, read_parts_since, read_trace, read_usage, write_parts, write_trace, write_usage,
};
pub use self::problem::Problem;
pub(crate) use self::problem::{MOST_VIOLATIONS, NestedError, received, write_problem};

/// A buffer for a body that arrives in pieces. One piece is not copied. Several are copied together, so that a body of many small
/// pieces takes no more memory than its bytes.
#[derive(Debug, Default)]
pub(crate) enum BodyBuffer {
    #[default]
    Empty,
    One(Bytes),
    Many(BytesMut),
}

impl BodyBuffer {
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Empty => 0,
            Self::One(bytes) => bytes.len(),
            Self::Many(bytes) => bytes.len(),
        }
    }

    pub(crate) fn push(&mut self, piece: Bytes) {
        match self {
            Self::Empty => *self = Self::One(piece),
            Self::One(first) => {
                let mut many = BytesMut::with_capacity((first.len() + piece.len()) * 2);
                many.extend_from_slice(first);
                many.extend_from_slice(&piece);
                *self = Self::Many(many);
            }
            Self::Many(many) => many.extend_from_slice(&piece),
        }
    }

    pub(crate) fn into_bytes(self) -> Bytes {
        match self {
            Self::Empty => Bytes::new(),
            Self::One(bytes) => bytes,
            Self::Many(many) => many.freeze(),
        }
    }
}

/// Whether a content type is `application/json` or `application/…+json`, in UTF-8.
pub(crate) fn is_json(value: &HeaderValue) -> bool {
    value == "application/json" || value.to_str().is_ok_and(names_json)
}

fn names_json(value: &str) -> bool {
    let mut parts = value.split(';').map(str::trim);
    let essence = parts.next().unwrap_or_default().to_ascii_lowercase();
    let Some(subtype) = essence.strip_prefix("application/") else { return false };
    let named = subtype == "json" || subtype.strip_suffix("+json").is_some_and(|name| !name.is_empty());
    named
        && parts.all(|parameter| match parameter.split_once('=') {
            Some((name, value)) if name.eq_ignore_ascii_case("charset") => {
                value.trim_matches('"').eq_ignore_ascii_case("utf-8")
            }
            _ => true,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_by_any_of_its_names() {
        for value in [
            "application/json",
            "Application/JSON; charset=UTF-8",
            "application/json;charset=\"utf-8\"",
            "application/cloudevents+json",
            "application/json; profile=x",
        ] {
            assert!(names_json(value), "{value}");
        }
        for value in [
            "text/plain",
            "application/json; charset=latin1",
            "application/+json",
            "application/x-www-form-urlencoded",
            "json",
            "",
        ] {
            assert!(!names_json(value), "{value}");
        }
    }
}
