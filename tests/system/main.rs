//! Whole systems over sockets, and the example programs as a user runs them.

#[cfg(feature = "otel")]
mod collector;
mod counts;
#[cfg(all(feature = "sql", unix))]
mod durable;
#[cfg(unix)]
mod ending;
mod examples;
mod hops;
mod logged;
#[cfg(unix)]
mod octo;
#[cfg(all(feature = "sql", feature = "redis", unix))]
mod octopus;
#[cfg(all(feature = "sql", unix))]
#[path = "../../octollm-events/tests/support/postgres.rs"]
#[allow(dead_code, unreachable_pub, reason = "other tests use the rest")]
mod postgres;
mod quickstart;
#[cfg(all(feature = "redis", unix))]
#[path = "../../octollm-events/tests/support/redis.rs"]
#[allow(dead_code, unreachable_pub, reason = "other tests use the rest")]
mod redis;
mod reports;
mod repository;
mod tasks;
#[cfg(feature = "otel")]
mod traces;
