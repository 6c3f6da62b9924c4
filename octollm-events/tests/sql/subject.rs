//! The stores that the suites run against.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use octollm_core::{conformance::Subject, idempotency::IdempotencyStore, store::TaskStore};
use octollm_events::sql::{SqlDatabase, SqlIdempotencyStore, SqlStore};

use crate::postgres::Postgres;

/// A file in a folder that is deleted with the value.
pub(crate) struct OnSqlite(tempfile::TempDir);

impl OnSqlite {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(crate) fn url(&self) -> String {
        format!("sqlite:{}", self.0.path().join("tasks.db").display())
    }
}

/// A database of the server that all tests share.
pub(crate) struct OnPostgres(String);

impl OnPostgres {
    pub(crate) fn new() -> Self {
        Self(Postgres::shared().database())
    }

    pub(crate) fn url(&self) -> String {
        self.0.clone()
    }
}

#[async_trait]
impl Subject<dyn TaskStore> for OnSqlite {
    async fn open(&self) -> Arc<dyn TaskStore> {
        Arc::new(SqlStore::open(&self.url()).await.unwrap())
    }
}

#[async_trait]
impl Subject<dyn TaskStore> for OnPostgres {
    async fn open(&self) -> Arc<dyn TaskStore> {
        Arc::new(SqlStore::open(&self.url()).await.unwrap())
    }
}

async fn keys(url: &str) -> Arc<dyn IdempotencyStore> {
    let database = SqlDatabase::open(url).await.unwrap();
    let store = SqlIdempotencyStore::open(&database).await.unwrap();
    Arc::new(store.retained_for(Duration::from_secs(2)))
}

#[async_trait]
impl Subject<dyn IdempotencyStore> for OnSqlite {
    async fn open(&self) -> Arc<dyn IdempotencyStore> {
        keys(&self.url()).await
    }
}

#[async_trait]
impl Subject<dyn IdempotencyStore> for OnPostgres {
    async fn open(&self) -> Arc<dyn IdempotencyStore> {
        keys(&self.url()).await
    }
}
