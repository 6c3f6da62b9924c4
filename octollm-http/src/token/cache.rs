//! A bounded map whose values are compared whole.

use std::{
    collections::{HashMap, hash_map::Entry},
    hash::{BuildHasher, BuildHasherDefault, DefaultHasher, Hasher, RandomState},
    mem,
    sync::{Mutex, PoisonError},
};

/// Values by what they were made from, at most `capacity`. Of more, those that were not used for longest are dropped, half of them
/// at a time.
///
/// A value is found by a hash and then compared with what is looked up. So the hash decides only how fast it is found. It has a seed
/// of its own for each cache, which nobody outside knows. Of two values with one hash the later one is stored.
pub(super) struct Cache<V> {
    seed: RandomState,
    half: usize,
    halves: Mutex<Halves<V>>,
}

struct Halves<V> {
    /// What was used since the last time that this was full.
    recent: ByHash<V>,
    /// What was used before.
    older: ByHash<V>,
}

type ByHash<V> = HashMap<u64, V, BuildHasherDefault<Given>>;

/// A hash that is given.
#[derive(Default)]
struct Given(u64);

impl Hasher for Given {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

impl<V> Cache<V> {
    pub(super) fn new(capacity: usize) -> Self {
        let halves = Halves { recent: HashMap::default(), older: HashMap::default() };
        Self { seed: RandomState::new(), half: (capacity / 2).max(1), halves: Mutex::new(halves) }
    }

    /// The hash of the bytes that `write` writes.
    pub(super) fn hash(&self, write: impl FnOnce(&mut DefaultHasher)) -> u64 {
        let mut hasher = self.seed.build_hasher();
        write(&mut hasher);
        hasher.finish()
    }

    /// The hash of a signed text. Its end is of its signature, and is all that needs to be hashed.
    pub(super) fn hash_signed(&self, text: &[u8]) -> u64 {
        self.hash(|hasher| hasher.write(end_of(text)))
    }

    /// What `used` returns for the value of this hash, if it `is` the one that is looked up. Where that is `None` the value is
    /// dropped.
    pub(super) fn get<T>(
        &self,
        hash: u64,
        is: impl FnOnce(&V) -> bool,
        used: impl FnOnce(&mut V) -> Option<T>,
    ) -> Option<T> {
        let mut halves = self.halves.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(value) = halves.recent.get_mut(&hash) {
            if !is(value) {
                return None;
            }
            let found = used(value);
            if found.is_none() {
                halves.recent.remove(&hash);
            }
            return found;
        }
        let mut value = match halves.older.entry(hash) {
            Entry::Occupied(entry) if is(entry.get()) => entry.remove(),
            _ => return None,
        };
        let found = used(&mut value)?;
        halves.insert(hash, value, self.half);
        Some(found)
    }

    pub(super) fn insert(&self, hash: u64, value: V) {
        let mut halves = self.halves.lock().unwrap_or_else(PoisonError::into_inner);
        halves.older.remove(&hash);
        halves.insert(hash, value, self.half);
    }
}

impl<V> Halves<V> {
    fn insert(&mut self, hash: u64, value: V, half: usize) {
        if self.recent.len() >= half && !self.recent.contains_key(&hash) {
            self.older = mem::take(&mut self.recent);
        }
        self.recent.insert(hash, value);
    }
}

/// The end of a signed text, which is of its signature.
pub(super) fn end_of(text: &[u8]) -> &[u8] {
    text.last_chunk::<32>().map_or(text, |end| end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holds_what_is_used_and_never_more_than_its_capacity() {
        let cache = Cache::new(100);
        let hash = |n: u32| cache.hash(|hasher| hasher.write_u32(n));
        let get = |n: u32| cache.get(hash(n), |value| *value == n, |value| Some(*value));
        for n in 0..1_000 {
            cache.insert(hash(n), n);
            assert_eq!(get(0), Some(0), "used between all others, at {n}");
            let halves = cache.halves.lock().unwrap();
            assert!(halves.recent.len() + halves.older.len() <= 100);
        }
        assert_eq!(get(1), None);
        assert_eq!(get(999), Some(999));
        assert_eq!(cache.get(hash(999), |_| true, |_| None::<u32>), None);
        assert_eq!(get(999), None, "dropped once invalid");
    }

    #[test]
    fn a_value_of_the_same_hash_is_not_another() {
        let cache = Cache::new(100);
        let get = |wanted: &str| cache.get(7, |value| *value == wanted, |value| Some(*value));
        // In both halves.
        for rotations in 0..2 {
            cache.insert(7, "mine");
            (0..50 * rotations).for_each(|n| cache.insert(1000 + n, "else"));
            assert_eq!(get("yours"), None);
            assert_eq!(get("mine"), Some("mine"), "the look-up of another drops nothing");
        }
        cache.insert(7, "yours");
        assert_eq!((get("yours"), get("mine")), (Some("yours"), None));
    }

    #[test]
    fn two_caches_hash_differently() {
        let hash = || Cache::<()>::new(2).hash_signed(b"token");
        assert_ne!(hash(), hash());
    }
}
