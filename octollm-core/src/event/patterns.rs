//! Several patterns as one.

use std::fmt;

use super::{Channel, ChannelError, Pattern};

/// One or more [`Pattern`]s heard as one: an event that several of them mean is delivered once.
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

    /// Whether any of them means `channel`.
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
    use super::*;

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
