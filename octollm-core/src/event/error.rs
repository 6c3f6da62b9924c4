//! Why a text is no channel, and why attributes are no event.

/// A text is not a [`Channel`](super::Channel), a [`Pattern`](super::Pattern) or an event type.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ChannelError {
    /// There are more or fewer segments than there must be.
    #[error("{found} segments where {expected} are needed")]
    SegmentCount {
        /// How many there must be: three in a channel or pattern, two in an event type.
        expected: usize,
        /// How many there are.
        found: usize,
    },
    /// A segment has no characters.
    #[error("segment {position} is empty")]
    EmptySegment {
        /// Which segment, counted from 1.
        position: usize,
    },
    /// A segment has more than 64 characters.
    #[error("segment {position} is {length} bytes long and may be 64")]
    LongSegment {
        /// Which segment, counted from 1.
        position: usize,
        /// Its length in bytes.
        length: usize,
    },
    /// A segment has a character that is none of `a-z`, `0-9`, `_` and `-`.
    #[error("segment {position} contains {found:?}, which is none of a-z, 0-9, _ and -")]
    Character {
        /// Which segment, counted from 1.
        position: usize,
        /// The character.
        found: char,
    },
    /// A glob stands where none may: anywhere in a channel, and in a pattern beside other characters.
    #[error(
        "segment {position} contains the glob {found:?}, and only a pattern may have `*` as a whole segment"
    )]
    Glob {
        /// Which segment, counted from 1.
        position: usize,
        /// The character.
        found: char,
    },
    /// A list of patterns has no pattern.
    #[error("no pattern was given")]
    NoPattern,
}

/// Attributes do not make an [`Event`](super::Event).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EventError {
    /// The event type or the domain breaks the rules of a channel.
    #[error("the event type or its domain is not valid")]
    Channel {
        /// What is wrong with it.
        #[from]
        source: ChannelError,
    },
    /// An attribute that every event has is an empty text.
    #[error("the attribute `{attribute}` is empty")]
    Empty {
        /// Its name in the native form.
        attribute: &'static str,
    },
    /// The event is of a version other than `1.0`.
    #[error("the specversion {found:?} is not known")]
    Version {
        /// The version it says it is.
        found: String,
    },
    /// A point in time is not RFC 3339.
    #[error("the attribute `{attribute}` is not an RFC 3339 timestamp")]
    Timestamp {
        /// Its name in the native form.
        attribute: &'static str,
        /// What is wrong with it.
        source: jiff::Error,
    },
    /// The event is of another type than its reader reads.
    #[error("the event is a {found:?}, which is not expected here")]
    OtherType {
        /// The type of the event.
        found: String,
    },
    /// The data cannot be written as JSON, or is not what the reader took it for.
    #[error("the data is not of the expected form")]
    Data {
        /// What is wrong with it.
        source: serde_json::Error,
    },
}
