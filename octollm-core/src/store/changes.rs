//! Waking those who wait for a change in a store.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use tokio::sync::watch;

use crate::id::TaskId;

/// What to be woken for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Topic {
    /// A task may be free to claim.
    Queue,
    /// An event waits to be published.
    Events,
    /// A task, or its updates, changed.
    Task(TaskId),
}

/// Wakes whoever waits for one [`Topic`]. Changes that come while nobody looks are one change.
#[derive(Debug)]
pub struct Changes(watch::Receiver<u64>);

impl Changes {
    /// Returns at the first change since this was made, or since the last return. Where the store is gone it never
    /// returns.
    ///
    /// # Cancel safety
    /// Dropping the future loses no change.
    pub async fn changed(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// The other end, for stores: remembers who waits for what.
#[derive(Debug, Default)]
pub struct ChangeHub(Mutex<HashMap<Topic, watch::Sender<u64>>>);

/// Above so many topics those that nobody waits for any more are dropped.
const SWEPT_AT: usize = 64;

impl ChangeHub {
    /// A hub that nobody waits at.
    pub fn new() -> Self {
        Self::default()
    }

    /// Waits for a topic from now on.
    pub fn subscribe(&self, topic: Topic) -> Changes {
        let mut topics = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if topics.len() >= SWEPT_AT && topics.len().is_power_of_two() {
            topics.retain(|_, sender| sender.receiver_count() > 0);
        }
        Changes(topics.entry(topic).or_default().subscribe())
    }

    /// Wakes all who wait for a topic.
    pub fn notify(&self, topic: &Topic) {
        let mut topics = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(sender) = topics.get(topic) else { return };
        if sender.receiver_count() == 0 {
            topics.remove(topic);
        } else {
            sender.send_modify(|count| *count = count.wrapping_add(1));
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn a_change_wakes_those_who_wait_for_it_once() {
        let hub = ChangeHub::new();
        let task = Topic::Task(TaskId::new());
        let (mut queue, mut one) = (hub.subscribe(Topic::Queue), hub.subscribe(task.clone()));
        hub.notify(&task);
        hub.notify(&task);
        assert!(queue.changed().now_or_never().is_none());
        assert!(one.changed().now_or_never().is_some());
        assert!(one.changed().now_or_never().is_none());
        drop(one);
        hub.notify(&task);
        assert_eq!(hub.0.lock().unwrap().len(), 1, "nobody waits for the task any more");
    }
}
