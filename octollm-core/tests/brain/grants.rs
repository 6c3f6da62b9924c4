//! On whose authority a task runs: with which scopes, until when, and what a rerun renews.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use octollm_core::{
    Context,
    brain::Brain,
    error::ErrorKind,
    id::TaskId,
    orchestrator::{Orchestrator, finished},
    parts::{Caller, ContextParts, Grant},
    store::{MemoryStore, TaskStore},
    task::{Task, TaskStatus},
};
use tokio::time::{Instant, sleep};

use crate::{
    scripted::{Does, Scripted, error, program},
    support::{Compute, Double, Increment, compute, shared_store},
};

const MINUTE: Duration = Duration::from_secs(60);

fn context(grant: Grant) -> Context {
    let mut parts = ContextParts::new();
    parts.caller = Caller::Known(Arc::new(grant));
    Context::from_parts(parts, Arc::new(()))
}

fn ali(scopes: &[&str]) -> Grant {
    Grant::new("ali", scopes.iter().copied()).issuer("portal")
}

/// A grant that came with a token of five minutes.
fn token(grant: Grant, clock: Clock) -> Grant {
    grant.valid_until(clock.now() + jiff::SignedDuration::from_mins(5)).links([])
}

/// The time of day, which follows the paused clock as that of a brain does.
#[derive(Clone, Copy)]
struct Clock(Instant, Timestamp);

impl Clock {
    fn now(self) -> Timestamp {
        self.1.checked_add(self.0.elapsed()).unwrap()
    }
}

struct System {
    store: Arc<MemoryStore>,
    arms: Scripted,
    brain: Brain,
    clock: Clock,
}

/// A brain whose tasks increment, wait for so many minutes as they are given, and double.
fn system() -> System {
    let (store, arms, clock) =
        (shared_store(), Scripted::new(|_| Does::Answers("1")), Clock(Instant::now(), Timestamp::now()));
    let waits = program(|input: Compute, cx: Context| async move {
        cx.call(Increment { number: 1 }).await?;
        sleep(MINUTE * u32::try_from(input.number).unwrap_or(0)).await;
        Ok(cx.call(Double { number: 1 }).await?)
    });
    let brain = Brain::builder()
        .arm::<Compute>(waits)
        .arms(arms.clone())
        .store(store.clone())
        .clock(move || clock.now());
    let brain = brain.grant_life(10 * MINUTE).build().unwrap();
    System { store, arms, brain, clock }
}

impl System {
    async fn run(&self, minutes: u64, cx: &Context) -> Task {
        let submission = compute(minutes).budget(octollm_core::task::TaskBudget::default());
        let id = self.brain.submit(submission, cx).await.unwrap().task_id;
        finished(&self.brain, &id, cx).await.unwrap()
    }

    async fn rerun(&self, id: &TaskId, cx: &Context) -> Task {
        self.brain.rerun(id, None, cx).await.unwrap();
        finished(&self.brain, id, cx).await.unwrap()
    }

    async fn end_of(&self, id: &TaskId) -> Option<i64> {
        let record = self.store.get(id).await.unwrap().unwrap();
        let grant = record.caller().grant().unwrap();
        assert!(
            grant.task.is_none() && grant.actor.is_none() && grant.links.is_none(),
            "nothing of a request is stored"
        );
        grant.valid_until.map(|end| end.as_second() - self.clock.now().as_second())
    }
}

/// The arm passes on the failure of its call.
#[track_caller]
fn assert_failed(task: &Task, words: &str) {
    let error = task.error.as_ref().expect("it fails");
    assert_eq!(error.kind, ErrorKind::UpstreamFailed);
    assert!(error.message.contains(words), "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn a_call_needs_the_scope_of_its_contract_whoever_carries_it() {
    let system = system();
    let all = ["number:compute", "number:increment", "number:double"];
    assert_eq!(system.run(0, &context(ali(&all))).await.status, TaskStatus::Completed);
    let task = system.run(0, &context(ali(&all[..2]))).await;
    assert_failed(&task, "the scope number:double is required");
    assert_eq!(system.arms.steps(), ["0", "1", "0"], "the last call was not made");
    assert_eq!(system.arms.last().parts.caller.grant().unwrap().task, Some(task.task_id));
}

#[tokio::test(start_paused = true)]
async fn a_grant_ends_some_time_after_the_submission() {
    let system = system();
    let cx = context(token(ali(&["number:*"]), system.clock));
    // Longer than the token, and shorter than the grant.
    let nine = Brain::builder().grant_life(Duration::ZERO).build().unwrap_err();
    assert_eq!(nine.setting(), "grant_life");
    let id = system.brain.submit(compute(0), &cx).await.unwrap().task_id;
    assert_eq!(system.end_of(&id).await, Some(600));
    // A grant of the service's own middleware, which has an end, ends no later than that.
    let end = system.clock.now() + jiff::SignedDuration::from_mins(2);
    let id =
        system.brain.submit(compute(0), &context(ali(&["number:*"]).valid_until(end))).await.unwrap().task_id;
    assert_eq!(system.end_of(&id).await, Some(120));
}

#[tokio::test(start_paused = true)]
async fn a_task_of_a_task_ends_with_the_grant_of_the_first() {
    let system = system();
    let cx = context(token(ali(&["number:*"]), system.clock));
    system.arms.now(|_| Does::Hangs);
    let above = system.brain.submit(compute(0), &cx).await.unwrap().task_id;
    sleep(MINUTE).await;
    let below = |grant: Grant| {
        let mut grant = token(grant, system.clock);
        grant.actor = Some("coder".into());
        context(grant)
    };
    for (grant, end) in [
        // The token is limited to the task in which the arm works.
        (ali(&["number:*"]).task(above.clone()), 540),
        // Without that, and for a task that is unknown here, only the token is known.
        (ali(&["number:*"]), 300),
        (ali(&["number:*"]).task(TaskId::new()), 300),
        // The task of somebody else is as good as unknown.
        (Grant::new("ali", ["number:*"]).issuer("other").task(above.clone()), 300),
    ] {
        let id = system.brain.submit(compute(0), &below(grant.clone())).await.unwrap().task_id;
        assert_eq!(system.end_of(&id).await, Some(end), "{grant:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn only_its_owner_renews_the_grant_of_a_task() {
    let system = system();
    let ali = || context(token(ali(&["number:*"]), system.clock));
    system.arms.now(|call| Does::Fails(error(call, ErrorKind::Unavailable)));
    let id = system.run(0, &ali()).await.task_id;
    sleep(11 * MINUTE).await;
    system.arms.now(|_| Does::Answers("1"));
    let calls = system.arms.steps().len();
    let admin = context(Grant::new("root", ["tasks:admin", "number:*"]).issuer("portal"));
    let task = system.rerun(&id, &admin).await;
    assert_failed(&task, "the grant of the task has ended");
    assert_eq!(system.arms.steps().len(), calls, "nothing was called");
    let task = system.rerun(&id, &ali()).await;
    assert_eq!(task.status, TaskStatus::Completed, "{:?}", task.error);
    assert_eq!(system.end_of(&id).await, Some(600));
}

#[tokio::test(start_paused = true)]
async fn a_rerun_has_what_its_owner_had_and_has() {
    let system = system();
    let fails = |call: &octollm_core::transport::Call| match call.step.to_string().as_str() {
        "1" => Does::Fails(error(call, ErrorKind::Unavailable)),
        _ => Does::Answers("1"),
    };
    system.arms.now(fails);
    let with = |scopes: &[&str]| context(token(ali(scopes), system.clock));
    let id = system.run(0, &with(&["number:compute", "number:increment", "number:double"])).await.task_id;
    system.arms.now(|_| Does::Answers("1"));
    let calls = system.arms.steps().len();
    // The first call is answered in the journal, and its scope is no longer there.
    let task = system.rerun(&id, &with(&["number:compute", "number:double", "tasks:read"])).await;
    assert_failed(&task, "the scope number:increment is required");
    assert_eq!(system.arms.steps().len(), calls);
    // A rerun needs the scope of the contract before it is accepted.
    let failure = system.brain.rerun(&id, None, &with(&["number:double"])).await.unwrap_err();
    assert_eq!((failure.kind, failure.may_have_executed), (ErrorKind::InsufficientScope, false));
    // What the owner had at first is stored: a later rerun has it again.
    let record = system.store.get(&id).await.unwrap().unwrap();
    assert_eq!(
        record.caller().grant().unwrap().scopes,
        ["number:compute", "number:increment", "number:double"]
    );
    let task = system.rerun(&id, &with(&["number:*"])).await;
    assert_eq!(task.status, TaskStatus::Completed, "{:?}", task.error);
}

#[tokio::test(start_paused = true)]
async fn an_administrator_runs_a_task_again_with_what_is_stored() {
    let system = system();
    system.arms.now(|call| Does::Fails(error(call, ErrorKind::Unavailable)));
    let with = |scopes: &[&str]| context(token(ali(scopes), system.clock));
    let id = system.run(0, &with(&["number:*"])).await.task_id;
    sleep(8 * MINUTE).await;
    // With fewer scopes the owner renews the grant of that attempt alone.
    system.arms.now(|_| Does::Answers("1"));
    let task = system.rerun(&id, &with(&["number:compute"])).await;
    assert_failed(&task, "the scope number:increment is required");
    let end = system.store.get(&id).await.unwrap().unwrap().caller().grant().unwrap().valid_until;
    assert!(end.unwrap() <= system.clock.now() + jiff::SignedDuration::from_mins(2));
    // The administrator has none of the scopes of the task, and runs it with those that are stored.
    let admin = context(Grant::new("root", ["tasks:admin"]).issuer("portal"));
    let task = system.rerun(&id, &admin).await;
    assert_eq!(task.status, TaskStatus::Completed, "{:?}", task.error);
    let record = system.store.get(&id).await.unwrap().unwrap();
    assert_eq!(record.caller().grant().unwrap().valid_until, end, "nothing is renewed");
}

/// What a caller gets by each operation on a task: none may leave a trace.
async fn access(brain: &Brain, id: &TaskId, cx: &Context) -> Result<(), ErrorKind> {
    let results = [
        brain.get(id, cx).await.map(drop),
        brain.watch(id, None, cx).await.map(drop),
        brain.journal(id, None, None, cx).await.map(drop),
        brain.rerun(id, None, cx).await.map(drop),
        brain.cancel(id, cx).await.map(drop),
    ];
    // The tasks have completed, so that the rerun of one that is seen is a conflict.
    let kinds = results.map(|result| result.err().map(|failure| failure.kind));
    let mut query = octollm_core::task::TaskQuery::default().limit(1);
    let mut is_listed = false;
    loop {
        let page = brain.list(query.clone(), cx).await.map_err(|failure| failure.kind)?;
        is_listed |= page.tasks.iter().any(|task| task.task_id == *id);
        let Some(next) = page.next else { break };
        query = query.after(next);
    }
    match kinds[0] {
        None => assert_eq!((kinds, is_listed), ([None, None, None, Some(ErrorKind::Conflict), None], true)),
        kind => assert_eq!((kinds, is_listed), ([kind; 5], false)),
    }
    kinds[0].map_or(Ok(()), Err)
}

#[tokio::test(start_paused = true)]
async fn a_token_is_for_its_tasks_and_needs_their_scope() {
    let system = system();
    let (all, look) = (["number:*"], ["number:increment"]);
    let (run, other) = (&["number:compute"][..], &["number:increment", "number:double"][..]);
    let above = system.run(0, &context(ali(&all))).await.task_id;
    let by = |scopes: &[&str], task: Option<&TaskId>| {
        let mut grant = ali(scopes);
        grant.actor = Some("coder".into());
        grant.task = task.cloned();
        grant
    };
    // Submitted by the arm within the first task, and by it on behalf of the subject in no task.
    let below = system.run(0, &context(by(&all, Some(&above)))).await.task_id;
    let loose = system.run(0, &context(by(&all, None))).await.task_id;
    let mut judge = by(run, None);
    judge.actor = Some("judge".into());
    let admin = |task: Option<&TaskId>| {
        let mut grant = Grant::new("root", ["tasks:admin"]).issuer("portal");
        grant.task = task.cloned();
        grant
    };
    let (yes, no, scope) = (Ok(()), Err(ErrorKind::TaskNotFound), Err(ErrorKind::InsufficientScope));
    for (grant, expected) in [
        // The subject itself.
        (ali(run), [yes, yes, yes]),
        (ali(other), [scope, scope, scope]),
        // Limited to a task: that one and what was submitted under it.
        (ali(run).task(above.clone()), [yes, yes, no]),
        (ali(run).task(below.clone()), [no, yes, no]),
        (ali(run).task(TaskId::new()), [no, no, no]),
        (ali(other).task(above.clone()), [scope, scope, no]),
        // By a link, with and without a task.
        (by(run, Some(&above)), [yes, yes, no]),
        (by(run, None), [no, yes, yes]),
        (by(&look, None), [no, scope, scope]),
        (judge, [no, no, no]),
        // Administrators.
        (admin(None), [yes, yes, yes]),
        (admin(Some(&above)), [yes, yes, no]),
        (Grant::new("eve", ["number:*", "tasks:*"]).issuer("portal"), [no, no, no]),
        (Grant::new("ali", ["number:*"]).issuer("other"), [no, no, no]),
    ] {
        let cx = context(grant.clone());
        let seen = [
            access(&system.brain, &above, &cx).await,
            access(&system.brain, &below, &cx).await,
            access(&system.brain, &loose, &cx).await,
        ];
        assert_eq!(seen, expected, "{grant:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_page_of_few_tasks_among_many_goes_on() {
    let system = system();
    let mine = system.run(0, &context(ali(&["number:*"]))).await.task_id;
    for _ in 0..30 {
        system.brain.submit(compute(0), &context(ali(&["number:*"]))).await.unwrap();
    }
    let cx = context(ali(&["number:compute"]).task(mine.clone()));
    let (mut query, mut pages, mut seen) = (octollm_core::task::TaskQuery::default().limit(1), 0, Vec::new());
    loop {
        let page = system.brain.list(query.clone(), &cx).await.unwrap();
        pages += 1;
        seen.extend(page.tasks.into_iter().map(|task| task.task_id));
        let Some(next) = page.next else { break };
        query = query.after(next);
    }
    assert_eq!(seen, [mine]);
    assert!(pages < 5, "a page searches further than it is long: {pages}");
}
