//! Entries of streams.

use std::fmt;

use bytes::Bytes;

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
pub(super) fn raw(fields: &Fields) -> Bytes {
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
