//! Entries of streams.

use std::fmt;

use bytes::Bytes;
use jiff::Timestamp;
use octollm_core::bus::{DeadLetter, FailedAttempt};

use crate::Encoding;
use crate::redis::{
    reply::Reply,
    values::{bytes, items, text},
};

/// The id of an entry: a time in ms since 1970, and a number.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Id(u64, u64);

impl Id {
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (time, number) = text.split_once('-')?;
        Some(Self(time.parse().ok()?, number.parse().ok()?))
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.0, self.1)
    }
}

pub(super) type Fields = Vec<(Bytes, Bytes)>;

/// An entry of a stream.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) id: Id,
    pub(super) fields: Fields,
}

impl Entry {
    /// Reads the answer of XRANGE.
    pub(super) fn list(answer: Reply) -> Vec<Self> {
        items(answer).into_iter().filter_map(Self::read).collect()
    }

    fn read(entry: Reply) -> Option<Self> {
        let mut parts = items(entry).into_iter();
        let id = Id::parse(&text(parts.next()?))?;
        Some(Self { id, fields: fields(parts.next()?) })
    }
}

/// Reads the answer of XREAD for two streams: the entries of the first one, and of the other one.
pub(super) fn streams(answer: Reply, first: &str) -> (Vec<Entry>, Vec<Entry>) {
    let (mut entries, mut others) = (Vec::new(), Vec::new());
    let mut streams = items(answer).into_iter();
    while let (Some(name), Some(found)) = (streams.next(), streams.next()) {
        let of_stream = if text(name) == first { &mut entries } else { &mut others };
        of_stream.extend(Entry::list(found));
    }
    (entries, others)
}

/// Names and values.
pub(super) fn fields(reply: Reply) -> Fields {
    let texts = items(reply);
    let mut fields = Vec::with_capacity(texts.len() / 2);
    let mut texts = texts.into_iter().map(bytes);
    while let (Some(name), Some(value)) = (texts.next(), texts.next()) {
        fields.push((name, value));
    }
    fields
}

/// The bytes of an entry that is no event: its data, or all its fields.
fn raw(fields: &Fields) -> Bytes {
    match fields.iter().find(|(name, _)| &name[..] == b"data") {
        Some((_, data)) => data.clone(),
        None => fields
            .iter()
            .map(|(name, value)| [name, &b"="[..], value].concat())
            .collect::<Vec<_>>()
            .join(&b'\n')
            .into(),
    }
}

/// A dead letter, as the scripts write it.
pub(super) fn dead_letter(encoding: Encoding, entry: Entry) -> DeadLetter {
    let (mut reason, mut attempts, mut history, mut event) = (String::new(), 0, Vec::new(), Vec::new());
    for (name, value) in entry.fields {
        match &name[..] {
            b"reason" => reason = String::from_utf8_lossy(&value).into_owned(),
            b"attempts" => attempts = String::from_utf8_lossy(&value).parse().unwrap_or(0),
            b"history" => history = read_history(&value),
            [b'f', b':', ..] => event.push((name.slice(2..), value)),
            _ => {}
        }
    }
    let decoded = encoding.from_fields(event.iter().map(|(name, value)| (name, value)));
    DeadLetter::new(entry.id.to_string(), decoded.map_err(|_| raw(&event)), reason, attempts)
        .with_history(history)
}

/// The attempts that failed: of each the time in ms since 1970, the consumer and the reason. A history that cannot be read is none.
fn read_history(json: &[u8]) -> Vec<FailedAttempt> {
    let attempts: Vec<(i64, String, String)> = serde_json::from_slice(json).unwrap_or_default();
    let read = |(at, consumer, reason)| {
        FailedAttempt::new(Timestamp::from_millisecond(at).unwrap_or_default(), consumer, reason)
    };
    attempts.into_iter().map(read).collect()
}
