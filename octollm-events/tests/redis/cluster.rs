//! Both buses over a cluster of three nodes, by the address of any.

use octollm_core::bus::{ConsumeOptions, DurableBus};
use octollm_events::redis::{RedisBus, RedisStreamBus};

use crate::*;

/// Three nodes that have formed a cluster.
async fn cluster() -> Vec<Redis> {
    let mut nodes = Vec::new();
    for slots in ["0 5460", "5461 10922", "10923 16383"] {
        let bus_port = redis_server::free_port();
        let node = Redis::start(&["--cluster-enabled yes", &format!("--cluster-port {bus_port}")]);
        node.execute(&format!("CLUSTER ADDSLOTSRANGE {slots}"));
        nodes.push((node, bus_port));
    }
    let (first, _) = &nodes[0];
    for (node, bus_port) in &nodes[1..] {
        first.execute(&format!("CLUSTER MEET 127.0.0.1 {} {bus_port}", node.port()));
    }
    for (node, _) in &nodes {
        let knows_all =
            |info: &str| info.contains("cluster_state:ok") && info.contains("cluster_known_nodes:3");
        let end = tokio::time::Instant::now() + LIMIT;
        while !knows_all(&node.execute("CLUSTER INFO")) {
            assert!(tokio::time::Instant::now() < end, "{}", node.execute("CLUSTER INFO"));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    nodes.into_iter().map(|(node, _)| node).collect()
}

#[tokio::test]
async fn every_node_of_a_cluster_leads_to_the_bus() {
    let nodes = cluster().await;
    let publisher = RedisBus::connect(&nodes[0].url()).await.unwrap();
    let mut subscriptions = Vec::new();
    for node in &nodes {
        let bus = RedisBus::connect(&node.url()).await.unwrap();
        let events = subscribed(&bus).await;
        subscriptions.push((bus, events));
    }
    publisher.publish(event(1)).await.unwrap();
    for (_, events) in &mut subscriptions {
        assert_eq!(number(&received(events).await), 1);
    }
    let mut consumers = Vec::new();
    for (at, node) in nodes.iter().enumerate() {
        let bus = RedisStreamBus::connect(&node.url()).await.unwrap();
        let consumer =
            bus.consume(&format!("group {at}"), Pattern::all(), ConsumeOptions::default()).await.unwrap();
        consumers.push((bus, consumer));
    }
    for (bus, _) in &consumers {
        let results = bus.publish_all((0..3).map(event).collect()).await;
        assert!(results.iter().all(Result::is_ok), "{results:?}");
    }
    for (_, consumer) in &mut consumers {
        for expected in [0, 1, 2, 0, 1, 2, 0, 1, 2] {
            let delivery = delivered(consumer).await;
            assert_eq!(number(delivery.event()), expected);
            delivery.ack().await.unwrap();
        }
    }
}

/// The id of a node.
fn id_of(node: &Redis) -> String {
    let answer = node.execute("CLUSTER MYID");
    answer.lines().nth(1).unwrap().to_owned()
}

#[tokio::test]
async fn a_slot_that_moves_is_followed_while_it_moves_and_after() {
    let nodes = cluster().await;
    let answer = nodes[0].execute("CLUSTER KEYSLOT {moving}");
    let slot: usize = answer.trim().trim_start_matches(':').parse().unwrap();
    let owner = slot / 5461;
    let (from, to) = (&nodes[owner.min(2)], &nodes[(owner.min(2) + 1) % 3]);
    let bus = RedisStreamBus::builder(&from.url()).prefix("moving").connect().await.unwrap();
    to.execute(&format!("CLUSTER SETSLOT {slot} IMPORTING {}", id_of(from)));
    from.execute(&format!("CLUSTER SETSLOT {slot} MIGRATING {}", id_of(to)));
    // The log is not there yet: its node answers ASK, for single events and for each of a batch.
    bus.publish(event(0)).await.unwrap();
    let results = bus.publish_all((1..4).map(event).collect()).await;
    assert!(results.iter().all(Result::is_ok), "{results:?}");
    let sets = format!("CLUSTER SETSLOT {slot} NODE {}", id_of(to));
    to.execute(&sets);
    for node in &nodes {
        node.execute(&sets);
    }
    // Now it answers MOVED, in the middle of a pipeline too.
    let results = bus.publish_all((4..7).map(event).collect()).await;
    assert!(results.iter().all(Result::is_ok), "{results:?}");
    let options = ConsumeOptions { from_start: true, ..ConsumeOptions::default() };
    let mut consumer = bus.consume("workers", Pattern::all(), options).await.unwrap();
    for expected in 0..7 {
        let delivery = delivered(&mut consumer).await;
        assert_eq!(number(delivery.event()), expected);
        delivery.ack().await.unwrap();
    }
    assert!(to.execute("XLEN {moving}:log").starts_with(":7"));
}
