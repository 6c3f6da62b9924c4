//! Requests with an `Idempotency-Key`: each runs once, and is answered again from its record.

use std::{
    future::pending,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering::SeqCst},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use http::{Method, Request, Response};
use octollm_core::{
    Arm, Context,
    arm::arm_fn,
    brain::Brain,
    budget::Usage,
    contract::TaskContract,
    deadline::Deadline,
    error::{ArmError, CallError, ErrorKind, Failure},
    id::IdempotencyKey,
    idempotency::MemoryIdempotencyStore,
    orchestrator::{Orchestrator, finished},
    parts::ContextParts,
    store::MemoryStore,
    task::{Submission, TaskRequest, TaskResult},
    transport::{Call, Reply, StepKey, Transport},
};
use octollm_http::{Arms, Server, io::Pipes};
use octollm_macros::TaskContract;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::{
    sync::Notify,
    time::{advance, sleep},
};
use tower::{BoxError, ServiceExt, layer::layer_fn, service_fn, util::BoxCloneSyncService};

use crate::{
    arms::start,
    peer::{Answer, Peer, post},
};

/// Moves money, after a while.
#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "card.charge", output = u32, timeout = "30s")]
struct Charge {
    amount: u32,
    #[serde(default)]
    ms: u64,
}

/// Counts the charges.
#[derive(Clone, Default)]
struct Bank(Arc<Counts>);

#[derive(Default)]
struct Counts {
    begun: AtomicU32,
    changed: Notify,
}

#[async_trait]
impl Arm<Charge> for Bank {
    async fn execute(&self, input: Charge, cx: &Context) -> Result<u32, ArmError> {
        let run = self.0.begun.fetch_add(1, SeqCst) + 1;
        self.0.changed.notify_one();
        cx.spend(Usage::tokens(5))?;
        if input.ms > 0 {
            sleep(Duration::from_millis(input.ms)).await;
        }
        if input.amount == 0 {
            return Err(ArmError::failed("nothing to charge"));
        }
        Ok(input.amount * 100 + run)
    }
}

impl Bank {
    fn server(&self) -> Server {
        Server::new("bank").arm(self.clone())
    }

    fn begun(&self) -> u32 {
        self.0.begun.load(SeqCst)
    }
}

fn with(key: &str) -> String {
    format!("Idempotency-Key: \"{key}\"\r\n")
}

async fn charge(peer: Peer, key: &str, body: &str) -> Answer {
    peer.post("/charge", &with(key), body).await
}

const NINE: &str = r#"{"amount":9}"#;
const REPLAYED: &str = "idempotency-replayed";

#[tokio::test(start_paused = true)]
async fn a_repeated_request_gets_the_first_answer_with_its_usage() {
    let bank = Bank::default();
    let peer = start(bank.server());
    for (body, status) in [(NINE, 200), (r#"{"amount":0}"#, 500)] {
        let key = status.to_string();
        let first = charge(peer, &key, body).await;
        let again = charge(peer, &key, body).await;
        assert_eq!((first.status, first.field(REPLAYED)), (status, None));
        assert_eq!((again.status, again.field(REPLAYED)), (status, Some("true")));
        let usage = |answer: &Answer| answer.field("octollm-usage").unwrap().to_owned();
        assert_eq!((usage(&again), usage(&first)), ("tokens=5;cost_usd=0".into(), usage(&first)));
        if status == 200 {
            assert_eq!(again.body, first.body);
        } else {
            assert_eq!(again.json()["message"], "nothing to charge");
        }
    }
    assert_eq!(bank.begun(), 2);
}

#[tokio::test(start_paused = true)]
async fn the_envelope_is_answered_again_as_it_was() {
    let bank = Bank::default();
    let peer = start(bank.server());
    let body = r#"{"contract":"card.charge","input":{"amount":9,"ms":20}}"#;
    let first = peer.post("/execute", &with("k"), body).await;
    advance(Duration::from_secs(100)).await;
    let again = peer.post("/execute", &with("k"), body).await;
    assert_eq!((first.status, &again.body, again.field(REPLAYED)), (200, &first.body, Some("true")));
    assert_eq!(first.json()["provenance"]["duration_ms"], 20);
    // For another task it is another call.
    let task = r#"{"task_id":"task_3fK9aZ0qLw81bXyT","contract":"card.charge","input":{"amount":9,"ms":20}}"#;
    assert_eq!(peer.post("/execute", &with("k"), task).await.json()["output"], 902);
    // Both routes of the contract have the same records.
    let fields = format!("{}Octollm-Task-Id: task_3fK9aZ0qLw81bXyT\r\n", with("k"));
    let route = peer.post("/charge", &fields, r#"{"ms":20,"amount":9}"#).await;
    assert_eq!((&*route.body, route.field(REPLAYED)), ("902", Some("true")));
}

#[tokio::test(start_paused = true)]
async fn a_request_that_still_runs_and_another_body_are_refused() {
    let bank = Bank::default();
    let peer = start(bank.server());
    let slow = r#"{"amount":9,"ms":1000}"#;
    let (first, second) = tokio::join!(charge(peer, "k", slow), charge(peer, "k", slow));
    let (done, refused) = if first.status == 200 { (first, second) } else { (second, first) };
    assert_eq!((done.status, bank.begun()), (200, 1));
    let problem = refused.is_problem(409, "conflict");
    assert_eq!((refused.field("retry-after"), &problem["retryable"]), (Some("1"), &json!(true)));
    let other = charge(peer, "k", NINE).await.is_problem(422, "validation_failed");
    assert_eq!(other["may_have_executed"], false);
}

#[tokio::test]
async fn an_answer_that_was_lost_is_read_with_the_same_key() {
    let bank = Bank::default();
    let server = bank.server().bind("127.0.0.1:0").await.unwrap();
    let peer = Peer::Tcp(server.local_addr());
    tokio::spawn(server.run());
    let mut lost = peer.connect().await;
    lost.write(post("/charge", &with("k"), NINE)).await;
    bank.0.changed.notified().await;
    drop(lost);
    let again = charge(peer, "k", NINE).await;
    assert_eq!((again.status, &*again.body, bank.begun()), (200, "901", 1));
    assert_eq!(again.field(REPLAYED), Some("true"));
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_leaves_half_way_leaves_an_unknown_outcome() {
    let bank = Bank::default();
    let peer = start(bank.server());
    let slow = r#"{"amount":9,"ms":10000}"#;
    let mut leaves = peer.connect().await;
    leaves.write(post("/charge", &with("k"), slow)).await;
    bank.0.changed.notified().await;
    drop(leaves);
    for _ in 0..2 {
        sleep(Duration::from_secs(20)).await;
        let problem = charge(peer, "k", slow).await.is_problem(409, "outcome_unknown");
        assert_eq!((&problem["may_have_executed"], &problem["retryable"]), (&json!(true), &json!(false)));
    }
    assert_eq!(bank.begun(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_may_have_been_sent_before_needs_a_record() {
    let bank = Bank::default();
    let peer = start(bank.server());
    let card = peer.get("/capabilities").await.json();
    assert_eq!(
        (&card["contracts"][0]["keys"], &card["contracts"][0]["keys_retained_s"]),
        (&json!("instance"), &json!(600))
    );
    let repeated = |id: &str| format!("{}Octollm-Instance: {id}\r\n", with("k"));
    for id in ["another", card["instance"].as_str().unwrap()] {
        peer.post("/charge", &repeated(id), NINE).await.is_problem(409, "outcome_unknown");
    }
    assert_eq!(bank.begun(), 0);
    assert_eq!(charge(peer, "k", NINE).await.body, "901");
    let again = peer.post("/charge", &repeated("another"), NINE).await;
    assert_eq!((&*again.body, again.field(REPLAYED)), ("901", Some("true")));
    // A server without records may have had some before it was restarted.
    let peer = start(bank.server().idempotency(()));
    peer.post("/charge", &repeated("another"), NINE).await.is_problem(409, "outcome_unknown");
    assert_eq!(peer.post("/charge", &with("k"), NINE).await.body, "902");
    // Where records are shared they are complete.
    let peer = start(bank.server().idempotency(MemoryIdempotencyStore::new().shared()));
    assert_eq!(peer.post("/charge", &repeated("another"), NINE).await.body, "903");
}

#[tokio::test(start_paused = true)]
async fn a_full_store_is_overloaded_until_records_expire() {
    let bank = Bank::default();
    let peer = start(bank.server().idempotency(MemoryIdempotencyStore::new().max_records(1)));
    assert_eq!(charge(peer, "a", NINE).await.status, 200);
    let full = charge(peer, "b", NINE).await;
    full.is_problem(503, "overloaded");
    assert_eq!((full.field("retry-after"), bank.begun()), (Some("1"), 1));
    assert_eq!(peer.post("/charge", "", NINE).await.status, 200, "without a key");
    advance(Duration::from_secs(600)).await;
    assert_eq!(charge(peer, "b", NINE).await.status, 200);
}

#[tokio::test]
async fn keys_are_honoured_below_a_prefix() {
    let bank = Bank::default();
    let service = bank.server().open_to_all().into_service().unwrap();
    let app = axum::Router::new().nest_service("/arms/bank", service);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let peer = Peer::Tcp(listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, app).await });
    for replayed in [None, Some("true")] {
        let answer = peer.post("/arms/bank/charge", &with("k"), NINE).await;
        assert_eq!((&*answer.body, answer.field(REPLAYED)), ("901", replayed));
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_reads_a_lost_answer_with_the_key_and_goes_nowhere_else() {
    let (bank, pipes) = (Bank::default(), Pipes::new());
    for host in ["bank", "other"] {
        tokio::spawn(bank.server().listen(pipes.listen(host).unwrap()).unwrap().run());
    }
    let (heads, lost) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(true)));
    let seen = heads.clone();
    let loses = layer_fn(move |inner: BoxCloneSyncService<Request<Bytes>, Response<Bytes>, BoxError>| {
        let (seen, lost) = (seen.clone(), lost.clone());
        service_fn(move |request: Request<Bytes>| {
            let is_call = request.method() == Method::POST;
            if is_call {
                seen.lock().unwrap().push(request.headers().clone());
            }
            let (inner, loses) = (inner.clone(), is_call && lost.swap(false, SeqCst));
            async move {
                let answer = inner.oneshot(request).await;
                if loses { Err(BoxError::from(Failure::of(ErrorKind::ConnectionLost))) } else { answer }
            }
        })
    });
    let arms = Arms::builder().connector(pipes.clone()).endpoint("bank", "http://bank,http://other");
    let arms = arms.request_layer(loses).build().unwrap();
    arms.cards().await;
    let mut parts = ContextParts::new();
    (parts.key, parts.deadline) = (IdempotencyKey::new("k"), Some(Deadline::after(Duration::from_secs(30))));
    let mut call = Call::new(Charge::SPEC.reference(), StepKey::Order(0), NINE.into(), parts);
    call.retry = Some(1);
    let reply = Transport::call(&arms, call).await.unwrap();
    assert_eq!((&*reply.output, reply.attempts, bank.begun()), (&b"901"[..], 2, 1));
    assert_eq!(reply.usage, Usage::tokens(5).plus(Usage::UNMETERED), "that of the lost answer is not known");
    let heads = heads.lock().unwrap();
    assert_eq!(heads.len(), 2);
    assert!(!heads[0].contains_key("octollm-instance") && heads[1].contains_key("octollm-instance"));
    assert_eq!(
        (&heads[0]["idempotency-key"], &heads[0]["host"]),
        (&heads[1]["idempotency-key"], &heads[1]["host"])
    );
}

/// A brain that pays, as its transport the arms on a network.
fn brain(store: &Arc<MemoryStore>, arms: Arms) -> Brain {
    let pays = arm_fn(|_: TaskRequest, cx: Context| async move {
        Ok(TaskResult::new(json!(cx.call(Charge { amount: 9, ms: 0 }).await?)))
    });
    Brain::builder().arm::<TaskRequest>(pays).arms(arms).store(store.clone()).build().unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_brain_that_ends_between_the_answer_and_the_journal_is_followed_by_one_that_replays() {
    let (bank, pipes, store) = (Bank::default(), Pipes::new(), Arc::new(MemoryStore::new()));
    tokio::spawn(bank.server().listen(pipes.listen("bank").unwrap()).unwrap().run());
    let arms = || Arms::builder().connector(pipes.clone()).endpoint("bank", "http://bank");
    let (answered, first) = (Arc::new(Notify::new()), Arc::new(AtomicBool::new(true)));
    let answers = answered.clone();
    let hangs = layer_fn(move |service: BoxCloneSyncService<Call, Reply, CallError>| {
        let (answered, first) = (answered.clone(), first.clone());
        service_fn(move |call: Call| {
            let (answered, first, service) = (answered.clone(), first.clone(), service.clone());
            async move {
                let reply = service.oneshot(call).await;
                if first.swap(false, SeqCst) {
                    answered.notify_one();
                    pending::<()>().await;
                }
                reply
            }
        })
    });
    let dies = brain(&store, arms().layer(hangs).build().unwrap());
    let cx = Context::detached();
    let id = dies.submit(Submission::of(&TaskRequest::new("pay")).unwrap(), &cx).await.unwrap().task_id;
    answers.notified().await;
    dies.close().await;
    let successor = brain(&store, arms().build().unwrap());
    successor.recover().await.unwrap();
    let task = finished(&successor, &id, &cx).await.unwrap();
    assert_eq!((task.result.unwrap().output.to_value(), bank.begun()), (json!(901), 1));
    assert_eq!(task.metadata.tokens_used, 5);
}
