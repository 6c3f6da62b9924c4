//! A store in front of another one, which is slow and fails on demand.

use std::{
    future::Future,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use octollm_core::{
    store::{MemoryStore, StoreError},
    task::TaskRecord,
};
use tokio::time::{Instant, sleep, sleep_until};

use crate::layer::{Layer, Stores, layered};

type Fails = dyn FnMut(&str, Option<&TaskRecord>) -> Option<StoreError> + Send;

/// Asks `fails` before each operation: by its name, and for a change with the record that is to be stored. An operation
/// that is named with `after ` in front has taken effect by then.
pub(crate) struct Trouble {
    inner: Arc<MemoryStore>,
    fails: Mutex<Box<Fails>>,
    slow: AtomicU64,
    hanging: Mutex<Option<Hanging>>,
}

/// Operations that hang, from when until when.
struct Hanging(&'static str, Instant, Option<Instant>);

impl Trouble {
    pub(crate) fn new() -> Arc<Self> {
        Self::over(Arc::new(MemoryStore::new()))
    }

    pub(crate) fn over(inner: Arc<MemoryStore>) -> Arc<Self> {
        Arc::new(Self {
            inner,
            fails: Mutex::new(Box::new(|_, _| None)),
            slow: AtomicU64::new(0),
            hanging: Mutex::new(None),
        })
    }

    pub(crate) fn slow(&self, by: Duration) {
        self.slow.store(by.as_millis() as u64, Ordering::Relaxed);
    }

    pub(crate) fn inner(&self) -> &Arc<MemoryStore> {
        &self.inner
    }

    /// Has an operation hang, for ever even when it is healed.
    pub(crate) fn hang(&self, operation: &'static str) {
        *self.hanging.lock().unwrap() = Some(Hanging(operation, Instant::now(), None));
    }

    /// Has operations that begin in this time return at its end. A renewal takes effect then, the others at once.
    pub(crate) fn hang_after(&self, operations: &'static str, after: Duration, time: Duration) {
        let from = Instant::now() + after;
        *self.hanging.lock().unwrap() = Some(Hanging(operations, from, Some(from + time)));
    }

    pub(crate) fn heal(&self) {
        *self.hanging.lock().unwrap() = None;
    }

    /// Until when an operation hangs that begins now: `None` for ever.
    fn hangs(&self, operation: &str) -> Option<Option<Instant>> {
        let now = Instant::now();
        let hanging = self.hanging.lock().unwrap_or_else(PoisonError::into_inner);
        let Hanging(name, from, until) = hanging.as_ref()?;
        let hangs = name.split('+').any(|name| name == operation)
            && *from <= now
            && until.is_none_or(|until| now < until);
        hangs.then_some(*until)
    }

    pub(crate) fn fails(
        &self,
        fails: impl FnMut(&str, Option<&TaskRecord>) -> Option<StoreError> + Send + 'static,
    ) {
        *self.fails.lock().unwrap_or_else(PoisonError::into_inner) = Box::new(fails);
    }

    fn ask(&self, operation: &str, record: Option<&TaskRecord>) -> Result<(), StoreError> {
        match (self.fails.lock().unwrap_or_else(PoisonError::into_inner))(operation, record) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    async fn pass(&self, operation: &str, record: Option<&TaskRecord>) -> Result<(), StoreError> {
        let slow = self.slow.load(Ordering::Relaxed);
        if slow > 0 {
            sleep(Duration::from_millis(slow)).await;
        }
        self.ask(operation, record)?;
        match self.hangs(operation) {
            Some(None) => std::future::pending().await,
            _ => Ok(()),
        }
    }
}

pub(crate) fn away() -> StoreError {
    StoreError::Unavailable("away".into())
}

impl Layer for Trouble {
    async fn around<T: Send>(
        &self,
        operation: &'static str,
        stores: Stores<'_>,
        work: impl Future<Output = Result<T, StoreError>> + Send,
    ) -> Result<T, StoreError> {
        let record = match stores {
            Stores::Record(record) => Some(record),
            _ => None,
        };
        self.pass(operation, record).await?;
        let until = self.hangs(operation).flatten();
        let done = match (operation, until) {
            ("renew", Some(until)) => {
                sleep_until(until).await;
                work.await
            }
            (_, Some(until)) => {
                let done = work.await;
                sleep_until(until).await;
                done
            }
            (_, None) => work.await,
        }?;
        match operation {
            "create" | "commit" | "append" | "append_updates" => {
                self.ask(&format!("after {operation}"), record)?;
            }
            _ => {}
        }
        Ok(done)
    }
}

layered!(Trouble);
