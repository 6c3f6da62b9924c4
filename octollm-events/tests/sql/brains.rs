//! Brains over a database: several of them, killed processes, and a server that goes away.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use octollm_core::{
    Arm, Context,
    brain::Brain,
    card::ArmCard,
    error::{ArmError, CallError},
    orchestrator::Orchestrator,
    store::TaskStore,
    task::{Submission, TaskQuery, TaskStatus},
    transport::{Call, Reply, Transport},
};
use octollm_events::sql::SqlStore;
use octollm_macros::TaskContract;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};

use crate::{
    postgres::Postgres,
    subject::{OnPostgres, OnSqlite},
};

/// One step of a program.
#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "number.next", output = u64, idempotent)]
struct Next {
    number: u64,
}

/// Counts in so many steps.
#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "number.count", output = u64, timeout = "120s")]
pub(crate) struct Count {
    pub(crate) steps: u64,
}

pub(crate) struct Counter;

#[async_trait]
impl Arm<Count> for Counter {
    async fn execute(&self, input: Count, cx: &Context) -> Result<u64, ArmError> {
        let mut number = 0;
        for _ in 0..input.steps {
            number = cx.call(Next { number }).await?;
        }
        Ok(number)
    }
}

/// Answers each step after a time, and writes down that it was made.
#[derive(Clone)]
pub(crate) struct Steps {
    time: Duration,
    made: Arc<Mutex<HashMap<String, usize>>>,
    file: Option<PathBuf>,
}

impl Steps {
    pub(crate) fn new(time: Duration) -> Self {
        Self { time, made: Arc::default(), file: None }
    }
}

#[async_trait]
impl Transport for Steps {
    async fn call(&self, call: Call) -> Result<Reply, CallError> {
        let task = call.parts.task_id.clone().unwrap();
        let step = format!("{task} {}", call.step);
        *self.made.lock().unwrap().entry(step.clone()).or_default() += 1;
        if let Some(file) = &self.file {
            let mut file = fs::File::options().append(true).create(true).open(file).unwrap();
            // In one write, since others append to the file too.
            file.write_all(format!("{step}\n").as_bytes()).unwrap();
        }
        sleep(self.time).await;
        let Next { number } = serde_json::from_slice(&call.input).unwrap();
        Ok(Reply::new((number + 1).to_string().into(), "counter", "local"))
    }

    async fn cards(&self) -> Vec<ArmCard> {
        Vec::new()
    }
}

async fn brain(url: &str, steps: &Steps, lease: Duration) -> Brain {
    let store = SqlStore::open(url).await.unwrap();
    Brain::builder().arm(Counter).arms(steps.clone()).store(store).lease(lease).build().unwrap()
}

pub(crate) async fn submit(brain: &Brain, tasks: usize, steps: u64) {
    for _ in 0..tasks {
        brain.submit(Submission::of(&Count { steps }).unwrap(), &Context::detached()).await.unwrap();
    }
}

/// Waits until so many tasks are completed, each with its result.
async fn completed(store: &SqlStore, tasks: usize, steps: u64) {
    let end = Instant::now() + Duration::from_secs(120);
    loop {
        let query = TaskQuery::default().limit(10_000);
        let stored = store.list(&query, None).await.unwrap_or_default();
        let mut by_status = BTreeMap::<_, usize>::new();
        for record in &stored {
            *by_status.entry(record.status().as_str()).or_default() += 1;
            assert_ne!(record.status(), TaskStatus::Failed, "{:?}", record.task().error);
            if record.status() == TaskStatus::Completed {
                let result = record.task().result.as_ref().unwrap();
                assert_eq!(result.output.as_str(), steps.to_string());
            }
        }
        if by_status.get("completed") == Some(&tasks) {
            return;
        }
        assert!(Instant::now() < end, "{by_status:?}");
        sleep(Duration::from_millis(50)).await;
    }
}

async fn two_healthy_brains_run_no_step_twice(url: &str) {
    let steps = Steps::new(Duration::from_millis(120));
    let lease = Duration::from_secs(4);
    let (one, other) = (brain(url, &steps, lease).await, brain(url, &steps, lease).await);
    other.recover().await.unwrap();
    // Each task takes longer than its lease.
    submit(&one, 20, 40).await;
    completed(&SqlStore::open(url).await.unwrap(), 20, 40).await;
    let made = steps.made.lock().unwrap().clone();
    assert_eq!(made.len(), 20 * 40);
    assert!(made.values().all(|times| *times == 1), "a step was made twice");
    one.close().await;
    other.close().await;
}

async fn a_brain_that_closes_hands_its_tasks_over_at_once(url: &str) {
    let steps = Steps::new(Duration::from_millis(100));
    let lease = Duration::from_secs(60);
    let one = brain(url, &steps, lease).await;
    submit(&one, 4, 20).await;
    let end = Instant::now() + Duration::from_secs(20);
    while steps.made.lock().unwrap().len() < 8 {
        assert!(Instant::now() < end);
        sleep(Duration::from_millis(10)).await;
    }
    let other = brain(url, &steps, lease).await;
    other.recover().await.unwrap();
    one.close().await;
    let (begun, store) = (Instant::now(), SqlStore::open(url).await.unwrap());
    // Started by the other one, without a wait for the leases.
    while store.list(&TaskQuery::default(), None).await.unwrap().iter().any(|record| record.run() < 2) {
        assert!(begun.elapsed() < Duration::from_secs(5), "the tasks are not started");
        sleep(Duration::from_millis(10)).await;
    }
    completed(&store, 4, 20).await;
    other.close().await;
}

/// What a child is to do, if this process is one.
const CHILD: &str = "OCTOLLM_TEST_BRAIN";
const TASKS: usize = 8;
const LENGTH: u64 = 30;

/// A brain in a process of its own, until it is killed. Without its variable this is no test.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child() {
    let Ok(child) = std::env::var(CHILD) else { return };
    let (mode, url) = child.split_once(' ').unwrap();
    let file = std::env::var("OCTOLLM_TEST_FILE").unwrap().into();
    let steps = Steps { file: Some(file), ..Steps::new(Duration::from_millis(3)) };
    let brain = brain(url, &steps, Duration::from_millis(900)).await;
    if mode == "submit" {
        submit(&brain, TASKS, LENGTH).await;
    }
    // A claim has a third of the lease, which a busy machine may exceed: the brain tries again by itself.
    let _ = brain.recover().await;
    std::future::pending::<()>().await;
}

/// A process that is killed with the value.
struct Process(Child);

impl Process {
    fn start(mode: &str, url: &str, file: &Path) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "brains::child", "--nocapture"]);
        command.env(CHILD, format!("{mode} {url}")).env("OCTOLLM_TEST_FILE", file);
        Self(command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap())
    }

    fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn lines(file: &Path) -> Vec<String> {
    fs::read_to_string(file).unwrap_or_default().lines().map(str::to_owned).collect()
}

async fn a_killed_process_loses_no_task_and_no_answer(url: &str) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("steps");
    let mut process = Process::start("submit", url, &file);
    let (store, end) = (SqlStore::open(url).await.unwrap(), Instant::now() + Duration::from_secs(60));
    // The first tasks run while the last ones are submitted.
    while store.list(&TaskQuery::default().limit(TASKS), None).await.unwrap().len() < TASKS {
        assert!(Instant::now() < end, "the tasks are not submitted");
        sleep(Duration::from_millis(5)).await;
    }
    // Each process makes some steps, and is killed.
    for reached in [40, 90, 150, 200] {
        let end = Instant::now() + Duration::from_secs(60);
        while lines(&file).len() < reached {
            assert!(Instant::now() < end, "no step is made: {}", lines(&file).len());
            sleep(Duration::from_millis(5)).await;
        }
        process.kill();
        process = Process::start("continue", url, &file);
    }
    completed(&store, TASKS, LENGTH).await;
    let records = store.list(&TaskQuery::default().limit(TASKS), None).await.unwrap();
    let takeovers: usize = records.iter().map(|record| record.run() as usize - 1).sum();
    let mut made = BTreeMap::<_, usize>::new();
    lines(&file).into_iter().for_each(|step| *made.entry(step).or_default() += 1);
    let again: usize = made.values().map(|times| times - 1).sum();
    assert_eq!(made.len(), TASKS * LENGTH as usize);
    // One step of each run may have been made and not been answered. A busy machine may lose a lease without a kill.
    assert!(takeovers > 0 && again <= takeovers, "{again} steps were made again in {takeovers} takeovers");
}

macro_rules! on_both {
    ($($case:ident)*) => {
        mod sqlite {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                let subject = super::OnSqlite::new();
                super::$case(&subject.url()).await;
            })*
        }
        mod on_postgres {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                super::$case(&super::OnPostgres::new().url()).await;
            })*
        }
    };
}

on_both! {
    two_healthy_brains_run_no_step_twice
    a_brain_that_closes_hands_its_tasks_over_at_once
    a_killed_process_loses_no_task_and_no_answer
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_goes_away_loses_nothing() {
    let mut server = Postgres::start(&[]);
    let url = server.database();
    let steps = Steps::new(Duration::from_millis(30));
    let brain = brain(&url, &steps, Duration::from_secs(3)).await;
    submit(&brain, 8, 60).await;
    for _ in 0..2 {
        let before = steps.made.lock().unwrap().len();
        let end = Instant::now() + Duration::from_secs(60);
        while steps.made.lock().unwrap().len() < before + 40 {
            assert!(Instant::now() < end, "no step is made");
            sleep(Duration::from_millis(10)).await;
        }
        server.kill();
        sleep(Duration::from_secs(2)).await;
        server.restart();
    }
    completed(&SqlStore::open(&url).await.unwrap(), 8, 60).await;
    brain.close().await;
}
