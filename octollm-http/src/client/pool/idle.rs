//! Connections that wait for their next call.

use std::{
    collections::HashMap,
    hash::{Hash, Hasher},
    time::Duration,
};

use http::uri::Authority;
use tokio::time::Instant;

/// What waits to be used again, by origin: the freshest is used first, so that the others can go.
pub(super) struct IdleSet<T> {
    by_origin: HashMap<Origin, Vec<Resting<T>>>,
    count: usize,
    max: usize,
    timeout: Duration,
}

struct Resting<T> {
    item: T,
    since: Instant,
}

/// Where a connection leads. Compared and hashed as it is written, which is much faster than to fold its case; two
/// ways to write one name have connections of their own.
#[derive(Debug, Clone)]
pub(super) struct Origin(pub(super) Authority);

impl PartialEq for Origin {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_str() == other.0.as_str()
    }
}

impl Eq for Origin {}

impl Hash for Origin {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.as_str().hash(state);
    }
}

impl<T> IdleSet<T> {
    pub(super) fn new(max: usize, timeout: Duration) -> Self {
        Self { by_origin: HashMap::new(), count: 0, max, timeout }
    }

    /// Keeps one; gives back what there is no room for.
    pub(super) fn put(&mut self, origin: Origin, item: T, now: Instant) -> Option<T> {
        if self.max == 0 {
            return Some(item);
        }
        let evicted = if self.count >= self.max { self.evict() } else { None };
        self.by_origin.entry(origin).or_default().push(Resting { item, since: now });
        self.count += 1;
        evicted
    }

    /// Takes the one that was used last, and tells how long it rested.
    pub(super) fn take(&mut self, origin: &Origin, now: Instant) -> Option<(T, Duration)> {
        let resting = self.by_origin.get_mut(origin)?.pop()?;
        self.count -= 1;
        Some((resting.item, now.saturating_duration_since(resting.since)))
    }

    /// Gives up the one that rested longest.
    pub(super) fn evict(&mut self) -> Option<T> {
        // In each list the first has rested longest.
        let since = |list: &Vec<Resting<T>>| list.first().map(|resting| resting.since);
        let oldest =
            self.by_origin.values_mut().filter(|list| !list.is_empty()).min_by_key(|list| since(list))?;
        self.count -= 1;
        Some(oldest.remove(0).item)
    }

    /// Gives up all that have rested too long, and the origins that are left with none.
    pub(super) fn expire(&mut self, now: Instant) -> Vec<T> {
        let mut expired = Vec::new();
        for list in self.by_origin.values_mut() {
            let old = list.partition_point(|resting| resting.since + self.timeout <= now);
            expired.extend(list.drain(..old).map(|resting| resting.item));
        }
        self.by_origin.retain(|_, list| !list.is_empty());
        self.count -= expired.len();
        expired
    }

    /// When the next one will have rested too long.
    pub(super) fn next_expiry(&self) -> Option<Instant> {
        let oldest =
            self.by_origin.values().filter_map(|list| list.first()).map(|resting| resting.since).min()?;
        Some(oldest + self.timeout)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(name: &'static str) -> Origin {
        Origin(Authority::from_static(name))
    }

    #[tokio::test(start_paused = true)]
    async fn the_freshest_is_used_and_the_oldest_given_up() {
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        let mut set = IdleSet::new(3, Duration::from_secs(15));
        for (item, host) in [(0, "a"), (1, "b"), (2, "a")] {
            assert_eq!(set.put(origin(host), item, at(item)), None);
        }
        assert_eq!(set.put(origin("b"), 3, at(3)), Some(0));
        assert_eq!(set.take(&origin("b"), at(5)), Some((3, Duration::from_secs(2))));
        assert_eq!(set.next_expiry(), Some(at(16)));
        assert!(set.expire(at(15)).is_empty());
        assert_eq!(set.expire(at(16)), [1]);
        assert_eq!(set.take(&origin("a"), at(16)), Some((2, Duration::from_secs(14))));
        assert!(set.count == 0 && set.next_expiry().is_none() && set.take(&origin("a"), at(16)).is_none());
    }
}
