//! What HTTP itself says in a head, found in one pass.

use http::{HeaderMap, HeaderValue, Version, header};
use octollm_core::error::{ErrorKind, Failure};

use super::{
    media::{Accepts, is_json},
    respond::Refusal,
};
use crate::wire::names;

const CODINGS: &str = "the only transfer coding understood is chunked";

/// The fields that decide whether a request is taken.
#[derive(Debug, Default)]
pub(crate) struct Fields<'h> {
    hosts: usize,
    codings: Stands<'h>,
    authorization: Stands<'h>,
    content_type: Stands<'h>,
    key: Stands<'h>,
    accepts: Accepts,
    coded: bool,
    expects: bool,
}

/// How a request came here.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Arrival {
    /// Through somebody else's server, which judges the framing.
    Mounted,
    Http1 {
        /// Its head told the length of its body in two ways; hyper shows one.
        two_lengths: bool,
    },
    Http2,
}

/// A field that may stand once.
#[derive(Debug, Default, Clone, Copy)]
enum Stands<'h> {
    #[default]
    Nowhere,
    Once(&'h HeaderValue),
    Twice,
}

impl<'h> Stands<'h> {
    fn add(&mut self, value: &'h HeaderValue) {
        *self = if matches!(self, Self::Nowhere) { Self::Once(value) } else { Self::Twice };
    }
}

impl<'h> Fields<'h> {
    pub(crate) fn of(head: &'h HeaderMap) -> Self {
        let mut fields = Self::default();
        for (name, value) in head {
            match *name {
                header::HOST => fields.hosts += 1,
                header::TRANSFER_ENCODING => fields.codings.add(value),
                header::AUTHORIZATION => fields.authorization.add(value),
                header::CONTENT_TYPE => fields.content_type.add(value),
                header::ACCEPT => fields.accepts.add(value),
                header::CONTENT_ENCODING => {
                    fields.coded |= !value.as_bytes().eq_ignore_ascii_case(b"identity")
                }
                header::EXPECT => fields.expects |= !value.as_bytes().eq_ignore_ascii_case(b"100-continue"),
                _ if *name == names::IDEMPOTENCY_KEY => fields.key.add(value),
                _ => {}
            }
        }
        fields
    }

    /// Refuses what another server, reading the same bytes, might take for another request. Nothing more is taken over
    /// that connection.
    pub(crate) fn check_framing(&self, arrival: Arrival, version: Version) -> Result<(), Refusal> {
        let words = match (arrival, self.codings, self.hosts) {
            (Arrival::Mounted, ..) => return Ok(()),
            (Arrival::Http2, _, 0 | 1) => return Ok(()),
            (Arrival::Http1 { two_lengths: true }, ..) => {
                "Content-Length and Transfer-Encoding exclude each other"
            }
            (_, Stands::Once(coding), _) if !coding.as_bytes().eq_ignore_ascii_case(b"chunked") => CODINGS,
            (_, Stands::Twice, _) => CODINGS,
            (_, _, 1) => return Ok(()),
            (_, _, 0) if version < Version::HTTP_11 => return Ok(()),
            (_, _, 0) => "Host is missing",
            _ => "Host stands twice",
        };
        let refusal = Refusal::from(Failure::new(ErrorKind::BadRequest, words));
        // It has no place in HTTP/2, whose streams are framed apart.
        Err(match arrival {
            Arrival::Http1 { .. } => refusal.header(header::CONNECTION, HeaderValue::from_static("close")),
            _ => refusal,
        })
    }

    /// Checks what no route may be asked with.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        let refused = |message: &str| Err(Failure::new(ErrorKind::BadRequest, message));
        if let Stands::Twice = self.authorization {
            return refused("Authorization stands twice");
        }
        let key_fits = match self.key {
            Stands::Nowhere => true,
            Stands::Once(key) => is_quoted_string(key.as_bytes()),
            Stands::Twice => false,
        };
        if !key_fits {
            return refused(
                "malformed header idempotency-key: it is one quoted string of 1 to 255 characters",
            );
        }
        if self.expects {
            return Err(Failure::new(ErrorKind::ExpectationFailed, "only 100-continue can be expected"));
        }
        Ok(())
    }

    /// Checks that the caller takes `application/json`.
    pub(crate) fn check_accept(&self) -> Result<(), Failure> {
        if self.accepts.json() {
            return Ok(());
        }
        Err(Failure::new(ErrorKind::NotAcceptable, "the answer is application/json"))
    }

    /// Checks that the body is JSON, in UTF-8, and in no coding.
    pub(crate) fn check_content(&self) -> Result<(), Failure> {
        let refused = |message: &str| Err(Failure::new(ErrorKind::UnsupportedMediaType, message));
        if self.coded {
            return refused("a body in a content coding is not understood");
        }
        match self.content_type {
            Stands::Once(media) if media == "application/json" || media.to_str().is_ok_and(is_json) => Ok(()),
            Stands::Nowhere => refused("the content type is missing; it is application/json"),
            _ => refused("the content type is not application/json in UTF-8"),
        }
    }
}

/// A string of RFC 8941 §3.3.3 that holds 1 to 255 characters.
fn is_quoted_string(value: &[u8]) -> bool {
    let Some(inner) = value.strip_prefix(b"\"").and_then(|rest| rest.strip_suffix(b"\"")) else {
        return false;
    };
    let mut characters = 0;
    let mut bytes = inner.iter();
    while let Some(byte) = bytes.next() {
        let fits = match byte {
            b'\\' => matches!(bytes.next(), Some(b'"' | b'\\')),
            b'"' => false,
            byte => (b' '..=b'~').contains(byte),
        };
        if !fits {
            return false;
        }
        characters += 1;
    }
    (1..=255).contains(&characters)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_one_quoted_string() {
        let long = |n: usize| format!("\"{}\"", "k".repeat(n));
        for key in ["\"a\"", "\"a b\"", r#""a\"b\\""#, &long(255)] {
            assert!(is_quoted_string(key.as_bytes()), "{key}");
        }
        for key in ["", "a", "\"", "\"\"", "\"a", r#""a"b""#, r#""a\""#, r#""a\n""#, "\"é\"", &long(256)] {
            assert!(!is_quoted_string(key.as_bytes()), "{key}");
        }
    }
}
