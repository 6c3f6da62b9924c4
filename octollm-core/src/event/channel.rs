//! The address of an event.

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

/// Divides `text` into exactly `N` segments.
pub(super) fn split<const N: usize>(text: &str, divider: char) -> Result<[&str; N], ChannelError> {
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
pub(super) fn check_segment(position: usize, segment: &str) -> Result<(), ChannelError> {
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn parts_are_slices_of_one_text() {
        let channel: Channel = "events:task:completed".parse().unwrap();
        assert_eq!((channel.domain(), channel.entity(), channel.action()), ("events", "task", "completed"));
        assert_eq!(channel.event_type(), "task.completed");
        assert_eq!(channel.to_string(), "events:task:completed");
        assert_eq!(channel.in_domain("audit").unwrap().as_str(), "audit:task:completed");
    }

    #[test]
    fn what_is_no_channel_is_refused_by_name() {
        let cases = [
            ("", ChannelError::SegmentCount { expected: 3, found: 1 }),
            ("a:b", ChannelError::SegmentCount { expected: 3, found: 2 }),
            ("a:b:c:d", ChannelError::SegmentCount { expected: 3, found: 4 }),
            ("a::c", ChannelError::EmptySegment { position: 2 }),
            ("a:b:c d", ChannelError::Character { position: 3, found: ' ' }),
            ("a:b\r\n:c", ChannelError::Character { position: 2, found: '\r' }),
            ("A:b:c", ChannelError::Character { position: 1, found: 'A' }),
            ("a:ü:c", ChannelError::Character { position: 2, found: 'ü' }),
            ("a:b:*", ChannelError::Glob { position: 3, found: '*' }),
            ("a:b?:c", ChannelError::Glob { position: 2, found: '?' }),
        ];
        for (text, error) in cases {
            assert_eq!(text.parse::<Channel>(), Err(error), "{text:?}");
        }
        let long = "x".repeat(65);
        assert_eq!(Channel::new("a", &long, "c"), Err(ChannelError::LongSegment { position: 2, length: 65 }));
    }

    #[test]
    fn an_event_type_has_two_segments() {
        assert!(Channel::from_event_type("task.completed").is_ok());
        let error = Channel::from_event_type("com.example.created").unwrap_err();
        assert_eq!(error, ChannelError::SegmentCount { expected: 2, found: 3 });
        let error = Channel::from_event_type("Task.completed").unwrap_err();
        assert_eq!(error, ChannelError::Character { position: 1, found: 'T' });
    }

    proptest! {
        #[test]
        fn text_and_json_round_trip(text in "[a-z0-9_-]{1,64}:[a-z0-9_-]{1,64}:[a-z0-9_-]{1,64}") {
            let channel: Channel = text.parse().unwrap();
            prop_assert_eq!(channel.as_str(), &text);
            let json = serde_json::to_string(&channel).unwrap();
            prop_assert_eq!(&serde_json::from_str::<Channel>(&json).unwrap(), &channel);
            let again = Channel::from_event_type(channel.event_type()).unwrap();
            prop_assert_eq!(again.in_domain(channel.domain()).unwrap(), channel);
        }

        #[test]
        fn any_text_is_a_channel_or_an_error(text in "[a-z*:?.A ]{0,12}") {
            let valid = text.split(':').count() == 3
                && text.split(':').all(|s| !s.is_empty() && s.bytes().all(|b| b.is_ascii_lowercase()));
            prop_assert_eq!(text.parse::<Channel>().is_ok(), valid);
        }

        #[test]
        fn order_is_that_of_the_text(a in "[a-c]{1,2}:[a-c]{1,2}:[a-c]{1,2}", b in "[a-c]{1,2}:[a-c]{1,2}:[a-c]{1,2}") {
            let (left, right): (Channel, Channel) = (a.parse().unwrap(), b.parse().unwrap());
            prop_assert_eq!(left.cmp(&right), a.cmp(&b));
            prop_assert_eq!(left == right, a == b);
        }
    }
}
