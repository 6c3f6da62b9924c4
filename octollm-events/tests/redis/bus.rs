//! The outbox and the inbox of a database, with the buses over Redis.

use std::collections::{HashMap, HashSet};

use octollm_core::bus::{ConsumeOptions, DurableBus};
use octollm_events::{
    redis::{RedisBus, RedisStreamBus},
    sql::{
        Inbox, Outbox, SqlDatabase,
        sqlx::{self, SqlitePool},
    },
};

use crate::*;

/// A file with a database, and connections of a program of its own.
struct Shop {
    _folder: tempfile::TempDir,
    database: SqlDatabase,
    pool: SqlitePool,
}

impl Shop {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}", folder.path().join("shop.db").display());
        let database = SqlDatabase::open(&url).await.unwrap();
        let pool = SqlitePool::connect(&url).await.unwrap();
        sqlx::query("CREATE TABLE effects (number INTEGER)").execute(&pool).await.unwrap();
        Self { _folder: folder, database, pool }
    }

    /// Handles an event as often as it is delivered. Returns whether this was the first time.
    async fn handle(&self, inbox: &Inbox, event: &Event) -> bool {
        let mut tx = self.pool.begin_with("BEGIN IMMEDIATE").await.unwrap();
        let is_first = inbox.once(&mut tx, event).await.unwrap();
        if is_first {
            sqlx::query("INSERT INTO effects VALUES (1)").execute(&mut *tx).await.unwrap();
        }
        tx.commit().await.unwrap();
        is_first
    }

    async fn effects(&self) -> i64 {
        sqlx::query_scalar("SELECT count(*) FROM effects").fetch_one(&self.pool).await.unwrap()
    }
}

/// As the page of results names it.
mod on_redis_streams {
    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn case_39_an_event_that_is_published_twice_has_its_effect_once() {
        let (server, shop) = (Redis::start(&[]), Shop::new().await);
        let inbox = Inbox::open(&shop.database, "billing").await.unwrap();
        let (streams, live) = (
            RedisStreamBus::connect(&server.url()).await.unwrap(),
            RedisBus::connect(&server.url()).await.unwrap(),
        );
        let mut consumer =
            streams.consume("billing", Pattern::all(), ConsumeOptions::default()).await.unwrap();
        let mut events = subscribed(&live).await;
        let sent = event(1);
        for is_first in [true, false] {
            streams.publish(sent.clone()).await.unwrap();
            let delivery = delivered(&mut consumer).await;
            assert_eq!(shop.handle(&inbox, delivery.event()).await, is_first);
            delivery.ack().await.unwrap();
        }
        // The same event over another bus is the same event.
        live.publish(sent).await.unwrap();
        assert!(!shop.handle(&inbox, &received(&mut events).await).await);
        assert_eq!(shop.effects().await, 1);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn case_48_after_the_server_was_killed_the_outbox_drains_in_order() {
        const KEYS: usize = 4;
        const STEPS: usize = 100;
        let mut server = Redis::start(&["--appendonly yes", "--appendfsync always"]);
        let shop = Shop::new().await;
        let outbox = Outbox::open(&shop.database).await.unwrap();
        let inbox = Inbox::open(&shop.database, "billing").await.unwrap();
        let bus = RedisStreamBus::connect(&server.url()).await.unwrap();
        let mut consumer = bus.consume("billing", Pattern::all(), ConsumeOptions::default()).await.unwrap();
        let mut events = subscribed(&bus).await;
        tokio::spawn(outbox.relay(bus.clone()));
        for step in 0..STEPS {
            if step == STEPS / 4 {
                server.kill();
            }
            let mut tx = shop.pool.begin_with("BEGIN IMMEDIATE").await.unwrap();
            for key in 0..KEYS {
                let event = event(step).with_partition_key(format!("k{key}"));
                outbox.enqueue(&mut tx, &event).await.unwrap();
            }
            tx.commit().await.unwrap();
        }
        assert!(
            outbox.waiting().await.unwrap() >= (KEYS * STEPS / 2) as u64,
            "they wait while the server is away"
        );
        server.restart();
        let mut handled = 0;
        while handled < KEYS * STEPS {
            let delivery = delivered(&mut consumer).await;
            handled += usize::from(shop.handle(&inbox, delivery.event()).await);
            delivery.ack().await.unwrap();
        }
        assert_eq!(shop.effects().await, (KEYS * STEPS) as i64);
        // The log has each of them, some perhaps twice, in the order of their keys.
        let (mut next, mut seen) = (HashMap::<String, usize>::new(), HashSet::new());
        while seen.len() < KEYS * STEPS {
            match signal(&mut events).await {
                Signal::Event(event) if seen.insert(event.id().to_owned()) => {
                    let expected = next.entry(event.partition_key().unwrap().to_owned()).or_default();
                    assert_eq!(number(&event), *expected);
                    *expected += 1;
                }
                Signal::Lagged(missed) => panic!("{missed} are missing"),
                Signal::Event(_) | Signal::Gap(_) => {}
            }
        }
    }
}
