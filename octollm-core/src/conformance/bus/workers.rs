//! Workers: a consumer with a handler.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use tokio::{
    sync::oneshot,
    task::JoinHandle,
    time::{Instant, sleep},
};

use super::{Subject, fixture::*};
use crate::{
    bus::{BusError, Capability, ConsumeOptions, Consumer, EventHandler, Gap, Nack},
    conformance::support::{eventually, in_time},
    event::Event,
};

/// Handles an event as its subject says, and counts.
#[derive(Clone, Default)]
struct Scripted {
    begun: Arc<AtomicU32>,
    ended: Arc<AtomicU32>,
}

#[async_trait]
impl EventHandler for Scripted {
    async fn handle(&self, event: Event, _: u32) -> Result<(), Nack> {
        let before = self.begun.fetch_add(1, Ordering::SeqCst);
        match event.subject() {
            Some("panics first") if before == 0 => panic!("as its event says"),
            Some("fails first") if before == 0 => return Err(Nack::retry()),
            Some("is slow") => sleep(3 * LEASE).await,
            _ => {}
        }
        self.ended.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    async fn gap(&self, _: Gap) {}
}

/// A worker, and what shuts it down when it is dropped.
fn work(consumer: Consumer, handler: Scripted) -> (oneshot::Sender<()>, JoinHandle<Result<(), BusError>>) {
    let (shutdown, dropped) = oneshot::channel();
    let shut_down = async { drop(dropped.await) };
    (shutdown, tokio::spawn(consumer.run_until(handler, shut_down)))
}

pub(super) async fn case_19_a_handler_that_panics_is_a_nack_and_the_worker_lives(subject: &Subject) {
    let Some(place) = durable(subject).await else { return };
    for first in ["panics first", "fails first"] {
        let (place, handler) = (place.elsewhere(), Scripted::default());
        let (shutdown, worker) = work(place.consumer(options(LONG)).await, handler.clone());
        place.publish(place.event(1).with_subject(first)).await;
        eventually("the event is handled again", async || {
            (handler.ended.load(Ordering::SeqCst) == 1).then_some(())
        })
        .await;
        place.publish_numbers(2..3).await;
        eventually("the worker lives", async || (handler.ended.load(Ordering::SeqCst) == 2).then_some(()))
            .await;
        place.settled().await;
        drop(shutdown);
        in_time("a shutdown", worker).await.expect("no panic").expect("the worker ends by its shutdown");
        assert_eq!(handler.begun.load(Ordering::SeqCst), 3, "nothing is handled once more");
        assert!(place.dead_letters().await.is_empty());
    }
}

pub(super) async fn case_22_a_handler_of_three_leases_runs_once(subject: &Subject) {
    let Some(place) = durable(subject).await else { return };
    if !place.claims(Capability::LeaseExtension) {
        let mut consumer = place.consumer(options(LEASE)).await;
        place.publish_numbers(1..2).await;
        return assert_unsupported(
            Capability::LeaseExtension,
            delivered(&mut consumer).await.extend(LEASE).await,
        );
    }
    let handler = Scripted::default();
    let (shutdown, worker) = work(place.consumer(options(LEASE)).await, handler.clone());
    let (other_shutdown, peer) = work(place.consumer(options(LEASE)).await, handler.clone());
    place.publish(place.event(1).with_subject("is slow")).await;
    eventually("the handler ends", async || (handler.ended.load(Ordering::SeqCst) == 1).then_some(())).await;
    place.settled().await;
    drop((shutdown, other_shutdown));
    for worker in [worker, peer] {
        in_time("a shutdown", worker).await.expect("no panic").expect("the worker ends by its shutdown");
    }
    assert_eq!(handler.begun.load(Ordering::SeqCst), 1, "its lease is extended, so it runs once");
}

pub(super) async fn case_25_closing_lets_what_runs_end_and_a_peer_have_the_rest(subject: &Subject) {
    let Some(place) = durable(subject).await else { return };
    let handler = Scripted::default();
    let two = ConsumeOptions { max_in_flight: 2, ..options(LONG) };
    let (shutdown, worker) = work(place.consumer(two).await, handler.clone());
    for number in 0..5 {
        place.publish(place.event(number).with_subject("is slow")).await;
    }
    eventually("two handlers run", async || (handler.begun.load(Ordering::SeqCst) == 2).then_some(())).await;
    drop(shutdown);
    let (mut peer, closed) = (place.consumer(options(LONG)).await, Instant::now());
    for _ in 0..3 {
        let delivery = delivered(&mut peer).await;
        assert_eq!(delivery.attempt(), 1, "what was not begun goes to a peer, as the same attempt");
        delivery.ack().await.expect("the delivery is acknowledged");
    }
    assert!(closed.elapsed() < 10 * SECOND, "at once, and not when a lease expires: {:?}", closed.elapsed());
    in_time("a shutdown", worker).await.expect("no panic").expect("the worker ends by its shutdown");
    assert_eq!(handler.ended.load(Ordering::SeqCst), 2, "what runs ends");
    nothing(&mut peer, Duration::from_secs(1)).await;
    place.settled().await;
}
