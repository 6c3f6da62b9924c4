//! Which task runs next.

use std::{cmp::Reverse, collections::BTreeSet};

use crate::{id::TaskId, task::Priority};

/// Tasks that wait: the most urgent first, and among those the oldest.
#[derive(Debug, Default)]
pub(super) struct Queue {
    waiting: BTreeSet<(Reverse<Priority>, TaskId)>,
}

impl Queue {
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    pub(super) fn push(&mut self, priority: Priority, id: TaskId) {
        self.waiting.insert((Reverse(priority), id));
    }

    pub(super) fn pop(&mut self) -> Option<TaskId> {
        self.waiting.pop_first().map(|(_, id)| id)
    }

    pub(super) fn remove(&mut self, priority: Priority, id: &TaskId) -> bool {
        self.waiting.remove(&(Reverse(priority), id.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_urgent_goes_first_and_then_the_oldest() {
        let ids: Vec<_> = (0..4).map(|_| TaskId::new()).collect();
        let mut queue = Queue::default();
        for (id, priority) in
            ids.iter().zip([Priority::Low, Priority::Medium, Priority::Critical, Priority::Medium])
        {
            queue.push(priority, id.clone());
        }
        let order: Vec<_> = std::iter::from_fn(|| queue.pop()).collect();
        assert_eq!(order, [&ids[2], &ids[1], &ids[3], &ids[0]].map(Clone::clone));
    }
}
