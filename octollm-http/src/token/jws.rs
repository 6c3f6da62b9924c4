//! The compact form of signed claims, read strictly, and written.

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD as BASE64};
use octollm_core::json;
use serde::Serialize;
use serde_json::{Map, Value};

use super::{
    Refused,
    key::{PublicKey, is_kid},
    signing_key::SigningKey,
};

/// Most bytes of a token.
pub(super) const MOST: usize = 8 * 1024;

/// The media types that are signed.
pub(super) const TOKEN: &str = "at+jwt";
pub(super) const LINK: &str = "delegation+jwt";

/// Parameters of a head that are never followed, and those that would change how it is read.
const REFUSED: [&str; 7] = ["crit", "b64", "jku", "jwk", "x5u", "x5c", "zip"];

/// Signed claims, whose signature is not verified yet.
pub(super) struct Jws<'t> {
    pub(super) algorithm: String,
    pub(super) kid: Option<String>,
    /// The media type in lower case, without `application/`.
    pub(super) media_type: String,
    pub(super) claims: Map<String, Value>,
    message: &'t [u8],
    signature: Vec<u8>,
}

impl<'t> Jws<'t> {
    /// # Errors
    /// The text has another form, is too long, or its head has what is never read.
    pub(super) fn read(text: &'t str) -> Result<Self, Refused> {
        const FORM: Refused = Refused::Invalid("it is not three parts of base64url");
        if text.len() > MOST {
            return Err(Refused::Invalid("it is longer than 8 KiB"));
        }
        let (message, signature) = text.rsplit_once('.').ok_or(FORM)?;
        let (head, claims) = message.split_once('.').ok_or(FORM)?;
        let decoded = |part: &str| match BASE64.decode(part) {
            Ok(bytes) if !bytes.is_empty() => Ok(bytes),
            _ => Err(FORM),
        };
        let (mut head, claims) = (object(&decoded(head)?)?, object(&decoded(claims)?)?);
        if REFUSED.iter().any(|parameter| head.contains_key(*parameter)) {
            return Err(Refused::Invalid("its head has a parameter that is not supported"));
        }
        let kid = match head.remove("kid") {
            None => None,
            Some(Value::String(kid)) if is_kid(&kid) => Some(kid),
            Some(_) => return Err(Refused::Invalid("its key id is malformed")),
        };
        let (Some(Value::String(algorithm)), Some(Value::String(media_type))) =
            (head.remove("alg"), head.remove("typ"))
        else {
            return Err(Refused::Invalid("its head has no algorithm or no type"));
        };
        let media_type = media_type.to_ascii_lowercase();
        let media_type = media_type.strip_prefix("application/").unwrap_or(&media_type).to_owned();
        let signature = decoded(signature)?;
        Ok(Self { algorithm, kid, media_type, claims, message: message.as_bytes(), signature })
    }

    /// # Errors
    /// The key is for another algorithm, or has not signed this.
    pub(super) fn verify(&self, key: &PublicKey) -> Result<(), Refused> {
        if self.algorithm != key.name() {
            return Err(Refused::Invalid("its algorithm is not that of its key"));
        }
        match key.verifies(self.message, &self.signature) {
            true => Ok(()),
            false => Err(Refused::Invalid("its signature is not that of its key")),
        }
    }
}

fn object(bytes: &[u8]) -> Result<Map<String, Value>, Refused> {
    json::read_input(bytes).map_err(|_| Refused::Invalid("a part is not an object in JSON"))
}

/// Signs claims. `kid` is written by roots only.
///
/// `None` where the claims cannot be written or the system has no random numbers.
pub(super) fn sign(
    media_type: &str,
    key: &SigningKey,
    kid: Option<&str>,
    claims: &impl Serialize,
) -> Option<String> {
    let mut head = Map::new();
    head.insert("alg".into(), key.public.name().into());
    head.insert("typ".into(), media_type.into());
    if let Some(kid) = kid {
        head.insert("kid".into(), kid.into());
    }
    let mut text = BASE64.encode(serde_json::to_vec(&head).ok()?);
    text.push('.');
    BASE64.encode_string(serde_json::to_vec(claims).ok()?, &mut text);
    let signature = key.sign(text.as_bytes())?;
    text.push('.');
    BASE64.encode_string(signature, &mut text);
    Some(text)
}
