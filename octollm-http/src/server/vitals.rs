//! How a server is.

use std::{
    collections::BTreeMap,
    fmt,
    future::Future,
    pin::Pin,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use futures_util::future::join_all;
use tokio::time::{Instant, timeout};

/// One thing that must hold for a server to be ready.
pub(crate) struct Check {
    name: String,
    run: Box<dyn Fn() -> CheckFuture + Send + Sync>,
}

type CheckFuture = Pin<Box<dyn Future<Output = bool> + Send>>;

impl Check {
    pub(crate) fn new<F, Fut>(name: String, check: F) -> Self
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = bool> + Send + 'static,
    {
        Self { name, run: Box::new(move || Box::pin(check())) }
    }
}

impl fmt::Debug for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Check").field(&self.name).finish()
    }
}

/// How a server is: how long it runs, whether it goes down, and what it depends on.
#[derive(Debug)]
pub(crate) struct Vitals {
    started: Instant,
    draining: AtomicBool,
    checks: Vec<Check>,
    check_timeout: Duration,
}

impl Vitals {
    pub(crate) fn new(checks: Vec<Check>, check_timeout: Duration) -> Self {
        Self { started: Instant::now(), draining: AtomicBool::new(false), checks, check_timeout }
    }

    pub(crate) fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    /// From now on the server is not ready.
    pub(crate) fn drain(&self) {
        self.draining.store(true, Ordering::Release);
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// Runs all checks at once. One that takes too long has failed.
    pub(crate) async fn run_checks(&self) -> BTreeMap<&str, bool> {
        let checks = self.checks.iter().map(|check| async move {
            let passed = timeout(self.check_timeout, (check.run)()).await.unwrap_or(false);
            (check.name.as_str(), passed)
        });
        let mut passed = BTreeMap::new();
        for (name, holds) in join_all(checks).await {
            *passed.entry(name).or_insert(true) &= holds;
        }
        passed
    }
}
