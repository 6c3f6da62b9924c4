//! What waits in a group, in order per partition key.

use std::collections::{BTreeMap, HashMap, VecDeque};

use crate::bus::engine::Expiry;
use crate::event::Event;

/// An event on its way through a group.
#[derive(Debug, Clone)]
pub(super) struct Item {
    pub(super) event: Event,
    pub(super) expiry: Expiry,
    pub(super) size: usize,
    /// Number of its deliveries.
    pub(super) attempts: u32,
    /// The last delivery.
    pub(super) hold: Option<Hold>,
}

/// Names a delivery. Tokens are unique in a group and members in the bus, so that no delivery of a group that was removed
/// is one of its successor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Hold {
    pub(super) token: u64,
    pub(super) member: u64,
}

impl Item {
    pub(super) fn is_held_by(&self, hold: Hold) -> bool {
        self.hold == Some(hold)
    }
}

/// Waiting items, by the number of their publication. Of those with one partition key only the first is let out, and the
/// next one when that has left for good; those without a key pass each other freely.
#[derive(Debug, Default)]
pub(super) struct Lanes {
    ready: BTreeMap<u64, Item>,
    /// A key is here while an item of it is ready or let out, with those that wait behind it.
    behind: HashMap<Box<str>, VecDeque<(u64, Item)>>,
    waiting_behind: usize,
}

impl Lanes {
    /// Takes in an item that was not here before.
    pub(super) fn enter(&mut self, number: u64, item: Item) {
        if let Some(key) = item.event.partition_key() {
            if let Some(lane) = self.behind.get_mut(key) {
                lane.push_back((number, item));
                self.waiting_behind += 1;
                return;
            }
            self.behind.insert(key.into(), VecDeque::new());
        }
        self.ready.insert(number, item);
    }

    /// Lets out the first item that is ready.
    pub(super) fn pop(&mut self) -> Option<(u64, Item)> {
        self.ready.pop_first()
    }

    /// Takes back an item that was let out, at its place.
    pub(super) fn put_back(&mut self, number: u64, item: Item) {
        self.ready.insert(number, item);
    }

    /// Lets out an item that is ready and was let out last for this delivery.
    pub(super) fn take_back(&mut self, number: u64, hold: Hold) -> Option<Item> {
        self.ready.get(&number).filter(|item| item.is_held_by(hold))?;
        self.ready.remove(&number)
    }

    /// An item that was let out has left for good.
    pub(super) fn left(&mut self, item: &Item) {
        let Some(key) = item.event.partition_key() else { return };
        match self.behind.get_mut(key).and_then(VecDeque::pop_front) {
            Some((number, next)) => {
                self.waiting_behind -= 1;
                self.ready.insert(number, next);
            }
            None => {
                self.behind.remove(key);
            }
        }
    }

    /// Number of items that wait.
    pub(super) fn len(&self) -> usize {
        self.ready.len() + self.waiting_behind
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(key: &str) -> Item {
        let event = Event::new("a.b", "s", 0).unwrap().with_partition_key(key);
        Item { event, expiry: Expiry::Never, size: 10, attempts: 0, hold: None }
    }

    #[test]
    fn a_key_lets_one_out_at_a_time() {
        let mut lanes = Lanes::default();
        for (number, key) in [(1, "k"), (2, "k"), (3, ""), (4, "k"), (5, "l")] {
            lanes.enter(number, item(key));
        }
        let (one, first) = lanes.pop().unwrap();
        assert_eq!((one, lanes.pop().unwrap().0, lanes.pop().unwrap().0), (1, 3, 5));
        assert!(lanes.pop().is_none());
        lanes.put_back(one, first);
        let (one, first) = lanes.pop().unwrap();
        assert_eq!(one, 1);
        lanes.left(&first);
        assert_eq!(lanes.len(), 2);
        let (two, second) = lanes.pop().unwrap();
        lanes.left(&second);
        let (four, third) = lanes.pop().unwrap();
        assert_eq!((two, four), (2, 4));
        lanes.left(&third);
        assert_eq!((lanes.len(), lanes.behind.len()), (0, 1), "the lane of `l` is still held");
    }
}
