//! Records of calls with a key.

use std::sync::{
    Arc,
    atomic::{AtomicU32, AtomicUsize, Ordering},
};

use async_trait::async_trait;
use futures_util::FutureExt;
use octollm_core::{
    Context,
    arm::arm_fn,
    conformance::Subject,
    contract::{Keys, TaskContract},
    dispatcher::Dispatcher,
    error::{ArmError, ErrorKind},
    id::IdempotencyKey,
    idempotency::{Begun, IdempotencyStore, KeyedAnswer, KeyedRun},
    parts::ContextParts,
};
use octollm_events::redis::{RedisError, RedisIdempotencyStore};
use octollm_macros::TaskContract;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep, timeout};

use crate::*;

/// Records of the server that all tests share, under a prefix of its own.
struct OnRedis(String);

impl OnRedis {
    fn new() -> Self {
        static OPENED: AtomicUsize = AtomicUsize::new(0);
        Self(format!("keys-{}", OPENED.fetch_add(1, Ordering::Relaxed)))
    }
}

#[async_trait]
impl Subject<dyn IdempotencyStore> for OnRedis {
    async fn open(&self) -> Arc<dyn IdempotencyStore> {
        let builder = RedisIdempotencyStore::builder(&Redis::shared().url()).prefix(&self.0);
        Arc::new(builder.retained_for(Duration::from_secs(2)).connect().await.unwrap())
    }
}

mod on_redis {
    use super::*;

    octollm_core::conformance::idempotency_store_tests! {
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        OnRedis::new()
    }
}

/// Charges a card.
#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "card.charge", output = u32)]
struct Charge {
    cents: u32,
}

/// An instance of an arm that adds up what it charges.
fn bank(store: RedisIdempotencyStore, charged: &Arc<AtomicU32>) -> Dispatcher {
    let mut dispatcher = Dispatcher::new("bank");
    dispatcher.idempotency(store);
    let charged = charged.clone();
    dispatcher.serve::<Charge>(arm_fn(move |input: Charge, _| {
        let charged = charged.clone();
        async move { Ok::<_, ArmError>(charged.fetch_add(input.cents, Ordering::SeqCst) + input.cents) }
    }));
    dispatcher
}

fn keyed(key: &str) -> Context {
    let mut parts = ContextParts::new();
    parts.key = IdempotencyKey::new(key);
    Context::from_parts(parts, Arc::new(()))
}

const CHARGE: &[u8] = br#"{"cents":5}"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_holds_across_instances_and_the_card_says_so() {
    let server = Redis::start(&["--appendonly yes", "--appendfsync always"]);
    let (charged, contract) = (Arc::default(), Charge::SPEC.reference());
    let mut instances = Vec::new();
    for _ in 0..3 {
        let store = RedisIdempotencyStore::connect(&server.url()).await.unwrap();
        assert_eq!((store.keys(), store.retention()), (Keys::Shared, Duration::from_secs(24 * 3600)));
        instances.push(bank(store, &charged));
    }
    for key in ["a", "b"] {
        let mut outputs = Vec::new();
        for instance in &instances {
            outputs.push(instance.execute(&contract, CHARGE, &mut keyed(key)).await.unwrap());
        }
        assert!(outputs.iter().all(|output| *output == outputs[0]), "{outputs:?}");
    }
    assert_eq!(charged.load(Ordering::SeqCst), 10);
    let card = serde_json::to_value(instances[0].card()).unwrap();
    let stated = (&card["contracts"][0]["keys"], &card["contracts"][0]["keys_retained_s"]);
    assert_eq!(stated, (&"shared".into(), &86_400.into()));
}

// On one thread, so that the server has not answered before the call is dropped.
#[tokio::test]
async fn a_call_that_is_dropped_while_its_record_begins_runs_when_it_is_repeated() {
    let store = RedisIdempotencyStore::builder(&Redis::shared().url()).prefix("dropped");
    let charged = Arc::default();
    let dispatcher = bank(store.connect().await.unwrap(), &charged);
    let contract = Charge::SPEC.reference();
    let mut dropped = keyed("k");
    // One poll begins the record.
    assert!(dispatcher.execute(&contract, CHARGE, &mut dropped).now_or_never().is_none());
    let end = Instant::now() + LIMIT;
    let output = loop {
        // While the record is withdrawn, the call is answered that it runs.
        match dispatcher.execute(&contract, CHARGE, &mut keyed("k")).await {
            Ok(output) => break output,
            Err(error) => assert!(Instant::now() < end, "{error:?}"),
        }
        sleep(Duration::from_millis(10)).await;
    };
    assert_eq!((&output[..], charged.load(Ordering::SeqCst)), (&b"5"[..], 5));
}

fn run() -> KeyedRun {
    let mut parts = ContextParts::new();
    parts.key = IdempotencyKey::new("k");
    KeyedRun::new(&parts, &Charge::SPEC.reference(), CHARGE).unwrap()
}

#[test]
fn a_store_is_used_by_one_runtime_after_the_other() {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let builder = RedisIdempotencyStore::builder(&Redis::shared().url()).prefix("runtimes");
    let (store, first) = runtime().block_on(async {
        let store = builder.connect().await.unwrap();
        let first = store.begin(&run(), LIMIT, false).await.unwrap();
        (store, first)
    });
    // The connection has ended with its runtime.
    let again =
        runtime().block_on(async { timeout(LIMIT, store.begin(&run(), LIMIT, false)).await.unwrap() });
    assert_eq!((first, again.unwrap()), (Begun::Run, Begun::Running));
}

#[tokio::test]
async fn a_server_that_is_full_or_away_begins_no_run() {
    let server = Redis::start(&[]);
    let timeout = Duration::from_millis(500);
    let store = RedisIdempotencyStore::builder(&server.url()).timeout(timeout).connect().await.unwrap();
    let first = run();
    assert_eq!(store.begin(&first, LIMIT, false).await.unwrap(), Begun::Run);
    server.execute("CONFIG SET maxmemory 1");
    let mut parts = ContextParts::new();
    parts.key = IdempotencyKey::new("other");
    let other = KeyedRun::new(&parts, &Charge::SPEC.reference(), CHARGE).unwrap();
    assert_eq!(store.begin(&other, LIMIT, false).await.unwrap(), Begun::Full);
    let answer = KeyedAnswer::new(Ok("5".into()), Default::default(), Default::default(), timeout);
    assert_eq!(store.finish(&first, answer).await.unwrap_err().kind, ErrorKind::Unavailable);
    assert_eq!(store.begin(&run(), LIMIT, false).await.unwrap(), Begun::Running, "it is as it was");
    server.execute("CONFIG SET maxmemory 0");
    server.stop();
    let since = Instant::now();
    let failure = store.begin(&other, LIMIT, false).await.unwrap_err();
    assert_eq!(failure.kind, ErrorKind::Unavailable);
    assert!(since.elapsed() < LIMIT / 3, "{:?}", since.elapsed());
    server.resume();
}

#[tokio::test]
async fn settings_of_a_store_are_checked() {
    let builder = RedisIdempotencyStore::builder("redis://host");
    for builder in
        [builder.clone().prefix(""), builder.clone().prefix("a{"), builder.retained_for(Duration::ZERO)]
    {
        assert!(matches!(builder.connect().await, Err(RedisError::Setting(_))));
    }
}
