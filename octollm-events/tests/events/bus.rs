//! The bus beyond the suite: its limits, what is claimed ahead, and an outbox that relays to it.

use octollm_core::bus::{BusError, ConsumeOptions, Consumer, DelayBus, Delivery, DurableBus, Gap, Nack};
use octollm_events::sql::SqlBus;
use tokio::time::Instant;

use crate::*;

on_both! {
    a_trimmed_history_is_a_gap_first
    a_full_group_refuses_the_publisher_and_takes_again
    the_oldest_dead_letters_are_discarded
    what_was_claimed_ahead_goes_to_a_peer_as_the_same_attempt
    a_delayed_event_survives_its_publisher
    case_39_an_event_that_is_published_twice_has_its_effect_once
}

async fn delivered(consumer: &mut Consumer) -> Delivery {
    match timeout(LIMIT, consumer.next()).await {
        Ok(Some(Ok(delivery))) => delivery,
        other => panic!("no delivery but {other:?}"),
    }
}

const GROUP: &str = "workers";

async fn consumer(bus: &SqlBus, options: ConsumeOptions) -> Consumer {
    bus.consume(GROUP, Pattern::all(), options).await.unwrap()
}

async fn a_trimmed_history_is_a_gap_first(fixture: Fixture) {
    let bus = SqlBus::builder(&fixture.database().await).history(3, 10_000).open().await.unwrap();
    for number in 0..20 {
        bus.publish(event(number)).await.unwrap();
    }
    let mut consumer = consumer(&bus, ConsumeOptions { from_start: true, ..Default::default() }).await;
    match consumer.next().await {
        Some(Err(gap)) => assert_eq!(gap, Gap::Trimmed { event_ids: Vec::new() }),
        other => panic!("no gap but {other:?}"),
    }
    let first = number(delivered(&mut consumer).await.event());
    assert!((13..=17).contains(&first), "{first}");
    for expected in first + 1..20 {
        assert_eq!(number(delivered(&mut consumer).await.event()), expected);
    }
}

async fn a_full_group_refuses_the_publisher_and_takes_again(fixture: Fixture) {
    let builder = SqlBus::builder(&fixture.database().await);
    let bus = builder.max_event_bytes(300).history(0, 0).backlog(2, 1024).open().await.unwrap();
    let mut consumer = consumer(&bus, ConsumeOptions::default()).await;
    bus.publish(event(0)).await.unwrap();
    bus.publish(event(1)).await.unwrap();
    let refused = bus.publish(event(2)).await.unwrap_err();
    assert!(matches!(refused, BusError::Full { events: 2, bytes: 1024 }) && refused.retryable());
    delivered(&mut consumer).await.ack().await.unwrap();
    bus.publish(event(3)).await.unwrap();
    assert!(bus.remove_group(GROUP).await.unwrap());
    assert!(timeout(LIMIT, consumer.next()).await.unwrap().is_none(), "the consumers of a removed group end");
    assert!(matches!(consumer.ended(), Some(BusError::UnknownGroup { .. })));
    assert!(!bus.remove_group(GROUP).await.unwrap());
    let other = SqlBus::builder(&fixture.database().await).backlog(0, 1024).open().await;
    assert!(matches!(other, Err(SqlError::Setting(_))));
}

async fn the_oldest_dead_letters_are_discarded(fixture: Fixture) {
    let builder = SqlBus::builder(&fixture.database().await);
    let bus = builder.max_event_bytes(300).dead_letters(3, 10_000).open().await.unwrap();
    let mut consumer = consumer(&bus, ConsumeOptions::default()).await;
    for number in 0..5 {
        bus.publish(event(number)).await.unwrap();
        delivered(&mut consumer).await.nack(Nack::dead_letter("bad\0")).await.unwrap();
    }
    let letters = bus.dead_letters(GROUP, None, 10).await.unwrap();
    let numbers: Vec<_> = letters.iter().map(|letter| number(letter.event.as_ref().unwrap())).collect();
    assert_eq!(numbers, [2, 3, 4]);
    let status = bus.group(GROUP).await.unwrap();
    assert_eq!((status.dead_letters, status.discarded, status.pending, status.waiting), (3, 2, 0, 0));
}

async fn what_was_claimed_ahead_goes_to_a_peer_as_the_same_attempt(fixture: Fixture) {
    let bus = SqlBus::open(&fixture.database().await).await.unwrap();
    let mut greedy = consumer(&bus, ConsumeOptions { max_in_flight: 200, ..Default::default() }).await;
    for result in bus.publish_all((0..200).map(event).collect()).await {
        result.unwrap();
    }
    // It asks again at once, is given several events at a time, and then asks no more.
    let mut held = Vec::new();
    for _ in 0..100 {
        held.push(delivered(&mut greedy).await);
    }
    let mut peer = consumer(&bus, ConsumeOptions { max_in_flight: 200, ..Default::default() }).await;
    let since = Instant::now();
    for _ in 0..100 {
        let delivery = delivered(&mut peer).await;
        assert_eq!(delivery.attempt(), 1);
        held.push(delivery);
    }
    assert!(since.elapsed() < Duration::from_secs(20), "not when a lease expires: {:?}", since.elapsed());
    for result in Delivery::ack_all(held).await {
        result.unwrap();
    }
    let status = bus.group(GROUP).await.unwrap();
    assert_eq!((status.pending, status.waiting, status.members), (0, 0, 2));
}

async fn a_delayed_event_survives_its_publisher(fixture: Fixture) {
    let database = fixture.database().await;
    let bus = SqlBus::open(&database).await.unwrap();
    bus.publish_after(event(1), Duration::from_millis(500)).await.unwrap();
    bus.publish_after(event(2), Duration::from_secs(600)).await.unwrap();
    drop(bus);
    database.close().await;
    let bus = SqlBus::open(&fixture.database().await).await.unwrap();
    let mut consumer = consumer(&bus, ConsumeOptions { from_start: true, ..Default::default() }).await;
    assert_eq!(number(delivered(&mut consumer).await.event()), 1);
}

async fn case_39_an_event_that_is_published_twice_has_its_effect_once(fixture: Fixture) {
    let database = fixture.database().await;
    let bus = SqlBus::open(&database).await.unwrap();
    let (outbox, inbox) =
        (Outbox::open(&database).await.unwrap(), Inbox::open(&database, "billing").await.unwrap());
    let mut consumer = consumer(&bus, ConsumeOptions::default()).await;
    tokio::spawn(outbox.relay(bus.clone()));
    let sent = event(1);
    for _ in 0..2 {
        let mut tx = fixture.begin().await;
        tx.enqueue(&outbox, &sent).await;
        tx.commit().await;
    }
    for first in [true, false] {
        let delivery = delivered(&mut consumer).await;
        let mut tx = fixture.begin().await;
        assert_eq!(tx.once(&inbox, delivery.event()).await, first);
        if first {
            tx.execute("INSERT INTO effects (name, number) VALUES ('billed', 1)").await;
        }
        tx.commit().await;
        delivery.ack().await.unwrap();
    }
    assert_eq!(fixture.count("SELECT count(*) FROM effects").await, 1);
}
