//! The errors of JSON of another shape, field by field.

use std::fmt::Write;

use serde::de::DeserializeOwned;
use serde_path_to_error::{Path, Segment, Track};

use super::{message, notes::Notes, parser, watch::Watch};
use crate::contract::Violation;

/// Reads once more, slowly, and notes where it fails and which fields the type does not know.
///
/// What the first reading found too deep by one may be read here.
///
/// # Errors
/// The first place that does not fit, and every unknown field before it.
pub(super) fn read<T: DeserializeOwned>(text: &str, notes: &Notes) -> Result<T, Vec<Violation>> {
    let (mut json, mut track) = (parser(text), Track::new());
    let mut unknown = Vec::new();
    let mut note_ignored = |path: serde_ignored::Path<'_>| note(&mut unknown, || ignored(&path));
    let paths = serde_path_to_error::Deserializer::new(&mut json, &mut track);
    let value = T::deserialize(Watch::new(serde_ignored::Deserializer::new(paths, &mut note_ignored), notes));
    let mut violations = Vec::new();
    for path in unknown {
        violations.push(Violation::new(path, "unknown field"));
    }
    match value {
        Ok(value) if violations.is_empty() => Ok(value),
        Ok(_) => Err(violations),
        Err(error) => {
            let (path, message) = located(failed(&track.path()), &message(&error));
            violations.push(Violation::new(path, message));
            Err(violations)
        }
    }
}

/// Notes a field that is unknown, while there is room for it.
pub(super) fn note(unknown: &mut Vec<String>, path: impl FnOnce() -> String) {
    let bytes: usize = unknown.iter().map(String::len).sum();
    if unknown.len() < Violation::MOST && bytes < Violation::MOST_PATH_BYTES {
        unknown.push(path());
    }
}

/// serde names a field that is missing in the message alone.
fn located(path: String, message: &str) -> (String, String) {
    let named = |what: &str| {
        let (field, rest) = message.strip_prefix(what)?.strip_prefix(" `")?.split_once('`')?;
        let path = if path.rsplit('.').next() == Some(field) && what != MISSING {
            path.clone()
        } else {
            join(&path, field)
        };
        Some((path, format!("{what}{rest}")))
    };
    named(MISSING).or_else(|| named("unknown field")).unwrap_or_else(|| (path, message.to_owned()))
}

const MISSING: &str = "missing field";

/// As garde prints paths: `items[2].name`.
fn failed(path: &Path) -> String {
    path.iter().fold(String::new(), |mut text, segment| match segment {
        Segment::Seq { index } => {
            let _ = write!(text, "[{index}]");
            text
        }
        Segment::Map { key } | Segment::Enum { variant: key } => join(&text, key),
        Segment::Unknown => text,
    })
}

fn ignored(path: &serde_ignored::Path<'_>) -> String {
    use serde_ignored::Path as P;
    match path {
        P::Root => String::new(),
        P::Seq { parent, index } => format!("{}[{index}]", ignored(parent)),
        P::Map { parent, key } => join(&ignored(parent), key),
        P::Some { parent } | P::NewtypeStruct { parent } | P::NewtypeVariant { parent } => ignored(parent),
    }
}

/// `path.field`
pub(super) fn join(path: &str, field: &str) -> String {
    if path.is_empty() { field.to_owned() } else { format!("{path}.{field}") }
}
