//! Layers around event handlers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use octollm_core::bus::layers::{Handling, InboxLayer, ObserveLayer, RecoverLayer, ThrottleLayer, layered};
use octollm_core::bus::{ConsumeOptions, EventBus, EventHandler, Gap, Nack};
use octollm_core::contract::Keys;
use octollm_core::error::Failure;
use octollm_core::idempotency::{Begun, IdempotencyStore, KeyedAnswer, KeyedRun, MemoryIdempotencyStore};
use octollm_core::resilience::{BreakerLayer, BulkheadLayer, RetryLayer, TimeoutLayer};
use tokio::time::{Instant, sleep};
use tower::ServiceBuilder;

use crate::*;

/// Handles an event as its subject says, and counts.
#[derive(Default)]
struct Scripted {
    runs: AtomicU32,
    gaps: AtomicU32,
}

impl Scripted {
    fn runs(&self) -> u32 {
        self.runs.load(Ordering::Relaxed)
    }
}

#[async_trait::async_trait]
impl EventHandler for Scripted {
    async fn handle(&self, event: Event, _: u32) -> Result<(), Nack> {
        let run = self.runs.fetch_add(1, Ordering::Relaxed) + 1;
        match event.subject() {
            Some("panics") => panic!("as its event says"),
            Some("fails twice") if run < 3 => Err(Nack::retry()),
            Some("fails") => Err(Nack::retry().with_reason("as its event says")),
            Some("is dead") => Err(Nack::dead_letter("as its event says")),
            Some("is slow") => {
                sleep(Duration::from_secs(60)).await;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    async fn gap(&self, _: Gap) {
        self.gaps.fetch_add(1, Ordering::Relaxed);
    }
}

fn saying(subject: &str) -> Event {
    event(1).with_subject(subject)
}

#[tokio::test(start_paused = true)]
async fn a_panic_is_recovered_within_a_retry() {
    let script = Arc::new(Scripted::default());
    let layers = ServiceBuilder::new().layer(RetryLayer::of(Handling).retries(2)).layer(RecoverLayer);
    let handler = layered(script.clone(), layers);
    let nack = handler.handle(saying("panics"), 1).await.unwrap_err();
    assert_eq!((nack.reason(), script.runs()), (Some("the handler panicked"), 3));
    handler.gap(Gap::ConnectionLost).await;
    assert_eq!(script.gaps.load(Ordering::Relaxed), 1, "gaps pass all layers");
}

#[tokio::test(start_paused = true)]
async fn a_retry_repeats_what_another_try_can_help() {
    let script = Arc::new(Scripted::default());
    let handler = layered(script.clone(), RetryLayer::of(Handling).retries(2));
    handler.handle(saying("fails twice"), 1).await.unwrap();
    assert_eq!(script.runs(), 3);
    assert_eq!(handler.handle(saying("is dead"), 1).await, Err(Nack::dead_letter("as its event says")));
    assert_eq!(script.runs(), 4, "a decision of the handler stands");
}

#[tokio::test(start_paused = true)]
async fn a_time_limit_drops_the_handler() {
    let handler = layered(Scripted::default(), TimeoutLayer::of(Handling, Duration::from_secs(2)));
    let begun = Instant::now();
    let nack = handler.handle(saying("is slow"), 1).await.unwrap_err();
    assert_eq!(
        (nack.reason(), begun.elapsed()),
        (Some("the handler took longer than 2s"), Duration::from_secs(2))
    );
}

#[tokio::test(start_paused = true)]
async fn a_breaker_hands_events_back_while_the_handler_fails() {
    let script = Arc::new(Scripted::default());
    let handler = layered(script.clone(), BreakerLayer::of(Handling));
    let mut refused = None;
    for _ in 0..100 {
        let nack = handler.handle(saying("fails"), 1).await.unwrap_err();
        if nack.reason() != Some("as its event says") {
            refused = Some(nack);
            break;
        }
    }
    let Some(Nack::Retry { after: Some(wait), .. }) = refused else { panic!("it opens: {refused:?}") };
    assert!(wait > Duration::ZERO && script.runs() < 100);
}

#[tokio::test(start_paused = true)]
async fn a_bulkhead_limits_what_runs_at_a_time() {
    let script = Arc::new(Scripted::default());
    let handler = Arc::new(layered(script.clone(), BulkheadLayer::of(Handling, 2)));
    let run = || {
        let handler = handler.clone();
        tokio::spawn(async move { handler.handle(saying("is slow"), 1).await })
    };
    let runs: Vec<_> = (0..3).map(|_| run()).collect();
    sleep(Duration::from_secs(1)).await;
    assert_eq!(script.runs(), 2);
    let mut results = Vec::new();
    for run in runs {
        results.push(run.await.unwrap());
    }
    assert!(results.iter().filter(|result| result.is_ok()).count() >= 2, "{results:?}");
}

#[tokio::test(start_paused = true)]
async fn an_inbox_handles_an_event_once() {
    let (script, store) = (Arc::new(Scripted::default()), Arc::new(MemoryIdempotencyStore::new()));
    let handler = layered(script.clone(), InboxLayer::new("billing", store.clone()));
    let (first, other) = (saying("works"), saying("works"));
    for event in [&first, &first, &other] {
        handler.handle(event.clone(), 1).await.unwrap();
    }
    assert_eq!(script.runs(), 2);
    let elsewhere = layered(script.clone(), InboxLayer::new("shipping", store.clone()));
    elsewhere.handle(first.clone(), 1).await.unwrap();
    assert_eq!(script.runs(), 3, "each handler has its own records");
    // What failed is handled again, and so is what panicked: it was interrupted, which nobody can tell from a crash.
    let failing = saying("fails");
    assert!(matches!(handler.handle(failing.clone(), 1).await, Err(Nack::Retry { .. })));
    assert!(matches!(handler.handle(failing, 2).await, Err(Nack::Retry { .. })));
    assert_eq!(script.runs(), 5);
    let slow = saying("is slow");
    assert!(timeout(Duration::from_secs(1), handler.handle(slow.clone(), 1)).await.is_err());
    let nack = handler.handle(slow, 2).await.unwrap_err();
    assert!(
        matches!(&nack, Nack::DeadLetter { reason } if reason.starts_with("outcome_unknown")),
        "{nack:?}"
    );
    assert_eq!(script.runs(), 6);
}

/// A store that begins a run and, where it is late, does not answer.
#[derive(Default)]
struct Late {
    store: MemoryIdempotencyStore,
    is_late: AtomicBool,
}

#[async_trait::async_trait]
impl IdempotencyStore for Late {
    fn keys(&self) -> Keys {
        self.store.keys()
    }

    fn retention(&self) -> Duration {
        self.store.retention()
    }

    async fn begin(&self, run: &KeyedRun, lease: Duration, must_exist: bool) -> Result<Begun, Failure> {
        let begun = self.store.begin(run, lease, must_exist).await;
        if self.is_late.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
        begun
    }

    async fn finish(&self, run: &KeyedRun, answer: KeyedAnswer) -> Result<(), Failure> {
        self.store.finish(run, answer).await
    }

    async fn release(&self, run: &KeyedRun, may_have_executed: bool) -> Result<(), Failure> {
        self.store.release(run, may_have_executed).await
    }

    fn abandon(&self, run: &KeyedRun) {
        self.store.abandon(run);
    }

    fn withdraw(&self, run: &KeyedRun) {
        self.store.withdraw(run);
    }
}

#[tokio::test(start_paused = true)]
async fn a_run_that_is_dropped_while_an_inbox_begins_it_is_withdrawn() {
    let (script, store) = (Arc::new(Scripted::default()), Arc::new(Late::default()));
    let handler = layered(script.clone(), InboxLayer::new("billing", store.clone()));
    let event = saying("works");
    store.is_late.store(true, Ordering::Relaxed);
    assert!(timeout(Duration::from_secs(1), handler.handle(event.clone(), 1)).await.is_err());
    assert_eq!(script.runs(), 0, "it waits for the inbox");
    store.is_late.store(false, Ordering::Relaxed);
    handler.handle(event.clone(), 1).await.unwrap();
    handler.handle(event, 2).await.unwrap();
    assert_eq!(script.runs(), 1, "nothing was done, so that it is handled; then it was");
}

#[tokio::test(start_paused = true)]
async fn a_throttle_spreads_the_runs_of_all_consumers() {
    let throttle = ThrottleLayer::new(10, Duration::from_secs(1));
    let handlers = [0, 1].map(|_| layered(Scripted::default(), throttle.clone()));
    let begun = Instant::now();
    let runs = (0..21).map(|number| handlers[number % 2].handle(event(number), 1));
    assert!(futures_util::future::join_all(runs).await.into_iter().all(|result| result.is_ok()));
    assert_eq!(begun.elapsed(), Duration::from_secs(2));
}

#[tokio::test(start_paused = true)]
async fn runs_are_counted_by_their_outcome() {
    let handler = layered(Scripted::default(), ObserveLayer::new("counted"));
    handler.handle(saying("works"), 1).await.unwrap();
    handler.handle(saying("fails"), 1).await.unwrap_err();
    handler.handle(saying("is dead"), 2).await.unwrap_err();
    assert!(timeout(Duration::from_secs(1), handler.handle(saying("is slow"), 1)).await.is_err());
    let page = octollm_core::metrics::page();
    for outcome in ["ok", "retry", "dead_letter", "interrupted"] {
        let line = format!("octollm_events_handled_total{{handler=\"counted\",outcome=\"{outcome}\"}} 1");
        assert!(page.contains(&line), "{line} is not in\n{page}");
    }
}

#[tokio::test(start_paused = true)]
async fn layers_work_on_a_consumer() {
    let bus = durable();
    let script = Arc::new(Scripted::default());
    let layers = ServiceBuilder::new()
        .layer(ObserveLayer::new("stacked"))
        .layer(RecoverLayer)
        .layer(InboxLayer::new("stacked", Arc::new(MemoryIdempotencyStore::new())))
        .layer(ThrottleLayer::new(100, Duration::from_secs(1)))
        .layer(RetryLayer::of(Handling).retries(1))
        .layer(TimeoutLayer::of(Handling, Duration::from_secs(5)));
    let consumer = consumer_with(&bus, ConsumeOptions { max_attempts: 2, ..options() }).await;
    let worker = tokio::spawn(consumer.run(layered(script.clone(), layers)));
    let twice = saying("works");
    for event in [twice.clone(), twice, saying("is dead"), saying("fails")] {
        bus.publish(event).await.unwrap();
    }
    while (unsettled(&bus).await, dead_letters(&bus).await.len()) != ((0, 0), 2) {
        sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(script.runs(), 1 + 1 + 2 * 2);
    worker.abort();
}
