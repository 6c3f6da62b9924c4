//! A brain that runs an arm for each task. The arm calls two other arms over HTTP.
//!
//! ```text
//! cargo run --example orchestrate [ADDRESS]
//! curl -d '{"goal":"ten arms, one brain"}' -H 'content-type: application/json' localhost:8000/tasks
//! curl localhost:8000/tasks/TASK_ID
//! ```

use octollm::prelude::*;

/// Splits a text into words.
#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "text.split", output = Vec<String>, idempotent)]
struct SplitText {
    text: String,
}

/// Writes a word in capitals.
#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "word.shout", output = String, idempotent)]
struct ShoutWord {
    word: String,
}

struct Splitter;

#[async_trait]
impl Arm<SplitText> for Splitter {
    async fn execute(&self, input: SplitText, _: &Context) -> Result<Vec<String>, ArmError> {
        Ok(input.text.split_whitespace().map(str::to_owned).collect())
    }
}

struct Shouter;

#[async_trait]
impl Arm<ShoutWord> for Shouter {
    async fn execute(&self, input: ShoutWord, _: &Context) -> Result<String, ArmError> {
        Ok(input.word.to_uppercase())
    }
}

/// The arm that the brain runs for each task. Its calls are recorded in the journal of the task.
struct Headline;

#[async_trait]
impl Arm<TaskRequest> for Headline {
    async fn execute(&self, request: TaskRequest, cx: &Context) -> Result<TaskResult, ArmError> {
        let words = cx.call(SplitText { text: request.goal }).await?;
        let loud = cx.call_all(words.into_iter().map(|word| ShoutWord { word })).await?; // at most 16 at a time, in order
        Ok(TaskResult::new(loud.join(" ")))
    }
}

#[tokio::main]
async fn main() -> Result<(), octollm::Error> {
    tracing_subscriber::fmt::init(); // the environment variable RUST_LOG selects what is logged
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:8000".into());

    // Two arms, each with a server of its own, on ports that the system chooses.
    let splitter = Server::new("splitter").arm(Splitter).bind("127.0.0.1:0").await?;
    let shouter = Server::new("shouter").arm(Shouter).bind("127.0.0.1:0").await?;
    let arms =
        Arms::builder().endpoint("splitter", splitter.url()).endpoint("shouter", shouter.url()).build()?;
    tokio::spawn(splitter.run());
    tokio::spawn(shouter.run());

    let brain = Brain::builder().arm(Headline).arms(arms).build()?;
    Server::new("brain").orchestrator(brain).serve(address).await?;
    Ok(())
}
