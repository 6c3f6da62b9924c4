//! Reading JSON: strictly what comes in, tolerantly what comes back.

use serde::de::DeserializeOwned;

use crate::{
    contract::Violations,
    error::{ErrorKind, Failure},
};

/// Reads an input: every field known, each once, nothing behind the value.
///
/// # Errors
/// [`ErrorKind::BadRequest`] for what is not JSON, [`ErrorKind::ValidationFailed`] for JSON of another shape.
pub fn read_input<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Failure> {
    let mut unknown = Violations::default();
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let value = serde_ignored::deserialize(&mut json, |path| unknown.push(path.to_string(), "unknown field"))
        .map_err(|error| refusal(&error))?;
    json.end().map_err(|error| refusal(&error))?;
    if unknown.is_empty() { Ok(value) } else { Err(Failure::invalid(unknown)) }
}

fn refusal(error: &serde_json::Error) -> Failure {
    match error.classify() {
        serde_json::error::Category::Data => Failure::invalid(Violations::one("", error.to_string())),
        _ => Failure::new(ErrorKind::BadRequest, format!("not valid JSON: {error}")),
    }
}
