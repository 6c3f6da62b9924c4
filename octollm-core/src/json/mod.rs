//! Reading what comes in, strictly.
//!
//! serde_json alone lets pass what this does not: a key twice, of which the last would win; escapes that are no
//! text and numbers that are none, where the type leaves them out; fields that the type does not know.
//!
//! A plain struct is read once, watched: serde and serde_json refuse enough for it. Where a type takes maps or any
//! values, one cheap scan follows. Only what is refused is read again, to say why.

mod raw;
mod scan;
mod shape;
#[cfg(test)]
mod tests;
mod unique;
mod watch;

use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Deserializer, de::StrRead};

pub use self::raw::RawJson;
use self::{
    scan::{Keys, scan},
    unique::Unique,
    watch::{Notes, Watch},
};
use crate::error::{ErrorKind, Failure};

/// Reads an input: every field known, each once, nothing behind the value.
///
/// # Errors
/// [`ErrorKind::BadRequest`] for what is not JSON as it is meant between programs: bytes that are not UTF-8, a key
/// twice in one object, more than 128 values inside each other, half a surrogate pair, a number beyond any `f64`,
/// anything behind the value. [`ErrorKind::ValidationFailed`] for JSON of another shape, with the paths of the
/// fields.
pub fn read_input<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Failure> {
    let text = std::str::from_utf8(bytes)
        .map_err(|error| malformed(format_args!("byte {} is not UTF-8", error.valid_up_to())))?;
    let (mut json, notes) = (Deserializer::from_str(text), Notes::default());
    let value = T::deserialize(Watch::new(&mut json, &notes)).and_then(|value| json.end().map(|()| value));
    match value {
        Ok(value) if !notes.ignored.get() => {
            if notes.free.get() {
                scanned(text)?;
            }
            Ok(value)
        }
        _ => {
            well_formed(text)?;
            shape::read(text).map_err(Failure::invalid)
        }
    }
}

/// Looks at a text that is JSON for what a parser lets pass.
fn scanned(text: &str) -> Result<(), Failure> {
    match scan(text).map_err(malformed)? {
        Keys::Differ => Ok(()),
        Keys::Unsure => unique(text),
    }
}

/// Looks at any text, in full: whether it is no JSON comes before whether it fits.
fn well_formed(text: &str) -> Result<(), Failure> {
    if text.trim_ascii().is_empty() {
        return Err(malformed("nothing there"));
    }
    scan(text).map_err(malformed)?;
    unique(text)
}

fn unique(text: &str) -> Result<(), Failure> {
    let mut json = parser(text);
    Unique::deserialize(&mut json).and_then(|Unique| json.end()).map_err(malformed)
}

/// Only for texts that [`scan`] let pass: it keeps the depth within bounds, and this no more.
fn parser(text: &str) -> Deserializer<StrRead<'_>> {
    let mut json = Deserializer::from_str(text);
    json.disable_recursion_limit();
    json
}

fn malformed(why: impl std::fmt::Display) -> Failure {
    Failure::new(ErrorKind::BadRequest, format!("not valid JSON: {why}"))
}

/// What serde_json says, without the place.
fn message(error: &serde_json::Error) -> String {
    let mut text = error.to_string();
    let place = format!(" at line {} column {}", error.line(), error.column());
    if text.ends_with(&place) {
        text.truncate(text.len() - place.len());
    }
    text
}

/// What is found wrong without a parser.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
enum Flaw {
    #[error("more than {} values are inside each other", scan::MAX_DEPTH)]
    TooDeep,
    #[error("half of a surrogate pair")]
    LoneSurrogate,
    #[error("a number out of range")]
    NumberOutOfRange,
}
