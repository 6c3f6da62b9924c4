//! Which channels a subscription is for.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize, Serializer};

use super::channel::{check_segment, split};
use super::{Channel, ChannelError};

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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pattern(text: &str) -> Pattern {
        text.parse().unwrap()
    }

    fn channel(text: &str) -> Channel {
        text.parse().unwrap()
    }

    #[test]
    fn a_star_is_one_whole_segment() {
        assert!(pattern("events:task:*").matches(&channel("events:task:completed")));
        assert!(!pattern("events:task:*").matches(&channel("events:arm:completed")));
        assert!(pattern("*:*:completed").matches(&channel("audit:task:completed")));
        assert!(Pattern::all().matches(&channel("a:b:c")));
        assert!(!pattern("events:task:complete").matches(&channel("events:task:completed")));
    }

    #[test]
    fn a_glob_inside_a_segment_is_refused() {
        for (text, position, found) in [
            ("events:task:comp*", 3, '*'),
            ("events:**:x", 2, '*'),
            ("event?:task:x", 1, '?'),
            ("events:[ab]:x", 2, '['),
            ("events:a\\*:x", 2, '\\'),
        ] {
            assert_eq!(text.parse::<Pattern>(), Err(ChannelError::Glob { position, found }), "{text}");
        }
        assert!("*".parse::<Pattern>().is_err());
        assert!("*:*".parse::<Pattern>().is_err());
        assert!("*:*:*:*".parse::<Pattern>().is_err());
    }

    #[test]
    fn an_exact_one_comes_from_a_channel() {
        let exact = Pattern::from(channel("events:task:failed"));
        assert!(exact.is_exact());
        assert!(exact.matches(&channel("events:task:failed")));
    }

    /// Says by brute force what `matches` says by slices.
    fn oracle(pattern: &str, channel: &str) -> bool {
        let wanted: Vec<&str> = pattern.split(':').collect();
        let found: Vec<&str> = channel.split(':').collect();
        wanted.len() == found.len() && (0..wanted.len()).all(|i| wanted[i] == "*" || wanted[i] == found[i])
    }

    proptest! {
        #[test]
        fn text_and_json_round_trip(text in "(\\*|[a-z0-9_-]{1,64}):(\\*|[a-z0-9_-]{1,64}):(\\*|[a-z0-9_-]{1,64})") {
            let pattern: Pattern = text.parse().unwrap();
            prop_assert_eq!(pattern.to_string(), text);
            let json = serde_json::to_string(&pattern).unwrap();
            prop_assert_eq!(serde_json::from_str::<Pattern>(&json).unwrap(), pattern);
        }

        #[test]
        fn verdicts_are_those_of_the_oracle(
            wanted in "(\\*|[ab]{1,2}):(\\*|[ab]{1,2}):(\\*|[ab]{1,2})",
            told in "[ab]{1,2}:[ab]{1,2}:[ab]{1,2}",
        ) {
            let verdict = wanted.parse::<Pattern>().unwrap().matches(&told.parse().unwrap());
            prop_assert_eq!(verdict, oracle(&wanted, &told));
        }
    }

    #[test]
    fn order_and_repetition_do_not_matter() {
        let (a, b): (Pattern, Pattern) = ("a:*:*".parse().unwrap(), "b:*:*".parse().unwrap());
        let one = b.clone().or(a.clone()).or(b.clone());
        assert_eq!(one, Patterns::try_from(vec![a, b.clone(), b]).unwrap());
        assert_eq!(one.to_string(), "a:*:*, b:*:*");
    }

    #[test]
    fn an_empty_list_is_refused() {
        assert_eq!(Patterns::try_from(Vec::new()), Err(ChannelError::NoPattern));
    }
}
