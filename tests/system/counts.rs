//! What a system counts of its calls and tasks.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use octollm::{metrics, orchestrator::finished, prelude::*};
use tokio::sync::Semaphore;

/// Fails the first time that it is called.
#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "counts.flaky", output = u64, idempotent)]
struct Flaky {}

/// Waits until it may go on.
#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "counts.gated", output = (), idempotent)]
struct Gated {}

/// Is served by nobody.
#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "counts.nowhere", output = ())]
struct Nowhere {}

#[derive(Clone)]
struct Counted {
    calls: Arc<AtomicUsize>,
    gate: Arc<Semaphore>,
}

#[async_trait]
impl Arm<Flaky> for Counted {
    async fn execute(&self, _: Flaky, _: &Context) -> Result<u64, ArmError> {
        match self.calls.fetch_add(1, Ordering::SeqCst) {
            0 => Err(ArmError::unavailable("once")),
            calls => Ok(calls as u64),
        }
    }
}

#[async_trait]
impl Arm<Gated> for Counted {
    async fn execute(&self, _: Gated, _: &Context) -> Result<(), ArmError> {
        self.gate.acquire().await?.forget();
        Ok(())
    }
}

#[async_trait]
impl Arm<TaskRequest> for Counted {
    async fn execute(&self, _: TaskRequest, cx: &Context) -> Result<TaskResult, ArmError> {
        cx.call(Gated {}).await?;
        Ok(TaskResult::new("done"))
    }
}

fn value(line: &str) -> f64 {
    let page = metrics::page();
    let found = page.lines().find_map(|found| found.strip_prefix(line)?.strip_prefix(' ')?.parse().ok());
    found.unwrap_or_else(|| panic!("no {line} in {page}"))
}

async fn becomes(line: &str, expected: f64) {
    let reached = async {
        while !metrics::page().contains(&format!("{line} {expected}\n")) {
            tokio::task::yield_now().await;
        }
    };
    let reached = tokio::time::timeout(Duration::from_secs(20), reached).await;
    assert!(reached.is_ok(), "{line} is not {expected}: {}", metrics::page());
}

async fn gone(line: &str) {
    let gone = async {
        while metrics::page().contains(line) {
            tokio::task::yield_now().await;
        }
    };
    assert!(tokio::time::timeout(Duration::from_secs(20), gone).await.is_ok(), "{line} is still there");
}

/// In one test, since the metrics are those of the process.
#[tokio::test]
async fn calls_retries_connections_and_tasks_are_counted() {
    let counted = Counted { calls: Arc::default(), gate: Arc::new(Semaphore::new(0)) };
    let server = Server::new("flaky").arm::<Flaky>(counted.clone()).arm::<Gated>(counted.clone());
    let server = server.bind("127.0.0.1:0").await.unwrap();
    let arms = Arms::builder().endpoint("counted", server.url()).build().unwrap();
    tokio::spawn(server.run());

    assert_eq!(arms.call(Flaky {}).retry(2).await.unwrap(), 1);
    let requests = |code: &str, contract: &str| {
        let labels = format!("arm=\"counted\",code=\"{code}\",contract=\"{contract}\"");
        value(&format!("octollm_client_requests_total{{{labels}}}"))
    };
    assert_eq!(requests("unavailable", "counts.flaky"), 1.0);
    assert_eq!(requests("ok", "counts.flaky"), 1.0);
    assert!(value("octollm_call_retries_total{code=\"unavailable\"}") >= 1.0);
    let durations =
        "octollm_client_request_duration_seconds_count{arm=\"counted\",contract=\"counts.flaky\"}";
    assert_eq!(value(durations), 2.0);
    arms.call(Nowhere {}).await.unwrap_err();
    assert!(
        value("octollm_client_requests_total{arm=\"\",code=\"contract_not_offered\",contract=\"other\"}")
            >= 1.0
    );
    assert!(!metrics::page().contains("nowhere"));

    // A call that is dropped, and connections in use and idle.
    let (in_use, idle) = ("arm=\"counted\",state=\"in_use\"", "arm=\"counted\",state=\"idle\"");
    let connections = |state: &str| format!("octollm_client_connections{{{state}}}");
    becomes(&connections(idle), 1.0).await;
    let dropped = tokio::spawn(arms.call(Gated {}));
    becomes(&connections(in_use), 1.0).await;
    dropped.abort();
    assert!(dropped.await.unwrap_err().is_cancelled());
    assert_eq!(requests("cancelled", "counts.gated"), 1.0);
    // Nothing is open any more.
    gone(&connections(in_use)).await;

    let brain = Brain::builder().name("counting-brain").max_running(1).arms(arms);
    let brain = brain.arm::<TaskRequest>(counted.clone()).build().unwrap();
    let cx = Context::detached();
    let mut tasks = Vec::new();
    for goal in ["a", "b", "c"] {
        tasks.push(brain.submit(TaskRequest::new(goal).into(), &cx).await.unwrap().task_id);
    }
    assert_eq!(value("octollm_tasks_submitted_total{brain=\"counting-brain\"}"), 3.0);
    becomes("octollm_tasks_running{brain=\"counting-brain\"}", 1.0).await;
    assert!(value("octollm_tasks_queued") >= 2.0);
    counted.gate.add_permits(3);
    for task in &tasks {
        assert_eq!(finished(&brain, task, &cx).await.unwrap().status, TaskStatus::Completed);
    }
    becomes("octollm_tasks_running{brain=\"counting-brain\"}", 0.0).await;
    assert_eq!(value("octollm_tasks_ended_total{brain=\"counting-brain\",status=\"completed\"}"), 3.0);
    // One write for each idempotent call.
    assert_eq!(value("octollm_journal_writes_total{brain=\"counting-brain\"}"), 3.0);
    let runs = "octollm_arm_runs_total{arm=\"counting-brain\",code=\"ok\",contract=\"task.run\"}";
    assert_eq!(value(runs), 3.0);
    drop(brain);
}
