//! One database with its arms, its brains, and the service that handles the events.

use std::{collections::BTreeSet, time::Duration};

use octollm::{
    prelude::*,
    sql::{SqlDatabase, SqlIdempotencyStore, SqlStore},
    store::TaskStore,
    task::{TaskQuery, TaskRecord, Timestamp},
};
use tokio::time::{Instant, sleep};

use super::{
    brain::{Accepted, Process},
    events::Events,
    program::Ledger,
};
use crate::Result;

pub(super) struct System {
    pub(super) url: String,
    pub(super) lease: Option<Duration>,
    pub(super) ledger: Ledger,
    pub(super) store: SqlStore,
    pub(super) events: Events,
    pub(super) accepted: Accepted,
    pub(super) arms: Vec<(&'static str, String)>,
    started: usize,
    _keys: tempfile::TempDir,
}

/// A limit that is not reached unless a task is lost.
const LONGEST: Duration = Duration::from_secs(120);
const INTERVAL: Duration = Duration::from_millis(50);
/// After so long without an event, none comes any more.
const STUCK: Duration = Duration::from_secs(30);

impl System {
    pub(super) async fn start(url: &str, lease: Option<Duration>) -> Result<Self> {
        let database = SqlDatabase::open(url).await?;
        let store = SqlStore::builder().open(&database).await?;
        let events = Events::follow(&database, url).await?;
        // The arms have a database of their own.
        let folder = tempfile::tempdir()?;
        let keys = SqlDatabase::open(&format!("sqlite:{}", folder.path().join("keys.db").display())).await?;
        let ledger = Ledger::default();
        let arms = ledger.serve(SqlIdempotencyStore::open(&keys).await?).await?;
        let (url, accepted) = (url.to_owned(), Accepted::default());
        Ok(Self { url, lease, ledger, store, events, accepted, arms, started: 0, _keys: folder })
    }

    /// Starts a brain.
    pub(super) fn brain(&mut self, slots: usize) -> Result<Process> {
        self.started += 1;
        let name = format!("brain-{}", self.started);
        Process::start(name, &self.url, self.lease, slots, &self.arms, &self.accepted)
    }

    /// All tasks.
    pub(super) async fn records(&self) -> Result<Vec<std::sync::Arc<TaskRecord>>> {
        const PAGE: usize = 1_000;
        let (mut records, mut query) = (Vec::new(), TaskQuery::default().limit(PAGE));
        loop {
            let page = self.store.list(&query, None).await?;
            let is_last = page.len() < PAGE;
            query.after = page.last().map(|record| record.id().clone());
            records.extend(page);
            if is_last {
                return Ok(records);
            }
        }
    }

    /// Waits until all tasks have finished and their last events are handled.
    pub(super) async fn finished(&self) -> Result<()> {
        let end = Instant::now() + LONGEST;
        for status in [TaskStatus::Queued, TaskStatus::Processing, TaskStatus::Queued] {
            let query = TaskQuery::default().status(status).limit(1);
            while !self.store.list(&query, None).await?.is_empty() {
                if Instant::now() > end {
                    return Err(format!("a task is {status} for ever").into());
                }
                sleep(INTERVAL).await;
            }
        }
        // A relay that was killed has its turn for 10 s, so that many events may wait.
        let (tasks, mut last) = (self.records().await?.len(), (0, Instant::now()));
        loop {
            let seen = self.events.seen();
            let ends = seen.iter().filter(|seen| is_end(&seen.event_type)).map(|seen| &seen.task);
            // Events that are missing are for the report.
            if ends.collect::<BTreeSet<_>>().len() >= tasks || last.1.elapsed() > STUCK {
                return Ok(());
            }
            if seen.len() > last.0 {
                last = (seen.len(), Instant::now());
            }
            sleep(INTERVAL * 4).await;
        }
    }
}

pub(super) fn is_end(event_type: &str) -> bool {
    matches!(event_type, "task.completed" | "task.failed" | "task.cancelled")
}

/// A process that was killed or stopped, and when.
pub(super) type Ended = (String, Timestamp);
