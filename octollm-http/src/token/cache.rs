//! A bounded map by SHA-256.

use std::{
    collections::HashMap,
    mem,
    sync::{Mutex, PoisonError},
};

pub(super) type Hash = [u8; 32];

/// Values by hash, at most `capacity`. Of more, those that were not used for longest are dropped, half of them at a time.
pub(super) struct Cache<V> {
    half: usize,
    halves: Mutex<Halves<V>>,
}

struct Halves<V> {
    /// What was used since the last time that this was full.
    recent: HashMap<Hash, V>,
    /// What was used before.
    older: HashMap<Hash, V>,
}

impl<V: Clone> Cache<V> {
    pub(super) fn new(capacity: usize) -> Self {
        let halves = Halves { recent: HashMap::new(), older: HashMap::new() };
        Self { half: (capacity / 2).max(1), halves: Mutex::new(halves) }
    }

    /// The value, unless it is to be dropped.
    pub(super) fn get(&self, hash: &Hash, is_valid: impl FnOnce(&V) -> bool) -> Option<V> {
        let mut halves = self.halves.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(value) = halves.recent.get(hash) {
            if is_valid(value) {
                return Some(value.clone());
            }
            halves.recent.remove(hash);
            return None;
        }
        let value = halves.older.remove(hash).filter(is_valid)?;
        halves.insert(*hash, value.clone(), self.half);
        Some(value)
    }

    pub(super) fn insert(&self, hash: Hash, value: V) {
        let mut halves = self.halves.lock().unwrap_or_else(PoisonError::into_inner);
        halves.older.remove(&hash);
        halves.insert(hash, value, self.half);
    }
}

impl<V> Halves<V> {
    fn insert(&mut self, hash: Hash, value: V, half: usize) {
        if self.recent.len() >= half && !self.recent.contains_key(&hash) {
            self.older = mem::take(&mut self.recent);
        }
        self.recent.insert(hash, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holds_what_is_used_and_never_more_than_its_capacity() {
        let cache = Cache::new(100);
        let hash = |n: u32| {
            let mut hash = [0; 32];
            hash[..4].copy_from_slice(&n.to_be_bytes());
            hash
        };
        for n in 0..1_000 {
            cache.insert(hash(n), n);
            assert_eq!(cache.get(&hash(0), |_| true), Some(0), "used between all others, at {n}");
            let halves = cache.halves.lock().unwrap();
            assert!(halves.recent.len() + halves.older.len() <= 100);
        }
        assert_eq!(cache.get(&hash(1), |_| true), None);
        assert_eq!(cache.get(&hash(999), |_| false), None);
        assert_eq!(cache.get(&hash(999), |_| true), None, "dropped once invalid");
    }
}
