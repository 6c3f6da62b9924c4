//! Publish and subscribe.

use octollm_core::bus::{BusError, Gap};
use octollm_events::{Encoding, redis::RedisBus};
use tokio::time::Instant;

use crate::*;

#[tokio::test]
async fn events_of_other_programs_are_read_and_the_rest_is_skipped() {
    let server = Redis::start(&[]);
    let bus = RedisBus::connect(&server.url()).await.unwrap();
    let mut events = subscribed(&bus).await;
    let record = include_bytes!("../golden/record.json");
    for payload in [&b"no event"[..], b"\xff\0", b"", br#"{"event_type":"x"}"#] {
        server.execute_words(&[b"PUBLISH", b"events:task:completed", payload]);
    }
    server.execute_words(&[b"PUBLISH", b"events:with:four:segments", record]);
    server.execute_words(&[b"PUBLISH", b"events:task:completed", record]);
    let event = received(&mut events).await;
    assert_eq!((event.event_type(), event.source()), ("task.completed", "orchestrator"));
    assert_eq!(event.data()["task_id"], "task_abc123");
}

#[tokio::test]
async fn an_encoding_is_that_of_all_programs() {
    let server = Redis::start(&[]);
    let open = || RedisBus::builder(&server.url()).encoding(Encoding::CloudEvents).connect();
    let (publisher, subscriber) = (open().await.unwrap(), open().await.unwrap());
    let mut events = subscribed(&subscriber).await;
    let sent = event(1).with_partition_key("k");
    publisher.publish(sent.clone()).await.unwrap();
    assert_eq!(received(&mut events).await, sent);
    let other = RedisBus::connect(&server.url()).await.unwrap();
    let mut native = subscribed(&other).await;
    publisher.publish(sent).await.unwrap();
    other.publish(event(2)).await.unwrap();
    assert_eq!(number(&received(&mut native).await), 2, "an event in another encoding is skipped");
}

#[tokio::test]
async fn a_silent_server_is_a_gap_within_two_heartbeats() {
    let server = Redis::start(&[]);
    let heartbeat = Duration::from_millis(500);
    let bus =
        RedisBus::builder(&server.url()).heartbeat(heartbeat).timeout(heartbeat).connect().await.unwrap();
    let mut events = subscribed(&bus).await;
    // Longer than a heartbeat: a server that answers is not silent.
    assert!(timeout(heartbeat * 4, events.next()).await.is_err());
    server.stop();
    let since = Instant::now();
    assert!(matches!(signal(&mut events).await, Signal::Gap(Gap::ConnectionLost)));
    assert!(since.elapsed() < heartbeat * 3, "{:?}", since.elapsed());
    let refused = bus.publish(event(1)).await.unwrap_err();
    assert!(matches!(refused, BusError::Unavailable { .. }), "{refused:?}");
    server.resume();
    assert!(matches!(signal(&mut events).await, Signal::Gap(Gap::ConnectionLost)), "it is subscribed again");
    while bus.publish(event(2)).await.is_err() {
        tokio::task::yield_now().await;
    }
    assert_eq!(number(&received(&mut events).await), 2);
}

#[tokio::test]
async fn a_blocked_subscription_costs_no_other_one_an_event() {
    let server = Redis::start(&[]);
    let bus = RedisBus::connect(&server.url()).await.unwrap();
    let mut blocked = bus.subscribe(Pattern::all(), Overflow::Block).await.unwrap();
    let mut events = subscribed(&bus).await;
    const SENT: usize = 5 * Overflow::BLOCK_CAPACITY;
    for result in bus.publish_all((0..SENT).map(event).collect()).await {
        result.unwrap();
    }
    for expected in 0..SENT {
        assert_eq!(number(&received(&mut events).await), expected);
    }
    // It is received from within the block timeout, so it has lost nothing.
    for expected in 0..SENT {
        assert_eq!(number(&received(&mut blocked).await), expected);
    }
}

#[tokio::test]
async fn what_nobody_subscribes_to_any_more_is_unsubscribed() {
    let server = Redis::start(&[]);
    let heartbeat = Duration::from_millis(200);
    let bus = RedisBus::builder(&server.url()).heartbeat(heartbeat).connect().await.unwrap();
    let events = subscribed(&bus).await;
    let channel = || bus.subscribe("events:order:paid".parse().unwrap(), Overflow::DropNewest(1));
    let (first, second, blocked) = (
        channel().await.unwrap(),
        channel().await.unwrap(),
        bus.subscribe("events:order:sent".parse().unwrap(), Overflow::Block).await.unwrap(),
    );
    let until = async |command: &str, answer: &str| {
        let end = Instant::now() + LIMIT;
        while server.execute(command) != answer {
            assert!(Instant::now() < end, "{command} is {}", server.execute(command));
            tokio::time::sleep(heartbeat / 10).await;
        }
    };
    let count = "PUBSUB NUMSUB events:order:paid";
    until(count, "*2\r\n$17\r\nevents:order:paid\r\n:1\r\n").await;
    drop((first, blocked));
    until("PUBSUB NUMSUB events:order:sent", "*2\r\n$17\r\nevents:order:sent\r\n:0\r\n").await;
    until(count, "*2\r\n$17\r\nevents:order:paid\r\n:1\r\n").await;
    drop(second);
    until(count, "*2\r\n$17\r\nevents:order:paid\r\n:0\r\n").await;
    until("PUBSUB NUMPAT", ":1\r\n").await;
    drop(events);
    until("PUBSUB NUMPAT", ":0\r\n").await;
    let mut again = channel().await.unwrap();
    bus.publish(event(1)).await.unwrap();
    assert_eq!(number(&received(&mut again).await), 1);
    bus.close();
    assert!(timeout(LIMIT, again.next()).await.unwrap().is_none());
    assert!(matches!(bus.publish(event(2)).await, Err(BusError::Closed)));
}
