//! Stores and buses that do not answer, answer late, or panic.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use octollm_core::{
    Arm, Context,
    brain::Brain,
    bus::{BusError, Capability, EventBus, MemoryBus, Overflow, Signal, Subscription},
    error::{ArmError, ErrorKind},
    event::{Event, Pattern},
    orchestrator::Orchestrator,
    task::TaskStatus,
};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, timeout},
};

use crate::{
    support::{Compute, Computer, Increment, Local, anyone, compute, end_of},
    trouble::Trouble,
};

const SECOND: Duration = Duration::from_secs(1);
const OPERATIONS: [&str; 11] = [
    "create",
    "get",
    "commit",
    "claim",
    "renew",
    "journal",
    "append",
    "append_updates",
    "updates_after",
    "pending_events",
    "published",
];

fn over(arms: &Local, store: &Arc<Trouble>) -> Brain {
    let builder = Brain::builder().arm::<Compute>(Computer).arms(arms.clone());
    builder.store(store.clone()).build().unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_task_survives_a_store_that_hangs_for_a_while_in_any_operation() {
    for operation in OPERATIONS {
        let (arms, store) = (Local::new(), Trouble::new());
        let brain = over(&arms, &store);
        store.hang(operation);
        let submitted = timeout(60 * SECOND, brain.submit(compute(4), &anyone())).await;
        let submitted = submitted.unwrap_or_else(|_| panic!("submit hangs in {operation}"));
        sleep(30 * SECOND).await;
        store.heal();
        let Ok(task) = submitted else {
            let error = submitted.unwrap_err();
            assert!(operation == "create" && error.kind == ErrorKind::Unavailable && error.may_have_executed);
            continue;
        };
        let ended = timeout(120 * SECOND, end_of(&brain, &task.task_id)).await;
        assert_eq!(ended.unwrap_or_else(|_| panic!("{operation}")).result.unwrap().output, 11);
        timeout(SECOND, brain.close()).await.expect("close hangs");
    }
}

#[tokio::test(start_paused = true)]
async fn cancel_and_close_end_though_the_store_hangs_in_any_operation() {
    for operation in OPERATIONS {
        let (arms, store) = (Local::new(), Trouble::new());
        arms.hang("number.double");
        let brain = over(&arms, &store);
        let id = brain.submit(compute(4), &anyone()).await.unwrap().task_id;
        sleep(SECOND).await;
        store.hang(operation);
        let cancelled = timeout(120 * SECOND, brain.cancel(&id, &anyone())).await;
        let cancelled = cancelled.unwrap_or_else(|_| panic!("cancel hangs in {operation}"));
        assert!(cancelled.is_ok() || ["get", "commit"].contains(&operation), "{operation}: {cancelled:?}");
        timeout(120 * SECOND, brain.close()).await.unwrap_or_else(|_| panic!("close hangs in {operation}"));
    }
}

#[tokio::test(start_paused = true)]
async fn close_waits_for_a_store_that_hangs_until_the_lease_expires() {
    let (arms, store) = (Local::new(), Trouble::new());
    arms.hang("number.double");
    let builder = Brain::builder().arm::<Compute>(Computer).arms(arms.clone()).lease(6 * SECOND);
    let brain = builder.store(store.clone()).build().unwrap();
    brain.submit(compute(4), &anyone()).await.unwrap();
    sleep(SECOND).await;
    store.hang("commit+renew");
    let begun = Instant::now();
    brain.close().await;
    // The lease, and one operation that was begun within it.
    assert!(begun.elapsed() < 20 * SECOND, "{:?}", begun.elapsed());
}

/// Hangs, and sends the moment at which it is stopped.
struct Stuck(mpsc::UnboundedSender<Instant>);

struct Stopped<'a>(&'a mpsc::UnboundedSender<Instant>);

impl Drop for Stopped<'_> {
    fn drop(&mut self) {
        self.0.send(Instant::now()).unwrap();
    }
}

#[async_trait]
impl Arm<Compute> for Stuck {
    async fn execute(&self, _: Compute, _: &Context) -> Result<u64, ArmError> {
        let _stopped = Stopped(&self.0);
        std::future::pending().await
    }
}

#[tokio::test(start_paused = true)]
async fn a_run_is_stopped_at_the_moment_at_which_its_lease_expires() {
    const LEASE: Duration = Duration::from_secs(6);
    for phase in 0..48 {
        let (store, (stopped, mut moments)) = (Trouble::new(), mpsc::unbounded_channel());
        let builder = Brain::builder().arm::<Compute>(Stuck(stopped)).lease(LEASE);
        let brain = builder.store(store.clone()).build().unwrap();
        brain.recover().await.unwrap();
        store.hang("renew");
        sleep(phase * LEASE / 48).await;
        let begun = Instant::now();
        brain.submit(compute(4), &anyone()).await.unwrap();
        let ran = moments.recv().await.unwrap() - begun;
        assert!(ran.as_millis().abs_diff(LEASE.as_millis()) <= 10, "{ran:?} at phase {phase}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_task_survives_a_store_that_panics_once_in_any_operation() {
    for operation in OPERATIONS {
        let (arms, store) = (Local::new(), Trouble::new());
        let brain = over(&arms, &store);
        let mut times = 0..1;
        store.fails(move |asked, _| {
            assert!(asked != operation || times.next().is_none(), "the store panics");
            None
        });
        let id = match brain.submit(compute(4), &anyone()).await {
            Ok(task) => task.task_id,
            Err(_) => brain.submit(compute(4), &anyone()).await.unwrap().task_id,
        };
        let ended = timeout(120 * SECOND, end_of(&brain, &id)).await;
        assert_eq!(ended.unwrap_or_else(|_| panic!("{operation}")).result.unwrap().output, 11, "{operation}");
    }
}

/// A bus that panics so many times.
struct Panics(MemoryBus, AtomicUsize);

#[async_trait]
impl EventBus for Panics {
    async fn publish(&self, event: Event) -> Result<(), BusError> {
        let left = self.1.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        assert!(left.is_err(), "the bus panics");
        self.0.publish(event).await
    }

    async fn subscribe(&self, pattern: Pattern, overflow: Overflow) -> Result<Subscription, BusError> {
        self.0.subscribe(pattern, overflow).await
    }

    fn capabilities(&self) -> &[Capability] {
        self.0.capabilities()
    }

    fn max_event_bytes(&self) -> usize {
        self.0.max_event_bytes()
    }
}

#[tokio::test(start_paused = true)]
async fn a_bus_that_panics_loses_no_event_of_a_change() {
    let bus = MemoryBus::new();
    let mut events = bus.subscribe("events:task:*".parse().unwrap(), Overflow::DropOldest(16)).await.unwrap();
    let brain = Brain::builder().arm::<Compute>(Computer).arms(Local::new());
    let brain = brain.bus(Panics(bus, AtomicUsize::new(4))).build().unwrap();
    let id = brain.submit(compute(4), &anyone()).await.unwrap().task_id;
    assert_eq!(end_of(&brain, &id).await.status, TaskStatus::Completed);
    let mut types = Vec::new();
    while let Ok(Some(Signal::Event(event))) = timeout(30 * SECOND, events.next()).await {
        types.push(event.event_type().to_owned());
    }
    types.retain(|name| name != "task.progress");
    assert_eq!(types, ["task.queued", "task.started", "task.completed"]);
}

/// Notes when it begins and when it ends, and takes half a minute.
#[derive(Clone, Default)]
struct Noted(Arc<Mutex<Vec<(Instant, Instant)>>>);

struct Note(Noted, Instant);

impl Drop for Note {
    fn drop(&mut self) {
        self.0.0.lock().unwrap().push((self.1, Instant::now()));
    }
}

#[async_trait]
impl Arm<Compute> for Noted {
    async fn execute(&self, input: Compute, _: &Context) -> Result<u64, ArmError> {
        let _note = Note(self.clone(), Instant::now());
        sleep(30 * SECOND).await;
        Ok(input.number)
    }
}

#[tokio::test(start_paused = true)]
async fn no_two_brains_run_a_task_at_once_whenever_the_store_of_one_hangs() {
    for (operation, from, long) in
        (0..24).flat_map(|from| [("claim+renew", from, 5), ("claim+renew", from, 20), ("renew", from, 20)])
    {
        let (healthy, runs) = (Trouble::new(), Noted::default());
        let slow = Trouble::over(healthy.inner().clone());
        let brain = |store: &Arc<Trouble>| {
            let builder = Brain::builder().arm::<Compute>(runs.clone()).store(store.clone());
            builder.lease(6 * SECOND).build().unwrap()
        };
        let (one, two) = (brain(&slow), brain(&healthy));
        two.recover().await.unwrap();
        slow.hang_after(operation, from * SECOND / 4, long * SECOND);
        let id = one.submit(compute(4), &anyone()).await.unwrap().task_id;
        one.recover().await.ok();
        let ended = timeout(300 * SECOND, end_of(&two, &id)).await.expect("it never ends");
        assert_eq!(ended.status, TaskStatus::Completed);
        let mut runs = runs.0.lock().unwrap().clone();
        runs.sort();
        assert!(runs.windows(2).all(|two| two[0].1 <= two[1].0), "{operation} {from} {long}: {runs:?}");
    }
}

/// Increments twice, with a pause in which it can be cancelled elsewhere.
struct Slow;

#[async_trait]
impl Arm<Compute> for Slow {
    async fn execute(&self, input: Compute, cx: &Context) -> Result<u64, ArmError> {
        let number = cx.call(Increment { number: input.number }).await?;
        sleep(2 * SECOND).await;
        let number = cx.call(Increment { number }).await?;
        sleep(SECOND / 10).await;
        Ok(cx.call(Increment { number }).await?)
    }
}

#[tokio::test(start_paused = true)]
async fn a_task_that_is_cancelled_at_another_brain_makes_one_more_call_at_most() {
    let (arms, store) = (Local::new(), Trouble::new());
    let brain = || {
        let builder = Brain::builder().arm::<Compute>(Slow).arms(arms.clone());
        builder.store(store.clone()).build().unwrap()
    };
    let (one, two) = (brain(), brain());
    let id = one.submit(compute(4), &anyone()).await.unwrap().task_id;
    sleep(SECOND).await;
    assert_eq!(two.cancel(&id, &anyone()).await.unwrap().status, TaskStatus::Cancelled);
    sleep(30 * SECOND).await;
    assert_eq!(arms.calls().len(), 2);
    assert_eq!(one.get(&id, &anyone()).await.unwrap().status, TaskStatus::Cancelled);
}
