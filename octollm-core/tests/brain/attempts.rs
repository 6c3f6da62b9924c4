//! Tasks that are run again by themselves after a failure.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use octollm_core::{
    Context,
    brain::Brain,
    budget::Usage,
    bus::{EventBus, MemoryBus, Overflow, Signal},
    error::{ArmError, CallError, ErrorKind},
    orchestrator::Orchestrator,
    parts::{Caller, ContextParts, Grant},
    store::MemoryStore,
    task::{Task, TaskBudget, TaskEvent, TaskStatus, TaskUpdate},
    transport::{Call, Reply},
};
use tokio::time::{Instant, sleep};

use crate::{
    scripted::{Charge, Does, Scripted, error, on, program},
    support::{Compute, Double, Increment, anyone, compute, end_of, run, shared_store},
};

const SECOND: Duration = Duration::from_secs(1);

/// Increments, and then doubles.
fn two_calls() -> Arc<dyn octollm_core::Arm<Compute>> {
    program(|input: Compute, cx: Context| async move {
        let number = cx.call(Increment { number: input.number }).await?;
        Ok(cx.call(Double { number }).await?)
    })
}

/// Answers the first step, and fails the second one so many times.
fn fails(times: usize, kind: ErrorKind) -> Scripted {
    let mut left = times;
    Scripted::new(move |call| {
        if call.step.to_string() == "0" || left == 0 {
            return Does::Answers("7");
        }
        left -= 1;
        Does::Fails(error(call, kind))
    })
}

#[tokio::test(start_paused = true)]
async fn a_task_is_run_again_until_it_succeeds_and_answered_calls_are_not_made_again() {
    let (bus, arms) = (MemoryBus::new(), fails(3, ErrorKind::Unavailable));
    let mut events = bus.subscribe("events:task:*".parse().unwrap(), Overflow::DropOldest(64)).await.unwrap();
    let brain = Brain::builder().arm::<Compute>(two_calls()).arms(arms.clone()).bus(bus).build().unwrap();
    let id = brain.submit(compute(1).attempts(5), &anyone()).await.unwrap().task_id;
    let (mut updates, mut seen) = (brain.watch(&id, None, &anyone()).await.unwrap(), Vec::new());
    while let Some(update) = updates.next().await {
        if let TaskUpdate::Status { status, error, .. } = update {
            seen.push((status, error.map(|error| error.step.unwrap().to_string())));
        }
    }
    use TaskStatus::{Completed, Processing, Queued};
    let again = || (Queued, Some("1".to_owned()));
    let expected = [
        (Processing, None),
        again(),
        (Processing, None),
        again(),
        (Processing, None),
        again(),
        (Processing, None),
        (Completed, None),
    ];
    assert_eq!(seen, expected);
    assert_eq!(arms.steps(), ["0", "1", "1", "1", "1"]);
    let task = brain.get(&id, &anyone()).await.unwrap();
    assert_eq!((task.attempt, task.error, task.failed_at), (4, None, None));
    let mut published = Vec::new();
    while published.last() != Some(&("task.completed", Some(4), None)) {
        let Some(Signal::Event(event)) = events.next().await else { panic!("an event is missing") };
        let event = TaskEvent::try_from(&event).unwrap();
        published.push((event.event_type(), event.attempt, event.error.map(|error| error.kind)));
    }
    let failed = Some(ErrorKind::Unavailable);
    let expected = [
        ("task.queued", None, None),
        ("task.started", None, None),
        ("task.queued", Some(2), failed),
        ("task.started", Some(2), None),
        ("task.queued", Some(3), failed),
        ("task.started", Some(3), None),
        ("task.queued", Some(4), failed),
        ("task.started", Some(4), None),
        ("task.completed", Some(4), None),
    ];
    assert_eq!(published, expected);
}

#[tokio::test(start_paused = true)]
async fn the_waits_double_up_to_the_longest_and_end_with_the_attempts() {
    let times = Arc::new(Mutex::new(Vec::new()));
    let noted = times.clone();
    let arm = program(move |_, cx: Context| {
        noted.lock().unwrap().push((Instant::now(), cx.parts().attempt));
        async { Err(ArmError::unavailable("not now")) }
    });
    let brain = Brain::builder().arm::<Compute>(arm).retry_wait(SECOND).max_retry_wait(8 * SECOND);
    let brain = brain.build().unwrap();
    let id = brain.submit(compute(1).attempts(40), &anyone()).await.unwrap().task_id;
    sleep(SECOND / 1000).await;
    let task = end_of(&brain, &id).await;
    let error = task.error.unwrap();
    assert_eq!((task.status, task.attempt, error.kind), (TaskStatus::Failed, 40, ErrorKind::Unavailable));
    let times = times.lock().unwrap();
    assert!(times.iter().map(|(_, attempt)| *attempt).eq(1..=40));
    let waits: Vec<_> = times.windows(2).map(|two| two[1].0 - two[0].0).collect();
    for (n, wait) in waits.iter().enumerate() {
        let most = SECOND * 2_u32.pow(n.min(3) as u32);
        assert!(*wait <= most + Duration::from_millis(20), "{wait:?} before attempt {}", n + 2);
    }
    let (sum, most) = (waits.iter().sum::<Duration>(), *waits.iter().max().unwrap());
    assert!(sum > 60 * SECOND && most > 5 * SECOND, "{waits:?}");
}

#[tokio::test(start_paused = true)]
async fn a_task_waits_for_as_long_as_the_failure_asks() {
    let arm = program(|_, cx: Context| async move {
        if cx.parts().attempt == 1 {
            Err(ArmError::unavailable("full").retry_after(90 * SECOND))
        } else {
            Ok(1)
        }
    });
    let brain = Brain::builder().arm::<Compute>(arm).build().unwrap();
    let begun = Instant::now();
    let id = brain.submit(compute(1).attempts(2), &anyone()).await.unwrap().task_id;
    sleep(SECOND).await;
    let waiting = brain.get(&id, &anyone()).await.unwrap();
    assert_eq!((waiting.status, waiting.attempt), (TaskStatus::Queued, 2));
    assert_eq!(waiting.error.unwrap().message, "full");
    assert!(waiting.run_at.unwrap().duration_since(waiting.updated_at).as_secs() >= 89);
    assert_eq!(end_of(&brain, &id).await.status, TaskStatus::Completed);
    assert!((90 * SECOND..91 * SECOND).contains(&begun.elapsed()), "{:?}", begun.elapsed());
}

async fn ended(arms: &Scripted, attempts: u32) -> Task {
    run(&on(&shared_store(), arms, two_calls()), compute(1).attempts(attempts)).await
}

#[tokio::test(start_paused = true)]
async fn a_failure_that_no_attempt_can_help_ends_the_task() {
    for kind in [ErrorKind::ArmFailed, ErrorKind::ValidationFailed, ErrorKind::BadResponse] {
        let arms = fails(9, kind);
        let task = ended(&arms, 5).await;
        assert_eq!((task.status, task.attempt), (TaskStatus::Failed, 1), "{kind}");
        assert_eq!(arms.steps(), ["0", "1"]);
    }
    // An arm that has handled the failure of a call, and fails by itself, would fail again.
    let arm = program(|_, cx: Context| async move {
        let _ = cx.call(Increment { number: 1 }).await;
        Err(ArmError::unavailable("not now"))
    });
    let arms = Scripted::new(|call| Does::Fails(error(call, ErrorKind::Unavailable)));
    let task = run(&on(&shared_store(), &arms, arm), compute(1).attempts(5)).await;
    assert_eq!((task.status, task.attempt), (TaskStatus::Failed, 1));
}

#[tokio::test(start_paused = true)]
async fn an_error_of_the_arm_with_that_of_a_call_as_its_source_makes_that_call_again() {
    let program = program(|_, cx: Context| async move {
        let called = cx.call(Increment { number: 1 }).await;
        called.map_err(|error| ArmError::unavailable("not now").with_source(error))
    });
    let mut left = 2;
    let arms = Scripted::new(move |call| {
        left -= 1;
        // Of a kind that is not retryable by itself.
        if left < 0 { Does::Answers("7") } else { Does::Fails(error(call, ErrorKind::ArmFailed)) }
    });
    let task = run(&on(&shared_store(), &arms, program), compute(1).attempts(5)).await;
    assert_eq!((task.status, task.attempt, arms.steps().len()), (TaskStatus::Completed, 3, 3));
}

#[tokio::test(start_paused = true)]
async fn a_call_that_may_have_run_and_must_not_run_twice_ends_the_task() {
    let charge = || program(|_, cx: Context| async move { Ok(cx.call(Charge { amount: 1 }).await?) });
    // Lost: it may have run.
    let arms = Scripted::new(|call| Does::Fails(error(call, ErrorKind::ConnectionLost)));
    let task = run(&on(&shared_store(), &arms, charge()), compute(1).attempts(5)).await;
    let error_of = |task: Task| task.error.map(|error| error.kind);
    assert_eq!((arms.steps().len(), task.attempt), (1, 1));
    assert_eq!(
        error_of(task),
        Some(ErrorKind::UpstreamFailed),
        "its own error, and not that of a second attempt"
    );
    // Never sent.
    let mut left = 2;
    let arms = Scripted::new(move |call| {
        left -= 1;
        if left < 0 { Does::Answers("1") } else { Does::Fails(error(call, ErrorKind::Unreachable)) }
    });
    let task = run(&on(&shared_store(), &arms, charge()), compute(1).attempts(5)).await;
    assert_eq!((task.status, task.attempt, arms.steps().len()), (TaskStatus::Completed, 3, 3));
    let keys = arms.keys("0");
    assert!(keys.iter().all(|key| key.is_some() && *key == keys[0]), "one step, one key");
}

#[tokio::test(start_paused = true)]
async fn the_budget_is_that_of_all_attempts() {
    struct Spends(Scripted);
    #[async_trait::async_trait]
    impl octollm_core::transport::Transport for Spends {
        async fn call(&self, call: Call) -> Result<Reply, CallError> {
            let contract = call.contract.clone();
            let failed = self.0.call(call).await;
            failed.map_err(|error| {
                CallError::new(contract, error.failure().clone()).with_usage(Usage::tokens(40))
            })
        }

        async fn cards(&self) -> Vec<octollm_core::card::ArmCard> {
            Vec::new()
        }
    }
    let arms = fails(99, ErrorKind::Unavailable);
    let builder = Brain::builder().arm::<Compute>(two_calls()).arms(Spends(arms.clone()));
    let brain = builder.build().unwrap();
    let budget = TaskBudget { max_tokens: Some(100), ..TaskBudget::default() };
    let task = run(&brain, compute(1).budget(budget).attempts(50)).await;
    assert_eq!((task.status, task.attempt, task.metadata.tokens_used), (TaskStatus::Failed, 3, 120));
    assert_eq!(task.error.unwrap().kind, ErrorKind::Unavailable);
    assert_eq!(arms.steps(), ["0", "1", "1", "1"]);
}

#[tokio::test(start_paused = true)]
async fn brains_that_stop_use_up_no_attempt() {
    let (store, arms) = (shared_store(), Scripted::new(|_| Does::Hangs));
    let mut brain = on(&store, &arms, two_calls());
    let id = brain.submit(compute(1).attempts(2), &anyone()).await.unwrap().task_id;
    for _ in 0..5 {
        sleep(SECOND).await;
        brain.close().await;
        brain = on(&store, &arms, two_calls());
        brain.recover().await.unwrap();
    }
    sleep(SECOND).await;
    let task = brain.get(&id, &anyone()).await.unwrap();
    assert_eq!((task.status, task.attempt), (TaskStatus::Processing, 1));
    brain.close().await;
    let arms = fails(1, ErrorKind::Unavailable);
    let brain = on(&store, &arms, two_calls());
    brain.recover().await.unwrap();
    let task = end_of(&brain, &id).await;
    assert_eq!(
        (task.status, task.attempt, arms.steps()),
        (TaskStatus::Completed, 2, steps(&["0", "1", "1"]))
    );
}

fn steps(steps: &[&str]) -> Vec<String> {
    steps.iter().map(|step| (*step).to_owned()).collect()
}

#[tokio::test(start_paused = true)]
async fn a_further_attempt_waits_in_the_store_for_any_brain() {
    let (store, arms) = (shared_store(), fails(1, ErrorKind::Unavailable));
    let slow = |store: &Arc<MemoryStore>| {
        let builder = Brain::builder().arm::<Compute>(two_calls()).arms(arms.clone()).store(store.clone());
        builder.retry_wait(600 * SECOND).build().unwrap()
    };
    let one = slow(&store);
    let id = one.submit(compute(1).attempts(2), &anyone()).await.unwrap().task_id;
    sleep(SECOND / 10).await;
    one.close().await;
    let two = slow(&store);
    two.recover().await.unwrap();
    assert_eq!(end_of(&two, &id).await.status, TaskStatus::Completed);
    assert_eq!(arms.steps(), ["0", "1", "1"]);
}

#[tokio::test(start_paused = true)]
async fn a_rerun_has_all_attempts_again() {
    let (store, arms) = (shared_store(), fails(5, ErrorKind::Unavailable));
    let brain = on(&store, &arms, two_calls());
    let task = run(&brain, compute(1).attempts(3)).await;
    assert_eq!((task.status, task.attempt, arms.steps().len()), (TaskStatus::Failed, 3, 4));
    let queued = brain.rerun(&task.task_id, None, &anyone()).await.unwrap();
    assert_eq!((queued.attempt, queued.run_at, queued.error), (4, None, None));
    let task = end_of(&brain, &task.task_id).await;
    assert_eq!((task.status, task.attempt, arms.steps().len()), (TaskStatus::Completed, 6, 7));
}

#[tokio::test(start_paused = true)]
async fn each_attempt_has_the_whole_time_limit() {
    let arm = program(|_, cx: Context| async move {
        sleep(50 * SECOND).await;
        if cx.parts().attempt < 3 { Err(ArmError::unavailable("not now")) } else { Ok(1) }
    });
    let brain = Brain::builder().arm::<Compute>(arm).build().unwrap();
    let budget = TaskBudget { max_time_seconds: Some(55.0), ..TaskBudget::default() };
    let task = run(&brain, compute(1).budget(budget).attempts(3)).await;
    assert_eq!((task.status, task.attempt), (TaskStatus::Completed, 3));
}

#[tokio::test(start_paused = true)]
async fn a_task_whose_grant_would_have_ended_fails_at_once() {
    let arm = program(|_, _| async { Err(ArmError::unavailable("not now").retry_after(60 * SECOND)) });
    let brain = Brain::builder().arm::<Compute>(arm).grant_life(90 * SECOND).build().unwrap();
    let mut parts = ContextParts::new();
    parts.caller = Caller::Known(Arc::new(Grant::new("ali", ["number:compute"])));
    let cx = Context::from_parts(parts, Arc::new(()));
    let (begun, id) = (Instant::now(), brain.submit(compute(1).attempts(9), &cx).await.unwrap().task_id);
    let task = octollm_core::orchestrator::finished(&brain, &id, &cx).await.unwrap();
    assert_eq!((task.status, task.attempt), (TaskStatus::Failed, 2));
    assert!((60 * SECOND..62 * SECOND).contains(&begun.elapsed()), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_task_that_waits_for_its_next_attempt_can_be_cancelled() {
    let arms = fails(9, ErrorKind::Unavailable);
    let builder = Brain::builder().arm::<Compute>(two_calls()).arms(arms.clone());
    let brain = builder.retry_wait(600 * SECOND).build().unwrap();
    let id = brain.submit(compute(1).attempts(9), &anyone()).await.unwrap().task_id;
    sleep(SECOND / 10).await;
    let task = brain.cancel(&id, &anyone()).await.unwrap();
    assert_eq!((task.status, task.error), (TaskStatus::Cancelled, None));
    sleep(3600 * SECOND).await;
    assert_eq!(arms.steps(), ["0", "1"]);
}
