//! Workers on the bus over streams.

use octollm_events::redis::RedisStreamBus;

use crate::{Redis, job_cases as cases, job_cases::job_tests};

/// A server of its own.
struct OnRedis(Redis);

impl OnRedis {
    async fn bus(&self) -> RedisStreamBus {
        RedisStreamBus::connect(&self.0.url()).await.unwrap()
    }
}

job_tests!(OnRedis(Redis::start(&[])));
