//! What waits for one subscriber. It decides what is dropped when there is no room; it does not wait and reads no clock.

use std::collections::VecDeque;

use tokio::time::Instant;

use super::engine::Expiry;
use super::{Ended, Gap, Overflow, Signal};
use crate::event::Event;

/// Events and the marks of those missing, in order. At most as many events as the overflow has room for, and between two
/// of them at most one mark of each kind.
#[derive(Debug)]
pub(super) struct Queue {
    overflow: Overflow,
    /// What is missing before the first entry.
    head: Missing,
    entries: VecDeque<Entry>,
    events: usize,
    ended: Option<Ended>,
}

/// What became of an event offered.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Offered {
    /// It waits.
    Queued,
    /// It or an older one was dropped: one more is missing.
    Dropped,
    /// The queue has ended.
    Ended,
}

/// What taking from a queue yields.
#[derive(Debug)]
pub(super) enum Taken {
    /// The next item.
    Signal(Signal),
    /// Nothing now.
    Nothing,
    /// Nothing ever again.
    Ended,
}

#[derive(Debug)]
enum Entry {
    Event(Event, Expiry),
    Missing(Missing),
}

#[derive(Debug, Default)]
struct Missing {
    gap: Option<Gap>,
    lagged: u64,
}

impl Queue {
    pub(super) fn new(overflow: Overflow) -> Self {
        Self { overflow, head: Missing::default(), entries: VecDeque::new(), events: 0, ended: None }
    }

    /// Takes an event in, or does what the overflow says. Under [`Overflow::Block`] its caller sees to the room.
    pub(super) fn offer(&mut self, event: &Event, expiry: Expiry) -> Offered {
        if self.ended.is_some() {
            return Offered::Ended;
        }
        let mut outcome = Offered::Queued;
        if self.events >= self.overflow.capacity() {
            match self.overflow {
                Overflow::Block => {}
                Overflow::Disconnect(_) => {
                    self.ended = Some(Ended::SlowConsumer);
                    return Offered::Ended;
                }
                Overflow::DropNewest(_) => {
                    self.lose();
                    return Offered::Dropped;
                }
                Overflow::DropOldest(_) => {
                    self.drop_oldest();
                    outcome = Offered::Dropped;
                }
            }
        }
        self.entries.push_back(Entry::Event(event.clone(), expiry));
        self.events += 1;
        outcome
    }

    /// One event is missing after what waits.
    pub(super) fn lose(&mut self) {
        if self.ended.is_none() {
            self.tail().lagged += 1;
        }
    }

    /// Events may be missing after what waits.
    pub(super) fn mark(&mut self, gap: Gap) {
        if self.ended.is_none() {
            self.tail().absorb(Missing { gap: Some(gap), lagged: 0 });
        }
    }

    /// The next item. `expired` is raised by the events left out because their time was over at `now`.
    pub(super) fn take(&mut self, now: impl Fn() -> Instant, expired: &mut usize) -> Taken {
        loop {
            if let Some(signal) = self.head.take() {
                return Taken::Signal(signal);
            }
            match self.entries.pop_front() {
                Some(Entry::Missing(missing)) => self.head = missing,
                Some(Entry::Event(event, expiry)) => {
                    self.events -= 1;
                    if expiry.is_over(&now) {
                        *expired += 1;
                        continue;
                    }
                    return Taken::Signal(Signal::Event(event));
                }
                None if self.ended.is_some() => return Taken::Ended,
                None => return Taken::Nothing,
            }
        }
    }

    /// Takes nothing more in. What waits is still to be had. The first reason given holds.
    pub(super) fn end(&mut self, reason: Ended) {
        self.ended.get_or_insert(reason);
    }

    pub(super) fn ended(&self) -> Option<&Ended> {
        self.ended.as_ref()
    }

    /// Throws away what waits.
    pub(super) fn clear(&mut self) {
        self.head = Missing::default();
        self.entries = VecDeque::new();
        self.events = 0;
    }

    fn drop_oldest(&mut self) {
        while let Some(entry) = self.entries.pop_front() {
            match entry {
                Entry::Missing(missing) => self.head.absorb(missing),
                Entry::Event(..) => {
                    self.events -= 1;
                    self.head.lagged += 1;
                    return;
                }
            }
        }
    }

    /// The marks behind the last event.
    fn tail(&mut self) -> &mut Missing {
        if self.entries.is_empty() {
            return &mut self.head;
        }
        if !matches!(self.entries.back(), Some(Entry::Missing(_))) {
            self.entries.push_back(Entry::Missing(Missing::default()));
        }
        match self.entries.back_mut() {
            Some(Entry::Missing(missing)) => missing,
            _ => &mut self.head,
        }
    }
}

impl Missing {
    fn take(&mut self) -> Option<Signal> {
        if let Some(gap) = self.gap.take() {
            return Some(Signal::Gap(gap));
        }
        match std::mem::take(&mut self.lagged) {
            0 => None,
            lagged => Some(Signal::Lagged(lagged)),
        }
    }

    fn absorb(&mut self, later: Missing) {
        self.lagged += later.lagged;
        match (&mut self.gap, later.gap) {
            (Some(known), Some(more)) => {
                let room = Gap::MAX_EVENT_IDS.saturating_sub(known.event_ids.len());
                known.event_ids.extend(more.event_ids.into_iter().take(room));
            }
            (none, more) => *none = none.take().or(more),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::bus::GapReason;

    fn event(number: usize) -> Event {
        Event::new("a.b", "s", number).unwrap()
    }

    fn fill(overflow: Overflow, count: usize) -> Queue {
        let mut queue = Queue::new(overflow);
        for number in 0..count {
            queue.offer(&event(number), Expiry::Never);
        }
        queue
    }

    /// What there is to be had: numbers of events, negative counts of missing ones.
    fn drain(queue: &mut Queue) -> Vec<i64> {
        let mut seen = Vec::new();
        while let Taken::Signal(signal) = queue.take(Instant::now, &mut 0) {
            seen.push(match signal {
                Signal::Event(event) => event.data().as_i64().unwrap(),
                Signal::Lagged(missed) => -(missed as i64),
                Signal::Gap(_) => i64::MIN,
            });
        }
        seen
    }

    #[test]
    fn the_oldest_go_and_are_told_first() {
        assert_eq!(drain(&mut fill(Overflow::DropOldest(3), 10)), [-7, 7, 8, 9]);
    }

    #[test]
    fn the_newest_go_and_are_told_where_they_would_stand() {
        let mut queue = fill(Overflow::DropNewest(2), 5);
        assert!(matches!(queue.take(Instant::now, &mut 0), Taken::Signal(Signal::Event(_))));
        queue.offer(&event(5), Expiry::Never);
        assert_eq!(drain(&mut queue), [1, -3, 5]);
    }

    #[test]
    fn disconnecting_delivers_what_waits() {
        let mut queue = fill(Overflow::Disconnect(2), 5);
        assert_eq!(drain(&mut queue), [0, 1]);
        assert!(matches!(queue.ended(), Some(Ended::SlowConsumer)));
        assert!(matches!(queue.take(Instant::now, &mut 0), Taken::Ended));
    }

    #[test]
    fn marks_pile_up_to_one() {
        let mut queue = fill(Overflow::DropNewest(1), 1);
        for number in 0..100 {
            queue.offer(&event(number), Expiry::Never);
            queue.mark(Gap::new(GapReason::ConnectionLost));
        }
        assert_eq!(drain(&mut queue), [0, i64::MIN, -100]);
    }

    #[test]
    fn the_ids_of_a_gap_are_bounded() {
        let mut queue = Queue::new(Overflow::DropNewest(1));
        for _ in 0..3 {
            let gap = Gap::new(GapReason::Trimmed).with_event_ids(vec!["id".to_owned(); 1000]);
            queue.mark(gap);
        }
        let Taken::Signal(Signal::Gap(gap)) = queue.take(Instant::now, &mut 0) else {
            panic!("it was marked")
        };
        assert_eq!(gap.event_ids.len(), Gap::MAX_EVENT_IDS);
    }

    #[test]
    fn what_expired_is_counted_and_left_out() {
        let mut queue = Queue::new(Overflow::Block);
        let now = Instant::now();
        queue.offer(&event(0), Expiry::At(now));
        queue.offer(&event(1), Expiry::Never);
        let mut expired = 0;
        assert!(matches!(queue.take(|| now, &mut expired), Taken::Signal(Signal::Event(_))));
        assert_eq!((expired, queue.events), (1, 0));
    }

    proptest! {
        #[test]
        fn received_and_missed_are_all(oldest: bool, capacity in 1_usize..8, steps in prop::collection::vec(any::<bool>(), 0..200)) {
            let overflow = if oldest { Overflow::DropOldest(capacity) } else { Overflow::DropNewest(capacity) };
            let mut queue = Queue::new(overflow);
            let (mut offered, mut accounted, mut last) = (0, 0, -1);
            let mut see = |signal| match signal {
                Signal::Event(event) => {
                    let number = event.data().as_i64().unwrap();
                    // What is told to be missing is missing exactly here.
                    assert_eq!(number, accounted);
                    assert!(number > last);
                    (last, accounted) = (number, accounted + 1);
                }
                Signal::Lagged(missed) => accounted += missed as i64,
                Signal::Gap(_) => unreachable!(),
            };
            for offer in steps {
                if offer {
                    queue.offer(&event(offered), Expiry::Never);
                    offered += 1;
                } else if let Taken::Signal(signal) = queue.take(Instant::now, &mut 0) {
                    see(signal);
                }
                prop_assert!(queue.events <= capacity);
                prop_assert!(queue.entries.len() <= 2 * capacity + 1);
            }
            while let Taken::Signal(signal) = queue.take(Instant::now, &mut 0) {
                see(signal);
            }
            prop_assert_eq!(accounted, offered as i64);
        }
    }
}
