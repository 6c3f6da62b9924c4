//! Serves an arm, an orchestrator, a reflex and others, for programs that compare them with their OpenAPI documents.
//!
//! ```text
//! cargo run --example fuzz_target [KEY]
//! ```
//!
//! Prints a line for each server, such as `arm http://127.0.0.1:40001`, and runs until it is stopped. The server `secure` accepts
//! tokens that the issuer `fuzz` has signed with KEY, a PEM file, which is created if it is not there. `mounted` is an arm below a prefix. The
//! texts of `hostile` try to become markup. `scripts/fuzz_schemas.sh`, `scripts/openapi.sh` and `scripts/docs_page.sh` run it.

use std::{collections::BTreeMap, num::NonZeroU8, sync::Arc};

use octollm::{
    http::token::{KeySet, SigningKey, TokenVerifier},
    prelude::*,
    reflex::{Reaction, Reflex, ReflexInput},
};
use tokio::net::TcpListener;

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

/// Measures a square. Version 2 measures other shapes too.
#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "shape.measure", output = f64, idempotent)]
#[schemars(extend("deprecated" = true))]
struct MeasureSquare {
    #[garde(range(min = 0, max = 1000))]
    side: u32,
}

/// Measures a shape: one of several forms, with a tag.
#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(
    name = "shape.measure", version = 2, output = f64, idempotent, cache = "10s", timeout = "2s", effects = "none",
    title = "Area of a shape", tags = ["geometry", "exact"], examples = ["How large is a square with sides of 3?"]
)]
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

/// Lists trees, in a generic type that contains itself.
#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "tree.list", output = Nested<Tree>, idempotent)]
struct ListTrees {
    from: Option<Nested<Count>>,
    within: Option<Nested<Nested<Count>>>,
}

#[derive(Debug, Serialize, Deserialize, JsonSchema, Validate)]
struct Count {
    of: u16,
    is_exact: Option<bool>,
}

/// A value, and more of them.
#[derive(Debug, Serialize, Deserialize, JsonSchema, Validate)]
struct Nested<T: Validate<Context = ()>> {
    value: T,
    #[garde(length(max = 2))]
    more: Vec<Nested<T>>,
}

/// Repeats a text. <img src=x onerror="document.title='injected'"> <script>document.title = 'injected'</script>
#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(
    name = "text.repeat", output = Repeated, idempotent,
    title = "<b onmouseover=alert(1)>Repeat</b>", tags = ["<script>alert(1)</script>"], examples = ["\"><svg onload=alert(1)>"]
)]
struct Repeat {
    /// <img src=x onerror=alert(1)> `</code><script>alert(1)</script>`
    #[serde(rename = "\"><img src=x onerror=alert(1)>")]
    text: String,
    #[serde(rename = "__proto__", default)]
    prototype: Option<Box<Repeated>>,
}

#[derive(Debug, Serialize, Deserialize, JsonSchema, Validate)]
#[schemars(title = "<script>alert(1)</script>")]
struct Repeated {
    text: String,
    #[serde(rename = "constructor", default)]
    huge: u64,
    #[serde(default)]
    nest: Nest,
}

/// Contains nothing but itself.
#[derive(Debug, Default, Serialize, Deserialize, JsonSchema, Validate)]
struct Nest(Vec<Nest>);

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
impl Arm<MeasureSquare> for Worker {
    async fn execute(&self, input: MeasureSquare, _: &Context) -> Result<f64, ArmError> {
        Ok(f64::from(input.side) * f64::from(input.side))
    }
}

#[async_trait]
impl Arm<ListTrees> for Worker {
    async fn execute(&self, input: ListTrees, _: &Context) -> Result<Nested<Tree>, ArmError> {
        let label = input.from.map_or_else(String::new, |from| (from.value.of % 1000).to_string());
        Ok(Nested { value: Tree { label, children: Vec::new() }, more: Vec::new() })
    }
}

#[async_trait]
impl Arm<Repeat> for Worker {
    async fn execute(&self, input: Repeat, _: &Context) -> Result<Repeated, ArmError> {
        Ok(Repeated { text: input.text, huge: u64::MAX, nest: Nest::default() })
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

fn worker(id: &str) -> Server {
    Server::new(id)
        .description("Counts, measures and checks.")
        .version("1.2.3")
        .arm::<CountWords>(Worker)
        .arm::<MeasureSquare>(Worker)
        .arm::<MeasureShape>(Worker)
        .arm::<CheckName>(Worker)
        .arm::<ListTrees>(Worker)
        .arm::<TryRules>(Worker)
        // A fuzzer uses one key with many inputs, which is refused although each request is valid.
        .idempotency(())
}

/// A server for callers with tokens, whose routes have different scopes.
fn secure(key: &SigningKey) -> Result<Server, octollm::Error> {
    let keys = KeySet::new("fuzz").with_key(key)?;
    let server = Server::new("secure").arm::<CountWords>(Worker).arm::<CheckName>(Worker).idempotency(());
    let server = server.orchestrator(brain()?).reflex(Marked).metrics_scope("metrics:read");
    Ok(server.jwks(keys.clone()).tokens(TokenVerifier::builder().root(keys)))
}

/// Serves the arm below a prefix of another server.
async fn mounted() -> Result<String, octollm::Error> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}/arms/worker", listener.local_addr()?);
    let service = worker("worker").open_to_all().into_service()?;
    let app = axum::Router::new().nest_service("/arms/worker", service);
    tokio::spawn(async move { axum::serve(listener, app).await });
    Ok(url)
}

#[tokio::main]
async fn main() -> Result<(), octollm::Error> {
    let key = match std::env::args().nth(1) {
        Some(file) => SigningKey::from_file_or_new(file)?,
        None => SigningKey::generate()?,
    };
    let hostile =
        "<script>document.title = 'injected'</script><img src=x onerror=\"document.title = 'injected'\">";
    let arm = worker("arm").bind("127.0.0.1:0").await?;
    println!("arm {}", arm.url());
    let arms = Arms::builder().endpoint("arm", arm.url()).build()?;
    tokio::spawn(arm.run());
    let servers = [
        Server::new("orchestrator").orchestrator(Brain::builder().arm(Answering).arms(arms).build()?),
        Server::new("reflex").reflex(Marked).orchestrator(brain()?),
        secure(&key)?,
        Server::new("hostile").description(hostile).version("<b>1</b>").arm::<Repeat>(Worker),
    ];
    for (name, server) in ["orchestrator", "reflex", "secure", "hostile"].into_iter().zip(servers) {
        let server = server.bind("127.0.0.1:0").await?;
        println!("{name} {}", server.url());
        tokio::spawn(server.run());
    }
    println!("mounted {}", mounted().await?);
    std::future::pending().await
}
