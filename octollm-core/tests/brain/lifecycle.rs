//! From submission to the last status.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use octollm_core::{
    Arm, Context,
    brain::Brain,
    bus::{EventBus, MemoryBus, Overflow, Signal},
    context::{Caller, ContextParts},
    contract::TaskContract,
    error::{ArmError, ErrorKind},
    orchestrator::Orchestrator,
    store::{MemoryStore, SideEffects, Start, TaskStore},
    task::{
        Priority, TaskBudget, TaskQuery, TaskRecord, TaskRequest, TaskResult, TaskStatus, TaskUpdate,
        Timestamp,
    },
};
use serde_json::json;

use crate::support::{Compute, Local, anyone, brain, compute, end_of, goal, run};

#[tokio::test(start_paused = true)]
async fn a_task_runs_to_its_result() {
    let arms = Local::new();
    let task = run(&brain(&arms), compute(4)).await;
    assert_eq!(task.status, TaskStatus::Completed);
    assert_eq!(task.result.unwrap().output, json!(11));
    assert_eq!(task.metadata.arms_used, ["adder"]);
    assert_eq!(task.metadata.tokens_used, 20);
    assert_eq!(task.progress.percentage, 100);
    assert!(task.completed_at.is_some());
    assert_eq!(arms.calls(), ["number.increment", "number.double", "number.increment"]);
}

#[tokio::test(start_paused = true)]
async fn a_task_names_its_contract() {
    let (arms, store) = (Local::new(), Arc::new(MemoryStore::new()));
    arms.fail("number.double");
    let brain = Brain::builder().arm::<Compute>(crate::support::Computer).arms(arms).store(store.clone());
    let brain = brain.build().unwrap();
    let submitted = brain.submit(compute(1), &anyone()).await.unwrap();
    let id = submitted.task_id.clone();
    let failed = end_of(&brain, &id).await;
    let again = brain.rerun(&id, None, &anyone()).await.unwrap();
    let cancelled = brain.cancel(&id, &anyone()).await.unwrap();
    let listed = brain.list(TaskQuery::default(), &anyone()).await.unwrap().tasks.remove(0);
    for task in [submitted, failed, again, cancelled, listed] {
        assert_eq!(task.contract, Some(Compute::SPEC.reference()), "{}", task.status);
    }
    // A store may have one of an earlier version, whose task does not name it.
    let parts = ContextParts::new();
    let record = TaskRecord::new(compute(1), &parts, Duration::from_secs(60), Timestamp::UNIX_EPOCH);
    let mut stored = serde_json::to_value(&record).unwrap();
    stored["task"].as_object_mut().unwrap().remove("contract").unwrap();
    let record: TaskRecord = serde_json::from_value(stored).unwrap();
    let id = record.id().clone();
    store.create(record, SideEffects::default(), 10, usize::MAX).await.unwrap();
    for task in [brain.get(&id, &anyone()).await.unwrap(), brain.cancel(&id, &anyone()).await.unwrap()] {
        assert_eq!(task.contract, Some(Compute::SPEC.reference()), "{}", task.status);
    }
}

#[tokio::test(start_paused = true)]
async fn each_transition_is_published() {
    let arms = Local::new();
    let bus = Arc::new(MemoryBus::new());
    let mut events = bus.subscribe("events:task:*".parse().unwrap(), Overflow::DropOldest(64)).await.unwrap();
    let brain = Brain::builder()
        .arm::<Compute>(crate::support::Computer)
        .arms(arms)
        .bus(bus.clone())
        .build()
        .unwrap();
    let task = run(&brain, compute(1)).await;
    bus.close();
    let mut seen = Vec::new();
    while let Some(Signal::Event(event)) = events.next().await {
        assert_eq!(event.subject(), Some(task.task_id.as_str()));
        seen.push(event.event_type().to_owned());
    }
    seen.dedup();
    assert_eq!(seen.first().map(String::as_str), Some("task.queued"));
    assert_eq!(seen[1], "task.started");
    assert_eq!(seen.last().map(String::as_str), Some("task.completed"));
}

#[tokio::test(start_paused = true)]
async fn who_watches_sees_every_update_once() {
    let arms = Local::new();
    arms.hang("number.double");
    let brain = brain(&arms);
    let id = brain.submit(compute(1), &anyone()).await.unwrap().task_id;
    let mut updates = brain.watch(&id, None, &anyone()).await.unwrap();
    let started = updates.next().await.unwrap();
    assert!(matches!(started, TaskUpdate::Status { status: TaskStatus::Processing, seq: 1, .. }));
    assert!(matches!(updates.next().await.unwrap(), TaskUpdate::Progress { progress: 33, seq: 2, .. }));
    assert_eq!(brain.get(&id, &anyone()).await.unwrap().progress.completed_steps, 1);
    brain.cancel(&id, &anyone()).await.unwrap();
    let last = updates.next().await.unwrap();
    assert!(last.is_last() && last.seq() == 3);
    assert!(updates.next().await.is_none());
    // Who comes late reads the same, and who has read some of it the rest.
    for (after, expected) in [(None, vec![1, 2, 3]), (Some(1), vec![2, 3]), (Some(3), vec![])] {
        let mut late = brain.watch(&id, after, &anyone()).await.unwrap();
        let mut seen = Vec::new();
        while let Some(update) = late.next().await {
            seen.push(update.seq());
        }
        assert_eq!(seen, expected);
    }
}

struct Stuck(Arc<AtomicBool>);

struct Dropped(Arc<AtomicBool>);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[async_trait]
impl Arm<TaskRequest> for Stuck {
    async fn execute(&self, _: TaskRequest, cx: &Context) -> Result<TaskResult, ArmError> {
        let _dropped = Dropped(self.0.clone());
        cx.progress(1, "begun");
        std::future::pending().await
    }
}

fn stuck() -> (Brain, Arc<AtomicBool>) {
    let dropped = Arc::new(AtomicBool::new(false));
    (Brain::builder().arm::<TaskRequest>(Stuck(dropped.clone())).build().unwrap(), dropped)
}

async fn running(brain: &Brain, goal_text: &str) -> octollm_core::id::TaskId {
    let id = brain.submit(goal(goal_text), &anyone()).await.unwrap().task_id;
    let mut updates = brain.watch(&id, None, &anyone()).await.unwrap();
    // Its arm has begun.
    while !matches!(updates.next().await.unwrap(), TaskUpdate::Progress { .. }) {}
    id
}

#[tokio::test(start_paused = true)]
async fn cancelling_drops_the_arm() {
    let (brain, dropped) = stuck();
    let id = running(&brain, "never ends").await;
    let task = brain.cancel(&id, &anyone()).await.unwrap();
    assert_eq!(task.status, TaskStatus::Cancelled);
    assert!(dropped.load(Ordering::SeqCst));
    assert_eq!(brain.cancel(&id, &anyone()).await.unwrap(), task);
}

#[tokio::test]
async fn a_store_in_memory_starts_a_task_with_its_creation_unless_another_one_waits() {
    let (store, hour) = (MemoryStore::new(), Duration::from_secs(3600));
    let record = || TaskRecord::new(goal("now"), &ContextParts::new(), hour, Timestamp::now());
    let create = async |record, start: bool| {
        let mut effects = SideEffects::default();
        effects.start = start.then(|| Start::new("brain", hour, "brain"));
        store.create(record, effects, 10, usize::MAX).await.unwrap()
    };
    let started = create(record(), true).await;
    assert_eq!((started.status(), started.run(), started.revision()), (TaskStatus::Processing, 1, 1));
    assert!(started.is_held("brain", 1));
    let events = store.pending_events("relay", 10).await.unwrap();
    assert_eq!(events.iter().map(|event| event.event_type()).collect::<Vec<_>>(), ["task.started"]);
    assert_eq!(create(record(), false).await.status(), TaskStatus::Queued);
    assert_eq!(create(record(), true).await.status(), TaskStatus::Queued, "it passes no other one");
}

#[tokio::test(start_paused = true)]
async fn a_task_has_no_more_time_than_it_was_given() {
    let (brain, dropped) = stuck();
    let budget = TaskBudget { max_time_seconds: Some(5.0), ..TaskBudget::default() };
    let started = tokio::time::Instant::now();
    let task = run(&brain, goal("never ends").budget(budget)).await;
    assert_eq!(task.error.unwrap().kind, ErrorKind::DeadlineExceeded);
    assert!(dropped.load(Ordering::SeqCst));
    assert!(started.elapsed() < Duration::from_secs(6), "{:?}", started.elapsed());
}

struct Panics;

#[async_trait]
impl Arm<TaskRequest> for Panics {
    async fn execute(&self, _: TaskRequest, _: &Context) -> Result<TaskResult, ArmError> {
        panic!("the secret is swordfish");
    }
}

#[tokio::test(start_paused = true)]
async fn a_panic_is_a_failed_task_without_its_message() {
    let brain = Brain::builder().arm::<TaskRequest>(Panics).build().unwrap();
    let task = run(&brain, goal("anything")).await;
    let error = task.error.unwrap();
    assert_eq!(error.kind, ErrorKind::ArmPanicked);
    assert!(!error.message.contains("swordfish"));
}

#[tokio::test(start_paused = true)]
async fn what_breaks_its_contract_is_not_queued() {
    let (brain, _) = stuck();
    let refused = brain.submit(goal("  "), &anyone()).await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::ValidationFailed);
    let refused = brain.submit(compute(1), &anyone()).await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::ContractNotOffered);
    assert!(brain.list(TaskQuery::default(), &anyone()).await.unwrap().tasks.is_empty());
}

#[tokio::test(start_paused = true)]
async fn the_urgent_go_first_and_the_queue_is_bounded() {
    let arms = Local::new();
    let brain = Brain::builder()
        .arm::<Compute>(crate::support::Computer)
        .arms(arms.clone())
        .max_running(1)
        .max_queued(2)
        .build()
        .unwrap();
    arms.hang("number.increment");
    let first = brain.submit(compute(1), &anyone()).await.unwrap().task_id;
    brain.watch(&first, None, &anyone()).await.unwrap().next().await.expect("it runs");
    let low = brain.submit(compute(2).priority(Priority::Low), &anyone()).await.unwrap().task_id;
    let high = brain.submit(compute(3).priority(Priority::Critical), &anyone()).await.unwrap().task_id;
    let refused = brain.submit(compute(4), &anyone()).await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Overloaded);
    assert!(refused.retry_after.is_some() && !refused.may_have_executed);
    arms.heal();
    brain.cancel(&first, &anyone()).await.unwrap();
    let (low, high) = (end_of(&brain, &low).await, end_of(&brain, &high).await);
    assert!(high.completed_at.unwrap() <= low.completed_at.unwrap());
}

#[tokio::test(start_paused = true)]
async fn a_queued_task_can_be_cancelled() {
    let dropped = Arc::new(AtomicBool::new(false));
    let brain = Brain::builder().arm::<TaskRequest>(Stuck(dropped)).max_running(1).build().unwrap();
    running(&brain, "first").await;
    let second = brain.submit(goal("second"), &anyone()).await.unwrap().task_id;
    let mut updates = brain.watch(&second, None, &anyone()).await.unwrap();
    assert_eq!(brain.cancel(&second, &anyone()).await.unwrap().status, TaskStatus::Cancelled);
    assert!(updates.next().await.unwrap().is_last());
}

/// Tells how far it is before it first waits, and then waits for ever.
struct Chatty;

#[async_trait]
impl Arm<TaskRequest> for Chatty {
    async fn execute(&self, _: TaskRequest, cx: &Context) -> Result<TaskResult, ArmError> {
        cx.progress(10, "begun");
        std::future::pending().await
    }
}

async fn subscribed(bus: &MemoryBus, pattern: &str) -> octollm_core::bus::Subscription {
    bus.subscribe(pattern.parse().unwrap(), Overflow::DropOldest(64)).await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn progress_before_the_first_wait_is_published() {
    for _ in 0..50 {
        let bus = MemoryBus::new();
        let mut events = subscribed(&bus, "events:task:progress").await;
        let brain = Brain::builder().arm::<TaskRequest>(Chatty).bus(bus).build().unwrap();
        brain.submit(goal("talk"), &anyone()).await.unwrap();
        assert!(matches!(events.next().await, Some(Signal::Event(_))));
    }
}

#[tokio::test(start_paused = true)]
async fn the_cancellation_of_a_queued_task_is_published() {
    let bus = MemoryBus::new();
    let mut events = subscribed(&bus, "events:task:cancelled").await;
    let stuck = Stuck(Arc::new(AtomicBool::new(false)));
    let brain = Brain::builder().arm::<TaskRequest>(stuck).bus(bus).max_running(1).build().unwrap();
    running(&brain, "first").await;
    let second = brain.submit(goal("second"), &anyone()).await.unwrap().task_id;
    brain.cancel(&second, &anyone()).await.unwrap();
    let Some(Signal::Event(event)) = events.next().await else { panic!("it is published") };
    assert_eq!(event.subject(), Some(second.as_str()));
}

/// Spends and fails.
struct Spends;

#[async_trait]
impl Arm<crate::support::Increment> for Spends {
    async fn execute(&self, _: crate::support::Increment, cx: &Context) -> Result<u64, ArmError> {
        cx.spend(octollm_core::budget::Usage::tokens(7))?;
        Err(ArmError::unavailable("the model went away"))
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_failed_call_used_up_is_used_up() {
    let mut arm = octollm_core::dispatcher::Dispatcher::new("spender");
    arm.serve::<crate::support::Increment>(Spends);
    let brain =
        Brain::builder().arm::<Compute>(crate::support::Computer).arms(Local::of(arm)).build().unwrap();
    let task = run(&brain, compute(1)).await;
    assert_eq!(task.metadata.tokens_used, 7);
    assert_eq!(task.error.unwrap().kind, ErrorKind::Unavailable);
}

fn caller(name: &str, scopes: &[&str]) -> Context {
    of(Caller::known(name, scopes.iter().copied()))
}

fn of(caller: Caller) -> Context {
    let mut parts = ContextParts::new();
    parts.caller = caller;
    Context::from_parts(parts, Arc::new(()))
}

#[tokio::test(start_paused = true)]
async fn a_task_belongs_to_who_submitted_it() {
    let (brain, _) = stuck();
    let (ann, bob, root) =
        (caller("ann", &["task:run"]), caller("bob", &["tasks:*"]), caller("root", &["tasks:admin"]));
    let id = brain.submit(goal("mine"), &ann).await.unwrap().task_id;
    let anonymous = of(Caller::Anonymous);
    for (stranger, submitting, kind) in [
        (&bob, ErrorKind::InsufficientScope, ErrorKind::TaskNotFound),
        (&anonymous, ErrorKind::Unauthenticated, ErrorKind::Unauthenticated),
    ] {
        assert_eq!(brain.submit(goal("not mine"), stranger).await.unwrap_err().kind, submitting);
        assert_eq!(brain.get(&id, stranger).await.unwrap_err().kind, kind);
        assert_eq!(brain.cancel(&id, stranger).await.unwrap_err().kind, kind);
        assert_eq!(brain.watch(&id, None, stranger).await.unwrap_err().kind, kind);
        assert_eq!(brain.rerun(&id, None, stranger).await.unwrap_err().kind, kind);
        assert_eq!(brain.journal(&id, None, None, stranger).await.unwrap_err().kind, kind);
    }
    assert!(brain.list(TaskQuery::default(), &bob).await.unwrap().tasks.is_empty());
    let failure = brain.list(TaskQuery::default(), &anonymous).await.unwrap_err();
    assert_eq!((failure.kind, failure.may_have_executed), (ErrorKind::Unauthenticated, false));
    for owner in [&ann, &anyone()] {
        assert_eq!(brain.list(TaskQuery::default(), owner).await.unwrap().tasks.len(), 1);
    }
    assert_eq!(brain.list(TaskQuery::default(), &root).await.unwrap().tasks.len(), 1);
    assert_eq!(brain.cancel(&id, &root).await.unwrap().status, TaskStatus::Cancelled);
}

#[tokio::test(start_paused = true)]
async fn pages_show_each_task_once_and_newest_first() {
    let arms = Local::new();
    let brain = brain(&arms);
    let mut ids = Vec::new();
    for number in 0..25 {
        ids.push(run(&brain, compute(number)).await.task_id);
    }
    ids.reverse();
    let (mut seen, mut query) = (Vec::new(), TaskQuery::default().limit(10));
    loop {
        let page = brain.list(query.clone(), &anyone()).await.unwrap();
        seen.extend(page.tasks.into_iter().map(|task| task.task_id));
        match page.next {
            Some(next) => query = query.after(next),
            None => break,
        }
    }
    assert_eq!(seen, ids);
    let failed = TaskQuery::default().status(TaskStatus::Failed);
    assert!(brain.list(failed, &anyone()).await.unwrap().tasks.is_empty());
}
