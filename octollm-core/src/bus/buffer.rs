//! The signals that wait for one subscriber, and what is dropped when there is no room. Pure: it does not wait and
//! reads no clock.

use std::collections::VecDeque;

use tokio::time::Instant;

use super::{BusError, Gap, Overflow, Signal};
use crate::event::{Event, Expiry};

/// Events and marks of missing events, in order: at most as many events as the overflow has room for, and between two
/// of them at most one mark of each kind.
#[derive(Debug)]
pub(super) struct Buffer {
    overflow: Overflow,
    /// What is missing before the first entry.
    head: Missing,
    entries: VecDeque<Entry>,
    /// Number of entries that are events.
    events: usize,
    ended: Option<BusError>,
}

#[derive(Debug)]
pub(super) enum Taken {
    Signal(Signal),
    /// Nothing at the moment.
    Nothing,
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

impl Buffer {
    pub(super) fn new(overflow: Overflow) -> Self {
        Self { overflow, head: Missing::default(), entries: VecDeque::new(), events: 0, ended: None }
    }

    /// Queues an event, or applies the overflow. Under [`Overflow::Block`] the caller ensures that there is room.
    /// Returns `false` if the subscription has ended.
    pub(super) fn offer(&mut self, event: &Event, expiry: Expiry) -> bool {
        if self.ended.is_some() {
            return false;
        }
        if self.events >= self.overflow.capacity() {
            match self.overflow {
                Overflow::Block => {}
                Overflow::Disconnect(_) => {
                    self.ended = Some(BusError::SlowConsumer);
                    return false;
                }
                Overflow::DropNewest(_) => {
                    self.lose();
                    return true;
                }
                Overflow::DropOldest(_) => self.drop_oldest(),
            }
        }
        self.entries.push_back(Entry::Event(event.clone(), expiry));
        self.events += 1;
        true
    }

    /// Marks one event as missing after the last entry.
    pub(super) fn lose(&mut self) {
        self.lose_all(1);
    }

    /// Marks this number of events as missing after the last entry.
    pub(super) fn lose_all(&mut self, events: u64) {
        if self.ended.is_none() && events > 0 {
            self.tail().lagged += events;
        }
    }

    /// Marks a gap after the last entry.
    pub(super) fn mark(&mut self, gap: Gap) {
        if self.ended.is_none() {
            self.tail().merge(Missing { gap: Some(gap), lagged: 0 });
        }
    }

    /// Takes the next signal. Adds the number of events that had expired at `now` to `expired`.
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

    /// Accepts nothing more. What waits can still be taken. Only the first call has an effect.
    pub(super) fn end(&mut self, reason: BusError) {
        self.ended.get_or_insert(reason);
    }

    pub(super) fn ended(&self) -> Option<&BusError> {
        self.ended.as_ref()
    }

    /// Drops what waits.
    pub(super) fn clear(&mut self) {
        self.head = Missing::default();
        self.entries = VecDeque::new();
        self.events = 0;
    }

    fn drop_oldest(&mut self) {
        while let Some(entry) = self.entries.pop_front() {
            match entry {
                Entry::Missing(missing) => self.head.merge(missing),
                Entry::Event(..) => {
                    self.events -= 1;
                    self.head.lagged += 1;
                    return;
                }
            }
        }
    }

    /// The marks after the last event.
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

    fn merge(&mut self, later: Missing) {
        self.lagged += later.lagged;
        self.gap = match (self.gap.take(), later.gap) {
            (Some(gap), Some(later)) => Some(gap.merged(later)),
            (gap, later) => gap.or(later),
        };
    }
}

impl Gap {
    /// Maximum number of ids in [`Gap::Trimmed`].
    pub const MAX_EVENT_IDS: usize = 1024;

    pub(super) fn truncated(mut self) -> Self {
        if let Self::Trimmed { event_ids } = &mut self {
            event_ids.truncate(Self::MAX_EVENT_IDS);
        }
        self
    }

    /// Merges two gaps at the same point of a stream. `Trimmed` is the narrowest one, because it can name what is
    /// missing.
    pub(super) fn merged(self, later: Self) -> Self {
        match (self, later) {
            (Self::Trimmed { mut event_ids }, Self::Trimmed { event_ids: more }) => {
                event_ids.extend(more);
                Self::Trimmed { event_ids }.truncated()
            }
            (Self::Trimmed { .. }, wider) | (wider, _) => wider,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn event(number: usize) -> Event {
        Event::new("a.b", "s", number).unwrap()
    }

    fn fill(overflow: Overflow, count: usize) -> Buffer {
        let mut buffer = Buffer::new(overflow);
        for number in 0..count {
            buffer.offer(&event(number), Expiry::Never);
        }
        buffer
    }

    /// Takes everything: the numbers of events, and negative numbers of missing ones.
    fn drain(buffer: &mut Buffer) -> Vec<i64> {
        let mut seen = Vec::new();
        while let Taken::Signal(signal) = buffer.take(Instant::now, &mut 0) {
            seen.push(match signal {
                Signal::Event(event) => event.data().as_i64().unwrap(),
                Signal::Lagged(missed) => -(missed as i64),
                Signal::Gap(_) => i64::MIN,
            });
        }
        seen
    }

    #[test]
    fn dropped_oldest_events_are_reported_first() {
        assert_eq!(drain(&mut fill(Overflow::DropOldest(3), 10)), [-7, 7, 8, 9]);
    }

    #[test]
    fn dropped_newest_events_are_reported_at_their_place() {
        let mut buffer = fill(Overflow::DropNewest(2), 5);
        assert!(matches!(buffer.take(Instant::now, &mut 0), Taken::Signal(Signal::Event(_))));
        buffer.offer(&event(5), Expiry::Never);
        assert_eq!(drain(&mut buffer), [1, -3, 5]);
    }

    #[test]
    fn events_that_wait_are_taken_after_a_disconnect() {
        let mut buffer = fill(Overflow::Disconnect(2), 5);
        assert_eq!(drain(&mut buffer), [0, 1]);
        assert!(matches!(buffer.ended(), Some(BusError::SlowConsumer)));
        assert!(matches!(buffer.take(Instant::now, &mut 0), Taken::Ended));
    }

    #[test]
    fn marks_between_two_events_are_merged() {
        let mut buffer = fill(Overflow::DropNewest(1), 1);
        for number in 0..100 {
            buffer.offer(&event(number), Expiry::Never);
            buffer.mark(Gap::ConnectionLost);
        }
        assert_eq!(drain(&mut buffer), [0, i64::MIN, -100]);
    }

    #[test]
    fn the_ids_of_a_gap_are_bounded() {
        let mut buffer = Buffer::new(Overflow::DropNewest(1));
        for _ in 0..3 {
            buffer.mark(Gap::Trimmed { event_ids: vec!["id".to_owned(); 1000] });
        }
        let Taken::Signal(Signal::Gap(Gap::Trimmed { event_ids })) = buffer.take(Instant::now, &mut 0) else {
            panic!("it was marked")
        };
        assert_eq!(event_ids.len(), Gap::MAX_EVENT_IDS);
    }

    #[test]
    fn merged_gaps_report_the_wider_one() {
        for lost_first in [true, false] {
            let mut buffer = Buffer::new(Overflow::DropNewest(1));
            let trimmed = Gap::Trimmed { event_ids: vec!["id".to_owned()] };
            let gaps =
                if lost_first { [Gap::ConnectionLost, trimmed] } else { [trimmed, Gap::ConnectionLost] };
            gaps.into_iter().for_each(|gap| buffer.mark(gap));
            let taken = buffer.take(Instant::now, &mut 0);
            assert!(matches!(taken, Taken::Signal(Signal::Gap(Gap::ConnectionLost))), "{taken:?}");
        }
    }

    #[test]
    fn expired_events_are_counted_and_not_taken() {
        let mut buffer = Buffer::new(Overflow::Block);
        let now = Instant::now();
        buffer.offer(&event(0), Expiry::At(now));
        buffer.offer(&event(1), Expiry::Never);
        let mut expired = 0;
        assert!(matches!(buffer.take(|| now, &mut expired), Taken::Signal(Signal::Event(_))));
        assert_eq!((expired, buffer.events), (1, 0));
    }

    proptest! {
        #[test]
        fn received_and_lost_events_are_all(oldest: bool, capacity in 1_usize..8, steps in prop::collection::vec(any::<bool>(), 0..200)) {
            let overflow = if oldest { Overflow::DropOldest(capacity) } else { Overflow::DropNewest(capacity) };
            let mut buffer = Buffer::new(overflow);
            let (mut offered, mut accounted, mut last) = (0, 0, -1);
            let mut see = |signal| match signal {
                Signal::Event(event) => {
                    let number = event.data().as_i64().unwrap();
                    // The reported losses are exactly at this point.
                    assert_eq!(number, accounted);
                    assert!(number > last);
                    (last, accounted) = (number, accounted + 1);
                }
                Signal::Lagged(missed) => accounted += missed as i64,
                Signal::Gap(_) => unreachable!(),
            };
            for offer in steps {
                if offer {
                    buffer.offer(&event(offered), Expiry::Never);
                    offered += 1;
                } else if let Taken::Signal(signal) = buffer.take(Instant::now, &mut 0) {
                    see(signal);
                }
                prop_assert!(buffer.events <= capacity);
                prop_assert!(buffer.entries.len() <= 2 * capacity + 1);
            }
            while let Taken::Signal(signal) = buffer.take(Instant::now, &mut 0) {
                see(signal);
            }
            prop_assert_eq!(accounted, offered as i64);
        }
    }
}
