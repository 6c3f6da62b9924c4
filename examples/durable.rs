//! A task that survives its process: kill it, start it again, and it goes on where it was.
//!
//! ```text
//! cargo run --example durable --features sql [URL]
//! ```
//!
//! URL is a database, by default `sqlite:durable.db`; a Postgres has the form `postgres://user:password@host/name`. The first start submits a task of
//! twenty steps. End it with Ctrl-C or `kill -9` at any time. A later start finds the task, waits until the lease of the killed process expires, and
//! continues it: the steps that were answered are not made again.

use std::{sync::Arc, time::Duration};

use octollm::{
    card::ArmCard,
    prelude::*,
    sql::SqlStore,
    store::TaskStore,
    task::{Submission, TaskQuery},
    transport::{Call, Reply, Transport},
};

/// Bakes one layer of a cake.
#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "cake.layer", output = String, idempotent)]
struct BakeLayer {
    number: u32,
}

/// Bakes a cake, layer by layer.
#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "cake.bake", output = Vec<String>, timeout = "10m")]
struct BakeCake {
    layers: u32,
}

struct Baker;

#[async_trait]
impl Arm<BakeCake> for Baker {
    async fn execute(&self, input: BakeCake, cx: &Context) -> Result<Vec<String>, ArmError> {
        let mut cake = Vec::new();
        for number in 1..=input.layers {
            cake.push(cx.call(BakeLayer { number }).await?);
        }
        Ok(cake)
    }
}

/// An oven in this process, in place of an arm behind a server.
struct Oven;

#[async_trait]
impl Transport for Oven {
    async fn call(&self, call: Call) -> Result<Reply, CallError> {
        println!("  baking: step {}", call.step);
        tokio::time::sleep(Duration::from_millis(500)).await;
        Ok(Reply::new(format!("\"layer of step {}\"", call.step).into(), "oven", "here"))
    }

    async fn cards(&self) -> Vec<ArmCard> {
        Vec::new()
    }
}

#[tokio::main]
async fn main() -> Result<(), octollm::Error> {
    let url = std::env::args().nth(1).unwrap_or_else(|| "sqlite:durable.db".into());
    let store: Arc<dyn TaskStore> = Arc::new(SqlStore::open(&url).await?);
    let brain = Brain::builder()
        .arm(Baker)
        .arms(Oven)
        .store(store.clone())
        // After so long another process continues the tasks of one that was killed.
        .lease(Duration::from_secs(5))
        .build()?;

    let tasks = store.list(&TaskQuery::default().limit(100), None).await?;
    let unfinished = tasks.iter().find(|record| !record.status().is_finished());
    let cx = Context::detached();
    let id = match unfinished {
        Some(record) => {
            println!("{} goes on, in run {}", record.id(), record.run() + 1);
            brain.recover().await?;
            record.id().clone()
        }
        None => {
            let task = brain.submit(Submission::of(&BakeCake { layers: 20 })?, &cx).await?;
            println!("{} is submitted: kill this process, and start it again", task.task_id);
            task.task_id
        }
    };
    let task = octollm::orchestrator::finished(&brain, &id, &cx).await?;
    let status = task.status;
    println!("{status}: {} layers", task.into_output::<BakeCake>()?.len());
    brain.close().await;
    Ok(())
}
