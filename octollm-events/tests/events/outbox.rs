//! Cases 44 to 48.

use std::{
    collections::HashSet,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
};

use async_trait::async_trait;
use octollm_core::bus::{BusError, Capability};
use tokio::{sync::Notify, time::Instant};

use crate::*;

on_both! {
    case_44_a_rollback_publishes_nothing_and_a_commit_publishes
    case_45_a_relay_killed_after_publishing_publishes_again_with_the_same_id
    case_46_transactions_committed_out_of_order_are_all_published
    case_47_two_relays_lose_nothing_and_preserve_the_order_of_each_key
    case_48_after_the_bus_was_away_everything_comes_in_order
    an_event_that_the_bus_refuses_is_a_dead_letter_and_stops_no_other
    an_event_that_is_too_large_is_refused_in_the_transaction
}

async fn case_44_a_rollback_publishes_nothing_and_a_commit_publishes(fixture: Fixture) {
    let outbox = Outbox::open(&fixture.database().await).await.unwrap();
    let bus = MemoryBus::new();
    let mut events = subscribed(&bus).await;
    tokio::spawn(outbox.relay(bus));
    for round in 0..20 {
        let mut tx = fixture.begin().await;
        tx.execute("INSERT INTO effects (name, number) VALUES ('rolled back', 1)").await;
        tx.enqueue(&outbox, &event(1000 + round)).await;
        tx.rollback().await;
        let sent = event(round).with_subject("order").with_partition_key("k\0");
        let mut tx = fixture.begin().await;
        tx.execute("INSERT INTO effects (name, number) VALUES ('committed', 1)").await;
        tx.enqueue(&outbox, &sent).await;
        tx.commit().await;
        assert_eq!(received(&mut events).await, sent);
    }
    assert_eq!(fixture.count("SELECT count(*) FROM effects WHERE name = 'committed'").await, 20);
    assert_eq!(fixture.count("SELECT count(*) FROM effects").await, 20);
    let end = Instant::now() + LIMIT;
    while outbox.waiting().await.unwrap() > 0 {
        assert!(Instant::now() < end);
    }
}

/// A bus that publishes, and then never returns: what a relay sees that is killed then.
#[derive(Clone)]
struct Deadly {
    bus: MemoryBus,
    published: Arc<Notify>,
}

#[async_trait]
impl EventBus for Deadly {
    async fn publish(&self, event: Event) -> Result<(), BusError> {
        self.bus.publish(event).await?;
        self.published.notify_one();
        std::future::pending().await
    }

    async fn subscribe(&self, pattern: Pattern, overflow: Overflow) -> Result<Subscription, BusError> {
        self.bus.subscribe(pattern, overflow).await
    }

    fn capabilities(&self) -> &[Capability] {
        self.bus.capabilities()
    }

    fn max_event_bytes(&self) -> usize {
        self.bus.max_event_bytes()
    }
}

async fn case_45_a_relay_killed_after_publishing_publishes_again_with_the_same_id(fixture: Fixture) {
    let bus = MemoryBus::new();
    let mut events = subscribed(&bus).await;
    let lease = Duration::from_millis(300);
    let doomed = Outbox::open(&fixture.database().await).await.unwrap().lease(lease);
    let sent = event(1);
    let mut tx = fixture.begin().await;
    tx.enqueue(&doomed, &sent).await;
    tx.commit().await;

    // One whose process stops: nothing of it is polled again, and its lease expires.
    let published = Arc::new(Notify::new());
    let mut relay = Box::pin(doomed.relay(Deadly { bus: bus.clone(), published: published.clone() }));
    tokio::select! {
        () = published.notified() => {}
        ended = &mut relay => panic!("{ended}"),
    }
    let stopped = Instant::now();
    assert_eq!(received(&mut events).await, sent);
    let other = Outbox::open(&fixture.database().await).await.unwrap().lease(lease);
    // One that is dropped: its lease ends at once.
    let published = Arc::new(Notify::new());
    let dropped = tokio::spawn(other.relay(Deadly { bus: bus.clone(), published: published.clone() }));
    published.notified().await;
    assert!(stopped.elapsed() > lease / 2, "the lease of a relay holds");
    dropped.abort();
    assert_eq!(received(&mut events).await, sent);

    tokio::spawn(other.relay(bus));
    assert_eq!(received(&mut events).await, sent);
    let end = Instant::now() + LIMIT;
    while other.waiting().await.unwrap() > 0 {
        assert!(Instant::now() < end);
    }
    drop(relay);
}

async fn case_46_transactions_committed_out_of_order_are_all_published(fixture: Fixture) {
    let outbox = Outbox::open(&fixture.database().await).await.unwrap();
    let bus = MemoryBus::new();
    let mut events = subscribed(&bus).await;
    tokio::spawn(outbox.relay(bus));
    if fixture.is_postgres() {
        // The first one has the lower id and the lower transaction id, and is committed last.
        let mut first = fixture.begin().await;
        first.enqueue(&outbox, &event(1)).await;
        for number in 2..5 {
            let mut tx = fixture.begin().await;
            tx.enqueue(&outbox, &event(number)).await;
            tx.commit().await;
            // A transaction that runs for long delays no other.
            assert_eq!(crate::number(&received(&mut events).await), number);
        }
        first.commit().await;
        assert_eq!(number(&received(&mut events).await), 1);
    }
    // Many at once, which wait at random before they commit.
    let mut writers = Vec::new();
    for writer in 0..8 {
        let (pool, outbox) = (fixture.pool.clone(), outbox.clone());
        writers.push(tokio::spawn(async move {
            for step in 0..25 {
                let mut tx = pool.begin().await;
                tx.enqueue(&outbox, &event(100 + writer * 25 + step)).await;
                for _ in 0..(writer * step) % 7 {
                    tokio::task::yield_now().await;
                }
                tx.commit().await;
            }
        }));
    }
    let mut seen = HashSet::new();
    while seen.len() < 200 {
        seen.insert(number(&received(&mut events).await));
    }
    for writer in writers {
        writer.await.unwrap();
    }
}

async fn case_47_two_relays_lose_nothing_and_preserve_the_order_of_each_key(fixture: Fixture) {
    const KEYS: usize = 16;
    const STEPS: usize = 100;
    let bus = MemoryBus::new();
    let mut events = subscribed(&bus).await;
    let outbox = Outbox::open(&fixture.database().await).await.unwrap();
    for _ in 0..2 {
        let other = Outbox::open(&fixture.database().await).await.unwrap();
        tokio::spawn(other.relay(bus.clone()));
    }
    let (pool, writing) = (fixture.pool.clone(), outbox.clone());
    let writer = tokio::spawn(async move {
        for step in 0..STEPS {
            let mut tx = pool.begin().await;
            for key in 0..KEYS {
                let event = event(step).with_partition_key(format!("k{key}"));
                tx.enqueue(&writing, &event).await;
            }
            tx.commit().await;
        }
    });
    let mut next = HashMap::<String, usize>::new();
    for _ in 0..KEYS * STEPS {
        let event = received(&mut events).await;
        let expected = next.entry(event.partition_key().unwrap().to_owned()).or_default();
        assert_eq!(number(&event), *expected, "in order, and once without faults");
        *expected += 1;
    }
    writer.await.unwrap();
}

/// A bus that is away for a while, and refuses one of fifty events while it comes back.
#[derive(Clone)]
struct Away {
    bus: MemoryBus,
    away: Arc<AtomicBool>,
    tried: Arc<AtomicUsize>,
}

#[async_trait]
impl EventBus for Away {
    async fn publish(&self, event: Event) -> Result<(), BusError> {
        let tried = self.tried.fetch_add(1, Ordering::Relaxed);
        if self.away.load(Ordering::Relaxed) || tried.is_multiple_of(50) {
            return Err(BusError::Unavailable { source: None });
        }
        self.bus.publish(event).await
    }

    async fn subscribe(&self, pattern: Pattern, overflow: Overflow) -> Result<Subscription, BusError> {
        self.bus.subscribe(pattern, overflow).await
    }

    fn capabilities(&self) -> &[Capability] {
        self.bus.capabilities()
    }

    fn max_event_bytes(&self) -> usize {
        self.bus.max_event_bytes()
    }
}

async fn case_48_after_the_bus_was_away_everything_comes_in_order(fixture: Fixture) {
    const KEYS: usize = 4;
    const STEPS: usize = 100;
    let bus = MemoryBus::new();
    let mut events = subscribed(&bus).await;
    let outbox = Outbox::open(&fixture.database().await).await.unwrap();
    let away = Arc::new(AtomicBool::new(true));
    let tried = Arc::new(AtomicUsize::new(0));
    tokio::spawn(outbox.relay(Away { bus, away: away.clone(), tried: tried.clone() }));
    for step in 0..STEPS {
        let mut tx = fixture.begin().await;
        for key in 0..KEYS {
            tx.enqueue(&outbox, &event(step).with_partition_key(format!("k{key}"))).await;
        }
        tx.commit().await;
    }
    assert_eq!(outbox.waiting().await.unwrap(), (KEYS * STEPS) as u64);
    let end = Instant::now() + LIMIT;
    while tried.load(Ordering::Relaxed) < 5 {
        assert!(Instant::now() < end, "the bus is tried again");
        tokio::task::yield_now().await;
    }
    // A relay reads few at a time: it has tried the first of each key, and no more.
    assert!(tried.load(Ordering::Relaxed) < 2 * STEPS);
    away.store(false, Ordering::Relaxed);
    let mut next = HashMap::<String, usize>::new();
    for _ in 0..KEYS * STEPS {
        let event = received(&mut events).await;
        let expected = next.entry(event.partition_key().unwrap().to_owned()).or_default();
        assert_eq!(number(&event), *expected);
        *expected += 1;
    }
}

async fn an_event_that_the_bus_refuses_is_a_dead_letter_and_stops_no_other(fixture: Fixture) {
    let outbox = Outbox::open(&fixture.database().await).await.unwrap();
    let narrow = MemoryBus::with_limits(200, Duration::from_secs(5)).unwrap();
    let mut events = subscribed(&narrow).await;
    let relay = tokio::spawn(outbox.relay(narrow));
    let large = Event::new("order.paid", "shop", "x".repeat(300)).unwrap().with_partition_key("k");
    let mut tx = fixture.begin().await;
    tx.enqueue(&outbox, &large).await;
    tx.enqueue(&outbox, &event(2).with_partition_key("k")).await;
    tx.commit().await;
    assert_eq!(number(&received(&mut events).await), 2);
    let letters = outbox.dead_letters(None, 10).await.unwrap();
    assert_eq!((letters.len(), letters[0].event.as_ref().unwrap()), (1, &large));
    assert!(letters[0].reason.contains("200"), "{}", letters[0].reason);
    assert_eq!(outbox.dead_letters(Some(&letters[0].entry), 10).await.unwrap(), []);
    relay.abort();
    let _ = relay.await;
    let wide = MemoryBus::new();
    let mut events = subscribed(&wide).await;
    assert!(outbox.replay(&letters[0].entry).await.unwrap());
    assert!(!outbox.replay(&letters[0].entry).await.unwrap() && !outbox.replay("nonsense").await.unwrap());
    tokio::spawn(outbox.relay(wide));
    assert_eq!(received(&mut events).await, large);
}

async fn an_event_that_is_too_large_is_refused_in_the_transaction(fixture: Fixture) {
    let outbox = Outbox::open(&fixture.database().await).await.unwrap().max_event_bytes(100);
    let large = Event::new("order.paid", "shop", "x".repeat(300)).unwrap();
    let refused = match fixture.begin().await {
        Tx::Sqlite(mut tx) => outbox.enqueue(&mut tx, &large).await,
        Tx::Postgres(mut tx) => outbox.enqueue(&mut tx, &large).await,
    };
    assert!(matches!(refused, Err(SqlError::TooLarge { limit: 100, .. })), "{refused:?}");
    assert_eq!(outbox.waiting().await.unwrap(), 0);
}
