//! Background jobs: a start, a uniqueness key, attempts, a priority, and a limit on what runs at a time.
//!
//! ```text
//! cargo run --example jobs
//! ```

use std::{
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use octollm::{
    orchestrator::TaskUpdates,
    prelude::*,
    task::{Priority, Submission, TaskUpdate},
};

/// Sends the digest of a day to all readers.
#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "digest.send", output = usize, timeout = "60s")]
struct SendDigest {
    day: String,
}

/// Writes the digest of a day.
#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "digest.write", output = String, idempotent)]
struct WriteDigest {
    day: String,
}

/// Delivers a text to a reader.
#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "text.deliver", output = (), idempotent)]
struct Deliver {
    text: String,
    reader: String,
}

struct Writer;

#[async_trait]
impl Arm<WriteDigest> for Writer {
    async fn execute(&self, input: WriteDigest, _: &Context) -> Result<String, ArmError> {
        println!("  the digest of {} is written", input.day);
        Ok(format!("All that happened on {}", input.day))
    }
}

/// Is not available at first.
#[derive(Default)]
struct Post(AtomicU32);

#[async_trait]
impl Arm<Deliver> for Post {
    async fn execute(&self, input: Deliver, _: &Context) -> Result<(), ArmError> {
        if self.0.fetch_add(1, Ordering::Relaxed) < 7 {
            return Err(ArmError::unavailable("the post office is closed"));
        }
        println!("  {:?} reaches {}", input.text, input.reader);
        Ok(())
    }
}

struct Sender;

#[async_trait]
impl Arm<SendDigest> for Sender {
    async fn execute(&self, input: SendDigest, cx: &Context) -> Result<usize, ArmError> {
        let text = cx.call(WriteDigest { day: input.day }).await?; // made once, however many attempts follow
        let readers = ["ann", "bob"].map(|reader| Deliver { text: text.clone(), reader: reader.into() });
        Ok(cx.call_all(readers).await?.len())
    }
}

#[tokio::main]
async fn main() -> Result<(), octollm::Error> {
    let arms = Server::new("arms").arm(Writer).arm(Post::default()).bind("127.0.0.1:0").await?;
    let calls = Arms::builder().endpoint("arms", arms.url()).build()?;
    tokio::spawn(arms.run());

    let brain = Brain::builder()
        .arm(Sender)
        .arms(calls)
        .max_running_of::<SendDigest>(1) // over all brains on the store
        .retry_wait(Duration::from_millis(500))
        .build()?;
    let server = Server::new("brain").orchestrator(brain).bind("127.0.0.1:0").await?;
    let orchestrator = OrchestratorClient::new(server.url())?;
    tokio::spawn(server.run());

    let day = || SendDigest { day: "2026-11-27".into() };
    let job = Submission::of(&day())?
        .run_in(Duration::from_secs(1))
        .unique("digest-2026-11-27")
        .attempts(10)
        .priority(Priority::Low);
    let digest = orchestrator.submit_job::<SendDigest>(job).await?;
    println!("{} is queued", digest.id());

    let again = Submission::of(&day())?.unique("digest-2026-11-27");
    let again = orchestrator.submit_job::<SendDigest>(again).await?;
    println!("a second submission returns {}, existing: {}", again.id(), again.existing());

    show(digest.watch().await?).await;
    println!("{} readers have it after {} attempts", digest.output().await?, digest.status().await?.attempt);
    Ok(())
}

async fn show(mut updates: TaskUpdates) {
    while let Some(update) = updates.next().await {
        if let TaskUpdate::Status { status, error, .. } = update {
            let reason = error.map(|error| format!(", because {}", error.message)).unwrap_or_default();
            println!("  {status}{reason}");
        }
    }
}
