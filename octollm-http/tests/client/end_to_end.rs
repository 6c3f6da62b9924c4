//! The client of an orchestrator against a server of ours: a brain whose arm is called over the same network.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use octollm_core::{
    Arm, Context,
    arm::arm_fn,
    brain::Brain,
    budget::Usage,
    error::{ArmError, ErrorKind},
    id::StepKey,
    orchestrator::{Orchestrator, StepOutcome, whole_journal},
    task::TaskQuery,
};
use octollm_http::{Arms, OrchestratorClient, Server};
use octollm_macros::TaskContract;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::peer::{Verdict, arms, network, orchestrator, unused_host};

#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "code.look", output = Verdict, idempotent)]
struct Look {
    code: String,
}

/// Has three pieces of code checked, the steps of which have a name or none.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "code.review", output = usize)]
struct Review {
    name: Option<String>,
    batch: bool,
}

struct Reviewer;

#[async_trait]
impl Arm<Review> for Reviewer {
    async fn execute(&self, review: Review, cx: &Context) -> Result<usize, ArmError> {
        let check = |code: &str| Look { code: code.into() };
        cx.call(check("begin")).await?;
        if review.batch {
            let mut calls = cx.call_all([check("good"), check("bad"), check("good")]).at_once(1);
            if let Some(name) = review.name {
                calls = calls.named(name);
            }
            return Ok(calls.await?.len() + 1);
        }
        let mut call = cx.call(check("bad"));
        if let Some(name) = review.name {
            call = call.named(name);
        }
        call.await?;
        Ok(2)
    }
}

struct System {
    client: OrchestratorClient,
    /// Whether what is bad has become good.
    mended: Arc<AtomicBool>,
    checks: Arc<AtomicUsize>,
}

async fn system() -> System {
    let (judge, brain) = (unused_host(), unused_host());
    let (mended, checks) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
    let (is_mended, counted) = (Arc::clone(&mended), Arc::clone(&checks));
    let checker = arm_fn(move |check: Look, cx: Context| {
        counted.fetch_add(1, Ordering::Relaxed);
        let spent = cx.spend(Usage::tokens(10));
        let good = check.code != "bad" || is_mended.load(Ordering::Relaxed);
        async move {
            spent?;
            if good { Ok(Verdict { is_valid: true }) } else { Err(ArmError::from("it is bad")) }
        }
    });
    let server = Server::new("judge").arm::<Look>(checker).listen(network().listen(&judge).unwrap()).unwrap();
    tokio::spawn(server.run());
    let arms = arms().endpoint("judge", format!("http://{judge}")).build().unwrap();
    let built = Brain::builder().arm::<Review>(Reviewer).arms(arms).build().unwrap();
    let server = Server::new("brain").orchestrator(built).listen(network().listen(&brain).unwrap()).unwrap();
    tokio::spawn(server.run());
    System { client: orchestrator(&format!("http://{brain}")), mended, checks }
}

#[tokio::test(start_paused = true)]
async fn an_arm_that_spends_and_hangs_reports_it_within_the_time_of_its_caller() {
    let judge = unused_host();
    let hanging = arm_fn(|_: Look, cx: Context| async move {
        cx.spend(Usage::tokens(100))?;
        std::future::pending::<Result<Verdict, ArmError>>().await
    });
    let server = Server::new("judge").arm::<Look>(hanging).listen(network().listen(&judge).unwrap()).unwrap();
    tokio::spawn(server.run());
    let arms =
        Arms::builder().connector(network()).endpoint("judge", format!("http://{judge}")).build().unwrap();
    for time in [Duration::from_millis(20), Duration::from_secs(1), Duration::from_secs(5)] {
        let (cx, begun) = (arms.within(time), Instant::now());
        let error = cx.call(Look { code: "x".into() }).await.unwrap_err();
        assert_eq!((error.kind(), cx.used()), (ErrorKind::DeadlineExceeded, Usage::tokens(100)), "{time:?}");
        assert!(begun.elapsed() <= time, "{:?} of {time:?}", begun.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn a_failed_task_continues_from_the_step_that_its_error_names() {
    for (name, batch, step, checks) in [
        (None, false, "1", 3),
        (Some("look"), false, "look", 3),
        (Some("a/b ü \"q\"?&#%"), false, "a/b ü \"q\"?&#%", 3),
        (Some("7"), false, "7", 3),
        (Some("007"), false, "007", 3),
        (Some("99999999999"), false, "99999999999", 3),
        (Some(""), false, "", 3),
        (None, true, "2", 5),
        (Some("n"), true, "n[1]", 5),
    ] {
        for by in ["nothing", "the step", "its text"] {
            let System { client, mended, checks: made, .. } = system().await;
            let review = Review { name: name.map(str::to_owned), batch };
            let handle = client.submit(review).await.unwrap();
            let error = handle.output().await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::UpstreamFailed, "{error}");
            let failed = handle.status().await.unwrap();
            let failed_step = failed.error.unwrap().step.unwrap();
            assert_eq!(failed_step.to_string(), step);

            let cx = Context::detached();
            let journal = whole_journal(&client, handle.id(), &cx).await.unwrap();
            let entry = journal.iter().find(|entry| entry.step.to_string() == step).unwrap();
            assert!(matches!(entry.outcome, StepOutcome::Failed), "{entry:?}");
            assert_eq!((entry.tokens_used, &*entry.arm), (10, "judge"));

            mended.store(true, Ordering::Relaxed);
            let from = match by {
                "nothing" => None,
                "the step" => Some(failed_step),
                _ => Some(StepKey::Name(step.to_owned())),
            };
            client
                .rerun(handle.id(), from.as_ref(), &cx)
                .await
                .unwrap_or_else(|e| panic!("{name:?} {by}: {e:?}"));
            assert_eq!(handle.output().await.unwrap(), if batch { 4 } else { 2 });
            assert_eq!(
                made.load(Ordering::Relaxed),
                checks,
                "{name:?} {by}: what it got past is not made again"
            );
        }
    }
}

/// Writes a long text.
#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "text.write", output = String)]
struct WriteLong {
    megabytes: usize,
}

#[tokio::test(start_paused = true)]
async fn tasks_with_long_outputs_are_listed_page_by_page() {
    let host = unused_host();
    let writer =
        arm_fn(async |input: WriteLong, _: Context| Ok::<_, ArmError>("x".repeat(input.megabytes << 20)));
    let brain = Brain::builder().arm::<WriteLong>(writer).build().unwrap();
    let server = Server::new("brain").orchestrator(brain).listen(network().listen(&host).unwrap()).unwrap();
    tokio::spawn(server.run());
    let client = orchestrator(&format!("http://{host}"));
    let mut written = Vec::new();
    for megabytes in [0, 6, 1, 1, 0, 3, 3] {
        let task = client.submit(WriteLong { megabytes }).await.unwrap();
        task.output().await.unwrap();
        written.push(task.id().clone());
    }
    written.reverse();
    let (cx, mut query, mut listed, mut pages) =
        (Context::detached(), TaskQuery::default().limit(100), Vec::new(), Vec::new());
    loop {
        let page = client.list(query.clone(), &cx).await.unwrap();
        pages.push(page.tasks.len());
        listed.extend(page.tasks.into_iter().map(|task| task.task_id));
        match page.next {
            Some(next) => query = query.after(next),
            None => break,
        }
    }
    assert_eq!((listed, pages), (written, vec![1, 2, 2, 1, 1]));
}

#[tokio::test(start_paused = true)]
async fn jobs_outlive_a_restart_of_the_orchestrator() {
    use octollm_core::{store::MemoryStore, task::Submission};

    let (judge, host) = (unused_host(), unused_host());
    let (failures, checks) = (Arc::new(AtomicUsize::new(7)), Arc::<AtomicUsize>::default());
    let counted = Arc::clone(&checks);
    let checker = arm_fn(move |_: Look, _| {
        let fails =
            failures.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok();
        counted.fetch_add(1, Ordering::Relaxed);
        async move { if fails { Err(ArmError::unavailable("not now")) } else { Ok(Verdict { is_valid: true }) } }
    });
    let server = Server::new("judge").arm::<Look>(checker).listen(network().listen(&judge).unwrap()).unwrap();
    tokio::spawn(server.run());
    let store = Arc::new(MemoryStore::new());
    let start = |store: &Arc<MemoryStore>| {
        let arms = arms().endpoint("judge", format!("http://{judge}")).build().unwrap();
        let brain = Brain::builder().arm::<Review>(Reviewer).arms(arms).store(store.clone());
        let brain = brain.max_running_of::<Review>(1).build().unwrap();
        let server = Server::new("brain").orchestrator(brain.clone());
        (brain, tokio::spawn(server.listen(network().listen(&host).unwrap()).unwrap().run()))
    };
    let (brain, serving) = start(&store);
    let client = orchestrator(&format!("http://{host}"));
    let job = |batch| Submission::of(&Review { name: None, batch }).unwrap().attempts(20);
    let later = client
        .submit_job::<Review>(job(false).run_in(Duration::from_secs(600)).unique("nightly"))
        .await
        .unwrap();
    brain.close().await;
    serving.abort();
    let _ = serving.await;
    let (brain, _serving) = start(&store);
    brain.recover().await.unwrap();
    let again = client.submit_job::<Review>(job(true).unique("nightly")).await.unwrap();
    assert_eq!((again.id(), again.existing(), later.existing()), (later.id(), true, false));
    let begun = Instant::now();
    later.output().await.unwrap();
    assert!((599..700).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
    let task = later.status().await.unwrap();
    assert!((2..20).contains(&task.attempt), "{task:?}");
    // Seven that failed, and each of the two calls once.
    assert_eq!(checks.load(Ordering::Relaxed), 9);
}
