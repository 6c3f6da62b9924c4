//! The address of an event, and the patterns that match addresses.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize, Serializer};

use crate::error::InvalidValue;

const MAX_SEGMENT: usize = 64;
/// A channel, and its type without the domain: five segments and three separators.
const MAX_TEXT: usize = 5 * MAX_SEGMENT + 3;

/// The address of an event: `<domain>:<entity>:<action>`, exactly three segments of 1 to 64 of `a-z`, `0-9`, `_` and
/// `-`.
///
/// The event type `<entity>.<action>` derives from it. Clones share the text.
///
/// ```
/// # use octollm_core::event::Channel;
/// let channel: Channel = "events:task:completed".parse()?;
/// assert_eq!(channel.event_type(), "task.completed");
/// assert_eq!(Channel::from_event_type("task.completed")?, channel);
/// # Ok::<(), octollm_core::error::InvalidValue>(())
/// ```
#[derive(Clone, Deserialize)]
#[serde(try_from = "String")]
pub struct Channel {
    /// The channel, followed by the event type.
    text: Arc<str>,
    domain_end: u8,
    entity_end: u8,
    channel_end: u8,
}

impl Channel {
    /// Domain of an event type that names none.
    pub const DEFAULT_DOMAIN: &'static str = "events";

    /// Creates a channel from its segments.
    ///
    /// # Errors
    /// [`InvalidValue`] when a segment is not valid.
    pub fn new(domain: &str, entity: &str, action: &str) -> Result<Self, InvalidValue> {
        for (index, segment) in [domain, entity, action].into_iter().enumerate() {
            check_segment("channel", index + 1, segment)?;
        }
        Ok(Self::of_segments(domain, entity, action))
    }

    /// Joins segments that are valid.
    fn of_segments(domain: &str, entity: &str, action: &str) -> Self {
        let mut text = [0; MAX_TEXT];
        let mut end = 0;
        for part in [domain, ":", entity, ":", action, entity, ".", action] {
            text[end..end + part.len()].copy_from_slice(part.as_bytes());
            end += part.len();
        }
        Self {
            // Every byte is ASCII.
            text: std::str::from_utf8(&text[..end]).unwrap_or_default().into(),
            domain_end: domain.len() as u8,
            entity_end: (domain.len() + 1 + entity.len()) as u8,
            channel_end: (domain.len() + entity.len() + action.len() + 2) as u8,
        }
    }

    /// Returns the channel of an event type `<entity>.<action>` in the domain `events`.
    ///
    /// # Errors
    /// [`InvalidValue`] when there are not two segments or one is not valid.
    pub fn from_event_type(event_type: &str) -> Result<Self, InvalidValue> {
        let [entity, action] = split("event type", event_type, '.')?;
        // Checked here, so that positions in errors are those of the type.
        check_segment("event type", 1, entity)?;
        check_segment("event type", 2, action)?;
        Ok(Self::of_segments(Self::DEFAULT_DOMAIN, entity, action))
    }

    /// Returns the channel with the same entity and action in another domain.
    ///
    /// # Errors
    /// [`InvalidValue`] when `domain` is not a valid segment.
    pub fn with_domain(&self, domain: &str) -> Result<Self, InvalidValue> {
        Self::new(domain, self.entity(), self.action())
    }

    /// Returns the channel as text.
    pub fn as_str(&self) -> &str {
        &self.text[..usize::from(self.channel_end)]
    }

    /// Returns the first segment.
    pub fn domain(&self) -> &str {
        &self.text[..usize::from(self.domain_end)]
    }

    /// Returns the second segment, the kind of thing that the event is about.
    pub fn entity(&self) -> &str {
        &self.text[usize::from(self.domain_end) + 1..usize::from(self.entity_end)]
    }

    /// Returns the third segment, which names what happened.
    pub fn action(&self) -> &str {
        &self.text[usize::from(self.entity_end) + 1..usize::from(self.channel_end)]
    }

    /// Returns the event type, `<entity>.<action>`.
    pub fn event_type(&self) -> &str {
        &self.text[usize::from(self.channel_end)..]
    }
}

impl FromStr for Channel {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        let [domain, entity, action] = split("channel", text, ':')?;
        Self::new(domain, entity, action)
    }
}

impl TryFrom<String> for Channel {
    type Error = InvalidValue;

    fn try_from(text: String) -> Result<Self, InvalidValue> {
        text.parse()
    }
}

impl fmt::Display for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Debug for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Channel").field(&self.as_str()).finish()
    }
}

impl Serialize for Channel {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl PartialEq for Channel {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

impl Eq for Channel {}

impl Hash for Channel {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_str().hash(state);
    }
}

impl Ord for Channel {
    fn cmp(&self, other: &Self) -> Ordering {
        self.as_str().cmp(other.as_str())
    }
}

impl PartialOrd for Channel {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Borrow<str> for Channel {
    fn borrow(&self) -> &str {
        self.as_str()
    }
}

impl AsRef<str> for Channel {
    fn as_ref(&self) -> &str {
        self.as_str()
    }
}

/// Matches channels. A whole segment may be `*`, which matches any one segment.
///
/// A pattern can have several alternatives, which are separated by commas: a channel matches the pattern if it matches
/// one of them. Other globs (`comp*`, `?`, `[ab]`) are errors.
///
/// ```
/// # use octollm_core::event::Pattern;
/// let tasks: Pattern = "events:task:*".parse()?;
/// assert!(tasks.matches(&"events:task:failed".parse()?));
/// assert!("events:task:fail*".parse::<Pattern>().is_err());
///
/// let both = tasks.or("events:arm:registered".parse()?);
/// assert!(both.matches(&"events:arm:registered".parse()?));
/// assert_eq!(both, "events:task:*,events:arm:registered".parse()?);
/// # Ok::<(), octollm_core::error::InvalidValue>(())
/// ```
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub struct Pattern {
    /// One or more, sorted, each of them once.
    alternatives: Vec<Alternative>,
}

#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Alternative {
    text: Box<str>,
    /// The ends of the first two segments.
    ends: [u8; 2],
}

impl Pattern {
    /// Returns the pattern that matches every channel, `*:*:*`.
    pub fn all() -> Self {
        Alternative::of([WILDCARD; 3]).into()
    }

    /// Returns whether `channel` matches.
    pub fn matches(&self, channel: &Channel) -> bool {
        self.alternatives.iter().any(|alternative| alternative.matches(channel))
    }

    /// Returns a pattern that matches what this one or `other` matches.
    #[must_use]
    pub fn or(mut self, other: Pattern) -> Self {
        for alternative in other.alternatives {
            if let Err(place) = self.alternatives.binary_search(&alternative) {
                self.alternatives.insert(place, alternative);
            }
        }
        self
    }

    /// Returns each alternative once, as text. A broker that has no alternatives subscribes to each of them.
    pub fn alternatives(&self) -> impl Iterator<Item = &str> {
        self.alternatives.iter().map(|alternative| &*alternative.text)
    }
}

impl Alternative {
    /// The segments are valid, so each has at most 64 bytes.
    fn of(segments: [&str; 3]) -> Self {
        let [domain, entity, _] = segments.map(str::len);
        Self { text: segments.join(":").into(), ends: [domain as u8, (domain + 1 + entity) as u8] }
    }

    fn parse(text: &str) -> Result<Self, InvalidValue> {
        let segments: [&str; 3] = split("pattern", text, ':')?;
        for (index, segment) in segments.iter().enumerate() {
            if *segment != WILDCARD {
                check_segment("pattern", index + 1, segment)?;
            }
        }
        Ok(Self::of(segments))
    }

    fn matches(&self, channel: &Channel) -> bool {
        let [domain, entity, action] = self.segments();
        let matches = |wanted: &str, found: &str| wanted == WILDCARD || wanted == found;
        matches(action, channel.action())
            && matches(entity, channel.entity())
            && matches(domain, channel.domain())
    }

    fn segments(&self) -> [&str; 3] {
        let [domain, entity] = self.ends.map(usize::from);
        [&self.text[..domain], &self.text[domain + 1..entity], &self.text[entity + 1..]]
    }
}

impl From<Alternative> for Pattern {
    fn from(alternative: Alternative) -> Self {
        Self { alternatives: vec![alternative] }
    }
}

impl FromStr for Pattern {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        let mut alternatives = text.split(',').map(Alternative::parse).collect::<Result<Vec<_>, _>>()?;
        alternatives.sort_unstable();
        alternatives.dedup();
        Ok(Self { alternatives })
    }
}

impl TryFrom<String> for Pattern {
    type Error = InvalidValue;

    fn try_from(text: String) -> Result<Self, InvalidValue> {
        text.parse()
    }
}

impl From<Channel> for Pattern {
    /// Returns the pattern that matches this channel only.
    fn from(channel: Channel) -> Self {
        Alternative::of([channel.domain(), channel.entity(), channel.action()]).into()
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.alternatives {
            [only] => f.pad(&only.text),
            _ => f.pad(&self.alternatives().collect::<Vec<_>>().join(",")),
        }
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Pattern").field(&self.to_string()).finish()
    }
}

impl Serialize for Pattern {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

const WILDCARD: &str = "*";

/// Splits `text` into exactly `N` segments of a value of this kind.
fn split<'a, const N: usize>(
    kind: &'static str,
    text: &'a str,
    separator: char,
) -> Result<[&'a str; N], InvalidValue> {
    let mut segments = [""; N];
    let mut found = 0;
    for segment in text.split(separator) {
        if let Some(slot) = segments.get_mut(found) {
            *slot = segment;
        }
        found += 1;
    }
    if found == N {
        return Ok(segments);
    }
    Err(InvalidValue::new(kind).because(format!("{N} segments are needed, but there are {found}")))
}

/// Requires `[a-z0-9_-]{1,64}`.
fn check_segment(kind: &'static str, position: usize, segment: &str) -> Result<(), InvalidValue> {
    let invalid = |reason| Err(InvalidValue::new(kind).because(format!("segment {position} {reason}")));
    if segment.is_empty() {
        return invalid("is empty".to_owned());
    }
    if segment.len() > MAX_SEGMENT {
        return invalid(format!("has {} bytes, and may have 64", segment.len()));
    }
    let allowed = |c: char| matches!(c, 'a'..='z' | '0'..='9' | '_' | '-');
    match segment.chars().find(|&c| !allowed(c)) {
        None => Ok(()),
        Some(found) => invalid(format!("contains {found:?}, and may have a-z, 0-9, _ and -")),
    }
}
