//! The suite of buses on the engines: a database, and Redis.

#[cfg(feature = "sql")]
#[path = "../support/postgres.rs"]
#[allow(dead_code, unreachable_pub, reason = "other tests use the rest")]
mod postgres;
#[cfg(feature = "redis")]
#[path = "../support/redis.rs"]
#[allow(dead_code, unreachable_pub, reason = "other tests use the rest")]
mod redis_server;

#[cfg(feature = "redis")]
mod redis;
#[cfg(feature = "sql")]
mod subject;

#[cfg(feature = "sql")]
mod sqlite {
    octollm_core::conformance::bus_tests! { #[tokio::test(flavor = "multi_thread", worker_threads = 2)] crate::subject::Sqlite::new() }
}

#[cfg(feature = "sql")]
mod on_postgres {
    octollm_core::conformance::bus_tests! { #[tokio::test(flavor = "multi_thread", worker_threads = 2)] crate::subject::OnPostgres::new() }
}

#[cfg(feature = "redis")]
mod on_redis {
    octollm_core::conformance::bus_tests! { #[tokio::test(flavor = "multi_thread", worker_threads = 2)] crate::redis::PubSub::new() }
}

#[cfg(feature = "redis")]
mod on_redis_streams {
    octollm_core::conformance::bus_tests! { #[tokio::test(flavor = "multi_thread", worker_threads = 2)] crate::redis::Streams::new() }
}
