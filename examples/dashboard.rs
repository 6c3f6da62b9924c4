//! A desk that answers questions, to look at in a browser: its tasks call three arms, one of which streams words.
//!
//! ```text
//! cargo run --example dashboard --features dashboard                       # with some tasks all the time
//! cargo run --example dashboard --features dashboard -- --quiet            # without
//! cargo run --example dashboard --features dashboard -- --key FILE         # for callers with tokens that FILE has signed
//! ```
//!
//! Prints the address of the page, and runs until it is stopped. `--listen ADDRESS` sets where. A goal that begins with `fail` fails at the judge, and one that
//! begins with `hold` runs until it is cancelled. With `--key`, a PEM file, which is created if it is not there, tokens of the issuer `desk` for the audience
//! `desk` are accepted; the example `token` issues them. `scripts/dashboard.sh` runs it.

use std::{
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use octollm::{
    budget::{Cost, Usage},
    bus::{ConsumeOptions, DurableBus, MemoryDurableBus, Nack},
    event::Event,
    http::token::{KeySet, SigningKey, TokenVerifier},
    prelude::*,
    update::Phase,
};
use tokio::time::sleep;

/// Finds sources about a subject.
#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "source.find", output = Vec<String>, idempotent, timeout = "10s")]
struct FindSources {
    about: String,
}

/// Writes an answer, word by word.
#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "text.write", output = String, chunk = String, timeout = "30s")]
struct WriteText {
    about: String,
    sources: usize,
}

/// Judges an answer.
#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "text.judge", output = Verdict, idempotent, timeout = "10s")]
struct JudgeText {
    text: String,
}

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
struct Verdict {
    score: u8,
    remarks: Vec<String>,
}

#[derive(Default)]
struct Retriever {
    calls: AtomicU32,
}

#[async_trait]
impl Arm<FindSources> for Retriever {
    async fn execute(&self, input: FindSources, cx: &Context) -> Result<Vec<String>, ArmError> {
        let call = self.calls.fetch_add(1, Ordering::Relaxed);
        sleep(Duration::from_millis(180 + u64::from(call * 97 % 420))).await;
        if call % 7 == 3 && cx.attempt() == 1 {
            return Err(ArmError::unavailable("the index is being updated").retryable());
        }
        cx.spend(Usage::metered(40, 12).with_cost(Cost::from_nano_dollars(60_000)))?;
        Ok((1..=3).map(|number| format!("{}, volume {number}", input.about)).collect())
    }
}

struct Writer;

#[async_trait]
impl Arm<WriteText> for Writer {
    async fn execute(&self, input: WriteText, cx: &Context) -> Result<String, ArmError> {
        let text = format!(
            "What is known about “{}” rests on {} sources. An octopus has three hearts and nine brains: one in the middle, and one in each arm. \
             Two thirds of its neurons are in the arms, which taste, decide and act by themselves, while the middle one states what it wants and \
             learns how it went. An arm that is lost grows again. That is how this system is built as well.",
            input.about, input.sources
        );
        for word in text.split_inclusive(' ') {
            sleep(Duration::from_millis(28)).await;
            cx.chunk::<WriteText>(&word.to_owned()).await;
        }
        cx.spend(Usage::metered(310, 96).with_cost(Cost::from_nano_dollars(2_350_000)))?;
        Ok(text)
    }
}

struct Judge;

#[async_trait]
impl Arm<JudgeText> for Judge {
    async fn execute(&self, input: JudgeText, cx: &Context) -> Result<Verdict, ArmError> {
        sleep(Duration::from_millis(350)).await;
        cx.spend(Usage::metered(120, 20).with_cost(Cost::from_nano_dollars(410_000)))?;
        if input.text.contains("“fail") {
            return Err(ArmError::failed("the answer contradicts its second source"));
        }
        Ok(Verdict { score: 92, remarks: vec!["well founded".into()] })
    }
}

/// What runs for a goal.
struct Desk;

#[async_trait]
impl Arm<TaskRequest> for Desk {
    async fn execute(&self, request: TaskRequest, cx: &Context) -> Result<TaskResult, ArmError> {
        let goal = request.goal;
        cx.phase(Phase::Planning);
        cx.progress(5, "choosing what to look for");
        sleep(Duration::from_millis(250)).await;
        if goal.starts_with("hold") {
            cx.progress(10, "waiting to be cancelled");
            std::future::pending::<()>().await;
        }
        cx.phase(Phase::Execution);
        cx.progress(20, "looking for sources");
        let wanted =
            ["history", "anatomy", "behaviour"].map(|part| FindSources { about: format!("{goal}: {part}") });
        let found = cx.call_all(wanted).await?;
        cx.progress(45, "writing");
        let sources = found.iter().map(Vec::len).sum();
        let mut written = cx.stream(WriteText { about: goal, sources }).named("write");
        while let Some(word) = written.next().await {
            cx.chunk::<WriteText>(&word).await;
        }
        let text = written.output().await?;
        cx.phase(Phase::Validation);
        cx.progress(85, "judging the answer");
        let verdict = cx.call(JudgeText { text: text.clone() }).named("judge").await?;
        Ok(TaskResult::new(serde_json::json!({ "answer": text, "sources": sources, "score": verdict.score })))
    }
}

/// Orders of which some cannot be billed: the group `billing` has dead letters.
async fn bill(bus: &MemoryDurableBus) -> Result<(), octollm::Error> {
    let mut billing = bus.consume("billing", "events:order:paid".parse()?, ConsumeOptions::default()).await?;
    for order in 1..=5 {
        bus.publish(Event::new(
            "order.paid",
            "shop",
            serde_json::json!({ "order": order, "euros": 12 * order }),
        )?)
        .await?;
        let Some(Ok(delivery)) = billing.next().await else { break };
        match order % 2 {
            0 => delivery.nack(Nack::dead_letter("the account has no address")).await?,
            _ => delivery.ack().await?,
        }
    }
    Ok(())
}

const GOALS: [&str; 6] = [
    "How does an octopus decide what to do next?",
    "Compare the arms of an octopus with the services of this system",
    "fail: Is there a ninth arm?",
    "Which animals change their colour, and why?",
    "Summarise what is known about the sleep of cephalopods",
    "Draft a letter to the aquarium about the escape of last week",
];

/// Submits a goal from time to time.
async fn load(brain: Brain) {
    for goal in GOALS.iter().cycle() {
        let submitted = brain.submit(TaskRequest::new(*goal).into(), &Context::detached()).await;
        if let Err(failure) = submitted {
            eprintln!("{failure}");
        }
        sleep(Duration::from_millis(2_500)).await;
    }
}

/// The text at the top of this file.
fn usage() -> String {
    let lines = include_str!("dashboard.rs").lines().map_while(|line| line.strip_prefix("//!"));
    lines.map(|line| format!("{}\n", line.trim_start())).collect()
}

#[tokio::main]
async fn main() -> Result<(), octollm::Error> {
    tracing_subscriber::fmt::init(); // the environment variable RUST_LOG selects what is logged
    let (mut address, mut key, mut is_quiet) = ("127.0.0.1:0".to_owned(), None, false);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--listen" => address = arguments.next().ok_or("--listen needs an address")?,
            "--key" => {
                key = Some(SigningKey::from_file_or_new(arguments.next().ok_or("--key needs a file")?)?);
            }
            "--quiet" => is_quiet = true,
            "--help" | "-h" => {
                print!("{}", usage());
                return Ok(());
            }
            _ => return Err("usage: dashboard [--listen ADDRESS] [--key FILE] [--quiet]".into()),
        }
    }

    let mut arms = Arms::builder();
    for (id, description, server) in [
        ("retriever", "Finds sources.", Server::new("retriever").arm(Retriever::default()).cost_tier(1)),
        ("writer", "Writes answers, word by word.", Server::new("writer").arm(Writer).cost_tier(4)),
        ("judge", "Judges answers.", Server::new("judge").arm(Judge).cost_tier(2)),
    ] {
        let server = server.description(description).version("1.0.0").bind("127.0.0.1:0").await?;
        arms = arms.endpoint(id, server.url());
        tokio::spawn(server.run());
    }

    let bus = MemoryDurableBus::new();
    bill(&bus).await?;
    let brain = Brain::builder().arm(Desk).arms(arms.bus(bus.clone()).build()?).bus(bus.clone()).build()?;
    let mut server =
        Server::new("desk").description("Answers questions.").version("1.0.0").orchestrator(brain.clone());
    server = server.bus(bus.clone()).dead_letters(bus);
    if let Some(key) = &key {
        server = server.tokens(TokenVerifier::builder().root(KeySet::new("desk").with_key(key)?));
    }
    let server = server.bind(address).await?;
    println!("{}/dashboard", server.url());
    if !is_quiet && key.is_none() {
        tokio::spawn(load(brain));
    }
    server.run_until_signal().await;
    Ok(())
}
