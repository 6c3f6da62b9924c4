//! The replies to the jobs of this process, and who waits for them.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{Notify, mpsc},
    time::sleep,
};

use super::job::{Ended, Reply};
use crate::{
    bus::{BusError, DurableBus, Overflow, Signal, Subscription},
    event::{Event, Pattern},
    update::Update,
};

/// Replies that wait to be read, over all jobs of a process.
const OVERFLOW: Overflow = Overflow::DropOldest(1024);
/// Updates of one job that its caller has not read.
const UPDATES: usize = 256;

/// The jobs whose ends are awaited, by their ids.
#[derive(Default)]
pub(super) struct Waiting(Mutex<Calls>);

#[derive(Default)]
struct Calls {
    by_job: HashMap<String, Vec<Entry>>,
    count: u64,
}

struct Entry {
    number: u64,
    updates: mpsc::Sender<Update>,
    ended: mpsc::Sender<Ended>,
    lost: Arc<Notify>,
}

/// Waits for the replies to a job, until it is dropped.
pub(super) struct Waiter {
    all: Arc<Waiting>,
    job: String,
    number: u64,
    updates: mpsc::Receiver<Update>,
    ended: mpsc::Receiver<Ended>,
    lost: Arc<Notify>,
}

/// What a waiter receives.
pub(super) enum Received {
    Update(Update),
    Ended(Box<Ended>),
    /// A reply may be lost.
    Lost,
}

impl Waiting {
    pub(super) fn wait(self: &Arc<Self>, job: &str) -> Waiter {
        let (updates, received) = mpsc::channel(UPDATES);
        // More than one end of a job is the same one again.
        let (ended, end) = mpsc::channel(1);
        let lost = Arc::new(Notify::new());
        let mut calls = self.calls();
        calls.count += 1;
        let number = calls.count;
        let entry = Entry { number, updates, ended, lost: lost.clone() };
        calls.by_job.entry(job.to_owned()).or_default().push(entry);
        drop(calls);
        Waiter { all: self.clone(), job: job.to_owned(), number, updates: received, ended: end, lost }
    }

    fn received(&self, event: &Event) {
        let Some(job) = event.subject() else { return };
        let calls = self.calls();
        let Some(entries) = calls.by_job.get(job) else { return };
        match Reply::read(event) {
            Some(Reply::Update(update)) => {
                for entry in entries {
                    if entry.updates.try_send(update.clone()).is_err() {
                        tracing::debug!("update of a job dropped: its caller is too slow");
                    }
                }
            }
            Some(Reply::Ended(ended)) => {
                for entry in entries {
                    let _ = entry.ended.try_send((*ended).clone());
                }
            }
            None => {}
        }
    }

    fn lost(&self) {
        self.calls().by_job.values().flatten().for_each(|entry| entry.lost.notify_one());
    }

    fn calls(&self) -> MutexGuard<'_, Calls> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiter {
    /// Waits for what comes next: updates before the end.
    ///
    /// # Cancel safety
    /// Nothing is lost.
    pub(super) async fn next(&mut self) -> Received {
        tokio::select! {
            biased;
            Some(update) = self.updates.recv() => Received::Update(update),
            Some(ended) = self.ended.recv() => Received::Ended(Box::new(ended)),
            () = self.lost.notified() => Received::Lost,
        }
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        let mut calls = self.all.calls();
        if let Some(entries) = calls.by_job.get_mut(&self.job) {
            entries.retain(|entry| entry.number != self.number);
            if entries.is_empty() {
                calls.by_job.remove(&self.job);
            }
        }
    }
}

pub(super) async fn subscribe(bus: &dyn DurableBus, pattern: &Pattern) -> Result<Subscription, BusError> {
    bus.subscribe(pattern.clone(), OVERFLOW).await
}

/// Hands replies to those that wait, for ever.
pub(super) async fn listen(
    bus: Arc<dyn DurableBus>,
    pattern: Pattern,
    mut replies: Subscription,
    waiting: Arc<Waiting>,
) {
    loop {
        while let Some(signal) = replies.next().await {
            match signal {
                Signal::Event(event) => waiting.received(&event),
                Signal::Gap(_) | Signal::Lagged(_) => waiting.lost(),
            }
        }
        tracing::warn!(reason = ?replies.ended(), "no replies to jobs are received at the moment");
        replies = subscribed_again(&*bus, &pattern, OVERFLOW).await;
        waiting.lost();
    }
}

/// Subscribes again, once a second until the bus does.
pub(super) async fn subscribed_again(
    bus: &dyn DurableBus,
    pattern: &Pattern,
    overflow: Overflow,
) -> Subscription {
    loop {
        sleep(Duration::from_secs(1)).await;
        if let Ok(again) = bus.subscribe(pattern.clone(), overflow).await {
            return again;
        }
    }
}
