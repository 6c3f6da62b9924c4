//! W3C Trace Context.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::invalid::InvalidValue;

/// A `traceparent` and its `tracestate`, forwarded unchanged.
///
/// Source: W3C Trace Context, level 1, sections 3.2 and 3.3.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Stored", into = "Stored")]
pub struct TraceContext {
    parent: Box<str>,
    state: Option<Box<str>>,
}

/// The stored form, with the names of the headers.
#[derive(Serialize, Deserialize)]
struct Stored {
    traceparent: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tracestate: Option<String>,
}

impl TryFrom<Stored> for TraceContext {
    type Error = InvalidValue;

    fn try_from(stored: Stored) -> Result<Self, Self::Error> {
        let trace: Self = stored.traceparent.parse()?;
        Ok(match stored.tracestate {
            Some(state) => trace.with_tracestate(&state),
            None => trace,
        })
    }
}

impl From<TraceContext> for Stored {
    fn from(trace: TraceContext) -> Self {
        Self { traceparent: trace.parent.into(), tracestate: trace.state.map(Into::into) }
    }
}

impl TraceContext {
    /// `version-traceid-parentid-flags`.
    pub fn traceparent(&self) -> &str {
        &self.parent
    }

    /// The vendor-specific data, if any.
    pub fn tracestate(&self) -> Option<&str> {
        self.state.as_deref()
    }

    /// Sets the vendor-specific data. It is left out if it has more than 512 characters or any beyond printable ASCII.
    #[must_use]
    pub fn with_tracestate(mut self, state: &str) -> Self {
        let fits =
            !state.is_empty() && state.len() <= 512 && state.bytes().all(|b| (b' '..=b'~').contains(&b));
        self.state = fits.then(|| state.into());
        self
    }

    /// The trace id: 32 hexadecimal digits.
    pub fn trace_id(&self) -> &str {
        self.parent.get(3..35).unwrap_or_default()
    }
}

impl FromStr for TraceContext {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut parts = text.split('-');
        let mut hex = |digits: usize| {
            parts.next().filter(|part| {
                part.len() == digits && part.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
            })
        };
        let (version, trace, parent, flags) = (hex(2), hex(32), hex(16), hex(2));
        let (Some(version), Some(trace), Some(parent), Some(_)) = (version, trace, parent, flags) else {
            return Err(INVALID);
        };
        let zero = |part: &str| part.bytes().all(|b| b == b'0');
        // A later version may add parts; version 00 has exactly four.
        let extra = parts.next().is_some();
        if version == "ff" || (version == "00" && extra) || zero(trace) || zero(parent) || text.len() > 256 {
            return Err(INVALID);
        }
        Ok(Self { parent: text.into(), state: None })
    }
}

impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.parent)
    }
}

const INVALID: InvalidValue = InvalidValue::new("traceparent");

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn reads_the_standards_own_example() {
        let trace: TraceContext = GOOD.parse().unwrap();
        assert_eq!(trace.trace_id(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!(trace.to_string(), GOOD);
    }

    #[test]
    fn refuses_what_is_malformed() {
        for text in [
            "",
            "00",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-x",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473-00f067aa0ba902b7-01",
        ] {
            assert!(text.parse::<TraceContext>().is_err(), "{text}");
        }
    }
}
