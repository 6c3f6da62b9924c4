//! The address of an event, and the patterns that match addresses.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize, Serializer};

use super::ChannelError;

/// The address of an event: `<domain>:<entity>:<action>`, exactly three segments of 1 to 64 of `a-z`, `0-9`, `_` and `-`.
///
/// The event type `<entity>.<action>` derives from it. Cloning is cheap.
///
/// ```
/// # use octollm_core::event::Channel;
/// let channel: Channel = "events:task:completed".parse()?;
/// assert_eq!(channel.event_type(), "task.completed");
/// assert_eq!(Channel::from_event_type("task.completed")?, channel);
/// # Ok::<(), octollm_core::event::ChannelError>(())
/// ```
#[derive(Clone, Deserialize)]
#[serde(try_from = "String")]
pub struct Channel {
    /// The channel and, right behind it, the event type: one allocation serves both.
    text: Arc<str>,
    domain_end: u8,
    entity_end: u8,
    channel_end: u8,
}

impl Channel {
    /// The domain of channels made from an event type alone.
    pub const DEFAULT_DOMAIN: &'static str = "events";

    /// Puts a channel together.
    ///
    /// # Errors
    /// When a segment is empty, too long, or has a character that may not be in it.
    pub fn new(domain: &str, entity: &str, action: &str) -> Result<Self, ChannelError> {
        for (index, segment) in [domain, entity, action].into_iter().enumerate() {
            check_segment(index + 1, segment)?;
        }
        let channel_end = domain.len() + entity.len() + action.len() + 2;
        let mut text = String::with_capacity(2 * channel_end);
        for part in [domain, ":", entity, ":", action, entity, ".", action] {
            text.push_str(part);
        }
        Ok(Self {
            text: text.into(),
            // Three segments of at most 64 and two colons are at most 194 bytes.
            domain_end: domain.len() as u8,
            entity_end: (domain.len() + 1 + entity.len()) as u8,
            channel_end: channel_end as u8,
        })
    }

    /// The channel of an event type `<entity>.<action>` in the domain `events`.
    ///
    /// # Errors
    /// When there are not two segments divided by a dot, or one breaks the rules.
    pub fn from_event_type(event_type: &str) -> Result<Self, ChannelError> {
        let [entity, action] = split(event_type, '.')?;
        // Positions in errors are those of the type, which has no domain before it.
        check_segment(1, entity)?;
        check_segment(2, action)?;
        Self::new(Self::DEFAULT_DOMAIN, entity, action)
    }

    /// The same entity and action in another domain.
    ///
    /// # Errors
    /// When `domain` breaks the rules of a segment.
    pub fn in_domain(&self, domain: &str) -> Result<Self, ChannelError> {
        Self::new(domain, self.entity(), self.action())
    }

    /// The whole channel.
    pub fn as_str(&self) -> &str {
        &self.text[..usize::from(self.channel_end)]
    }

    /// The first segment.
    pub fn domain(&self) -> &str {
        &self.text[..usize::from(self.domain_end)]
    }

    /// The second segment: what the event is about.
    pub fn entity(&self) -> &str {
        &self.text[usize::from(self.domain_end) + 1..usize::from(self.entity_end)]
    }

    /// The third segment: what happened to it.
    pub fn action(&self) -> &str {
        &self.text[usize::from(self.entity_end) + 1..usize::from(self.channel_end)]
    }

    /// `<entity>.<action>`.
    pub fn event_type(&self) -> &str {
        &self.text[usize::from(self.channel_end)..]
    }
}

impl FromStr for Channel {
    type Err = ChannelError;

    fn from_str(text: &str) -> Result<Self, ChannelError> {
        let [domain, entity, action] = split(text, ':')?;
        Self::new(domain, entity, action)
    }
}

impl TryFrom<String> for Channel {
    type Error = ChannelError;

    fn try_from(text: String) -> Result<Self, ChannelError> {
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

/// A [`Channel`] in which a whole segment may be `*`, which stands for any one segment.
///
/// Any other glob (`comp*`, `?`, `[ab]`) is refused rather than taken literally.
///
/// ```
/// # use octollm_core::event::Pattern;
/// let pattern: Pattern = "events:task:*".parse()?;
/// assert!(pattern.matches(&"events:task:failed".parse()?));
/// assert!("events:task:fail*".parse::<Pattern>().is_err());
/// # Ok::<(), octollm_core::event::ChannelError>(())
/// ```
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub struct Pattern {
    text: Box<str>,
    /// Where the first two segments end.
    ends: [u8; 2],
}

impl Pattern {
    /// The pattern every channel matches, `*:*:*`.
    pub fn all() -> Self {
        Self::of([WILDCARD; 3])
    }

    /// Whether it matches `channel`.
    pub fn matches(&self, channel: &Channel) -> bool {
        let [domain, entity, action] = self.segments();
        let matches = |wanted: &str, found: &str| wanted == WILDCARD || wanted == found;
        matches(action, channel.action())
            && matches(entity, channel.entity())
            && matches(domain, channel.domain())
    }

    /// Whether it matches one channel only.
    pub fn is_exact(&self) -> bool {
        !self.segments().contains(&WILDCARD)
    }

    /// Both this one and `other`, in one subscription.
    pub fn or(self, other: Pattern) -> Patterns {
        Patterns::from(self).or(other)
    }

    /// The text it was made from.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// A pattern of segments that were checked, of at most 64 bytes each.
    fn of(segments: [&str; 3]) -> Self {
        let [domain, entity, _] = segments.map(str::len);
        Self { text: segments.join(":").into(), ends: [domain as u8, (domain + 1 + entity) as u8] }
    }

    fn segments(&self) -> [&str; 3] {
        let [domain, entity] = self.ends.map(usize::from);
        [&self.text[..domain], &self.text[domain + 1..entity], &self.text[entity + 1..]]
    }
}

impl FromStr for Pattern {
    type Err = ChannelError;

    fn from_str(text: &str) -> Result<Self, ChannelError> {
        let segments: [&str; 3] = split(text, ':')?;
        for (index, segment) in segments.iter().enumerate() {
            if *segment != WILDCARD {
                check_segment(index + 1, segment)?;
            }
        }
        Ok(Self::of(segments))
    }
}

impl TryFrom<String> for Pattern {
    type Error = ChannelError;

    fn try_from(text: String) -> Result<Self, ChannelError> {
        text.parse()
    }
}

impl From<Channel> for Pattern {
    /// The pattern that matches exactly this channel.
    fn from(channel: Channel) -> Self {
        Self::of([channel.domain(), channel.entity(), channel.action()])
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.text)
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Pattern").field(&self.text).finish()
    }
}

impl Serialize for Pattern {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

const WILDCARD: &str = "*";

/// One or more [`Pattern`]s in one subscription: an event that several of them match is delivered once.
///
/// ```
/// # use octollm_core::event::{Pattern, Patterns};
/// let tasks: Pattern = "events:task:*".parse()?;
/// let both: Patterns = tasks.or("events:arm:registered".parse()?);
/// assert!(both.matches(&"events:arm:registered".parse()?));
/// # Ok::<(), octollm_core::event::ChannelError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Patterns(Vec<Pattern>);

impl Patterns {
    /// These and one more. One that is there already changes nothing.
    #[must_use]
    pub fn or(mut self, pattern: Pattern) -> Self {
        if let Err(place) = self.0.binary_search(&pattern) {
            self.0.insert(place, pattern);
        }
        self
    }

    /// Whether any of them matches `channel`.
    pub fn matches(&self, channel: &Channel) -> bool {
        self.0.iter().any(|pattern| pattern.matches(channel))
    }

    /// Each of them once, in the order of their texts.
    pub fn iter(&self) -> std::slice::Iter<'_, Pattern> {
        self.0.iter()
    }
}

impl From<Pattern> for Patterns {
    fn from(pattern: Pattern) -> Self {
        Self(vec![pattern])
    }
}

impl TryFrom<Vec<Pattern>> for Patterns {
    type Error = ChannelError;

    /// # Errors
    /// [`ChannelError::NoPattern`] when the list is empty.
    fn try_from(mut patterns: Vec<Pattern>) -> Result<Self, ChannelError> {
        patterns.sort_unstable();
        patterns.dedup();
        if patterns.is_empty() { Err(ChannelError::NoPattern) } else { Ok(Self(patterns)) }
    }
}

impl<'a> IntoIterator for &'a Patterns {
    type Item = &'a Pattern;
    type IntoIter = std::slice::Iter<'a, Pattern>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl fmt::Display for Patterns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, pattern) in self.0.iter().enumerate() {
            let divider = if index == 0 { "" } else { ", " };
            write!(f, "{divider}{pattern}")?;
        }
        Ok(())
    }
}

/// Divides `text` into exactly `N` segments.
fn split<const N: usize>(text: &str, divider: char) -> Result<[&str; N], ChannelError> {
    let mut segments = [""; N];
    let mut found = 0;
    for segment in text.split(divider) {
        if let Some(slot) = segments.get_mut(found) {
            *slot = segment;
        }
        found += 1;
    }
    if found == N { Ok(segments) } else { Err(ChannelError::SegmentCount { expected: N, found }) }
}

/// Holds a segment to `[a-z0-9_-]{1,64}`.
fn check_segment(position: usize, segment: &str) -> Result<(), ChannelError> {
    const LONGEST: usize = 64;
    if segment.is_empty() {
        return Err(ChannelError::EmptySegment { position });
    }
    if segment.len() > LONGEST {
        return Err(ChannelError::LongSegment { position, length: segment.len() });
    }
    let allowed = |c: char| matches!(c, 'a'..='z' | '0'..='9' | '_' | '-');
    match segment.chars().find(|&c| !allowed(c)) {
        None => Ok(()),
        Some(found @ ('*' | '?' | '[' | ']' | '\\')) => Err(ChannelError::Glob { position, found }),
        Some(found) => Err(ChannelError::Character { position, found }),
    }
}
