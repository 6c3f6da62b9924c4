//! Several buses as one.

use octollm_core::brain::Brain;
use octollm_core::bus::{BusError, BusMap, EventBus, Gap, MemoryBus, MemoryDurableBus, Overflow};
use octollm_core::error::ArmError;
use octollm_core::orchestrator::{Orchestrator, finished};
use octollm_core::task::{Submission, TaskRequest, TaskResult};
use octollm_core::{Arm, Context};

use crate::*;

/// The ends of tasks are durable, other events of tasks on a bus of their own.
struct Mapped {
    map: BusMap,
    ends: MemoryDurableBus,
    tasks: MemoryBus,
    rest: MemoryBus,
}

fn mapped() -> Mapped {
    let (ends, tasks, rest) = (durable(), pub_sub(), pub_sub());
    let map = BusMap::new(rest.clone())
        .durable(pattern("events:task:completed,events:task:failed"), ends.clone())
        .live(pattern("events:task:*"), tasks.clone());
    Mapped { map, ends, tasks, rest }
}

const MANY: Overflow = Overflow::DropOldest(64);

#[tokio::test(start_paused = true)]
async fn the_first_pattern_that_matches_decides() {
    let Mapped { map, ends, tasks, rest } = mapped();
    let mut received_by = Vec::new();
    for bus in [&ends as &dyn EventBus, &tasks, &rest] {
        received_by.push(bus.subscribe(all(), MANY).await.unwrap());
    }
    let channels = ["events:task:completed", "events:task:started", "events:arm:registered"];
    for channel in channels {
        map.publish(event_on(channel)).await.unwrap();
    }
    let batch = ["events:arm:lost", "events:task:failed", "events:task:queued"].map(event_on).to_vec();
    assert!(map.publish_all(batch).await.into_iter().all(|result| result.is_ok()));
    let expected = [
        ["events:task:completed", "events:task:failed"],
        ["events:task:started", "events:task:queued"],
        ["events:arm:registered", "events:arm:lost"],
    ];
    for (subscription, expected) in received_by.iter_mut().zip(expected) {
        for channel in expected {
            assert_eq!(received(subscription).await.channel().as_str(), channel);
        }
        assert!(timeout(Duration::from_secs(1), subscription.next()).await.is_err(), "and no more");
    }
}

#[tokio::test(start_paused = true)]
async fn a_subscription_merges_what_its_buses_carry() {
    let Mapped { map, ends, tasks, rest } = mapped();
    let mut events = map.subscribe(pattern("events:task:*"), MANY).await.unwrap();
    for channel in ["events:task:started", "events:task:completed", "events:task:progress"] {
        map.publish(event_on(channel)).await.unwrap();
    }
    // What another program publishes on the wrong bus is not received, in particular not twice.
    ends.publish(event_on("events:task:started")).await.unwrap();
    tasks.publish(event_on("events:task:failed")).await.unwrap();
    rest.publish(event_on("events:task:queued")).await.unwrap();
    let mut seen = Vec::new();
    while let Ok(Some(Signal::Event(event))) = timeout(Duration::from_secs(1), events.next()).await {
        seen.push(event.channel().as_str().to_owned());
    }
    seen.sort_unstable();
    assert_eq!(seen, ["events:task:completed", "events:task:progress", "events:task:started"]);
    tasks.close();
    assert!(events.next().await.is_none());
    assert!(matches!(events.ended(), Some(BusError::Closed)), "with the first bus that ends");
}

/// A bus whose subscriptions receive a gap, and then that they were too slow.
struct Lossy;

#[async_trait::async_trait]
impl EventBus for Lossy {
    async fn publish(&self, _: Event) -> Result<(), BusError> {
        Ok(())
    }

    async fn subscribe(&self, _: Pattern, overflow: Overflow) -> Result<Subscription, BusError> {
        let (feed, subscription) = octollm_core::bus::engine::Feed::new(overflow, LEASE)?;
        feed.gap(Gap::ConnectionLost);
        feed.lagged(7);
        tokio::spawn(async move { feed.closed().await });
        Ok(subscription)
    }

    fn capabilities(&self) -> &[Capability] {
        &[]
    }

    fn max_event_bytes(&self) -> usize {
        100
    }
}

#[tokio::test(start_paused = true)]
async fn losses_of_a_bus_are_in_what_is_merged() {
    let map = BusMap::new(pub_sub()).live(pattern("events:lossy:*"), Lossy);
    assert_eq!((map.capabilities(), map.max_event_bytes()), (&[][..], 100), "what all buses have");
    let mut events = map.subscribe(all(), MANY).await.unwrap();
    assert!(matches!(events.next().await, Some(Signal::Gap(Gap::ConnectionLost))));
    assert!(matches!(events.next().await, Some(Signal::Lagged(7))));
    map.publish(event_on("events:task:done")).await.unwrap();
    received(&mut events).await;
}

#[tokio::test(start_paused = true)]
async fn overflows_of_what_is_merged_are_counted() {
    const SENT: u64 = 1_000;
    let Mapped { map, .. } = mapped();
    for overflow in [Overflow::DropOldest(16), Overflow::DropNewest(16)] {
        let mut events = map.subscribe(pattern("events:task:*"), overflow).await.unwrap();
        for number in 0..SENT {
            let channel = if number % 2 == 0 { "events:task:completed" } else { "events:task:started" };
            map.publish(event_on(channel)).await.unwrap();
        }
        let mut accounted = 0;
        while let Ok(Some(signal)) = timeout(Duration::from_secs(1), events.next()).await {
            accounted += match signal {
                Signal::Event(_) => 1,
                Signal::Lagged(missed) => missed,
                Signal::Gap(gap) => panic!("{gap}"),
            };
        }
        assert_eq!(accounted, SENT, "{overflow:?}: received and lagged are what was published");
    }
}

#[tokio::test(start_paused = true)]
async fn groups_are_those_of_the_durable_bus() {
    let Mapped { map, ends, .. } = mapped();
    for spanning in ["events:task:*", "events:task:started", "events:arm:registered"] {
        let refused = map.consume(GROUP, pattern(spanning), options()).await;
        assert!(matches!(refused, Err(BusError::InvalidSetting { .. })), "{spanning}");
    }
    let mut consumer = map.consume(GROUP, pattern("events:task:failed"), options()).await.unwrap();
    map.publish(event_on("events:task:failed")).await.unwrap();
    delivered(&mut consumer).await.nack(Nack::dead_letter("as it is")).await.unwrap();
    assert_eq!(dead_letters(&map).await, dead_letters(&ends).await);
    map.replay(GROUP, &dead_letters(&map).await[0].entry).await.unwrap();
    delivered(&mut consumer).await.ack().await.unwrap();
    assert_eq!((group(&map).await.pending, group(&map).await.dead_letters), (0, 0));
    assert!(map.remove_group(GROUP).await.unwrap());
    assert!(!map.remove_group(GROUP).await.unwrap());
    assert!(matches!(map.group(GROUP).await, Err(BusError::UnknownGroup { .. })));
}

struct Echo;

#[async_trait::async_trait]
impl Arm<TaskRequest> for Echo {
    async fn execute(&self, request: TaskRequest, _: &Context) -> Result<TaskResult, ArmError> {
        Ok(TaskResult::new(request.goal))
    }
}

#[tokio::test(start_paused = true)]
async fn a_brain_publishes_by_a_map() {
    let Mapped { map, .. } = mapped();
    let mut monitor = map.subscribe(pattern("events:task:*"), MANY).await.unwrap();
    let mut billing = map.consume(GROUP, pattern("events:task:completed"), options()).await.unwrap();
    let brain = Brain::builder().arm(Echo).bus(map).build().unwrap();
    let cx = Context::detached();
    let task = brain.submit(Submission::from(TaskRequest::new("echo")), &cx).await.unwrap().task_id;
    finished(&brain, &task, &cx).await.unwrap();
    let delivery = delivered(&mut billing).await;
    assert_eq!(delivery.event().subject(), Some(task.as_str()));
    delivery.ack().await.unwrap();
    let mut seen = Vec::new();
    while seen.len() < 3 {
        seen.push(received(&mut monitor).await.event_type().to_owned());
    }
    seen.sort_unstable();
    assert_eq!(seen, ["task.completed", "task.queued", "task.started"]);
}
