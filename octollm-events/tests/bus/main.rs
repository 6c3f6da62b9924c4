//! The suite of buses on the bus in a database.
#![cfg(feature = "sql")]

#[path = "../support/postgres.rs"]
#[allow(dead_code, unreachable_pub, reason = "other tests use the rest")]
mod postgres;

mod subject;

use octollm_core::conformance::bus_tests;

mod sqlite {
    use super::*;

    bus_tests! { #[tokio::test(flavor = "multi_thread", worker_threads = 2)] subject::Sqlite::new() }
}

mod on_postgres {
    use super::*;

    bus_tests! { #[tokio::test(flavor = "multi_thread", worker_threads = 2)] subject::OnPostgres::new() }
}
