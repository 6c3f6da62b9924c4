//! Notifications of changes in a store.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use tokio::sync::watch;

use super::Topic;

/// The senders of a store's changes, by topic.
#[derive(Debug, Default)]
pub(super) struct ChangeHub(Mutex<HashMap<Topic, watch::Sender<()>>>);

/// With so many topics, those without a receiver are removed.
const SWEPT_AT: usize = 64;

impl ChangeHub {
    pub(super) fn subscribe(&self, topic: Topic) -> watch::Receiver<()> {
        let mut topics = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if topics.len() >= SWEPT_AT && topics.len().is_power_of_two() {
            topics.retain(|_, sender| sender.receiver_count() > 0);
        }
        topics.entry(topic).or_default().subscribe()
    }

    pub(super) fn notify(&self, topic: &Topic) {
        let mut topics = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sender) = topics.get(topic)
            && sender.send(()).is_err()
        {
            topics.remove(topic);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::id::TaskId;

    #[test]
    fn a_change_wakes_those_who_wait_for_it_once() {
        let hub = ChangeHub::default();
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
