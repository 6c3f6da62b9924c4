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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_survive_a_restart_of_the_server() {
    let mut server = OnRedis(Redis::start(&["--appendonly yes --appendfsync always"]));
    cases::calls_survive(server.bus().await, async || {
        server.0.kill();
        server.0.restart();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_survive_the_loss_of_all_connections() {
    let server = OnRedis(Redis::start(&[]));
    cases::calls_survive(server.bus().await, async || server.0.disconnect()).await;
}
