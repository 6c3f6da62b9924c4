//! Brains that change tasks which other brains on the same store run.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use octollm_core::{
    Arm, Context,
    brain::Brain,
    budget::{Budget, Usage},
    bus::{EventBus, MemoryBus, Overflow, Signal},
    dispatcher::Dispatcher,
    error::{ArmError, ErrorKind},
    id::TaskId,
    orchestrator::Orchestrator,
    store::{MemoryStore, TaskStore},
    task::{TaskEvent, TaskQuery, TaskStatus},
};
use tokio::time::{Instant, sleep, timeout};

use crate::{
    scripted::{Charge, Does, Scripted, error, on, program},
    support::{Compute, Increment, Local, anyone, compute, run, shared_store},
    trouble::{Trouble, away},
};

const SECOND: Duration = Duration::from_secs(1);

/// Spends this much itself, increments for 80 tokens, which is allowed to fail, and pays, which hangs.
struct Pays(Usage);

#[async_trait]
impl Arm<Compute> for Pays {
    async fn execute(&self, input: Compute, cx: &Context) -> Result<u64, ArmError> {
        cx.spend(self.0)?;
        let _ = cx.call(Increment { number: input.number }).await;
        Ok(cx.call(Charge { amount: input.number }).await?)
    }
}

fn arms() -> Scripted {
    Scripted::new(|call| match call.contract.name() {
        "card.charge" => Does::Hangs,
        _ => Does::Fails(error(call, ErrorKind::Unavailable).with_usage(Usage::tokens(80))),
    })
}

/// The usage that the journal of [`Pays`] has.
const RECORDED: Usage = Usage::tokens(80).plus(Usage::UNMETERED);

async fn used(store: &Arc<MemoryStore>, id: &TaskId) -> Option<Usage> {
    store.get(id).await.unwrap().unwrap().usage()
}

#[tokio::test(start_paused = true)]
async fn a_task_that_another_brain_cancels_reports_what_is_recorded() {
    for holder_is_away in [false, true] {
        let (store, arms, bus) = (shared_store(), arms(), MemoryBus::new());
        let of_holder = Trouble::over(store.clone());
        let builder = || {
            let builder = Brain::builder().arm::<Compute>(Pays(Usage::ZERO)).arms(arms.clone());
            builder.bus(bus.clone())
        };
        let holder = builder().store(of_holder.clone()).build().unwrap();
        let id = holder.submit(compute(1), &anyone()).await.unwrap().task_id;
        sleep(2 * SECOND).await;
        if holder_is_away {
            of_holder.fails(|_, _| Some(away()));
            sleep(15 * SECOND).await;
        }
        let mut ended =
            bus.subscribe("events:task:cancelled".parse().unwrap(), Overflow::DropOldest(8)).await.unwrap();
        let other = builder().store(store.clone()).build().unwrap();
        let task = other.cancel(&id, &anyone()).await.unwrap();
        assert_eq!((task.status, task.metadata.tokens_used), (TaskStatus::Cancelled, 80));
        assert_eq!(task.metadata.arms_used, ["arm"]);
        let seconds = if holder_is_away { 17.0..17.1 } else { 2.0..2.1 };
        assert!(seconds.contains(&task.metadata.duration_seconds), "{:?}", task.metadata);
        assert_eq!(used(&store, &id).await, Some(RECORDED));
        let Ok(Some(Signal::Event(event))) = timeout(20 * SECOND, ended.next()).await else {
            panic!("no event, holder is away: {holder_is_away}")
        };
        let event = TaskEvent::try_from(&event).unwrap();
        assert_eq!(event.usage(), Some(RECORDED));
        sleep(60 * SECOND).await;
        assert_eq!(
            other.get(&id, &anyone()).await.unwrap(),
            task,
            "the run that has lost it changes nothing"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_queued_task_that_is_cancelled_has_used_what_its_runs_used() {
    let (store, arms) = (shared_store(), arms());
    let one = on(&store, &arms, Pays(Usage::tokens(300)));
    let id = one.submit(compute(1), &anyone()).await.unwrap().task_id;
    sleep(2 * SECOND).await;
    one.close().await;
    let two = on(&store, &arms, Pays(Usage::ZERO));
    let task = two.cancel(&id, &anyone()).await.unwrap();
    assert_eq!((task.status, task.metadata.tokens_used), (TaskStatus::Cancelled, 380));
    assert!((2.0..2.1).contains(&task.metadata.duration_seconds), "{:?}", task.metadata);
    assert_eq!(used(&store, &id).await, Some(RECORDED.plus(Usage::tokens(300))));
}

/// A brain that begins no runs, as an arm. After half a second another one on the same store runs its tasks, where there is a
/// program for it.
async fn runs_elsewhere(program: Option<Arc<dyn Arm<Compute>>>) -> (Context, Brain, Arc<MemoryStore>) {
    let (store, arms) = (shared_store(), arms());
    let called = on(&store, &arms, Pays(Usage::ZERO));
    called.drain().await;
    if let Some(program) = program {
        let other = on(&store, &arms, program);
        tokio::spawn(async move {
            sleep(SECOND / 2).await;
            other.recover().await.unwrap();
        });
    }
    let mut arm = Dispatcher::new("computer");
    arm.serve::<Compute>(called.clone());
    (Context::root(Arc::new(Local::of(arm))), called, store)
}

#[tokio::test(start_paused = true)]
async fn what_a_task_of_another_brain_used_until_its_time_was_up_counts() {
    let spends = program(|_, cx: Context| async move {
        cx.spend(Usage::tokens(100))?;
        std::future::pending().await
    });
    let call = |cx: &Context| cx.call(Compute { number: 1 }).within(2 * SECOND);
    let (cx, ..) = runs_elsewhere(Some(Arc::new(Pays(Usage::ZERO)))).await;
    let within = cx.with_budget(Budget::tokens(100));
    assert_eq!(call(&within).await.unwrap_err().kind(), ErrorKind::DeadlineExceeded);
    assert_eq!((cx.used(), within.budget()), (RECORDED, Budget::tokens(20)));

    let (cx, ..) = runs_elsewhere(None).await;
    assert_eq!(call(&cx).await.unwrap_err().kind(), ErrorKind::DeadlineExceeded);
    assert_eq!(cx.used(), Usage::ZERO, "nobody has run it");

    let (cx, called, store) = runs_elsewhere(Some(spends)).await;
    assert_eq!(call(&cx).await.unwrap_err().kind(), ErrorKind::DeadlineExceeded);
    assert_eq!(cx.used(), Usage::UNMETERED, "nothing is recorded");
    let task = called.list(TaskQuery::default(), &anyone()).await.unwrap().tasks.remove(0);
    assert_eq!((task.status, used(&store, &task.task_id).await), (TaskStatus::Cancelled, None));
}

#[tokio::test(start_paused = true)]
async fn what_a_task_of_another_brain_used_until_it_was_cancelled_counts() {
    for operator_runs_it in [false, true] {
        let other: Arc<dyn Arm<Compute>> = Arc::new(Pays(Usage::ZERO));
        let (cx, called, store) = runs_elsewhere((!operator_runs_it).then_some(other)).await;
        let operator = on(&store, &arms(), Pays(Usage::ZERO));
        if operator_runs_it {
            operator.recover().await.unwrap();
        }
        let cx = cx.with_budget(Budget::tokens(100));
        let cancel = async {
            sleep(2 * SECOND).await;
            let id = called.list(TaskQuery::default(), &anyone()).await.unwrap().tasks[0].task_id.clone();
            operator.cancel(&id, &anyone()).await.unwrap();
        };
        let (answer, ()) = tokio::join!(cx.call(Compute { number: 1 }), cancel);
        assert_eq!(answer.unwrap_err().kind(), ErrorKind::Cancelled);
        assert_eq!((cx.used(), cx.budget()), (RECORDED, Budget::tokens(20)), "{operator_runs_it}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_brain_publishes_the_events_of_all_its_changes_also_before_it_starts_and_once_it_is_closed() {
    let (store, local) = (shared_store(), Local::new());
    local.hang("number.increment");
    let builder = || Brain::builder().arm::<Compute>(crate::support::Computer).arms(local.clone());
    let one = builder().store(store.clone()).build().unwrap();
    let mut ids = Vec::new();
    for number in 0..2 {
        ids.push(one.submit(compute(number), &anyone()).await.unwrap().task_id);
    }
    sleep(SECOND).await;
    local.fail("number.increment");
    let failed = run(&one, compute(2)).await.task_id;
    one.close().await;
    // Its relay ends.
    sleep(SECOND).await;
    let bus = MemoryBus::new();
    let mut events = bus.subscribe("events:task:*".parse().unwrap(), Overflow::DropOldest(64)).await.unwrap();
    let two = builder().store(store.clone()).bus(bus).build().unwrap();
    let mut next = async || {
        let Ok(Some(Signal::Event(event))) = timeout(SECOND, events.next()).await else { return None };
        Some((event.event_type().to_owned(), TaskEvent::try_from(&event).unwrap().task_id))
    };
    let is = |name: &str, id: &TaskId| Some((name.to_owned(), id.clone()));
    two.cancel(&ids[0], &anyone()).await.unwrap();
    assert_eq!(next().await, is("task.cancelled", &ids[0]), "before it starts");
    assert_eq!(two.get(&ids[1], &anyone()).await.unwrap().status, TaskStatus::Queued, "it claims nothing");
    two.close().await;
    two.cancel(&ids[1], &anyone()).await.unwrap();
    assert_eq!(next().await, is("task.cancelled", &ids[1]), "once it is closed");

    let bus = MemoryBus::new();
    let mut events = bus.subscribe("events:task:*".parse().unwrap(), Overflow::DropOldest(64)).await.unwrap();
    let three = builder().store(store).bus(bus).build().unwrap();
    three.rerun(&failed, None, &anyone()).await.unwrap();
    let begun = Instant::now();
    let Some(Signal::Event(event)) = events.next().await else { panic!("no event of the rerun") };
    assert_eq!((event.event_type(), begun.elapsed() < SECOND), ("task.queued", true));
}
