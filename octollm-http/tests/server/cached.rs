//! Answers that are repeated in place of another run.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use futures_util::FutureExt;
use http::{header, request::Parts};
use octollm_core::{
    Arm, Context,
    brain::Brain,
    budget::Usage,
    bus::{BusError, Capability, EventBus, Gap, MemoryBus, Overflow, Subscription, engine::Feed},
    contract::{ContractSpec, TaskContract},
    error::{ArmError, Failure},
    event::{Event, Pattern},
    orchestrator::{Orchestrator, whole_journal},
    parts::{Caller, ContextParts},
    task::{Submission, TaskStatus},
};
use octollm_http::{Arms, Server, io::Pipes};
use octollm_macros::TaskContract;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::{
    sync::Notify,
    time::{advance, sleep},
};

use crate::{
    arms::start,
    peer::{Answer, Peer},
};

/// Looks something up.
#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "word.look", output = Found, idempotent, cache = "60s")]
struct Look {
    word: String,
}

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
struct Found {
    word: String,
    /// The number of the run.
    run: usize,
}

/// Counts something.
#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "word.count", output = usize, idempotent, cache = "60s")]
struct Count {}

/// Looks twice, and counts what was used.
#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "word.compare", output = Vec<usize>)]
struct Compare {}

#[derive(Clone, Default)]
struct Dictionary {
    runs: Arc<AtomicUsize>,
    begun: Arc<Notify>,
    go: Arc<Notify>,
}

impl Dictionary {
    fn runs(&self) -> usize {
        self.runs.load(Ordering::SeqCst)
    }

    fn server(&self) -> Server {
        Server::new("dictionary").arm::<Look>(self.clone()).arm::<Count>(self.clone())
    }
}

#[async_trait]
impl Arm<Look> for Dictionary {
    async fn execute(&self, input: Look, cx: &Context) -> Result<Found, ArmError> {
        let run = self.runs.fetch_add(1, Ordering::SeqCst) + 1;
        cx.spend(Usage::tokens(5))?;
        match input.word.as_str() {
            "fail" => return Err(ArmError::failed("there is no such word")),
            "panic" => panic!("the password is swordfish"),
            "wait" => {
                self.begun.notify_one();
                self.go.notified().await;
            }
            _ => {}
        }
        Ok(Found { word: input.word, run })
    }
}

#[async_trait]
impl Arm<Count> for Dictionary {
    async fn execute(&self, _: Count, _: &Context) -> Result<usize, ArmError> {
        Ok(self.runs.fetch_add(1, Ordering::SeqCst) + 1)
    }
}

#[async_trait]
impl Arm<Compare> for Dictionary {
    async fn execute(&self, _: Compare, cx: &Context) -> Result<Vec<usize>, ArmError> {
        let look = || Look { word: "arm".into() };
        let first = cx.call(look()).await?;
        let others = cx.call_all([look(), look()]).at_once(1).await?;
        Ok(std::iter::once(first).chain(others).map(|found| found.run).collect())
    }
}

const ARM: &str = r#"{"word":"arm"}"#;

/// The run that an answer is of, and its age.
fn run(answer: &Answer) -> (u64, Option<u64>) {
    assert_eq!(answer.status, 200, "{answer:?}");
    let age: Option<u64> = answer.field("age").map(|age| age.parse().unwrap());
    let used = if age.is_some() { "tokens=0;cost_usd=0" } else { "tokens=5;cost_usd=0" };
    assert_eq!(answer.field("octollm-usage"), Some(used), "{answer:?}");
    let body = answer.json();
    let body = body.get("output").unwrap_or(&body);
    (body["run"].as_u64().unwrap(), age)
}

async fn look(peer: Peer, fields: &str, word: &str) -> (u64, Option<u64>) {
    run(&peer.post("/look", fields, &format!(r#"{{"word":"{word}"}}"#)).await)
}

fn known(head: &Parts) -> Result<Caller, Failure> {
    let field = |name| head.headers.get(name).and_then(|value| value.to_str().ok());
    let Some(name) = field(header::AUTHORIZATION) else { return Ok(Caller::Anonymous) };
    Ok(Caller::known(name, field("x-scopes".parse().unwrap()).unwrap_or("word:look").split(' ')))
}

#[tokio::test(start_paused = true)]
async fn an_equal_call_is_answered_from_the_cache_until_its_time_has_passed() {
    let peer = start(Dictionary::default().server());
    assert_eq!(look(peer, "", "arm").await, (1, None));
    assert_eq!(look(peer, "", "arm").await, (1, Some(0)));
    advance(Duration::from_millis(59_900)).await;
    assert_eq!(look(peer, "", "arm").await, (1, Some(59)));
    let execute = r#"{"contract":"word.look","input":{"word":"arm"}}"#;
    assert_eq!(run(&peer.post("/execute", "", execute).await), (1, Some(59)), "whichever way it is called");
    advance(Duration::from_millis(100)).await;
    assert_eq!(look(peer, "", "arm").await, (2, None));
    // A hit does not make the answer younger, nor is another input the same.
    assert_eq!(look(peer, "", "leg").await, (3, None));
    assert_eq!(run(&peer.post("/look", "", r#"{ "word": "arm" }"#).await), (4, None), "bytes, not values");
}

#[tokio::test(start_paused = true)]
async fn an_answer_is_for_one_caller_its_scopes_and_its_task() {
    let peer = start(Dictionary::default().server().authenticate(known));
    let tasks =
        ["", "Octollm-Task-Id: task_3fK9aZ0qLw81bXyT\r\n", "Octollm-Task-Id: task_3fK9aZ0qLw81bXyU\r\n"];
    let callers = [
        "Authorization: ali\r\n",
        "Authorization: bob\r\n",
        "Authorization: ali\r\nX-Scopes: word:look word:count\r\n",
    ];
    let mut runs = 0;
    for caller in callers {
        for task in tasks {
            runs += 1;
            let fields = format!("{caller}{task}");
            assert_eq!(look(peer, &fields, "arm").await, (runs, None), "{fields}");
            assert_eq!(look(peer, &fields, "arm").await, (runs, Some(0)), "{fields}");
        }
    }
    let reordered = "Authorization: ali\r\nX-Scopes: word:count word:look\r\n";
    assert_eq!(look(peer, reordered, "arm").await.1, Some(0));
    // Who may not call receives no answer of those who may.
    let answer = peer.post("/look", "Authorization: ali\r\nX-Scopes: word:count\r\n", ARM).await;
    answer.is_problem(403, "insufficient_scope");
    peer.post("/look", "", ARM).await.is_problem(401, "unauthenticated");
    let answer = peer.post("/look", "Authorization: ali\r\nOctollm-Budget: tokens=0\r\n", ARM).await;
    answer.is_problem(429, "budget_exhausted");
    let answer = peer.post("/look", "Authorization: ali\r\nOctollm-Timeout: 0\r\n", ARM).await;
    answer.is_problem(504, "deadline_exceeded");
}

/// An answer can depend on what the arm calls on with for its caller.
#[cfg(feature = "tokens")]
#[tokio::test(start_paused = true)]
async fn an_answer_is_for_what_its_caller_has_delegated() {
    use octollm_core::{card::ArmCard, parts::Grant};
    use octollm_http::token::{ExposeSecret, KeySet, SigningKey, TokenIssuer, TokenVerifier};

    let (root, arm) = (SigningKey::generate().unwrap(), SigningKey::generate().unwrap());
    let root = root.with_kid("k1").unwrap();
    let keys = KeySet::new("brain").with_key(&root).unwrap();
    let peer = start(Dictionary::default().server().tokens(TokenVerifier::builder().root(keys)));
    let issuer = TokenIssuer::root("brain", root.clone()).build().unwrap();
    let ali = Grant::new("ali", ["word:*", "data:*"]);
    let mut runs = 0;
    for needs in [&[][..], &["data:read"], &["data:read", "data:list"]] {
        let mut card = ArmCard::new("dictionary");
        (card.key, card.needs) = (arm.public_jwk(), needs.iter().map(|need| (*need).to_owned()).collect());
        let token = issuer.issue(&ali, &["word:look"], &card).unwrap();
        let fields = format!("Authorization: Bearer {}\r\n", token.expose_secret());
        runs += 1;
        assert_eq!(look(peer, &fields, "arm").await, (runs, None), "{needs:?}");
        assert_eq!(look(peer, &fields, "arm").await, (runs, Some(0)), "{needs:?}");
        // Another token with a link for the same.
        card.needs.reverse();
        let other = TokenIssuer::root("brain", root.clone()).build().unwrap();
        let token = other.issue(&ali, &["word:look"], &card).unwrap();
        let again = format!("Authorization: Bearer {}\r\n", token.expose_secret());
        assert_ne!(again, fields);
        assert_eq!(look(peer, &again, "arm").await, (runs, Some(0)), "{needs:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn failures_are_not_cached() {
    let dictionary = Dictionary::default();
    let peer = start(dictionary.server());
    for (word, kind, runs) in [("fail", "arm_failed", 2), ("panic", "arm_panicked", 4)] {
        for _ in 0..2 {
            let answer = peer.post("/look", "", &format!(r#"{{"word":"{word}"}}"#)).await;
            answer.is_problem(500, kind);
            assert_eq!(
                (answer.field("octollm-usage"), answer.field("age")),
                (Some("tokens=5;cost_usd=0"), None)
            );
        }
        assert_eq!(dictionary.runs(), runs);
    }
}

#[tokio::test(start_paused = true)]
async fn an_event_drops_the_answers_of_a_contract_or_all() {
    let bus = MemoryBus::new();
    let peer = start(Dictionary::default().server().bus(bus.clone()));
    // Nothing is cached before the server is subscribed.
    sleep(Duration::from_millis(1)).await;
    let count = async || {
        let answer = peer.post("/count", "", "{}").await;
        answer.json().as_u64().unwrap()
    };
    assert_eq!((look(peer, "", "arm").await, count().await), ((1, None), 2));
    assert_eq!((look(peer, "", "arm").await, count().await), ((1, Some(0)), 2));
    let publish = async |event: Event| {
        bus.publish(event).await.unwrap();
        sleep(Duration::from_millis(1)).await;
    };
    publish(Event::cache_invalidated("editor", Look::SPEC.reference()).unwrap()).await;
    assert_eq!((look(peer, "", "arm").await, count().await), ((3, None), 2));
    publish(Event::cache_invalidated("editor", None).unwrap()).await;
    assert_eq!((look(peer, "", "arm").await, count().await), ((4, None), 5));
    // An event that cannot be read drops all; another event nothing.
    publish(Event::new("cache.invalidated", "editor", serde_json::json!({ "contract": 5 })).unwrap()).await;
    assert_eq!((look(peer, "", "arm").await, count().await), ((6, None), 7));
    publish(Event::new("cache.warmed", "editor", serde_json::json!({})).unwrap()).await;
    assert_eq!((look(peer, "", "arm").await, count().await), ((6, Some(0)), 7));
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_was_begun_before_an_event_is_not_cached_after_it() {
    let (bus, dictionary) = (MemoryBus::new(), Dictionary::default());
    let peer = start(dictionary.server().bus(bus.clone()));
    sleep(Duration::from_millis(1)).await;
    let waiting = tokio::spawn(async move { look(peer, "", "wait").await });
    dictionary.begun.notified().await;
    bus.publish(Event::cache_invalidated("editor", Look::SPEC.reference()).unwrap()).await.unwrap();
    sleep(Duration::from_millis(1)).await;
    dictionary.go.notify_one();
    assert_eq!(waiting.await.unwrap(), (1, None));
    dictionary.go.notify_one();
    assert_eq!(look(peer, "", "wait").await, (2, None));
    assert_eq!(look(peer, "", "wait").await, (2, Some(0)));
}

#[tokio::test(start_paused = true)]
async fn equal_calls_at_one_time_all_run() {
    let dictionary = Dictionary::default();
    let peer = start(dictionary.server());
    let waiting: Vec<_> = (0..2).map(|_| tokio::spawn(async move { look(peer, "", "wait").await })).collect();
    for _ in 0..2 {
        dictionary.begun.notified().await;
        dictionary.go.notify_one();
    }
    for waiting in waiting {
        assert_eq!(waiting.await.unwrap().1, None);
    }
    assert_eq!(dictionary.runs(), 2);
    assert_eq!(look(peer, "", "wait").await.1, Some(0));
}

/// A bus that cannot be subscribed to at first, and has the other end of each subscription.
#[derive(Clone, Default)]
struct Broken(Arc<(AtomicUsize, Mutex<Vec<Feed>>)>);

#[async_trait]
impl EventBus for Broken {
    async fn publish(&self, _: Event) -> Result<(), BusError> {
        Err(BusError::Unavailable { source: None })
    }

    async fn subscribe(&self, pattern: Pattern, overflow: Overflow) -> Result<Subscription, BusError> {
        assert_eq!(pattern.to_string(), "events:cache:invalidated");
        if self.0.0.fetch_add(1, Ordering::SeqCst) < 3 {
            return Err(BusError::Unavailable { source: None });
        }
        let (feed, subscription) = Feed::new(overflow, Duration::from_secs(1))?;
        self.0.1.lock().unwrap().push(feed);
        Ok(subscription)
    }

    fn capabilities(&self) -> &[Capability] {
        &[]
    }

    fn max_event_bytes(&self) -> usize {
        1_000_000
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_repeated_after_an_event_could_be_missed() {
    let bus = Broken::default();
    let peer = start(Dictionary::default().server().bus(bus.clone()));
    for run in 1..4 {
        assert_eq!(look(peer, "", "arm").await, (run, None), "there is no subscription");
    }
    // It is tried again after 100, 200 and 400 ms.
    sleep(Duration::from_millis(701)).await;
    let both = async |run| {
        assert_eq!(look(peer, "", "arm").await, (run, None));
        assert_eq!(look(peer, "", "arm").await, (run, Some(0)));
    };
    both(4).await;
    let feed = || bus.0.1.lock().unwrap().pop().unwrap();
    let lossy = feed();
    lossy.gap(Gap::ConnectionLost);
    sleep(Duration::from_millis(1)).await;
    both(5).await;
    // Without a break for the server to receive them, more events than can wait.
    let other = Event::cache_invalidated("editor", "other.one".parse().ok()).unwrap();
    for _ in 0..1_025 {
        assert_eq!(lossy.send(&other).now_or_never(), Some(true));
    }
    sleep(Duration::from_millis(1)).await;
    both(6).await;
    lossy.end(BusError::Unavailable { source: None });
    sleep(Duration::from_millis(1)).await;
    assert_eq!(look(peer, "", "arm").await, (7, None));
    assert_eq!(look(peer, "", "arm").await, (8, None), "there is no subscription");
    sleep(Duration::from_millis(101)).await;
    both(9).await;
    // A bus that is closed does not come back.
    feed().end(BusError::Closed);
    sleep(Duration::from_secs(60)).await;
    assert_eq!(look(peer, "", "arm").await, (10, None));
    assert_eq!(look(peer, "", "arm").await, (11, None));
    assert_eq!(bus.0.0.load(Ordering::SeqCst), 5);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_is_dropped_leaves_no_subscription() {
    let bus = Broken::default();
    bus.0.0.store(3, Ordering::SeqCst);
    let service = Dictionary::default().server().bus(bus.clone()).open_to_all().into_service().unwrap();
    sleep(Duration::from_millis(1)).await;
    let feed = bus.0.1.lock().unwrap().pop().expect("it is subscribed before the first request");
    assert!(!feed.is_closed());
    drop(service);
    feed.closed().await;
}

#[tokio::test(start_paused = true)]
async fn the_cache_is_bounded_by_number_and_bytes() {
    let dictionary = Dictionary::default();
    let hits = async |server: Server, words: &[&str]| {
        let peer = start(server);
        let mut hits = Vec::new();
        for word in words {
            hits.push(look(peer, "", word).await.1.is_some());
        }
        hits
    };
    let words = ["a", "b", "b", "a", "c", "c", "b", "a"];
    // The third answer takes the place of the first, which then takes that of the second.
    let two = [false, false, true, true, false, true, true, false];
    assert_eq!(hits(dictionary.server().cache_answers(2), &words).await, two);
    assert_eq!(hits(dictionary.server().cache_bytes(600), &words).await, two);
    assert_eq!(hits(dictionary.server().cache_answers(0), &words).await, [false; 8]);
    assert_eq!(hits(dictionary.server().cache_bytes(200), &words).await, [false; 8], "larger than the cache");
}

#[tokio::test(start_paused = true)]
async fn a_cached_answer_needs_no_place_and_counts_under_the_rate_limit() {
    let dictionary = Dictionary::default();
    let limit = octollm_core::limit::RateLimit::new(4, Duration::from_secs(60));
    let peer = start(dictionary.server().max_in_flight_of::<Look>(1).rate_limit(limit));
    assert_eq!(look(peer, "", "arm").await, (1, None));
    let mut line = peer.connect().await;
    line.write(crate::peer::post("/look", "", r#"{"word":"wait"}"#)).await;
    dictionary.begun.notified().await;
    assert_eq!(look(peer, "", "arm").await, (1, Some(0)));
    peer.post("/look", "", r#"{"word":"leg"}"#).await.is_problem(503, "overloaded");
    let answer = peer.post("/look", "", ARM).await;
    answer.is_problem(429, "rate_limited");
    dictionary.go.notify_one();
    assert_eq!(line.answer().await.status, 200);
}

#[tokio::test(start_paused = true)]
async fn a_cached_answer_uses_nothing_of_a_budget() {
    let (network, dictionary) = (Pipes::new(), Dictionary::default());
    tokio::spawn(dictionary.server().listen(network.listen("dictionary").unwrap()).unwrap().run());
    let arms = Arms::builder().endpoint("dictionary", "http://dictionary").connector(network);
    let arms = arms.build().unwrap();
    let mut parts = ContextParts::new();
    parts.budget = "tokens=9".parse().unwrap();
    let cx = arms.context_of(parts);
    for _ in 0..5 {
        assert_eq!(cx.call(Look { word: "arm".into() }).await.unwrap().run, 1);
    }
    assert_eq!(cx.used(), Usage::tokens(5), "five tokens once, and no call whose usage is unknown");
}

#[tokio::test(start_paused = true)]
async fn a_journal_has_cached_answers_as_any_other() {
    let (network, dictionary) = (Pipes::new(), Dictionary::default());
    tokio::spawn(dictionary.server().listen(network.listen("dictionary").unwrap()).unwrap().run());
    let arms = Arms::builder().endpoint("dictionary", "http://dictionary").connector(network);
    let brain = Brain::builder().arm::<Compare>(dictionary.clone()).arms(arms.build().unwrap());
    let (brain, cx) = (brain.build().unwrap(), Context::detached());
    let submit = async || {
        let input = serde_json::json!({ "contract": "word.compare", "input": {} });
        let submission = Submission::from_json(input.to_string().as_bytes()).unwrap();
        let id = brain.submit(submission, &cx).await.unwrap().task_id;
        loop {
            let task = brain.get(&id, &cx).await.unwrap();
            if task.status.is_finished() {
                return task;
            }
            sleep(Duration::from_millis(10)).await;
        }
    };
    for runs in 1..3 {
        let task = submit().await;
        assert_eq!(task.status, TaskStatus::Completed, "{:?}", task.error);
        assert_eq!(task.result.unwrap().output, serde_json::json!([runs, runs, runs]));
        assert_eq!(
            (task.metadata.tokens_used, dictionary.runs()),
            (5, runs),
            "each task has its own answers"
        );
        let journal = whole_journal(&brain, &task.task_id, &cx).await.unwrap();
        let used: Vec<_> = journal.iter().map(|step| step.tokens_used).collect();
        assert_eq!(used, [5, 0, 0]);
    }
}

/// Says that it may be cached, and may not.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
struct Pay {}

impl TaskContract for Pay {
    type Output = ();
    type Chunk = ();
    const SPEC: ContractSpec =
        ContractSpec::new("bill.pay", "/pay", "bill:pay").cache(Duration::from_secs(60));

    fn check(&self) -> Result<(), Vec<octollm_core::contract::Violation>> {
        Ok(())
    }
}

#[async_trait]
impl Arm<Pay> for Dictionary {
    async fn execute(&self, _: Pay, _: &Context) -> Result<(), ArmError> {
        Ok(())
    }
}

#[test]
fn a_contract_by_hand_that_is_not_idempotent_is_not_cached() {
    let server = Server::new("bank").arm::<Pay>(Dictionary::default()).open_to_all();
    let error = server.into_service().unwrap_err();
    assert!(error.to_string().contains("idempotent"), "{error}");
}
