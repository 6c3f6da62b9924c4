//! The durable bus over streams.

use octollm_core::bus::{
    BusError, ConsumeOptions, DeadLetter, DelayBus, DurableBus, FailedAttempt, Gap, Nack,
};
use octollm_events::{Encoding, redis::RedisStreamBus};
use tokio::time::Instant;

use crate::*;

const GROUP: &str = "workers";

async fn consumer(bus: &RedisStreamBus, options: ConsumeOptions) -> Consumer {
    bus.consume(GROUP, Pattern::all(), options).await.unwrap()
}

/// Waits until the server answers this.
async fn until(server: &Redis, command: &str, is_it: impl Fn(&str) -> bool) {
    let end = Instant::now() + LIMIT;
    loop {
        let answer = server.execute(command);
        if is_it(&answer) {
            return;
        }
        assert!(Instant::now() < end, "{command} is {answer}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn length(answer: &str) -> usize {
    answer.trim_start_matches(':').trim().parse().unwrap()
}

#[tokio::test]
async fn the_log_is_trimmed_by_what_all_groups_have_read() {
    let server = Redis::start(&[]);
    let bus = RedisStreamBus::builder(&server.url()).history(100).connect().await.unwrap();
    let mut slow = consumer(&bus, ConsumeOptions::default()).await;
    let mut quick = bus.consume("quick", Pattern::all(), ConsumeOptions::default()).await.unwrap();
    for result in bus.publish_all((0..2_000).map(event).collect()).await {
        result.unwrap();
    }
    let held = delivered(&mut slow).await;
    for expected in 0..2_000 {
        let delivery = delivered(&mut quick).await;
        assert_eq!(number(delivery.event()), expected);
        delivery.ack().await.unwrap();
    }
    // Two rounds of trimming change nothing: a group has not settled the first event.
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    assert_eq!(length(&server.execute("XLEN {octollm}:log")), 2_000);
    held.ack().await.unwrap();
    for expected in 1..2_000 {
        let delivery = delivered(&mut slow).await;
        assert_eq!(number(delivery.event()), expected);
        delivery.ack().await.unwrap();
    }
    until(&server, "XLEN {octollm}:log", |answer| (100..=300).contains(&length(answer))).await;
    let late = ConsumeOptions { from_start: true, ..Default::default() };
    let mut late = bus.consume("late", Pattern::all(), late).await.unwrap();
    match timeout(LIMIT, late.next()).await {
        Ok(Some(Err(gap))) => assert_eq!(gap, Gap::Trimmed { event_ids: Vec::new() }),
        other => panic!("no gap but {other:?}"),
    }
    assert!(number(delivered(&mut late).await.event()) >= 1_700);
}

#[tokio::test]
async fn an_event_that_was_trimmed_while_it_was_pending_is_a_gap_with_its_id() {
    let server = Redis::start(&[]);
    let bus = RedisStreamBus::connect(&server.url()).await.unwrap();
    let mut consumer =
        consumer(&bus, ConsumeOptions { lease: Duration::from_secs(1), ..Default::default() }).await;
    let sent = event(1);
    bus.publish(sent.clone()).await.unwrap();
    drop(delivered(&mut consumer).await);
    server.execute("XTRIM {octollm}:log MAXLEN 0");
    match timeout(LIMIT, consumer.next()).await {
        Ok(Some(Err(gap))) => assert_eq!(gap, Gap::Trimmed { event_ids: vec![sent.id().to_owned()] }),
        other => panic!("no gap but {other:?}"),
    }
    bus.publish(event(2)).await.unwrap();
    match timeout(LIMIT, consumer.next()).await {
        Ok(Some(Err(gap))) => {
            assert_eq!(gap, Gap::Trimmed { event_ids: Vec::new() }, "there may have been others")
        }
        other => panic!("no gap but {other:?}"),
    }
    assert_eq!(number(delivered(&mut consumer).await.event()), 2);
    let status = bus.group(GROUP).await.unwrap();
    assert_eq!((status.pending, status.waiting), (1, 0));
}

#[tokio::test]
async fn a_group_that_the_server_has_lost_is_created_again_after_a_gap() {
    let mut server = Redis::start(&[]);
    let bus =
        RedisStreamBus::builder(&server.url()).heartbeat(Duration::from_millis(500)).connect().await.unwrap();
    let mut consumer = consumer(&bus, ConsumeOptions::default()).await;
    bus.publish(event(1)).await.unwrap();
    delivered(&mut consumer).await.ack().await.unwrap();
    server.kill();
    server.restart();
    let publisher = RedisStreamBus::connect(&server.url()).await.unwrap();
    publisher.publish(event(2)).await.unwrap();
    match timeout(LIMIT, consumer.next()).await {
        Ok(Some(Err(gap))) => assert_eq!(gap, Gap::GroupRecreated),
        other => panic!("no gap but {other:?}"),
    }
    let delivery = delivered(&mut consumer).await;
    assert_eq!(number(delivery.event()), 2, "it begins with the oldest event");
    delivery.ack().await.unwrap();
    assert!(bus.remove_group(GROUP).await.unwrap());
    assert!(timeout(LIMIT, consumer.next()).await.unwrap().is_none(), "the consumers of a removed group end");
    assert!(matches!(consumer.ended(), Some(BusError::UnknownGroup { .. })));
}

#[tokio::test]
async fn each_consumer_of_a_handle_notices_that_the_server_has_lost_its_data() {
    let mut server = Redis::start(&[]);
    let bus = RedisStreamBus::connect(&server.url()).await.unwrap();
    let mut first = consumer(&bus, ConsumeOptions::default()).await;
    let mut second = consumer(&bus, ConsumeOptions::default()).await;
    let mut other = bus.consume("others", Pattern::all(), ConsumeOptions::default()).await.unwrap();
    server.kill();
    server.restart();
    // A process that has lost nothing is the first to come, with a group of the same name.
    let restarted = RedisStreamBus::connect(&server.url()).await.unwrap();
    let fresh = consumer(&restarted, ConsumeOptions::default()).await;
    for consumer in [&mut first, &mut second, &mut other] {
        match timeout(LIMIT, consumer.next()).await {
            Ok(Some(Err(gap))) => assert_eq!(gap, Gap::GroupRecreated),
            end => panic!("no gap but {end:?}, {:?}", consumer.ended()),
        }
    }
    drop((second, fresh));
    restarted.publish(event(1)).await.unwrap();
    for consumer in [&mut first, &mut other] {
        assert_eq!(number(delivered(consumer).await.event()), 1);
    }
}

#[tokio::test]
async fn a_history_has_the_last_attempts_and_begins_again_with_a_replay() {
    let server = Redis::start(&[]);
    let bus = RedisStreamBus::connect(&server.url()).await.unwrap();
    let attempts = 20_u32;
    let options = ConsumeOptions {
        max_attempts: attempts,
        min_backoff: Duration::ZERO,
        max_backoff: Duration::ZERO,
        ..Default::default()
    };
    let mut consumer = consumer(&bus, options).await;
    bus.publish(event(1)).await.unwrap();
    for attempt in 1..=attempts {
        let reason = format!("\0 \"{attempt}\"\n/{}", "\u{1f419}".repeat(100));
        delivered(&mut consumer).await.nack(Nack::retry().with_reason(reason)).await.unwrap();
    }
    let letter = bus.dead_letters(GROUP, None, 10).await.unwrap().pop().unwrap();
    assert_eq!((letter.attempts, &*letter.reason), (attempts, "no attempts left"));
    assert_eq!(letter.history.len(), DeadLetter::MAX_HISTORY);
    for (failed, attempt) in letter.history.iter().rev().zip((1..=attempts).rev()) {
        let start = format!("\0 \"{attempt}\"\n/");
        let characters = (FailedAttempt::MAX_REASON_BYTES - start.len()) / 4;
        assert_eq!(failed.reason, start + &"\u{1f419}".repeat(characters), "cut between two characters");
        assert_eq!(failed.consumer, consumer.name());
        let age = jiff::Timestamp::now().duration_since(failed.at).unsigned_abs();
        assert!(age < LIMIT, "{failed:?}");
    }
    assert_eq!(
        server.execute("EXISTS {octollm}:group:workers:failed"),
        ":0\r\n",
        "no attempt is left behind"
    );
    bus.replay(GROUP, &letter.entry).await.unwrap();
    delivered(&mut consumer).await.nack(Nack::retry()).await.unwrap();
    delivered(&mut consumer).await.release().await.unwrap();
    delivered(&mut consumer).await.nack(Nack::dead_letter("bad")).await.unwrap();
    let letter = bus.dead_letters(GROUP, None, 10).await.unwrap().pop().unwrap();
    let reasons: Vec<_> = letter.history.iter().map(|failed| &*failed.reason).collect();
    assert_eq!((letter.attempts, &reasons[..]), (2, &[FailedAttempt::REFUSED, "bad"][..]));
    bus.replay(GROUP, &letter.entry).await.unwrap();
    delivered(&mut consumer).await.nack(Nack::retry()).await.unwrap();
    delivered(&mut consumer).await.ack().await.unwrap();
    assert_eq!(server.execute("EXISTS {octollm}:group:workers:failed"), ":0\r\n", "nor after an ack");
}

#[tokio::test]
async fn entries_that_are_deleted_before_a_group_has_read_them_are_a_gap() {
    let server = Redis::start(&[]);
    let bus = RedisStreamBus::connect(&server.url()).await.unwrap();
    bus.publish(event(0)).await.unwrap();
    // It asks for no other one while it holds one.
    let options = ConsumeOptions { max_in_flight: 1, ..Default::default() };
    let mut consumer = consumer(&bus, options).await;
    for (round, deletion) in ["XTRIM {octollm}:log MAXLEN 0", "DEL {octollm}:log"].into_iter().enumerate() {
        bus.publish(event(10 * round + 1)).await.unwrap();
        let held = delivered(&mut consumer).await;
        assert_eq!(number(held.event()), 10 * round + 1);
        bus.publish(event(10 * round + 2)).await.unwrap();
        server.execute(deletion);
        held.ack().await.unwrap();
        bus.publish(event(10 * round + 3)).await.unwrap();
        match timeout(LIMIT, consumer.next()).await {
            Ok(Some(Err(gap))) => assert_eq!(gap, Gap::Trimmed { event_ids: Vec::new() }),
            other => panic!("no gap after {deletion} but {other:?}"),
        }
        let next = delivered(&mut consumer).await;
        assert_eq!(number(next.event()), 10 * round + 3, "there is one gap");
        next.ack().await.unwrap();
    }
    let status = bus.group(GROUP).await.unwrap();
    assert_eq!((status.pending, status.waiting), (0, 0));
}

#[tokio::test]
async fn an_event_that_was_trimmed_before_its_last_attempt_ended_is_a_dead_letter_without_bytes() {
    let server = Redis::start(&[]);
    let bus = RedisStreamBus::connect(&server.url()).await.unwrap();
    let mut consumer = consumer(&bus, ConsumeOptions::default()).await;
    bus.publish(event(1)).await.unwrap();
    let delivery = delivered(&mut consumer).await;
    server.execute("XTRIM {octollm}:log MAXLEN 0");
    delivery.nack(Nack::dead_letter("bad")).await.unwrap();
    let letter = bus.dead_letters(GROUP, None, 10).await.unwrap().pop().unwrap();
    assert_eq!((letter.event.err().as_deref(), &*letter.reason), (Some(&b""[..]), "bad"));
}

#[tokio::test]
async fn the_oldest_dead_letters_are_discarded() {
    let server = Redis::start(&[]);
    let bus = RedisStreamBus::builder(&server.url()).dead_letters(3).delayed(1).connect().await.unwrap();
    let mut consumer = consumer(&bus, ConsumeOptions::default()).await;
    for number in 0..5 {
        bus.publish(event(number)).await.unwrap();
        delivered(&mut consumer).await.nack(Nack::dead_letter("bad\0\u{1f419}")).await.unwrap();
    }
    let letters = bus.dead_letters(GROUP, None, 10).await.unwrap();
    let numbers: Vec<_> = letters.iter().map(|letter| number(letter.event.as_ref().unwrap())).collect();
    assert_eq!(numbers, [2, 3, 4]);
    assert!(letters.iter().all(|letter| letter.reason == "bad\0\u{1f419}" && letter.attempts == 1));
    let status = bus.group(GROUP).await.unwrap();
    assert_eq!((status.dead_letters, status.discarded, status.pending, status.waiting), (3, 2, 0, 0));
    bus.publish_after(event(6), Duration::from_secs(600)).await.unwrap();
    let full = bus.publish_after(event(7), Duration::from_secs(600)).await;
    assert!(matches!(full, Err(BusError::Full { events: 1, .. })), "{full:?}");
}

#[tokio::test]
async fn what_was_claimed_ahead_goes_to_a_peer_as_the_same_attempt() {
    let server = Redis::start(&[]);
    let bus = RedisStreamBus::connect(&server.url()).await.unwrap();
    let options = ConsumeOptions { max_in_flight: 200, ..Default::default() };
    let mut greedy = consumer(&bus, options).await;
    for result in bus.publish_all((0..200).map(event).collect()).await {
        result.unwrap();
    }
    // It asks again at once, is given several events at a time, and then asks no more.
    let mut held = Vec::new();
    for _ in 0..100 {
        held.push(delivered(&mut greedy).await);
    }
    let mut peer = consumer(&bus, options).await;
    for _ in 0..100 {
        let delivery = delivered(&mut peer).await;
        assert_eq!(delivery.attempt(), 1);
        held.push(delivery);
    }
    for result in Delivery::ack_all(held).await {
        result.unwrap();
    }
    let status = bus.group(GROUP).await.unwrap();
    assert_eq!((status.pending, status.waiting, status.members), (0, 0, 2));
}

#[tokio::test]
async fn entries_of_other_programs_are_events_and_delayed_ones_survive_their_publisher() {
    let server = Redis::start(&[]);
    let open =
        || RedisStreamBus::builder(&server.url()).encoding(Encoding::CloudEvents).prefix("shop").connect();
    let bus = open().await.unwrap();
    let late = event(1);
    bus.publish_after(late.clone(), Duration::from_millis(500)).await.unwrap();
    drop(bus);
    let bus = open().await.unwrap();
    let mut events = subscribed(&bus).await;
    let mut consumer = consumer(&bus, ConsumeOptions { from_start: true, ..Default::default() }).await;
    server.execute("XADD {shop}:log * type order.paid source elsewhere id 7 specversion 1.0 data 2");
    let (mut seen, mut consumed) = (Vec::new(), Vec::new());
    for _ in 0..2 {
        seen.push(number(&received(&mut events).await));
        let delivery = delivered(&mut consumer).await;
        consumed.push(number(delivery.event()));
        delivery.ack().await.unwrap();
    }
    seen.sort_unstable();
    consumed.sort_unstable();
    assert_eq!((seen, consumed), (vec![1, 2], vec![1, 2]));
}

#[tokio::test]
async fn a_claim_whose_answer_is_lost_is_made_again_as_the_same_attempt() {
    let server = Redis::start(&[]);
    let time = Duration::from_millis(500);
    let bus = RedisStreamBus::builder(&server.url()).timeout(time).heartbeat(time).connect().await.unwrap();
    // Longer than the test takes.
    let lease = Duration::from_secs(600);
    let mut consumer = consumer(&bus, ConsumeOptions { lease, ..Default::default() }).await;
    // From now on the server knows the script.
    bus.publish(event(0)).await.unwrap();
    delivered(&mut consumer).await.ack().await.unwrap();
    bus.publish(event(1)).await.unwrap();
    server.stop();
    // The server has the command, and executes it when it goes on, for a connection that is closed by then.
    assert!(timeout(time * 3, consumer.next()).await.is_err());
    server.resume();
    let delivery = delivered(&mut consumer).await;
    assert_eq!((number(delivery.event()), delivery.attempt()), (1, 1));
    delivery.ack().await.unwrap();
    let status = bus.group(GROUP).await.unwrap();
    assert_eq!((status.pending, status.waiting), (0, 0));
}
