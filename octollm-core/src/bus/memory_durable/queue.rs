//! The events of a group that can be delivered, and those that wait for an earlier one of their key.

use std::collections::{BTreeMap, HashMap, VecDeque};

use super::group::Holder;
use super::store::Item;

/// Items by the number of their publication. Of those with one partition key, only the first can be popped, and the
/// next one after that is removed.
#[derive(Debug, Default)]
pub(super) struct KeyedQueue {
    ready: BTreeMap<u64, Item>,
    /// Has a key while an item with it is ready or popped, with the items that wait for that one.
    pub(super) blocked: HashMap<Box<str>, VecDeque<(u64, Item)>>,
    blocked_len: usize,
}

impl KeyedQueue {
    pub(super) fn push(&mut self, number: u64, item: Item) {
        if let Some(key) = item.event.partition_key() {
            if let Some(blocked) = self.blocked.get_mut(key) {
                blocked.push_back((number, item));
                self.blocked_len += 1;
                return;
            }
            self.blocked.insert(key.into(), VecDeque::new());
        }
        self.ready.insert(number, item);
    }

    pub(super) fn pop(&mut self) -> Option<(u64, Item)> {
        self.ready.pop_first()
    }

    /// Returns an item that was popped to its place.
    pub(super) fn put_back(&mut self, number: u64, item: Item) {
        self.ready.insert(number, item);
    }

    /// Pops an item that was put back, if this was its last delivery.
    pub(super) fn take(&mut self, number: u64, holder: Holder) -> Option<Item> {
        self.ready.get(&number).filter(|item| item.holder == Some(holder))?;
        self.ready.remove(&number)
    }

    /// Makes the next item ready that waits for this one, which was popped.
    pub(super) fn remove(&mut self, item: &Item) {
        let Some(key) = item.event.partition_key() else { return };
        match self.blocked.get_mut(key).and_then(VecDeque::pop_front) {
            Some((number, next)) => {
                self.blocked_len -= 1;
                self.ready.insert(number, next);
            }
            None => {
                self.blocked.remove(key);
            }
        }
    }

    pub(super) fn len(&self) -> usize {
        self.ready.len() + self.blocked_len
    }
}
