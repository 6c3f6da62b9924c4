//! Group commit: operations that wait are run by one transaction, and each has a result of its own.

use std::{
    any::{Any, TypeId},
    future::Future,
    panic::AssertUnwindSafe,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::FutureExt;
use tokio::{
    sync::{Notify, oneshot, watch},
    time::{Instant, sleep, timeout, timeout_at},
};

use super::{
    changes::{Changes, Topic},
    connection::Conn,
    database::{Owned, Source},
    error::{Class, SqlError, class, is_connection_lost, is_unique_violation},
    statement::Sql,
};

/// An operation that writes.
///
/// Those of one kind that wait at the same time are run together. Kinds are run in the order of their numbers, so that the
/// transactions of several writers take their locks in one order.
pub(crate) trait Operation: Sized + Send + Sync + 'static {
    /// Result of the operation. One that did not succeed, as by a conflict, is a result too: an error of [`run`](Self::run) fails
    /// the whole transaction.
    type Output: Send + 'static;
    /// Place among the kinds of operations.
    const ORDER: u8;
    /// Whether they are one statement. Without operations of other kinds it is a transaction by itself.
    const STATEMENT: bool = false;

    /// Runs the operations in the order in which they came, and returns a result for each. They may be run again in another
    /// transaction, after this one was rolled back. With several writers, rows are locked in the order of their keys.
    fn run(
        batch: &[Self],
        tx: &mut Tx<'_>,
    ) -> impl Future<Output = Result<Vec<Self::Output>, sqlx::Error>> + Send;
}

/// A transaction that writes.
pub(crate) struct Tx<'c> {
    pub(crate) conn: Conn<'c>,
    changed: Vec<Topic>,
}

impl Tx<'_> {
    /// Wakes those that wait for a topic, in all processes, once the transaction is committed.
    pub(crate) fn changed(&mut self, topic: Topic) {
        self.changed.push(topic);
    }
}

/// Most operations of one kind in one transaction.
const MOST: usize = 512;
/// How often a transaction that met another one is run.
const ATTEMPTS: u32 = 5;
/// How often SQLite is asked whether another process has written.
const POLL: Duration = Duration::from_millis(100);

/// Pause between transactions while another process writes too. SQLite has no queue for its lock: without a gap, a process that waits
/// would seldom find it free.
const GAP: Duration = Duration::from_millis(2);

/// The operations that wait.
pub(super) struct Queue {
    state: Mutex<State>,
    wake: Notify,
    writers: watch::Sender<usize>,
}

impl Default for Queue {
    fn default() -> Self {
        Self { state: Mutex::default(), wake: Notify::new(), writers: watch::Sender::new(0) }
    }
}

#[derive(Default)]
struct State {
    /// One for each kind.
    groups: Vec<Box<dyn Group>>,
    closed: bool,
}

impl Queue {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs an operation. It ends all the same when the future is dropped.
    pub(super) async fn run<O: Operation>(&self, operation: O) -> Result<O::Output, SqlError> {
        self.submit(operation)?.await.unwrap_or(Err(SqlError::Closed))
    }

    /// Adds an operation, and returns where its result comes.
    pub(super) fn submit<O: Operation>(
        &self,
        operation: O,
    ) -> Result<oneshot::Receiver<Result<O::Output, SqlError>>, SqlError> {
        let (sender, answer) = oneshot::channel();
        {
            let mut state = self.state();
            if state.closed {
                return Err(SqlError::Closed);
            }
            let kind = TypeId::of::<O>();
            let group = state.groups.iter_mut().find(|group| group.kind() == kind);
            match group.and_then(|group| group.as_any().downcast_mut::<GroupOf<O>>()) {
                Some(group) => {
                    group.operations.push(operation);
                    group.senders.push(sender);
                }
                None => state.groups.push(Box::new(GroupOf {
                    operations: vec![operation],
                    senders: vec![sender],
                    outputs: Vec::new(),
                })),
            }
        }
        self.wake.notify_one();
        Ok(answer)
    }

    /// The operations of the next transaction. `None` when the queue is closed and empty.
    async fn next(&self) -> Option<Vec<Box<dyn Group>>> {
        loop {
            {
                let mut state = self.state();
                if !state.groups.is_empty() {
                    let mut batch: Vec<_> = state.groups.iter_mut().map(|group| group.take(MOST)).collect();
                    state.groups.retain(|group| group.len() > 0);
                    if !state.groups.is_empty() {
                        self.wake.notify_one();
                    }
                    batch.sort_by_key(|group| group.order());
                    return Some(batch);
                }
                if state.closed {
                    return None;
                }
            }
            self.wake.notified().await;
        }
    }

    /// Accepts no more operations. Those that wait are run.
    pub(super) fn close(&self) {
        self.state().closed = true;
        // Each writer that ends wakes the next one.
        self.wake.notify_one();
    }

    /// Returns when all writers have ended.
    pub(super) async fn ended(&self) {
        let _ = self.writers.subscribe().wait_for(|writers| *writers == 0).await;
    }
}

/// Counts a writer. The queue has no use without one, as where its runtime has ended.
struct Running(Arc<Queue>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.writers.send_modify(|writers| *writers -= 1);
        if *self.0.writers.borrow() == 0 {
            let mut state = self.0.state();
            state.closed = true;
            state.groups.clear();
        }
        self.0.wake.notify_one();
    }
}

/// Starts the writer of a database, which has a connection already.
pub(super) fn start(source: &Arc<Source>, queue: &Arc<Queue>, changes: &Arc<Changes>, first: Owned) {
    spawn(queue, Writer::new(source, changes, Some(first), Runs::Transactions));
}

/// Starts what runs the single statements of a database.
pub(super) fn start_statements(source: &Arc<Source>, queue: &Arc<Queue>, changes: &Arc<Changes>) {
    spawn(queue, Writer::new(source, changes, None, Runs::Statements));
}

/// Lookups that wait are run together too, outside of a transaction. A long one holds up those of one connection.
const READERS: usize = 2;

/// Starts what runs the lookups of a database.
pub(super) fn start_lookups(source: &Arc<Source>, queue: &Arc<Queue>, changes: &Arc<Changes>) {
    for _ in 0..READERS {
        spawn(queue, Writer::new(source, changes, None, Runs::Lookups));
    }
}

fn spawn(queue: &Arc<Queue>, writer: Writer) {
    queue.writers.send_modify(|writers| *writers += 1);
    tokio::spawn(writer.run(Running(queue.clone())));
}

struct Writer {
    source: Arc<Source>,
    changes: Arc<Changes>,
    connection: Option<Owned>,
    runs: Runs,
    /// The version of the data of SQLite that other processes wrote.
    version: Option<i64>,
    /// Whether another process has written lately.
    is_shared: bool,
}

/// What a writer runs.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Runs {
    /// Operations in a transaction.
    Transactions,
    /// Operations that are a transaction by themselves.
    Statements,
    /// Operations that only read.
    Lookups,
}

/// Why a transaction was not committed.
enum Aborted {
    /// It was rolled back.
    Before(sqlx::Error),
    /// It may be committed.
    AtCommit(sqlx::Error),
    /// An operation panicked.
    Panicked,
    /// There is no connection.
    Unconnected(SqlError),
}

impl Writer {
    fn new(source: &Arc<Source>, changes: &Arc<Changes>, connection: Option<Owned>, runs: Runs) -> Self {
        Self {
            source: source.clone(),
            changes: changes.clone(),
            connection,
            runs,
            version: None,
            is_shared: false,
        }
    }

    async fn run(mut self, running: Running) {
        let polls = self.runs == Runs::Transactions && matches!(*self.source, Source::Sqlite(..));
        let mut next_poll = Instant::now();
        loop {
            if polls && next_poll <= Instant::now() {
                self.poll().await;
                next_poll = Instant::now() + POLL;
            }
            let batch = match polls {
                true => timeout_at(next_poll, running.0.next()).await,
                false => Ok(running.0.next().await),
            };
            match batch {
                Ok(Some(batch)) => {
                    self.write(batch).await;
                    if self.is_shared {
                        sleep(GAP).await;
                    }
                }
                Ok(None) => break,
                Err(_) => {}
            }
        }
        if let Some(connection) = self.connection.take() {
            connection.close().await;
        }
    }

    /// Wakes everybody where another process has written: SQLite reports nothing.
    async fn poll(&mut self) {
        static VERSION: Sql = Sql::new("PRAGMA data_version");
        let Some(connection) = &mut self.connection else { return };
        let Ok(rows) = connection.conn().fetch(&VERSION, []).await else { return };
        let version = rows.first().and_then(|row| row.int(0).ok());
        self.is_shared = self.version.is_some() && version != self.version;
        if self.is_shared {
            self.changes.notify_all();
        }
        self.version = version;
    }

    /// Runs operations, and answers all of them.
    async fn write(&mut self, mut batch: Vec<Box<dyn Group>>) {
        let limit = self.source.settings().operation_time;
        let end = Instant::now() + limit;
        let mut attempt = 1;
        let error = loop {
            let left = end.saturating_duration_since(Instant::now());
            let aborted = match timeout(left, self.transact(&mut batch)).await {
                Ok(Ok(changed)) => {
                    batch.into_iter().for_each(Group::answer);
                    self.changes.publish(changed);
                    return;
                }
                Ok(Err(aborted)) => aborted,
                Err(_) => {
                    self.connection = None;
                    break SqlError::TimedOut(limit);
                }
            };
            attempt += 1;
            match aborted {
                Aborted::Unconnected(error) => break error,
                Aborted::AtCommit(error) => {
                    self.connection = None;
                    // One that met another one was rolled back.
                    if class(&error) != Class::Again || attempt > ATTEMPTS {
                        break error.into();
                    }
                }
                Aborted::Before(error) if is_connection_lost(&error) => {
                    self.connection = None;
                    if attempt > 2 {
                        break error.into();
                    }
                }
                Aborted::Before(error) if class(&error) == Class::Again && attempt <= ATTEMPTS => {}
                Aborted::Before(error) if single(&batch) && is_unique_violation(&error) && attempt <= 2 => {}
                Aborted::Before(error) if class(&error) != Class::Value || single(&batch) => {
                    break error.into();
                }
                Aborted::Panicked if single(&batch) => {
                    break SqlError::unreadable("an operation panicked");
                }
                // One of the operations is not possible: the others are.
                Aborted::Before(_) | Aborted::Panicked => {
                    for operation in batch.into_iter().flat_map(Group::split) {
                        Box::pin(self.write(vec![operation])).await;
                    }
                    return;
                }
            }
        };
        tracing::warn!(error = &error as &dyn std::error::Error, "transaction failed");
        batch.into_iter().for_each(|group| group.fail(&error));
    }

    async fn transact(&mut self, batch: &mut [Box<dyn Group>]) -> Result<Vec<Topic>, Aborted> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => self.source.connect(self.runs == Runs::Lookups).await.map_err(Aborted::Unconnected)?,
        };
        let transacts = self.runs == Runs::Transactions && !is_statement(batch);
        // A connection whose transaction has not ended is dropped with the future.
        let run = AssertUnwindSafe(run(connection.conn(), batch, transacts)).catch_unwind().await;
        let changed = match run {
            Err(_) => return Err(Aborted::Panicked),
            Ok(Err(error)) => {
                let lost = is_connection_lost(&error);
                if !lost && (!transacts || connection.conn().execute_script("ROLLBACK").await.is_ok()) {
                    self.connection = Some(connection);
                }
                return Err(Aborted::Before(error));
            }
            Ok(Ok(changed)) => changed,
        };
        if transacts {
            connection.conn().execute_script("COMMIT").await.map_err(Aborted::AtCommit)?;
        }
        self.connection = Some(connection);
        Ok(changed)
    }
}

async fn run(
    conn: Conn<'_>,
    batch: &mut [Box<dyn Group>],
    transacts: bool,
) -> Result<Vec<Topic>, sqlx::Error> {
    let mut tx = Tx { conn, changed: Vec::new() };
    let begin = if tx.conn.is_postgres() { "BEGIN" } else { "BEGIN IMMEDIATE" };
    if transacts {
        tx.conn.execute_script(begin).await?;
    }
    for group in batch {
        group.run(&mut tx).await?;
    }
    Ok(tx.changed)
}

fn is_statement(batch: &[Box<dyn Group>]) -> bool {
    matches!(batch, [group] if group.is_statement())
}

fn single(batch: &[Box<dyn Group>]) -> bool {
    batch.iter().map(|group| group.len()).sum::<usize>() <= 1
}

/// The operations of one kind.
trait Group: Send {
    fn kind(&self) -> TypeId;
    fn order(&self) -> u8;
    fn is_statement(&self) -> bool;
    fn len(&self) -> usize;
    fn as_any(&mut self) -> &mut dyn Any;
    /// Removes the first operations.
    fn take(&mut self, most: usize) -> Box<dyn Group>;
    /// The operations one by one.
    fn split(self: Box<Self>) -> Vec<Box<dyn Group>>;
    fn run<'a>(
        &'a mut self,
        tx: &'a mut Tx<'_>,
    ) -> Pin<Box<dyn Future<Output = Result<(), sqlx::Error>> + Send + 'a>>;
    fn answer(self: Box<Self>);
    fn fail(self: Box<Self>, error: &SqlError);
}

struct GroupOf<O: Operation> {
    operations: Vec<O>,
    senders: Vec<oneshot::Sender<Result<O::Output, SqlError>>>,
    outputs: Vec<O::Output>,
}

impl<O: Operation> Group for GroupOf<O> {
    fn kind(&self) -> TypeId {
        TypeId::of::<O>()
    }

    fn order(&self) -> u8 {
        O::ORDER
    }

    fn is_statement(&self) -> bool {
        O::STATEMENT
    }

    fn len(&self) -> usize {
        self.operations.len()
    }

    fn as_any(&mut self) -> &mut dyn Any {
        self
    }

    fn take(&mut self, most: usize) -> Box<dyn Group> {
        let most = most.min(self.operations.len());
        Box::new(Self {
            operations: self.operations.drain(..most).collect(),
            senders: self.senders.drain(..most).collect(),
            outputs: Vec::new(),
        })
    }

    fn split(self: Box<Self>) -> Vec<Box<dyn Group>> {
        let single = |(operation, sender)| -> Box<dyn Group> {
            Box::new(Self { operations: vec![operation], senders: vec![sender], outputs: Vec::new() })
        };
        self.operations.into_iter().zip(self.senders).map(single).collect()
    }

    fn run<'a>(
        &'a mut self,
        tx: &'a mut Tx<'_>,
    ) -> Pin<Box<dyn Future<Output = Result<(), sqlx::Error>> + Send + 'a>> {
        Box::pin(async move {
            self.outputs = O::run(&self.operations, tx).await?;
            Ok(())
        })
    }

    fn answer(self: Box<Self>) {
        for (sender, output) in self.senders.into_iter().zip(self.outputs) {
            // The caller may be gone.
            let _ = sender.send(Ok(output));
        }
    }

    fn fail(self: Box<Self>, error: &SqlError) {
        for sender in self.senders {
            let _ = sender.send(Err(error.clone()));
        }
    }
}
