//! Workers on the bus in a database.

use octollm_events::sql::{SqlBus, SqlDatabase};

use crate::{
    job_cases as cases,
    job_cases::job_tests,
    subject::{OnPostgres, OnSqlite},
};

async fn open(url: &str) -> SqlBus {
    SqlBus::open(&SqlDatabase::open(url).await.unwrap()).await.unwrap()
}

impl OnSqlite {
    async fn bus(&self) -> SqlBus {
        open(&self.url()).await
    }
}

impl OnPostgres {
    async fn bus(&self) -> SqlBus {
        open(&self.url()).await
    }
}

mod sqlite {
    use super::*;

    job_tests!(OnSqlite::new());
}

mod on_postgres {
    use super::*;

    job_tests!(OnPostgres::new());
}
