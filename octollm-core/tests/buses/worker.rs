//! Workers: a consumer with a handler.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use futures_util::FutureExt;
use octollm_core::bus::{BusError, ConsumeOptions, EventBus, EventHandler, Gap, Nack};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{advance, sleep};

use crate::*;

/// Handles an event as its subject says.
#[derive(Clone, Default)]
struct Scripted {
    handled: Arc<AtomicU32>,
}

#[async_trait::async_trait]
impl EventHandler for Scripted {
    async fn handle(&self, event: Event, attempt: u32) -> Result<(), Nack> {
        self.handled.fetch_add(1, Ordering::Relaxed);
        match event.subject() {
            Some("panics first") if attempt == 1 => panic!("as its event says"),
            Some("fails first") if attempt == 1 => return Err(Nack::retry()),
            Some("is slow") => sleep(3 * LEASE).await,
            Some("blocks") => block(3 * LEASE),
            Some("blocks, then is slow") => {
                block(3 * LEASE);
                sleep(3 * LEASE).await;
            }
            _ => {}
        }
        Ok(())
    }

    async fn gap(&self, _gap: Gap) {}
}

/// Advances the paused clock while no other task runs, as when this thread is blocked.
fn block(time: Duration) {
    assert!(advance(time).now_or_never().is_none(), "it moves the clock, then yields");
}

/// A worker, and what shuts it down when it is dropped.
fn work(
    consumer: Consumer,
    handler: impl EventHandler,
) -> (oneshot::Sender<()>, JoinHandle<Result<(), BusError>>) {
    let (shutdown, dropped) = oneshot::channel();
    let shut_down = async { drop(dropped.await) };
    (shutdown, tokio::spawn(consumer.run_until(handler, shut_down)))
}

async fn handled(bus: impl DurableBus, subject: &str, time: Duration) -> u32 {
    let (consumer, handler) = (consumer(&bus).await, Scripted::default());
    let (shutdown, worker) = work(consumer, handler.clone());
    bus.publish(event(1).with_subject(subject)).await.unwrap();
    sleep(time).await;
    drop(shutdown);
    worker.await.unwrap().unwrap();
    assert_eq!(unsettled(&bus).await, (0, 0));
    assert!(dead_letters(&bus).await.is_empty());
    handler.handled.load(Ordering::Relaxed)
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_blocks_the_only_thread_for_three_leases_runs_once() {
    assert_eq!(handled(durable(), "blocks", 6 * LEASE).await, 1);
    assert_eq!(handled(durable(), "blocks, then is slow", 9 * LEASE).await, 1);
}

/// Blocks its thread, for real.
struct Blocking(Arc<AtomicU32>);

#[async_trait::async_trait]
impl EventHandler for Blocking {
    async fn handle(&self, _: Event, _: u32) -> Result<(), Nack> {
        self.0.fetch_add(1, Ordering::Relaxed);
        std::thread::sleep(3 * SHORT);
        Ok(())
    }

    async fn gap(&self, _: Gap) {}
}

const SHORT: Duration = Duration::from_millis(400);

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_handler_that_blocks_its_thread_is_extended_from_another() {
    let (bus, handled) = (durable(), Arc::new(AtomicU32::new(0)));
    let short = ConsumeOptions { lease: SHORT, ..options() };
    let consumer = consumer_with(&bus, short).await;
    let (shutdown, worker) = work(consumer, Blocking(Arc::clone(&handled)));
    bus.publish(event(1)).await.unwrap();
    while handled.load(Ordering::Relaxed) == 0 {
        tokio::task::yield_now().await;
    }
    let mut peer = consumer_with(&bus, short).await;
    nothing(&mut peer, 4 * SHORT).await;
    drop(shutdown);
    worker.await.unwrap().unwrap();
    assert_eq!((handled.load(Ordering::Relaxed), unsettled(&bus).await), (1, (0, 0)));
    assert!(dead_letters(&bus).await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handlers_that_block_every_thread_do_not_run_again_at_each_lease() {
    let (bus, handled) = (durable(), Arc::new(AtomicU32::new(0)));
    let short = ConsumeOptions { lease: SHORT / 8, ..options() };
    let consumer = consumer_with(&bus, short).await;
    for number in 0..4 {
        bus.publish(event(number)).await.unwrap();
    }
    let (shutdown, worker) = work(consumer, Blocking(Arc::clone(&handled)));
    while unsettled(&bus).await != (0, 0) {
        tokio::task::yield_now().await;
    }
    drop(shutdown);
    worker.await.unwrap().unwrap();
    // Eight leases pass in each handler. One that ends while its event is delivered again may run once more.
    let handled = handled.load(Ordering::Relaxed);
    assert!((4..=8).contains(&handled), "{handled}");
    assert!(dead_letters(&bus).await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_handler_whose_event_went_to_a_peer_is_dropped() {
    struct Dropped(Arc<AtomicU32>);

    impl Drop for Dropped {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Never ends by itself.
    struct Endless {
        begun: Arc<AtomicU32>,
        dropped: Arc<AtomicU32>,
    }

    #[async_trait::async_trait]
    impl EventHandler for Endless {
        async fn handle(&self, _: Event, _: u32) -> Result<(), Nack> {
            let _dropped = Dropped(Arc::clone(&self.dropped));
            self.begun.fetch_add(1, Ordering::Relaxed);
            block(2 * LEASE);
            std::future::pending().await
        }

        async fn gap(&self, _: Gap) {}
    }

    let (bus, begun, dropped) = (durable(), Arc::<AtomicU32>::default(), Arc::<AtomicU32>::default());
    let one = ConsumeOptions { max_in_flight: 1, ..options() };
    let (endless, mut peer) = (consumer_with(&bus, one).await, consumer(&bus).await);
    tokio::spawn(endless.run(Endless { begun: Arc::clone(&begun), dropped: Arc::clone(&dropped) }));
    tokio::task::yield_now().await;
    bus.publish(event(1)).await.unwrap();
    while begun.load(Ordering::Relaxed) == 0 {
        tokio::task::yield_now().await;
    }
    // The peer asks before the first one, whose thread was blocked, can renew its lease.
    let Some(Some(Ok(delivery))) = peer.next().now_or_never() else { panic!("it has expired") };
    assert_eq!(delivery.attempt(), 2);
    delivery.extend(4 * LEASE).await.unwrap();
    sleep(LEASE).await;
    assert_eq!(dropped.load(Ordering::Relaxed), 1);
    delivery.ack().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_worker_returns_why_its_consumer_ended() {
    for end in ["group", "bus"] {
        let bus = durable();
        let worker = tokio::spawn(consumer(&bus).await.run(Scripted::default()));
        tokio::task::yield_now().await;
        match end {
            "group" => assert!(bus.remove_group(GROUP).await.unwrap()),
            _ => bus.close(),
        }
        match worker.await.unwrap() {
            BusError::UnknownGroup { group } => assert_eq!((end, group.as_str()), ("group", GROUP)),
            BusError::Closed => assert_eq!(end, "bus"),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_event_that_fails_during_the_shutdown_goes_to_a_peer() {
    struct FailsLate;

    #[async_trait::async_trait]
    impl EventHandler for FailsLate {
        async fn handle(&self, _: Event, _: u32) -> Result<(), Nack> {
            sleep(2 * LEASE).await;
            Err(Nack::retry())
        }

        async fn gap(&self, _: Gap) {}
    }

    let bus = durable();
    let (shutdown, worker) = work(consumer(&bus).await, FailsLate);
    bus.publish(event(1)).await.unwrap();
    sleep(SECOND).await;
    drop(shutdown);
    worker.await.unwrap().unwrap();
    let again = delivered(&mut consumer(&bus).await).await;
    assert_eq!((number(again.event()), again.attempt()), (1, 2));
}

#[tokio::test(start_paused = true)]
async fn an_event_that_its_handler_releases_keeps_its_attempt() {
    struct Releases(Arc<AtomicU32>);

    #[async_trait::async_trait]
    impl EventHandler for Releases {
        async fn handle(&self, _: Event, attempt: u32) -> Result<(), Nack> {
            assert_eq!(attempt, 1);
            if self.0.fetch_add(1, Ordering::Relaxed) < 9 { Err(Nack::Release) } else { Ok(()) }
        }

        async fn gap(&self, _: Gap) {}
    }

    let (bus, handled) = (durable(), Arc::<AtomicU32>::default());
    let (shutdown, worker) = work(consumer(&bus).await, Releases(Arc::clone(&handled)));
    bus.publish(event(1)).await.unwrap();
    sleep(SECOND).await;
    drop(shutdown);
    worker.await.unwrap().unwrap();
    assert_eq!((handled.load(Ordering::Relaxed), unsettled(&bus).await), (10, (0, 0)));
    assert!(dead_letters(&bus).await.is_empty());
}

/// Panics once before it returns its future, and once with a value that panics when it is dropped.
struct PanicsTwice(Arc<AtomicU32>);

struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        panic!("while what was thrown is dropped")
    }
}

impl EventHandler for PanicsTwice {
    fn handle<'a, 'f>(
        &'a self,
        _: Event,
        _: u32,
    ) -> std::pin::Pin<Box<dyn Future<Output = Result<(), Nack>> + Send + 'f>>
    where
        'a: 'f,
        Self: 'f,
    {
        match self.0.fetch_add(1, Ordering::Relaxed) {
            0 => panic!("before the future"),
            1 => Box::pin(async { std::panic::panic_any(Bomb) }),
            _ => Box::pin(async { Ok(()) }),
        }
    }

    fn gap<'a, 'f>(&'a self, _: Gap) -> std::pin::Pin<Box<dyn Future<Output = ()> + Send + 'f>>
    where
        'a: 'f,
        Self: 'f,
    {
        Box::pin(async {})
    }
}

#[tokio::test(start_paused = true)]
async fn an_event_is_handled_again_after_a_panic_of_any_kind() {
    let (bus, handled) = (durable(), Arc::new(AtomicU32::new(0)));
    let consumer = consumer(&bus).await;
    bus.publish(event(1)).await.unwrap();
    let (shutdown, worker) = work(consumer, PanicsTwice(Arc::clone(&handled)));
    while handled.load(Ordering::Relaxed) < 3 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    drop(shutdown);
    worker.await.unwrap().unwrap();
    assert_eq!((handled.load(Ordering::Relaxed), unsettled(&bus).await), (3, (0, 0)));
    assert!(dead_letters(&bus).await.is_empty());
}
