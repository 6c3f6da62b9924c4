//! Kills and restarts an arm while it is called, and prints what happens to each call.
//!
//! ```text
//! cargo run --example resilient_call
//! ```

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use octollm::{error::CallError, explain::CallEvent, metrics, prelude::*};
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep},
};

/// Counts the words of a text.
#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "text.count", output = usize, idempotent, timeout = "30s")]
struct CountWords {
    text: String,
}

/// An arm that takes 100 ms.
struct Scribe;

/// Calls that have begun, in all lives of the arm.
static BEGUN: AtomicU32 = AtomicU32::new(0);

#[async_trait]
impl Arm<CountWords> for Scribe {
    async fn execute(&self, input: CountWords, _: &Context) -> Result<usize, ArmError> {
        BEGUN.fetch_add(1, Ordering::SeqCst);
        sleep(Duration::from_millis(100)).await;
        Ok(input.text.split_whitespace().count())
    }
}

/// One life of the arm. Aborting its task closes its port and its connections at once, as the end of a process does.
struct Life {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl Life {
    async fn begin(address: SocketAddr) -> Result<Self, octollm::Error> {
        let server = Server::new("scribe").arm(Scribe).bind(address).await?;
        let address = server.local_addr();
        Ok(Self { address, task: tokio::spawn(server.run()) })
    }

    async fn end(self) -> SocketAddr {
        self.task.abort();
        let _ = self.task.await;
        self.address
    }
}

/// Makes a call, and prints how it ended and what happened on its way.
async fn call(arms: &Arms, what: &str, retries: Option<u32>) -> Result<usize, CallError> {
    let begun = Instant::now();
    let mut call = arms.call(CountWords { text: "ten arms, one brain".into() });
    if let Some(retries) = retries {
        call = call.retry(retries);
    }
    let (answer, steps) = call.explained().await;
    let result = match &answer {
        Ok(words) => format!("{words} words"),
        Err(error) => format!("{} ({} attempts)", error.kind().code(), error.attempts()),
    };
    println!("{what}: {result} after {} ms", begun.elapsed().as_millis());
    for (at, what) in steps {
        println!("  {:>5} ms  {}", at.as_millis(), text(&what));
    }
    answer
}

fn text(event: &CallEvent) -> String {
    match event {
        CallEvent::Sent { attempt, .. } => format!("attempt {attempt} is sent"),
        CallEvent::CircuitOpen { retry_after, .. } => {
            format!("the breaker is open for another {} ms", retry_after.as_millis())
        }
        CallEvent::Failed { kind, .. } => format!("it fails: {}", kind.code()),
        CallEvent::Retried { after, .. } => format!("it is tried again after {} ms", after.as_millis()),
        other => format!("{other:?}"),
    }
}

/// Prints the states of the breakers in this process.
fn print_breakers() {
    for line in metrics::page().lines().filter(|line| line.starts_with("octollm_breaker_")) {
        println!("  {line}");
    }
}

#[tokio::main]
async fn main() -> Result<(), octollm::Error> {
    let life = Life::begin(([127, 0, 0, 1], 0).into()).await?;
    let arms = Arms::builder().endpoint("scribe", format!("http://{}", life.address)).build()?;
    call(&arms, "the arm is well", None).await?;

    // It is killed while it works, and back 50 ms later.
    let begun = BEGUN.load(Ordering::SeqCst);
    let running = tokio::spawn({
        let arms = arms.clone();
        async move { call(&arms, "the arm is killed half-way, and is back at once", Some(5)).await }
    });
    while BEGUN.load(Ordering::SeqCst) == begun {
        sleep(Duration::from_millis(1)).await;
    }
    let address = life.end().await;
    sleep(Duration::from_millis(50)).await;
    let life = Life::begin(address).await?;
    running.await??;

    // It is gone, until its breaker opens.
    let address = life.end().await;
    let mut error = call(&arms, "the arm is gone", None).await.unwrap_err();
    while error.kind() != ErrorKind::CircuitOpen {
        error = call(&arms, "the arm is gone", Some(0)).await.unwrap_err();
    }
    print_breakers();

    // It is back, and the next call waits for the breaker to admit a probe.
    let life = Life::begin(address).await?;
    call(&arms, "the arm is back", Some(5)).await?;
    call(&arms, "the arm is well", None).await?;
    print_breakers();
    life.end().await;
    Ok(())
}
