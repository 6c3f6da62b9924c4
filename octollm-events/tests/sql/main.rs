//! The SQL store on real databases.
#![cfg(feature = "sql")]

mod brains;
mod faulty;
#[path = "../../../octollm-core/tests/buses/jobs.rs"]
mod job_cases;
mod jobs;
mod keyed;
#[path = "../support/postgres.rs"]
#[allow(dead_code, unreachable_pub, reason = "other tests use the rest")]
mod postgres;
mod races;
mod retention;
mod room;
mod subject;

use self::subject::{OnPostgres, OnSqlite};

mod sqlite {
    use super::*;

    octollm_core::conformance::task_store_tests! {
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        OnSqlite::new()
    }

    mod keys {
        use super::*;

        octollm_core::conformance::idempotency_store_tests! {
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            OnSqlite::new()
        }
    }
}

mod on_postgres {
    use super::*;

    octollm_core::conformance::task_store_tests! {
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        OnPostgres::new()
    }

    mod keys {
        use super::*;

        octollm_core::conformance::idempotency_store_tests! {
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            OnPostgres::new()
        }
    }
}
