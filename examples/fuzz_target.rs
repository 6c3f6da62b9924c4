//! Serves an arm, an orchestrator and a reflex, for a fuzzer that compares them with their OpenAPI documents.
//!
//! ```text
//! cargo run --example fuzz_target
//! ```
//!
//! Prints a line for each server, such as `arm http://127.0.0.1:40001`, and runs until it is stopped.
//! `scripts/fuzz_schemas.sh` runs it.

use std::{collections::BTreeMap, num::NonZeroU8, sync::Arc};

use octollm::{
    prelude::*,
    reflex::{Reaction, Reflex, ReflexInput},
};

/// Counts the words of a text: rules for lengths, ranges and parts.
#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "text.count", output = Counted, idempotent)]
struct CountWords {
    #[garde(length(min = 1, max = 40))]
    text: String,
    #[garde(inner(length(min = 2, max = 8)), length(max = 3))]
    without: Vec<String>,
    #[garde(range(min = 1, max = 100))]
    limit: Option<u8>,
    #[serde(default)]
    #[garde(range(min = 0.0, max = 1.0))]
    weight: f64,
    #[serde(default)]
    options: Options,
}

#[derive(Debug, Default, Serialize, Deserialize, JsonSchema, Validate)]
struct Options {
    case: Case,
    #[garde(length(max = 4))]
    labels: BTreeMap<String, i64>,
}

#[derive(Debug, Default, Clone, Copy, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Case {
    #[default]
    Unchanged,
    Folded,
}

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
struct Counted {
    words: u64,
    case: Case,
    longest: Option<String>,
}

/// Measures a shape: one of several forms, with a tag.
#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "shape.measure", version = 2, output = f64, idempotent)]
struct MeasureShape {
    shape: Shape,
}

#[derive(Debug, Serialize, Deserialize, JsonSchema, Validate)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum Shape {
    Square {
        #[garde(range(min = 0, max = 1000))]
        side: u32,
    },
    Rectangle {
        #[garde(range(min = 0, max = 1000))]
        width: u32,
        #[garde(range(min = 0, max = 1000))]
        height: u32,
    },
}

/// Takes a short name in ASCII.
#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "name.check", output = bool)]
struct CheckName {
    #[garde(ascii, length(max = 16))]
    name: String,
    comment: Option<String>,
}

/// Has every rule, at every kind of field.
#[derive(Debug, Default, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "rules.try", output = Tried, idempotent)]
#[serde(rename_all = "camelCase", default)]
struct TryRules {
    #[garde(length(min = 1, max = 5))]
    short_text: Option<Box<str>>,
    #[serde(rename = "has-part")]
    #[garde(contains("a-b"), length(max = 9))]
    has_part: Option<String>,
    #[garde(prefix("x."))]
    before: Option<String>,
    #[garde(suffix("/y"))]
    after: Option<String>,
    #[garde(prefix("a"), suffix("b"))]
    both: Option<String>,
    #[garde(ip)]
    any_address: Option<String>,
    #[garde(ipv4)]
    four: Option<String>,
    #[garde(ipv6)]
    six: Option<String>,
    #[garde(inner(ascii, length(max = 2)), length(max = 3))]
    words: Option<Vec<Option<String>>>,
    #[garde(length(max = 2), inner(length(min = 1), inner(range(min = 2, max = 7))))]
    rows: BTreeMap<String, Vec<u8>>,
    #[garde(range(min = -1.5, max = 2.5))]
    part: Option<f64>,
    #[garde(range(min = -3, max = 9))]
    whole: Option<i64>,
    huge: u128,
    positive: Option<NonZeroU8>,
    letter: Option<char>,
    shared: Option<Arc<str>>,
    named: Option<Name>,
    names: Vec<Name>,
    choice: Option<Choice>,
    beside: Option<Beside>,
    bare: Option<Bare>,
    tree: Option<Tree>,
    pair: (u8, Option<i16>),
    #[serde(flatten)]
    page: Page,
}

#[derive(Debug, Serialize, Deserialize, JsonSchema, Validate)]
struct Name(#[garde(ascii, length(min = 1, max = 4))] String);

#[derive(Debug, Serialize, Deserialize, JsonSchema, Validate)]
#[serde(rename_all = "snake_case")]
enum Choice {
    Nothing,
    LongName(Name),
    Range {
        #[garde(range(max = 5))]
        from: u8,
        #[garde(length(max = 1))]
        marks: Vec<u16>,
    },
    Two(#[garde(range(min = 1))] u8, #[garde(length(max = 2))] String),
}

#[derive(Debug, Serialize, Deserialize, JsonSchema, Validate)]
#[serde(tag = "t", content = "c")]
enum Beside {
    One(#[garde(ascii)] String),
    Two(#[garde(range(max = 5))] u8, i8),
    Three,
}

#[derive(Debug, Serialize, Deserialize, JsonSchema, Validate)]
#[serde(untagged)]
enum Bare {
    Number(#[garde(range(max = 100))] i64),
    Text(#[garde(length(max = 3))] String),
}

#[derive(Debug, Serialize, Deserialize, JsonSchema, Validate)]
struct Tree {
    #[garde(length(max = 3))]
    label: String,
    #[serde(default)]
    #[garde(length(max = 2))]
    children: Vec<Tree>,
}

#[derive(Debug, Default, Serialize, Deserialize, JsonSchema, Validate)]
#[serde(default)]
struct Page {
    #[garde(ascii, length(max = 4))]
    cursor: Option<String>,
    #[garde(range(max = 50))]
    limit: u16,
}

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
struct Tried {
    rows: usize,
    page: Page,
}

struct Worker;

#[async_trait]
impl Arm<CountWords> for Worker {
    async fn execute(&self, input: CountWords, _: &Context) -> Result<Counted, ArmError> {
        let words = input.text.split_whitespace().filter(|word| !input.without.iter().any(|no| no == word));
        let words: Vec<_> = words.take(input.limit.map_or(usize::MAX, usize::from)).collect();
        let longest = words.iter().max_by_key(|word| word.len()).map(|word| (*word).to_owned());
        Ok(Counted { words: words.len() as u64, case: input.options.case, longest })
    }
}

#[async_trait]
impl Arm<MeasureShape> for Worker {
    async fn execute(&self, input: MeasureShape, _: &Context) -> Result<f64, ArmError> {
        Ok(match input.shape {
            Shape::Square { side } => f64::from(side) * f64::from(side),
            Shape::Rectangle { width, height } => f64::from(width) * f64::from(height),
        })
    }
}

#[async_trait]
impl Arm<CheckName> for Worker {
    async fn execute(&self, input: CheckName, _: &Context) -> Result<bool, ArmError> {
        Ok(input.comment.is_none_or(|comment| comment.len() > input.name.len()))
    }
}

#[async_trait]
impl Arm<TryRules> for Worker {
    async fn execute(&self, input: TryRules, _: &Context) -> Result<Tried, ArmError> {
        Ok(Tried { rows: input.rows.len(), page: input.page })
    }
}

/// The arm that the orchestrator runs for a goal.
struct Answering;

#[async_trait]
impl Arm<TaskRequest> for Answering {
    async fn execute(&self, request: TaskRequest, _: &Context) -> Result<TaskResult, ArmError> {
        Ok(TaskResult::new(request.goal.len()))
    }
}

/// Lets texts pass, unless they contain a marker.
struct Marked;

#[async_trait]
impl Reflex for Marked {
    async fn react(&self, text: &mut ReflexInput, _: &Context) -> Result<Reaction, ArmError> {
        if text.detect_pii && text.text().contains('@') {
            text.add_pii("email");
            return Ok(Reaction::Rewrite(text.text().replace('@', " at ")));
        }
        Ok(Reaction::Pass)
    }
}

fn brain() -> Result<Brain, octollm::Error> {
    Ok(Brain::builder().arm(Answering).build()?)
}

#[tokio::main]
async fn main() -> Result<(), octollm::Error> {
    let arm = Server::new("arm")
        .arm::<CountWords>(Worker)
        .arm::<MeasureShape>(Worker)
        .arm::<CheckName>(Worker)
        .arm::<TryRules>(Worker)
        // A fuzzer uses one key with many inputs, which is refused although each request is valid.
        .idempotency(())
        .bind("127.0.0.1:0")
        .await?;
    let orchestrator = Server::new("orchestrator").orchestrator(brain()?).bind("127.0.0.1:0").await?;
    let reflex = Server::new("reflex").reflex(Marked).orchestrator(brain()?).bind("127.0.0.1:0").await?;
    println!("arm {}", arm.url());
    println!("orchestrator {}", orchestrator.url());
    println!("reflex {}", reflex.url());
    tokio::spawn(arm.run());
    tokio::spawn(orchestrator.run());
    reflex.run().await;
    Ok(())
}
