//! Several instances of servers and brains over one Redis server.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use async_trait::async_trait;
use octollm_core::{
    Arm, Context,
    error::{ArmError, ErrorKind},
    limit::RateLimit,
};
use octollm_events::redis::{RedisBus, RedisIdempotencyStore, RedisRateLimiter};
use octollm_http::{Arms, Registry, Server, client::OrchestratorClient};
use octollm_macros::TaskContract;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::{
    sync::oneshot,
    time::{Instant, sleep},
};

use crate::*;

/// Looks something up.
#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "word.look", output = u32, idempotent, cache = "600s")]
struct Look {}

/// Charges a card.
#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "card.charge", output = u32)]
struct Charge {
    cents: u32,
}

/// Counts its runs, over all instances.
#[derive(Clone, Default)]
struct Office(Arc<AtomicU32>);

#[async_trait]
impl Arm<Look> for Office {
    async fn execute(&self, _: Look, _: &Context) -> Result<u32, ArmError> {
        Ok(self.0.fetch_add(1, Ordering::SeqCst) + 1)
    }
}

#[async_trait]
impl Arm<Charge> for Office {
    async fn execute(&self, input: Charge, _: &Context) -> Result<u32, ArmError> {
        Ok(self.0.fetch_add(input.cents, Ordering::SeqCst) + input.cents)
    }
}

/// Serves, and returns a client of this server alone.
async fn started(server: Server) -> Arms {
    let server = server.bind("127.0.0.1:0").await.unwrap();
    let arms = Arms::builder().endpoint("office", server.url()).build().unwrap();
    tokio::spawn(server.run());
    arms
}

async fn bus(server: &Redis) -> RedisBus {
    RedisBus::connect(&server.url()).await.unwrap()
}

async fn look(arms: &Arms) -> u32 {
    arms.call(Look {}).await.unwrap()
}

/// Waits for what becomes true.
async fn eventually(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let end = Instant::now() + LIMIT;
    while !is_so().await {
        assert!(Instant::now() < end, "{what}");
        sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_instance_invalidates_is_dropped_at_all_and_after_a_gap_everything_is() {
    let redis = Redis::start(&[]);
    let (office, publisher) = (Office::default(), bus(&redis).await);
    let mut instances = Vec::new();
    for _ in 0..2 {
        let server = Server::new("office").arm::<Look>(office.clone()).bus(bus(&redis).await);
        instances.push(started(server).await);
    }
    for arms in &instances {
        eventually("answers are cached", async || look(arms).await == look(arms).await).await;
    }
    for invalidate in [true, false] {
        let before = [look(&instances[0]).await, look(&instances[1]).await];
        assert_eq!([look(&instances[0]).await, look(&instances[1]).await], before, "both are cached");
        if invalidate {
            let contract = "word.look".parse::<octollm_core::contract::ContractRef>().unwrap();
            publisher.publish(Event::cache_invalidated("editor", contract).unwrap()).await.unwrap();
        } else {
            // What was published meanwhile would be missed.
            redis.disconnect();
        }
        for (arms, before) in instances.iter().zip(before) {
            eventually("it looks again", async || look(arms).await != before).await;
            eventually("and caches that", async || look(arms).await == look(arms).await).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_and_a_limit_hold_at_all_instances() {
    let redis = Redis::start(&[]);
    let office = Office::default();
    let mut instances = Vec::new();
    for _ in 0..2 {
        let keys = RedisIdempotencyStore::connect(&redis.url()).await.unwrap();
        let limiter = RedisRateLimiter::connect(&redis.url()).await.unwrap();
        let server = Server::new("office").arm::<Charge>(office.clone()).idempotency(keys);
        let limit = RateLimit::new(5, Duration::from_secs(3600));
        instances.push(started(server.rate_limiter(limiter).rate_limit(limit)).await);
    }
    let charge = |at: usize, key: &'static str| instances[at % 2].call(Charge { cents: 5 }).key(key);
    for at in 0..4 {
        assert_eq!(charge(at, "a").await.unwrap(), 5, "one run and one answer");
    }
    assert_eq!(charge(0, "b").await.unwrap(), 10);
    for at in 0..2 {
        let error = charge(at, "c").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::RateLimited);
    }
    assert_eq!(office.0.load(Ordering::SeqCst), 10);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_registers_at_one_orchestrator_is_published_to_all_processes() {
    let redis = Redis::start(&[]);
    let elsewhere = bus(&redis).await;
    let pattern = "events:arm:*".parse().unwrap();
    let mut events = elsewhere.subscribe(pattern, Overflow::DropOldest(64)).await.unwrap();
    let brain = octollm_core::brain::Brain::builder().build().unwrap();
    let server = Server::new("brain").orchestrator(brain).registry(Registry::new()).bus(bus(&redis).await);
    let server = server.bind("127.0.0.1:0").await.unwrap();
    let url = server.url();
    tokio::spawn(server.run());
    let office = Server::new("office").arm::<Look>(Office::default());
    let office = office.register(OrchestratorClient::new(&url).unwrap());
    let office = office.bind("127.0.0.1:0").await.unwrap();
    let at = office.url();
    let (stop, stopped) = oneshot::channel::<()>();
    tokio::spawn(office.run_until(async { drop(stopped.await) }));
    let registered = received(&mut events).await;
    assert_eq!((registered.event_type(), registered.source()), ("arm.registered", "brain"));
    assert_eq!(
        (&registered.data()["arm_id"], &registered.data()["endpoint"]),
        (&"office".into(), &at.into())
    );
    stop.send(()).unwrap();
    let gone = received(&mut events).await;
    assert_eq!((gone.event_type(), &gone.data()["reason"]), ("arm.unavailable", &"left".into()));
}

#[cfg(feature = "sql")]
mod brains {
    use octollm_core::{
        brain::Brain,
        task::{TaskStatus, TaskUpdate},
    };
    use octollm_events::sql::SqlStore;

    use super::*;

    /// Counts in so many steps.
    #[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
    #[task(name = "number.count", output = u32)]
    struct Count {
        steps: u32,
    }

    struct Counter;

    #[async_trait]
    impl Arm<Count> for Counter {
        async fn execute(&self, input: Count, cx: &Context) -> Result<u32, ArmError> {
            for step in 1..=input.steps {
                cx.progress(u8::try_from(step * 10).unwrap_or(100), format!("step {step}"));
                sleep(Duration::from_millis(20)).await;
            }
            Ok(input.steps)
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_task_that_is_submitted_at_one_brain_is_watched_at_another() {
        let (redis, folder) = (Redis::start(&[]), tempfile::tempdir().unwrap());
        let url = format!("sqlite:{}", folder.path().join("tasks.db").display());
        let mut clients = Vec::new();
        for _ in 0..3 {
            let store = SqlStore::open(&url).await.unwrap();
            let brain = Brain::builder().arm(Counter).store(store).bus(bus(&redis).await).build().unwrap();
            let server = Server::new("brain").orchestrator(brain).bind("127.0.0.1:0").await.unwrap();
            clients.push(OrchestratorClient::new(server.url()).unwrap());
            tokio::spawn(server.run());
        }
        let elsewhere = bus(&redis).await;
        let pattern = "events:task:*".parse().unwrap();
        let mut events = elsewhere.subscribe(pattern, Overflow::DropOldest(1024)).await.unwrap();
        for (at, client) in clients.iter().enumerate() {
            let submitted = client.submit(Count { steps: 5 }).await.unwrap();
            let other = clients[(at + 1) % 3].task::<Count>(submitted.id().clone());
            let mut updates = other.watch().await.unwrap();
            let mut last = None;
            while let Some(update) = timeout(LIMIT, updates.next()).await.unwrap() {
                last = Some(update);
            }
            assert!(
                matches!(last, Some(TaskUpdate::Status { status: TaskStatus::Completed, .. })),
                "{last:?}"
            );
            assert_eq!(other.output().await.unwrap(), 5);
            // Whichever of them has run it, all processes see its end.
            loop {
                let event = received(&mut events).await;
                assert_eq!(event.subject(), Some(submitted.id().as_str()));
                if event.event_type() == "task.completed" {
                    break;
                }
            }
        }
    }
}
