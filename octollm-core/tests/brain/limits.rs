//! Limits of tasks, queues and leases, and what travels through a queue.

use std::{sync::Arc, time::Duration};

use futures_util::future::join_all;
use octollm_core::{
    Context,
    arm::arm_fn,
    brain::Brain,
    budget::{Budget, Usage},
    bus::{ConsumeOptions, DurableBus, EventBus, MemoryBus, MemoryDurableBus, Overflow, Signal},
    context::{Caller, ContextParts},
    contract::TaskContract,
    deadline::Deadline,
    dispatcher::Dispatcher,
    error::{ArmError, ErrorKind},
    mesh::Mesh,
    orchestrator::Orchestrator,
    store::{Claim, MemoryStore, SideEffects, TaskStore},
    task::{
        Priority, Submission, TaskBudget, TaskEvent, TaskQuery, TaskRecord, TaskRequest, TaskResult,
        TaskStatus,
    },
    transport::Transport,
};
use tokio::time::{Instant, sleep, timeout};

use crate::{
    scripted::{Does, Scripted, again, error, on, program},
    support::{
        Compute, Increment, Local, anyone, brain, brain_on, clock_ahead, compute, end_of, goal, run,
        shared_store,
    },
    trouble::{Trouble, away},
};

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn brains_whose_clocks_differ_by_a_minute_run_a_task_once() {
    for ahead in [false, true] {
        let (arms, store) = (Local::new(), shared_store());
        arms.hang("number.double");
        let brain = |seconds| {
            let builder = Brain::builder().arm::<Compute>(crate::support::Computer).arms(arms.clone());
            builder.store(store.clone()).clock(clock_ahead(seconds)).build().unwrap()
        };
        let (one, two) = if ahead { (brain(60), brain(0)) } else { (brain(0), brain(60)) };
        let id = one.submit(compute(4), &anyone()).await.unwrap().task_id;
        sleep(SECOND).await;
        two.recover().await.unwrap();
        sleep(25 * SECOND).await;
        assert_eq!(arms.calls(), ["number.increment", "number.double"], "ahead: {ahead}");
        assert_eq!(one.get(&id, &anyone()).await.unwrap().status, TaskStatus::Processing);
    }
}

/// Nothing reports that a lease has expired.
#[tokio::test(start_paused = true)]
async fn a_task_of_a_process_that_has_died_is_started_within_two_seconds_after_its_lease() {
    let store = shared_store();
    let record = TaskRecord::new(compute(4), &ContextParts::new(), 600 * SECOND, jiff::Timestamp::now());
    let id = record.id().clone();
    store.create(record, SideEffects::default(), 10, 1 << 20).await.unwrap();
    let contracts = [Compute::SPEC.reference()];
    let dead = Claim::new("dead", &contracts, 30 * SECOND, 1, "dead");
    assert_eq!(store.claim(&dead).await.unwrap().tasks.len(), 1);
    let died = Instant::now();

    let brain = brain_on(&Local::new(), store.clone());
    assert_eq!(brain.recover().await.unwrap(), 0);
    assert_eq!(end_of(&brain, &id).await.status, TaskStatus::Completed);
    let taken_over = died.elapsed();
    assert!((30 * SECOND..33 * SECOND).contains(&taken_over), "{taken_over:?}");
}

#[tokio::test(start_paused = true)]
async fn a_bus_that_is_full_while_a_task_ends_gets_its_end_later() {
    let bus = MemoryDurableBus::builder().history(0, 0).backlog(1, 1024 * 1024).build().unwrap();
    let mut consumer =
        bus.consume("audit", "events:task:*".parse().unwrap(), ConsumeOptions::default()).await.unwrap();
    let brain = Brain::builder()
        .arm::<Compute>(crate::support::Computer)
        .arms(Local::new())
        .bus(bus)
        .build()
        .unwrap();
    let id = brain.submit(compute(4), &anyone()).await.unwrap().task_id;
    assert_eq!(end_of(&brain, &id).await.status, TaskStatus::Completed);
    sleep(20 * SECOND).await;
    let mut types = Vec::new();
    while let Ok(Some(next)) = timeout(60 * SECOND, consumer.next()).await {
        let Ok(delivery) = next else { continue };
        types.push(delivery.event().event_type().to_owned());
        delivery.ack().await.unwrap();
    }
    types.retain(|name| name != "task.progress");
    assert_eq!(types, ["task.queued", "task.started", "task.completed"]);
}

#[tokio::test(start_paused = true)]
async fn a_submission_has_no_more_than_its_context() {
    let brain = brain(&Local::new());
    let spent = anyone().with_budget(Budget::tokens(0));
    let late = anyone().with_deadline(Deadline::after(Duration::ZERO));
    for (cx, kind) in [(spent, ErrorKind::BudgetExhausted), (late, ErrorKind::DeadlineExceeded)] {
        let refused = brain.submit(compute(4), &cx).await.unwrap_err();
        assert_eq!((refused.kind, refused.may_have_executed), (kind, false));
    }
    // Each increment takes ten.
    for (asked, had, status) in [
        (None, 15, TaskStatus::Failed),
        (Some(1_000), 15, TaskStatus::Failed),
        (Some(1_000), 25, TaskStatus::Completed),
    ] {
        let mut submission = compute(4);
        submission.budget.max_tokens = asked;
        let cx = anyone().with_budget(Budget::tokens(had));
        let id = brain.submit(submission, &cx).await.unwrap().task_id;
        assert_eq!(end_of(&brain, &id).await.status, status, "{asked:?} of {had}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_budget_that_is_no_amount_is_refused() {
    let brain = brain(&Local::new());
    for amount in [-1.0, f64::NAN, f64::INFINITY, 1e300] {
        for budget in [
            TaskBudget { max_cost_dollars: Some(amount), ..TaskBudget::default() },
            TaskBudget { max_time_seconds: Some(amount), ..TaskBudget::default() },
        ] {
            let refused = brain.submit(compute(4).budget(budget), &anyone()).await.unwrap_err();
            assert_eq!(
                (refused.kind, refused.may_have_executed),
                (ErrorKind::ValidationFailed, false),
                "{budget:?}"
            );
        }
    }
    assert!(brain.list(TaskQuery::default(), &anyone()).await.unwrap().tasks.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_task_has_the_time_that_its_submission_asks_for_up_to_the_brains_limit() {
    let sleeper = program(|input, _| async move {
        sleep(input.number as u32 * SECOND).await;
        Ok(input.number)
    });
    let brain = Brain::builder().arm::<Compute>(sleeper).max_task_time(4_000 * SECOND).build().unwrap();
    for (asked, takes, ends) in [
        (3_600.0, 3_500, Ok(3_500)),
        (3_600.0, 3_700, Err(3_600)),
        (9_000.0, 8_000, Err(4_000)),
        (0.5, 1, Err(0)),
    ] {
        let mut submission = compute(takes);
        submission.budget.max_time_seconds = Some(asked);
        let begun = Instant::now();
        let id = brain.submit(submission, &anyone()).await.unwrap().task_id;
        let task = end_of(&brain, &id).await;
        let took = begun.elapsed().as_secs();
        let ended = task.error.map_or(Ok(took), |error| {
            assert_eq!(error.kind, ErrorKind::DeadlineExceeded);
            Err(took)
        });
        assert_eq!(ended, ends, "{asked} s for {takes} s");
    }
}

#[tokio::test(start_paused = true)]
async fn trace_correlation_and_caller_travel_through_the_queue_and_over_a_crash() {
    let calls = program(|input: Compute, cx: Context| async move {
        Ok(cx.call(Increment { number: input.number }).await?)
    });
    let (store, arms) = (shared_store(), Scripted::new(|_| Does::Hangs));
    let mut parts = ContextParts::new();
    parts.trace = Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".parse().unwrap());
    parts.caller = Caller::known("ann", ["number:compute", "number:increment"]);
    let cx = Context::from_parts(parts.clone(), Arc::new(()));
    let one = on(&store, &arms, calls.clone());
    let id = one.submit(compute(4), &cx).await.unwrap().task_id;
    sleep(SECOND).await;
    one.close().await;
    arms.now(|_| Does::Answers("5"));
    let two = on(&store, &arms, calls);
    two.recover().await.unwrap();
    while !two.get(&id, &cx).await.unwrap().status.is_finished() {
        sleep(SECOND).await;
    }
    assert_eq!(arms.steps().len(), 2);
    let called = arms.last().parts;
    assert_eq!(called.trace.unwrap().trace_id(), "4bf92f3577b34da6a3ce929d0e0e4736");
    assert!(called.caller.is_same_as(&parts.caller));
    let (grant, submitted) = (called.caller.grant().unwrap(), parts.caller.grant().unwrap());
    assert_eq!((&grant.scopes, &grant.task), (&submitted.scopes, &Some(id.clone())));
    assert_eq!(called.correlation_id, parts.correlation_id);
    assert_eq!(called.task_id, Some(id));
}

#[tokio::test(start_paused = true)]
async fn a_large_input_is_stored_once_as_text_and_counts_in_bytes() {
    let (store, arms) = (shared_store(), Local::new());
    let builder = Brain::builder().arm::<TaskRequest>(octollm_core::arm::arm_fn(|_: TaskRequest, _| async {
        std::future::pending::<()>().await;
        Ok::<_, octollm_core::error::ArmError>(TaskResult::new(()))
    }));
    let brain = builder
        .arms(arms)
        .store(store.clone())
        .max_running(1)
        .max_queued_bytes(5 * 1024 * 1024)
        .build()
        .unwrap();
    let rows = format!("[{}]", vec![r#"{"k":0}"#; 260_000].join(","));
    let body = format!(r#"{{"goal":"sum","context":{{"rows":{rows}}}}}"#);
    let submission = || Submission::from_json(body.as_bytes()).unwrap();
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.push(brain.submit(submission(), &anyone()).await.unwrap().task_id);
        sleep(SECOND).await;
    }
    // The first runs, two wait: a third one is more than 5 MiB.
    let refused = brain.submit(submission(), &anyone()).await.unwrap_err();
    assert_eq!((refused.kind, refused.may_have_executed), (ErrorKind::Overloaded, false));
    let record = store.get(&ids[2]).await.unwrap().unwrap();
    assert!(record.size() < body.len() + 100, "{} bytes for {}", record.size(), body.len());
    let text = |record: &octollm_core::task::TaskRecord| record.input().as_str().as_ptr();
    assert_eq!(text(&record), text(&store.get(&ids[2]).await.unwrap().unwrap()), "a read copies nothing");
    let listed = serde_json::to_string(&brain.list(TaskQuery::default(), &anyone()).await.unwrap()).unwrap();
    assert!(listed.len() < 10_000, "a listing has no inputs: {} bytes", listed.len());
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_leaves_while_its_task_is_being_stored_leaves_none_running() {
    for slow in [10, 100, 1_500] {
        for leaves in [5, 20, 150] {
            let (arms, store) = (Local::new(), Trouble::new());
            arms.hang("number.increment");
            let inner = Brain::builder().arm::<Compute>(crate::support::Computer).arms(arms.clone());
            let inner = inner.store(store.clone()).build().unwrap();
            let mut arm = Dispatcher::new("computer");
            arm.serve::<Compute>(inner.clone());
            let cx = Context::root(Arc::new(Local::of(arm)) as Arc<dyn Transport>);
            store.slow(Duration::from_millis(slow));
            let call = timeout(Duration::from_millis(leaves), cx.call(Compute { number: 4 }));
            call.await.expect_err("the arm hangs");
            sleep(20 * SECOND).await;
            store.slow(Duration::ZERO);
            let tasks = inner.list(TaskQuery::default(), &anyone()).await.unwrap().tasks;
            assert!(
                tasks.iter().all(|task| task.status == TaskStatus::Cancelled),
                "{slow} {leaves}: {tasks:?}"
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_change_that_was_stored_and_reported_as_failed_is_neither_lost_nor_repeated() {
    for operation in ["after create", "after commit"] {
        let (arms, store, bus) = (Local::new(), Trouble::new(), MemoryBus::new());
        let mut events =
            bus.subscribe("events:task:*".parse().unwrap(), Overflow::DropOldest(32)).await.unwrap();
        let mut times = 0..1;
        store.fails(move |asked, _| (asked == operation && times.next().is_some()).then(away));
        let brain = Brain::builder().arm::<Compute>(crate::support::Computer).arms(arms.clone());
        let brain = brain.store(store).bus(bus).build().unwrap();
        let id = brain.submit(compute(4), &anyone()).await.expect(operation).task_id;
        assert_eq!(end_of(&brain, &id).await.status, TaskStatus::Completed);
        let mut types = Vec::new();
        while let Ok(Some(Signal::Event(event))) = timeout(30 * SECOND, events.next()).await {
            types.push(event.event_type().to_owned());
        }
        types.retain(|name| name != "task.progress");
        assert_eq!(types, ["task.queued", "task.started", "task.completed"], "{operation}");
        assert_eq!(arms.calls().len(), 3);
    }
}

#[tokio::test(start_paused = true)]
async fn of_five_thousand_submissions_at_once_no_more_wait_than_may() {
    let (arms, store) = (Local::new(), Trouble::new());
    arms.hang("number.increment");
    store.slow(Duration::from_millis(30));
    let brain = Brain::builder().arm::<Compute>(crate::support::Computer).arms(arms);
    let brain = brain.store(store).max_running(1).max_queued(100).build().unwrap();
    let cx = anyone();
    let answers = join_all((0..5_000).map(|number| brain.submit(compute(number), &cx))).await;
    let accepted = answers.iter().filter(|answer| answer.is_ok()).count();
    assert!((100..=101).contains(&accepted), "{accepted}");
    let refused = answers.into_iter().filter_map(Result::err);
    assert!(
        refused
            .into_iter()
            .all(|refused| refused.kind == ErrorKind::Overloaded && !refused.may_have_executed)
    );
}

#[tokio::test(start_paused = true)]
async fn tasks_that_come_faster_than_the_bus_takes_their_events_are_not_refused() {
    let store = Arc::new(MemoryStore::new().events(5_000));
    let answers = program(|input: Compute, _| async move { Ok(input.number) });
    let brain = Brain::builder().arm::<Compute>(answers).store(store).build().unwrap();
    let cx = anyone();
    let submitters = (0..200).map(|_| async {
        for number in 0..100 {
            let task = brain.submit(compute(number), &cx).await.unwrap();
            end_of(&brain, &task.task_id).await;
        }
    });
    join_all(submitters).await;
}

#[tokio::test(start_paused = true)]
async fn a_brain_with_one_place_ends_tasks_that_call_it_at_their_limit() {
    let store = shared_store();
    let inner = brain_on(&Local::new(), store.clone());
    let mut arm = Dispatcher::new("itself");
    arm.serve::<Compute>(inner.clone());
    let outer = octollm_core::arm::arm_fn(|_: TaskRequest, cx: Context| async move {
        Ok::<_, octollm_core::error::ArmError>(TaskResult::new(cx.call(Compute { number: 4 }).await?))
    });
    let outer = Brain::builder().arm::<TaskRequest>(outer).arms(Local::of(arm)).store(store).max_running(1);
    let outer = outer.build().unwrap();
    for urgent in [Priority::Low, Priority::High] {
        let id = outer.submit(goal("nested").priority(urgent), &anyone()).await.unwrap().task_id;
        let task = timeout(300 * SECOND, end_of(&outer, &id)).await.expect("it is stuck");
        assert_eq!(task.result.unwrap().output, 11);
    }
}

#[tokio::test(start_paused = true)]
async fn a_rerun_has_what_the_attempts_before_it_left() {
    let program = program(|input: Compute, cx: Context| async move {
        cx.spend(Usage::tokens(1))?;
        Ok(cx.call(Increment { number: input.number }).await?)
    });
    let arms =
        Scripted::new(|call| Does::Fails(error(call, ErrorKind::Unavailable).with_usage(Usage::tokens(10))));
    let brain = on(&shared_store(), &arms, program);
    let budget = TaskBudget { max_tokens: Some(25), ..TaskBudget::default() };
    let task = run(&brain, compute(4).budget(budget)).await;
    assert_eq!(task.metadata.tokens_used, 11);
    let spent = anyone().with_budget(Budget::tokens(0));
    let late = anyone().with_deadline(Deadline::after(Duration::ZERO));
    for (cx, kind) in [(spent, ErrorKind::BudgetExhausted), (late, ErrorKind::DeadlineExceeded)] {
        let refused = brain.rerun(&task.task_id, None, &cx).await.unwrap_err();
        assert_eq!((refused.kind, refused.may_have_executed), (kind, false));
    }
    assert_eq!(again(&brain, &task.task_id).await.metadata.tokens_used, 22);
    assert_eq!(arms.last().parts.budget, Budget::tokens(13));
    assert_eq!(again(&brain, &task.task_id).await.metadata.tokens_used, 33);
    let refused = brain.rerun(&task.task_id, None, &anyone()).await.unwrap_err();
    assert_eq!((refused.kind, refused.may_have_executed), (ErrorKind::BudgetExhausted, false));
    let task = brain.get(&task.task_id, &anyone()).await.unwrap();
    assert_eq!(task.error.unwrap().kind, ErrorKind::Unavailable, "it stays as it was");
    assert_eq!(arms.steps().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn the_end_of_a_task_is_published_however_long_its_error_is() {
    let bus = MemoryBus::new();
    let mut events = bus.subscribe("events:task:*".parse().unwrap(), Overflow::DropOldest(32)).await.unwrap();
    let failing = program(|_, cx: Context| async move {
        cx.progress(50, "é".repeat(2_000_000));
        sleep(SECOND).await;
        let details = serde_json::json!({ "log": "x".repeat(2_000_000) });
        Err(ArmError::failed("é".repeat(2_000_000)).with_details(details))
    });
    let brain = Brain::builder().arm::<Compute>(failing).bus(bus).build().unwrap();
    let task = run(&brain, compute(4)).await;
    let error = task.error.unwrap();
    assert!((10_000..20_000).contains(&error.message.len()) && error.message.ends_with("é…"));
    assert_eq!(error.details, Some(serde_json::json!({ "omitted_bytes": 6_000_010 })));
    let mut changes = Vec::new();
    while let Ok(Some(Signal::Event(event))) = timeout(30 * SECOND, events.next()).await {
        changes.push(TaskEvent::try_from(&event).unwrap());
    }
    let [_, _, progress, failed] = &changes[..] else { panic!("{} events", changes.len()) };
    let (progress, error) = (progress.progress.as_ref().unwrap(), failed.error.as_ref().unwrap());
    assert!(progress.message.len() < 5_000 && error.message.len() < 5_000);
    assert_eq!(error.details, Some(serde_json::json!({ "omitted_bytes": 6_000_010 })));
}

#[tokio::test(start_paused = true)]
async fn finished_tasks_are_stored_within_a_number_of_bytes() {
    let answers = octollm_core::arm::arm_fn(|request: TaskRequest, _| async move {
        Ok::<_, ArmError>(TaskResult::new("x".repeat(request.goal.parse()?)))
    });
    let store = MemoryStore::new().finished_bytes(10_000);
    let brain = Brain::builder().arm::<TaskRequest>(answers).store(store).build().unwrap();
    let mut ids = Vec::new();
    for bytes in ["3000", "3000", "3000", "3000", "50000", "10"] {
        ids.push(run(&brain, goal(bytes)).await.task_id);
        let stored = brain.list(TaskQuery::default(), &anyone()).await.unwrap().tasks;
        let expected = match ids.len() {
            4 => &ids[1..],
            // One that is larger than all of it is stored while it is the latest.
            5 => &ids[4..],
            6 => &ids[5..],
            _ => &ids[..],
        };
        assert!(stored.iter().rev().map(|task| &task.task_id).eq(expected), "{bytes}");
    }
}

#[tokio::test(start_paused = true)]
async fn errors_names_and_messages_count_among_the_bytes_of_finished_tasks() {
    const LARGE: usize = 100_000;
    let large = || "x".repeat(LARGE);
    let refused = move || ArmError::failed("no").with_details(serde_json::json!({ "echo": large() }));
    let worker = move |input: Increment, _: Context| async move {
        if input.number == 0 { Err(refused()) } else { Ok(input.number) }
    };
    let mesh = Mesh::builder().arm("worker", arm_fn(worker)).start().await;
    let program = move |request: TaskRequest, cx: Context| async move {
        match &*request.goal {
            "fail" => return Err(refused()),
            "survive" => assert!(cx.call(Increment { number: 0 }).await.is_err()),
            "survive a batch" => {
                let each = cx.call_all([0, 0].map(|number| Increment { number })).each().await;
                assert!(each.iter().all(Result::is_err));
            }
            "name" => drop(cx.call(Increment { number: 1 }).named(large()).await?),
            goal => panic!("{goal}"),
        }
        Ok(TaskResult::new("done"))
    };
    // The error of a task is in the task and in its last update.
    for (work, expected) in [("fail", 4), ("survive", 9), ("survive a batch", 4), ("name", 9)] {
        let store = MemoryStore::new().finished_bytes(10 * LARGE);
        let brain = Brain::builder().arm::<TaskRequest>(arm_fn(program)).arms(mesh.transport());
        let brain = brain.store(store).build().unwrap();
        for _ in 0..12 {
            run(&brain, goal(work)).await;
        }
        let stored = brain.list(TaskQuery::default(), &anyone()).await.unwrap().tasks.len();
        assert_eq!(stored, expected, "{work}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_page_of_tasks_is_bounded_whatever_they_carry() {
    let program = |input: Compute, cx: Context| async move {
        cx.progress(50, "x".repeat(1_000_000));
        if input.number == 0 {
            std::future::pending::<()>().await;
        }
        let details = serde_json::json!({ "echo": "x".repeat(200_000) });
        Err(ArmError::failed("y".repeat(50_000)).with_details(details))
    };
    let brain = Brain::builder().arm::<Compute>(arm_fn(program)).build().unwrap();
    for _ in 0..40 {
        run(&brain, compute(4)).await;
    }
    for _ in 0..10 {
        brain.submit(compute(0), &anyone()).await.unwrap();
    }
    sleep(SECOND).await;
    let (mut query, mut seen) = (TaskQuery::default().limit(TaskQuery::MAX_LIMIT), 0);
    loop {
        let page = brain.list(query.clone(), &anyone()).await.unwrap();
        let bytes = serde_json::to_vec(&page).unwrap().len();
        assert!(bytes < 5 << 20, "{bytes}");
        seen += page.tasks.len();
        let Some(next) = page.next else { break };
        query = query.after(next);
    }
    assert_eq!(seen, 50);
    brain.close().await;
}

#[test]
fn a_brain_has_an_arm_id_as_its_name() {
    for name in ["", "Brain", "7", "a b", "orchestrator/2", &"a".repeat(129)] {
        let refused = Brain::builder().name(name).build().unwrap_err();
        assert_eq!(refused.setting(), "name", "{name}");
    }
    for name in ["orchestrator-2", &"a".repeat(128)] {
        assert!(Brain::builder().name(name).build().is_ok(), "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn limits_of_the_environment_are_those_of_the_setters_and_the_last_one_holds() {
    let one = [("OCTOLLM_BRAIN_MAX_QUEUED_BYTES", "1"), ("OCTOLLM_SERVER_MAX_BODY", "x"), ("PATH", "/bin")];
    let submit = async |builder: octollm_core::brain::BrainBuilder| {
        let brain =
            builder.arm(arm_fn(|_: TaskRequest, _| async { Ok(TaskResult::new("done")) })).build().unwrap();
        brain.submit(TaskRequest::new("a").into(), &Context::detached()).await.map_err(|failure| failure.kind)
    };
    let full = submit(Brain::builder().max_queued_bytes(1 << 20).vars(one).unwrap()).await;
    assert_eq!(full.unwrap_err(), ErrorKind::Overloaded);
    assert!(submit(Brain::builder().vars(one).unwrap().max_queued_bytes(1 << 20)).await.is_ok());
    for (name, value, problem) in [
        ("OCTOLLM_BRAIN_LEASE", "30", "is not a time"),
        ("OCTOLLM_BRAIN_LEASE", "99ms", "is 99ms: set it to a value from 100ms to 86400s"),
        ("OCTOLLM_BRAIN_MAX_RUNNING", "0", "is 0: set it to a value from 1 to"),
        ("OCTOLLM_BRAIN_LEASES", "30s", "is no setting of octollm"),
        ("OCTOLLM_BRAIN_SERVICE_HOST", "10.0.0.1", "enableServiceLinks: false"),
    ] {
        let error = Brain::builder().vars([(name, value)]).unwrap_err();
        assert_eq!(error.setting(), name);
        assert!(error.to_string().contains(problem), "{error}");
    }
}
