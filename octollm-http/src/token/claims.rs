//! The claims of tokens and of delegation links, typed.

use std::sync::Arc;

use octollm_core::id::TaskId;
use serde::{Deserialize, Deserializer, Serialize, de::Error};
use serde_json::{Map, Value};

use super::Refused;

/// Most bytes of a name: an issuer, a subject, an audience, an id.
const NAME: usize = 256;
/// The end of the year 9999, in seconds since 1970.
const LATEST: i64 = 253_402_300_799;

/// The claims of a token.
#[derive(Serialize, Deserialize)]
pub(super) struct TokenClaims {
    #[serde(deserialize_with = "name")]
    pub(super) iss: String,
    #[serde(deserialize_with = "name")]
    pub(super) sub: String,
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub(super) sub_id: Option<SubjectId>,
    #[serde(deserialize_with = "name")]
    pub(super) aud: String,
    #[serde(flatten)]
    pub(super) times: Times,
    #[serde(deserialize_with = "name")]
    pub(super) jti: String,
    #[serde(with = "scopes")]
    pub(super) scope: Vec<String>,
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub(super) task: Option<TaskId>,
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub(super) prf: Option<Vec<Arc<str>>>,
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub(super) dlg: Option<Arc<str>>,
}

/// The claims of a delegation link.
#[derive(Serialize, Deserialize)]
pub(super) struct LinkClaims {
    #[serde(deserialize_with = "name")]
    pub(super) iss: String,
    #[serde(deserialize_with = "name")]
    pub(super) sub: String,
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub(super) sub_id: Option<SubjectId>,
    pub(super) may_act: MayAct,
    pub(super) cnf: Confirmation,
    #[serde(flatten)]
    pub(super) times: Times,
    #[serde(with = "scopes")]
    pub(super) scope: Vec<String>,
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub(super) task: Option<TaskId>,
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub(super) prv: Option<String>,
}

/// The claims of a token of an identity provider.
#[derive(Deserialize)]
pub(super) struct ForeignClaims {
    #[serde(deserialize_with = "name")]
    pub(super) sub: String,
    #[serde(deserialize_with = "one_or_many")]
    pub(super) aud: Vec<String>,
    #[serde(flatten)]
    pub(super) times: Times,
    #[serde(default, deserialize_with = "one_or_many")]
    pub(super) scope: Vec<String>,
    #[serde(default, deserialize_with = "one_or_many")]
    pub(super) scp: Vec<String>,
}

/// Who first issued a token for a subject (RFC 9493).
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct SubjectId {
    pub(super) format: Format,
    #[serde(deserialize_with = "name")]
    pub(super) iss: String,
    #[serde(deserialize_with = "name")]
    pub(super) sub: String,
}

#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Format {
    IssSub,
}

/// The arm that may act (RFC 8693).
#[derive(Serialize, Deserialize)]
pub(super) struct MayAct {
    #[serde(deserialize_with = "name")]
    pub(super) sub: String,
}

/// The key of the arm that may act (RFC 7800).
#[derive(Serialize, Deserialize)]
pub(super) struct Confirmation {
    pub(super) jwk: Map<String, Value>,
}

/// Times in whole seconds since 1970.
#[derive(Clone, Copy, Serialize, Deserialize)]
pub(super) struct Times {
    #[serde(deserialize_with = "seconds")]
    pub(super) exp: i64,
    #[serde(deserialize_with = "seconds")]
    pub(super) iat: i64,
    #[serde(default, deserialize_with = "optional_seconds", skip_serializing_if = "Option::is_none")]
    pub(super) nbf: Option<i64>,
}

/// Reads claims. Those that are not known are ignored, as RFC 7519 §4 says.
///
/// # Errors
/// One is missing or has another type.
pub(super) fn read<T: for<'de> Deserialize<'de>>(claims: Map<String, Value>) -> Result<T, Refused> {
    T::deserialize(Value::Object(claims)).map_err(|_| Refused::Invalid("a claim is missing or malformed"))
}

impl Times {
    /// Checks the times against a clock: `leeway` is for its difference from that of the issuer.
    pub(super) fn check(&self, now: i64, leeway: i64, max_life: i64) -> Result<(), Refused> {
        let life = self.exp - self.iat;
        if life <= 0 || life > max_life {
            return Err(Refused::Invalid("its life is longer than is allowed"));
        }
        self.check_now(now, leeway)
    }

    /// Whether less than half of the life is over.
    pub(super) fn is_in_first_half(&self, now: i64) -> bool {
        (self.iat..self.iat + (self.exp - self.iat + 1) / 2).contains(&now)
    }

    /// Checks the times that change.
    pub(super) fn check_now(&self, now: i64, leeway: i64) -> Result<(), Refused> {
        if now.saturating_sub(leeway) >= self.exp {
            return Err(Refused::Invalid("it has expired"));
        }
        if self.iat.max(self.nbf.unwrap_or(0)) > now.saturating_add(leeway) {
            return Err(Refused::Invalid("it is not valid yet"));
        }
        Ok(())
    }
}

fn name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let name = String::deserialize(deserializer)?;
    match name.is_empty() || name.len() > NAME || name.contains(char::is_control) {
        true => Err(D::Error::custom("not a name")),
        false => Ok(name),
    }
}

fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

fn seconds<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i64, D::Error> {
    let seconds = i64::deserialize(deserializer)?;
    match (0..=LATEST).contains(&seconds) {
        true => Ok(seconds),
        false => Err(D::Error::custom("not a time")),
    }
}

fn optional_seconds<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<i64>, D::Error> {
    seconds(deserializer).map(Some)
}

/// A string with spaces between its words, or an array of strings.
fn one_or_many<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Words {
        One(String),
        Many(Vec<String>),
    }
    Ok(match Words::deserialize(deserializer)? {
        Words::One(text) => text.split_ascii_whitespace().map(str::to_owned).collect(),
        Words::Many(words) => words,
    })
}

/// Scopes as one string, with spaces between them (RFC 6749 §3.3).
mod scopes {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(scopes: &[String], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&scopes.join(" "))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
        let text = String::deserialize(deserializer)?;
        let allowed = |byte: u8| (b' '..=b'~').contains(&byte) && byte != b'"' && byte != b'\\';
        match text.bytes().all(allowed) {
            true => Ok(text.split(' ').filter(|scope| !scope.is_empty()).map(str::to_owned).collect()),
            false => Err(D::Error::custom("not a list of scopes")),
        }
    }
}
