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
