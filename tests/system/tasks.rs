//! Many tasks at once: none lost, none answered twice.

use std::{collections::HashSet, time::Duration};

use octollm::{orchestrator::finished, prelude::*, task::TaskQuery};

/// Returns what it is given.
#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "number.echo", output = u64)]
struct Echo {
    number: u64,
}

struct Echoes;

#[async_trait]
impl Arm<Echo> for Echoes {
    async fn execute(&self, task: Echo, _: &Context) -> Result<u64, ArmError> {
        Ok(task.number)
    }
}

struct Through;

#[async_trait]
impl Arm<TaskRequest> for Through {
    async fn execute(&self, request: TaskRequest, cx: &Context) -> Result<TaskResult, ArmError> {
        Ok(TaskResult::new(cx.call(Echo { number: request.goal.parse()? }).await?))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_tasks_at_once_over_sockets() {
    let echo = Server::new("echo").arm(Echoes).bind("127.0.0.1:0").await.unwrap();
    let arms = Arms::builder().endpoint("echo", echo.url()).build().unwrap();
    let brain = Brain::builder().arm(Through).arms(arms).build().unwrap();
    let orchestrator = Server::new("orchestrator").orchestrator(brain).bind("127.0.0.1:0").await.unwrap();
    // A thousand that ask again and again share a hundred connections: each waits its turn.
    let client =
        OrchestratorClient::builder(orchestrator.url()).pool_wait(Duration::from_secs(60)).build().unwrap();
    tokio::spawn(echo.run());
    tokio::spawn(orchestrator.run());

    let mut running = tokio::task::JoinSet::new();
    for number in 0..1_000_u64 {
        let client = client.clone();
        running.spawn(async move {
            let cx = Context::detached();
            let task = Orchestrator::submit(&client, TaskRequest::new(number.to_string()).into(), &cx)
                .await
                .unwrap();
            let task = finished(&client, &task.task_id, &cx).await.unwrap();
            assert_eq!(task.status, TaskStatus::Completed, "{:?}", task.error);
            assert_eq!(task.result.unwrap().output, number);
            task.task_id
        });
    }
    let mut ids = HashSet::new();
    while let Some(id) = running.join_next().await {
        assert!(ids.insert(id.unwrap()), "answered twice");
    }
    assert_eq!(ids.len(), 1_000);
    let page =
        client.list(TaskQuery::default().status(TaskStatus::Processing), &Context::detached()).await.unwrap();
    assert!(page.tasks.is_empty());
}
