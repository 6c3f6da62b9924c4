//! A system as it is operated: an arm, a brain and a reflex, each a process that is configured by its environment. The folder
//! `deploy` has its container, its manifests and its alerts.
//!
//! ```text
//! cargo run --example deployed judge &
//! OCTOLLM_ARM_JUDGE=http://127.0.0.1:8103 cargo run --example deployed brain &
//! OCTOLLM_CLIENT_ORCHESTRATOR_URL=http://127.0.0.1:8000 cargo run --example deployed reflex &
//! curl -d '{"goal":"ten arms, one brain"}' -H 'content-type: application/json' localhost:8080/tasks
//! ```

use octollm::{
    prelude::*,
    reflex::{Reaction, Reflex, ReflexInput},
    task::TaskQuery,
};

/// Counts the words of a text.
#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "text.count", output = usize, idempotent, timeout = "10s")]
struct CountWords {
    #[garde(length(max = 65_536))]
    text: String,
}

struct Judge;

#[async_trait]
impl Arm<CountWords> for Judge {
    async fn execute(&self, input: CountWords, _: &Context) -> Result<usize, ArmError> {
        Ok(input.text.split_whitespace().count())
    }
}

/// The arm that the brain runs for each task.
struct Count;

#[async_trait]
impl Arm<TaskRequest> for Count {
    async fn execute(&self, request: TaskRequest, cx: &Context) -> Result<TaskResult, ArmError> {
        let words = cx.call(CountWords { text: request.goal }).await?;
        Ok(TaskResult::new(format!("{words} words")))
    }
}

/// Refuses texts that ask for what they should not.
struct NoSecrets;

#[async_trait]
impl Reflex for NoSecrets {
    async fn react(&self, input: &mut ReflexInput, _: &Context) -> Result<Reaction, ArmError> {
        let asks = input.text().to_lowercase().contains("password");
        Ok(if asks { Reaction::Refuse("asks for a password".into()) } else { Reaction::Pass })
    }
}

#[tokio::main]
async fn main() -> Result<(), octollm::Error> {
    tracing_subscriber::fmt::init(); // the environment variable RUST_LOG selects what is logged
    match std::env::args().nth(1).as_deref() {
        Some("judge") => Server::new("judge").arm(Judge).env()?.serve("127.0.0.1:8103").await?,
        Some("brain") => {
            let brain = Brain::builder().arm(Count).arms(Arms::from_env()?).env()?.build()?;
            brain.recover().await?;
            let store = brain.clone();
            let is_there = move || {
                let store = store.clone();
                async move { store.list(TaskQuery::default().limit(1), &Context::detached()).await.is_ok() }
            };
            let server = Server::new("brain").orchestrator(brain).check("store", is_there);
            server.env()?.serve("127.0.0.1:8000").await?;
        }
        Some("reflex") => {
            let orchestrator = OrchestratorClient::from_env()?;
            let server = Server::new("reflex").reflex(NoSecrets).orchestrator(orchestrator);
            server.env()?.serve("127.0.0.1:8080").await?;
        }
        _ => return Err("usage: deployed judge|brain|reflex".into()),
    }
    Ok(())
}
