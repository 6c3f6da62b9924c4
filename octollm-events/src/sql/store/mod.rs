//! A store of tasks in a database.

mod append;
mod claim;
mod create;
mod flush;
mod read;
mod relay;
mod retention;
mod schema;
mod stored;
mod write;

use std::{
    hash::{BuildHasher, RandomState},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use octollm_core::{
    error::ConfigError,
    event::Event,
    id::TaskId,
    parts::Caller,
    store::{Claim, Claimed, JournalEntry, SideEffects, StoreError, TaskStore},
    task::{TaskQuery, TaskRecord, TaskUpdate},
};
use tokio::sync::watch;

pub(super) use self::write::microseconds;
use self::write::{Effects, Outcome, Record, What, Write};
use super::{SqlDatabase, SqlError, changes::Topic};

/// A store of tasks in a database: SQLite for one machine, Postgres for many processes.
///
/// An answered operation is on the disk: SQLite runs with `synchronous = FULL`, Postgres with its default. Operations that wait
/// at the same time are written by one transaction. Leases, deadlines and expiry follow the database's clock. Those that wait for a
/// change are notified, in other processes too; of a file of SQLite that another process has written within 100 ms.
///
/// Every clone is the same store.
///
/// ```no_run
/// use octollm_events::sql::SqlStore;
///
/// # async fn open() -> Result<(), Box<dyn std::error::Error>> {
/// let store = SqlStore::open("sqlite:tasks.db").await?;
/// # let _ = store; Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct SqlStore(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    database: SqlDatabase,
    limits: Limits,
    claims: claim::Claims,
    taken: relay::Taken,
    /// Chooses the row of the counters.
    stripe: u64,
}

#[derive(Debug, Clone)]
struct Limits {
    finished: usize,
    finished_for: Duration,
    updates: usize,
    update_bytes: usize,
    events: usize,
    cleaning: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            finished: 1_000_000,
            finished_for: Duration::from_secs(30 * 24 * 3600),
            updates: 256,
            update_bytes: 1024 * 1024,
            events: 100_000,
            cleaning: Duration::from_secs(60),
        }
    }
}

const QUEUE: &str = "queue";
const EVENTS: &str = "events";

impl SqlStore {
    /// Opens the store of a database with the default settings, and creates or updates its tables. See [`SqlDatabase`] for the URL.
    ///
    /// # Errors
    /// A [`SqlError`] that names the reason.
    ///
    /// # Cancel safety
    /// The tables of each part are created as a whole or not at all.
    pub async fn open(url: &str) -> Result<Self, SqlError> {
        Self::builder().open(&SqlDatabase::open(url).await?).await
    }

    /// The settings of a store, to be opened.
    pub fn builder() -> SqlStoreBuilder {
        SqlStoreBuilder(Limits::default())
    }

    /// The database of the store.
    pub fn database(&self) -> &SqlDatabase {
        &self.0.database
    }

    async fn write(&self, what: What) -> Result<Outcome, StoreError> {
        let write = Write { store: self.0.clone(), what };
        Ok(self.0.database.write(write).await??)
    }

    fn changes(&self, topic: Topic) -> watch::Receiver<()> {
        self.0.database.changes().subscribe(topic)
    }
}

/// The settings of a [`SqlStore`].
#[derive(Debug, Clone)]
#[must_use]
pub struct SqlStoreBuilder(Limits);

impl SqlStoreBuilder {
    /// Sets how many finished tasks are stored, with their journals and updates (default 1 000 000). Those that finished first are
    /// deleted within a [cleaning](Self::cleaning).
    pub fn finished(mut self, tasks: usize) -> Self {
        self.0.finished = tasks;
        self
    }

    /// Sets how long finished tasks are stored (default 30 days).
    pub fn finished_for(mut self, age: Duration) -> Self {
        self.0.finished_for = age;
        self
    }

    /// Sets how many live updates of a task are stored (default 256), and up to a quarter more. The latest one is always stored.
    pub fn updates(mut self, updates: usize) -> Self {
        self.0.updates = updates;
        self
    }

    /// Sets how many bytes the live updates of a task have (default 1 MiB), and up to a quarter more. The latest one is always stored.
    pub fn update_bytes(mut self, bytes: usize) -> Self {
        self.0.update_bytes = bytes;
        self
    }

    /// Sets how many events may wait to be published (default 100 000). While so many wait because the bus is not available, new
    /// tasks are refused.
    pub fn events(mut self, events: usize) -> Self {
        self.0.events = events;
        self
    }

    /// Sets how often finished tasks that are too many or too old are deleted (default each minute).
    pub fn cleaning(mut self, every: Duration) -> Self {
        self.0.cleaning = every;
        self
    }

    /// Opens the store, and creates or updates its tables.
    ///
    /// # Errors
    /// A [`SqlError`] that names the reason.
    ///
    /// # Cancel safety
    /// The tables of each part are created as a whole or not at all.
    pub async fn open(self, database: &SqlDatabase) -> Result<SqlStore, SqlError> {
        let Self(limits) = self;
        if limits.cleaning.is_zero() {
            return Err(ConfigError::new("cleaning", "is greater than zero").into());
        }
        database.migrate(&schema::TASKS).await?;
        let stripe = RandomState::new().hash_one(std::process::id());
        let (claims, taken) = Default::default();
        let shared = Shared { database: database.clone(), limits, claims, taken, stripe };
        let shared = Arc::new(shared);
        tokio::spawn(retention::run(Arc::downgrade(&shared)));
        Ok(SqlStore(shared))
    }
}

/// A value that cannot be written.
fn unwritable(error: serde_json::Error) -> StoreError {
    StoreError::Unavailable(Box::new(error))
}

#[async_trait]
impl TaskStore for SqlStore {
    async fn create(
        &self,
        record: TaskRecord,
        effects: SideEffects,
        max_queued: usize,
        max_queued_bytes: usize,
    ) -> Result<Arc<TaskRecord>, StoreError> {
        let whole = Arc::new(record);
        let record = Record::of(&whole).map_err(unwritable)?;
        let effects = Effects::of(effects).map_err(unwritable)?;
        let created = What::Create { record, effects, max_queued, max_queued_bytes, whole: whole.clone() };
        match self.write(created).await? {
            Outcome::Record(stored) => Ok(stored),
            Outcome::Done | Outcome::Runs(_) | Outcome::Claimed(_) => Ok(whole),
        }
    }

    fn starts(&self) -> bool {
        true
    }

    async fn get(&self, id: &TaskId) -> Result<Option<Arc<TaskRecord>>, StoreError> {
        Ok(self.0.database.look_up(read::Get(id.clone())).await?)
    }

    async fn commit(&self, mut record: TaskRecord, effects: SideEffects) -> Result<(), StoreError> {
        let revision = record.revision();
        record.set_revision(revision + 1);
        let record = Record::of(&record).map_err(unwritable)?;
        let effects = Effects::of(effects).map_err(unwritable)?;
        self.write(What::Commit { record, revision, effects }).await.map(drop)
    }

    async fn claim(&self, claim: &Claim<'_>) -> Result<Claimed, StoreError> {
        let claiming = claim::Claiming {
            holder: claim.holder.to_owned(),
            contracts: claim.contracts.to_vec(),
            lease: claim.lease,
            limit: claim.limit,
            max_running: claim.max_running.to_vec(),
            source: claim.source.to_owned(),
        };
        match self.write(What::Claim(claiming)).await? {
            Outcome::Claimed(claimed) => Ok(claimed),
            Outcome::Done | Outcome::Record(_) | Outcome::Runs(_) => Ok(Claimed::default()),
        }
    }

    async fn renew(
        &self,
        holder: &str,
        lease: Duration,
        runs: &[(TaskId, u32)],
    ) -> Result<Vec<(TaskId, u32)>, StoreError> {
        if runs.is_empty() {
            return Ok(Vec::new());
        }
        let (holder, lease) = (holder.to_owned(), write::microseconds(lease));
        match self.write(What::Renew { holder, lease, runs: runs.to_vec() }).await? {
            Outcome::Runs(held) => Ok(held),
            Outcome::Done | Outcome::Record(_) | Outcome::Claimed(_) => Ok(Vec::new()),
        }
    }

    async fn list(
        &self,
        query: &TaskQuery,
        owner: Option<&Caller>,
    ) -> Result<Vec<Arc<TaskRecord>>, StoreError> {
        Ok(read::list(&self.0.database, query, owner).await?)
    }

    async fn journal(
        &self,
        id: &TaskId,
        after: Option<u64>,
        limit: usize,
    ) -> Result<Vec<JournalEntry>, StoreError> {
        // What a brain reads before each run: nothing, in most cases.
        if after.is_none() && limit == usize::MAX {
            return Ok(self.0.database.look_up(read::WholeJournal(id.clone())).await?);
        }
        Ok(read::journal(&self.0.database, id, after, limit).await?)
    }

    async fn append(&self, id: &TaskId, run: u32, entry: JournalEntry) -> Result<(), StoreError> {
        let (step, entry) = write::to_entry(&entry, false).map_err(unwritable)?;
        let append = append::Append { id: id.as_str().into(), run, step, entry };
        Ok(self.0.database.write_alone(append).await??)
    }

    async fn append_updates(
        &self,
        id: &TaskId,
        run: u32,
        first: u64,
        updates: Vec<TaskUpdate>,
    ) -> Result<(), StoreError> {
        let (id, updates) = (id.as_str().into(), write::texts(&updates).map_err(unwritable)?);
        self.write(What::AppendUpdates { id, run, first, updates }).await.map(drop)
    }

    async fn updates_after(
        &self,
        id: &TaskId,
        after: u64,
        limit: usize,
    ) -> Result<Vec<TaskUpdate>, StoreError> {
        let updates = read::UpdatesAfter { id: id.clone(), after, limit };
        Ok(self.0.database.look_up(updates).await?)
    }

    async fn pending_events(&self, relay: &str, limit: usize) -> Result<Vec<Event>, StoreError> {
        Ok(relay::take(&self.0, relay, limit).await?)
    }

    async fn published(&self, event_ids: &[String]) -> Result<(), StoreError> {
        if event_ids.is_empty() {
            return Ok(());
        }
        Ok(self.0.database.write(self.0.taken.published(event_ids)).await?)
    }

    fn queue_changes(&self) -> watch::Receiver<()> {
        self.changes(QUEUE.into())
    }

    fn event_changes(&self) -> watch::Receiver<()> {
        self.changes(EVENTS.into())
    }

    fn task_changes(&self, id: &TaskId) -> watch::Receiver<()> {
        self.changes(id.as_str().into())
    }
}
