//! Strict reading of inputs, and strict writing.
//!
//! serde_json alone accepts a key twice, of which the last wins; invalid escapes and numbers in what the type ignores; and
//! fields that the type does not know. This refuses them.
//!
//! An input is read once, through a deserializer that watches what its type does with it. It is read again only where the
//! type takes raw text, which may have a key twice, and where the input is refused, to find out why.

mod digest;
mod keys;
mod notes;
mod raw;
mod reserved;
mod shape;
#[cfg(test)]
mod tests;
mod unique;
mod unknown;
mod value;
mod watch;
mod write;

use serde::de::DeserializeOwned;
use serde_json::{Deserializer, Value, de::StrRead};

pub(crate) use self::{
    digest::{InputDigest, bounded_digest, digest},
    value::read_value,
    write::try_write,
};
use self::{notes::Notes, watch::Watch};
pub use self::{raw::RawJson, write::write};
use crate::{
    contract::{TaskContract, Violation, input_of},
    error::{ErrorKind, Failure},
};

/// Reads the input of a contract, and runs its rules. What the published schema refuses is refused.
///
/// # Errors
/// As [`read_input`], and [`ErrorKind::ValidationFailed`] with every rule that is broken.
pub fn read_contract<C: TaskContract>(bytes: &[u8]) -> Result<C, Failure> {
    let notes = Notes::default();
    let input: C = read_noting(bytes, &notes)?;
    if notes.set_aside.get() {
        all_known::<C>(bytes)?;
    }
    input.check().map_err(Failure::invalid)?;
    Ok(input)
}

/// Reads an input: every field known, each once, nothing after the value. A unit struct is read from `{}`.
///
/// What serde takes aside before it knows what it is (flattened structs, enums with a tag) may have members that it does
/// not know: [`read_contract`] refuses these too.
///
/// # Errors
/// [`ErrorKind::BadRequest`] for what is not JSON as it is meant between programs: bytes that are not UTF-8, a byte order
/// mark, a key twice in one object, more than 128 values inside each other, half a surrogate pair, a number beyond any
/// `f64`, a name that begins with `$serde_json::private::`, anything after the value. [`ErrorKind::ValidationFailed`] for JSON of another shape, with the paths of the
/// fields.
pub fn read_input<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Failure> {
    read_noting(bytes, &Notes::default())
}

fn read_noting<T: DeserializeOwned>(bytes: &[u8], notes: &Notes) -> Result<T, Failure> {
    let text = std::str::from_utf8(bytes)
        .map_err(|error| malformed(format_args!("byte {} is not UTF-8", error.valid_up_to())))?;
    let mut json = Deserializer::from_str(text);
    let value = T::deserialize(Watch::new(&mut json, notes)).and_then(|value| json.end().map(|()| value));
    match value {
        Ok(value) if !notes.ignored.get() => {
            if notes.unread.get() {
                unique(text)?;
            }
            Ok(value)
        }
        _ => {
            well_formed(text)?;
            notes.take_whole_floats(text);
            shape::read(text, notes).map_err(Failure::invalid)
        }
    }
}

/// Reads JSON that another program wrote, such as an output. Members that the type does not know are ignored, and `3.0` is
/// an integer.
///
/// # Errors
/// When it is not JSON, has another shape, or has a member whose name begins with `$serde_json::private::`. serde_json would
/// parse the text of such a member.
pub fn read_output<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, serde_json::Error> {
    let Ok(text) = std::str::from_utf8(bytes) else { return serde_json::from_slice(bytes) };
    reserved::refuse(text)?;
    let read = serde_json::from_str(text);
    let Err(error) = read else { return read };
    let notes = Notes::default();
    notes.take_whole_floats(text);
    let mut json = Deserializer::from_str(text);
    let again =
        T::deserialize(Watch::of_output(&mut json, &notes)).and_then(|value| json.end().map(|()| value));
    again.map_err(|_| error)
}

/// Looks for members that the schema of a contract does not know.
#[cold]
fn all_known<C: TaskContract>(bytes: &[u8]) -> Result<(), Failure> {
    let value: Value = serde_json::from_slice(bytes).map_err(malformed)?;
    let Ok(unknown) = unknown::unknown(&input_of::<C>(), &value) else {
        let message = "too many parts fit several variants of their types to be checked";
        return Err(Failure::invalid(vec![Violation::new("", message)]));
    };
    let violations: Vec<_> = unknown.into_iter().map(|path| Violation::new(path, "unknown field")).collect();
    if violations.is_empty() { Ok(()) } else { Err(Failure::invalid(violations)) }
}

/// Writes the input of a contract: always an object, also for a unit struct.
///
/// # Errors
/// As [`write()`].
pub fn write_input<C: TaskContract>(input: &C) -> Result<Vec<u8>, Failure> {
    try_write_input(input).map_err(|error| error.0)
}

/// The same, with the cause of a failure for the log.
pub(crate) fn try_write_input<C: TaskContract>(
    input: &C,
) -> Result<Vec<u8>, Box<(Failure, serde_json::Error)>> {
    let mut bytes = try_write(input)?;
    if bytes == b"null" {
        bytes.clear();
        bytes.extend_from_slice(b"{}");
    }
    Ok(bytes)
}

/// Checks a whole text: whether it is JSON comes before whether it has the right shape.
fn well_formed(text: &str) -> Result<(), Failure> {
    if text.starts_with('\u{feff}') {
        return Err(malformed("it begins with a byte order mark"));
    }
    if text.trim_ascii().is_empty() {
        return Err(malformed("nothing there"));
    }
    unique(text)
}

fn unique(text: &str) -> Result<(), Failure> {
    unique::check(text).map_err(malformed)
}

/// Only for [`unique::check`], which bounds the depth, and for texts that it accepted.
fn parser(text: &str) -> Deserializer<StrRead<'_>> {
    let mut json = Deserializer::from_str(text);
    json.disable_recursion_limit();
    json
}

fn malformed(why: impl std::fmt::Display) -> Failure {
    Failure::new(ErrorKind::BadRequest, format!("not valid JSON: {}", shortened(why.to_string())))
}

/// The message of serde_json, without the place.
fn message(error: &serde_json::Error) -> String {
    let mut text = error.to_string();
    let place = format!(" at line {} column {}", error.line(), error.column());
    if text.ends_with(&place) {
        text.truncate(text.len() - place.len());
    }
    shortened(text)
}

/// The most characters that a message repeats of what it is about.
const MOST_REPEATED: usize = 100;

/// Cuts what a message of serde repeats of the input: the first part in quotes, up to what was expected in its place.
fn shortened(message: String) -> String {
    let cut = || {
        let begin = message.find(['"', '`'])?;
        let (quote, rest) = message.get(begin..begin + 1).zip(message.get(begin + 1..))?;
        let end = rest.rfind(&format!("{quote}, expected")).or_else(|| rest.rfind(quote))?;
        let (repeated, rest) = rest.split_at_checked(end)?;
        let (most, _) = repeated.char_indices().nth(MOST_REPEATED)?;
        Some(format!("{}{}…{rest}", message.get(..=begin)?, repeated.get(..most)?))
    };
    cut().unwrap_or(message)
}
