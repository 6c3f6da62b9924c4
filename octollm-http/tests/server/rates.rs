//! Limits on the rates of callers, and on the calls of one contract at a time.

use std::{
    error::Error,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use http::{Request, header, request::Parts};
use http_body_util::Full;
use octollm_core::{
    Arm, Context,
    brain::Brain,
    contract::TaskContract,
    error::{ArmError, ErrorKind, Failure},
    limit::{MemoryRateLimiter, RateLimit, RateLimiter, RateState},
    orchestrator::Orchestrator,
    parts::Caller,
    task::{Submission, TaskRequest, TaskResult, TaskStatus},
};
use octollm_http::{
    Arms, Authenticate, OrchestratorClient, Server,
    io::{Peer as From, Pipes},
    server::{HttpBody, HttpService},
};
use tokio::time::{Instant, advance, sleep};
use tower::{ServiceExt, layer::layer_fn};

use crate::{
    arms::{Echo, Panic, Wait, Worker, server, start, start_with, worker},
    peer::{Answer, Peer, post},
    tasks::{Careful, brain},
};

const MINUTE: Duration = Duration::from_secs(60);
const ECHO: &str = r#"{"text":"a"}"#;
const EXECUTE: &str = r#"{"contract":"text.echo","input":{"text":"a"}}"#;
const ALI: &str = "Authorization: Bearer ali\r\n";
const BOB: &str = "Authorization: Bearer bob\r\n";

/// Everybody is who they say they are, but eve.
fn known(head: &Parts) -> Result<Caller, Failure> {
    match head.headers.get(header::AUTHORIZATION).and_then(|token| token.to_str().ok()) {
        None => Ok(Caller::Anonymous),
        Some("Bearer eve") => Err(Failure::new(ErrorKind::Unauthenticated, "the token is not valid")),
        Some(token) => Ok(Caller::known(token, ["text:*", "work:*", "task:run"])),
    }
}

/// Sets the address of the peer from a header, as behind a proxy that is trusted.
fn behind_a_proxy(
    inner: HttpService,
) -> impl tower::Service<
    Request<HttpBody>,
    Response = http::Response<HttpBody>,
    Error = std::convert::Infallible,
    Future: Send,
> + Clone {
    inner.map_request(|mut request: Request<HttpBody>| {
        let mut peer = From::default();
        let forwarded = request.headers().get("x-forwarded-for").and_then(|address| address.to_str().ok());
        peer.address = forwarded.and_then(|address| address.parse().ok());
        request.extensions_mut().insert(peer);
        request
    })
}

fn rates(answer: &Answer) -> [Option<u32>; 3] {
    ["limit", "remaining", "reset"]
        .map(|name| answer.field(&format!("x-ratelimit-{name}")).map(|value| value.parse().unwrap()))
}

fn refused(answer: &Answer, retry_after: &str) {
    let problem = answer.is_problem(429, "rate_limited");
    assert_eq!(answer.field("retry-after"), Some(retry_after), "{answer:?}");
    assert_eq!((&problem["retryable"], &problem["may_have_executed"]), (&true.into(), &false.into()));
    assert_eq!(rates(answer)[1], Some(0));
}

#[tokio::test(start_paused = true)]
async fn a_caller_over_its_limit_waits_and_others_do_not() {
    let peer = start(worker().authenticate(known).rate_limit(RateLimit::new(3, MINUTE)));
    for (path, body, left) in [("/echo", ECHO, 2), ("/execute", EXECUTE, 1), ("/echo", "{}", 0)] {
        let answer = peer.post(path, ALI, body).await;
        assert_eq!(rates(&answer), [Some(3), Some(left), Some(20 * (3 - left))], "{path} {body} counts");
    }
    for (path, body) in
        [("/echo", ECHO), ("/execute", EXECUTE), ("/execute", "nothing"), ("/wait", r#"{"ms":0}"#)]
    {
        let answer = peer.post(path, ALI, body).await;
        refused(&answer, "20");
        assert_eq!(rates(&answer), [Some(3), Some(0), Some(60)]);
    }
    assert_eq!(peer.post("/echo", BOB, ECHO).await.status, 200);
    for path in ["/health", "/ready", "/capabilities", "/openapi.json", "/docs"] {
        let answer = peer.send(format!("GET {path} HTTP/1.1\r\nHost: x\r\n{ALI}\r\n")).await;
        assert_eq!((answer.status, rates(&answer)), (200, [None; 3]), "{path} is never limited");
    }
    advance(Duration::from_secs(20)).await;
    assert_eq!(peer.post("/echo", ALI, ECHO).await.status, 200);
    refused(&peer.post("/echo", ALI, ECHO).await, "20");
}

#[tokio::test(start_paused = true)]
async fn a_server_without_limits_reports_none() {
    let peer = start(worker());
    assert_eq!(rates(&peer.post("/echo", "", ECHO).await), [None; 3]);
}

#[tokio::test(start_paused = true)]
async fn a_limit_of_one_contract_holds_on_every_way_to_it_and_nowhere_else() {
    let brain = Brain::builder().arm::<TaskRequest>(Review).arm::<Echo>(Worker::default()).build().unwrap();
    let server = worker().orchestrator(brain).rate_limit_of::<Echo>(RateLimit::new(3, MINUTE));
    let peer = start(server);
    let task = r#"{"contract":"text.echo","input":{"text":"a"}}"#;
    for (path, body, status) in [("/echo", ECHO, 200), ("/execute", EXECUTE, 200), ("/tasks", task, 202)] {
        assert_eq!(peer.post(path, "", body).await.status, status, "{path}");
    }
    for (path, body) in [("/echo", ECHO), ("/execute", EXECUTE), ("/tasks", task)] {
        refused(&peer.post(path, "", body).await, "20");
    }
    for (path, body, status) in [("/wait", r#"{"ms":0}"#, 200), ("/tasks", r#"{"goal":"other"}"#, 202)] {
        let answer = peer.post(path, "", body).await;
        assert_eq!((answer.status, rates(&answer)), (status, [None; 3]), "{path}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_is_refused_does_not_use_up_the_limit_of_all() {
    let server = worker().authenticate(known).total_rate_limit(RateLimit::new(4, MINUTE));
    let peer = start(server.rate_limit(RateLimit::new(2, MINUTE)));
    let mut allowed = 0;
    for _ in 0..10 {
        allowed += u32::from(peer.post("/echo", ALI, ECHO).await.status == 200);
    }
    assert_eq!(allowed, 2);
    let answer = peer.post("/echo", BOB, ECHO).await;
    assert_eq!((answer.status, rates(&answer)), (200, [Some(2), Some(1), Some(30)]), "one of each is left");
    let answer = peer.post("/echo", BOB, ECHO).await;
    assert_eq!(answer.status, 200);
    // Its own limit allows a third caller, and that of all does not.
    let answer = peer.post("/echo", "Authorization: Bearer carol\r\n", ECHO).await;
    refused(&answer, "15");
    assert_eq!(rates(&answer), [Some(4), Some(0), Some(60)]);
}

#[tokio::test(start_paused = true)]
async fn a_burst_is_less_than_a_period_allows() {
    let peer = start(worker().total_rate_limit_of::<Echo>(RateLimit::new(60, MINUTE).burst(2)));
    assert_eq!(rates(&peer.post("/echo", "", ECHO).await), [Some(2), Some(1), Some(1)]);
    assert_eq!(rates(&peer.post("/echo", "", ECHO).await), [Some(2), Some(0), Some(2)]);
    refused(&peer.post("/echo", "", ECHO).await, "1");
    advance(Duration::from_secs(1)).await;
    assert_eq!(peer.post("/echo", "", ECHO).await.status, 200);
}

#[tokio::test(start_paused = true)]
async fn callers_without_credentials_share_a_limit_by_address() {
    let limit = RateLimit::new(1, MINUTE);
    // No address is known of a pipe, and no header is believed.
    let peer = start(worker().rate_limit(limit));
    assert_eq!(peer.post("/echo", "X-Forwarded-For: 192.0.2.1:1\r\n", ECHO).await.status, 200);
    refused(
        &peer.post("/echo", "X-Forwarded-For: 192.0.2.2:1\r\nForwarded: for=192.0.2.3\r\n", ECHO).await,
        "60",
    );
    // Unless a layer says so.
    let peer = start(worker().rate_limit(limit).layer(layer_fn(behind_a_proxy)));
    for (address, status) in [
        ("192.0.2.1:1", 200),
        ("192.0.2.2:1", 200),
        ("192.0.2.1:2", 429),
        ("[2001:db8::1]:1", 200),
        ("[2001:db8::2]:1", 429),
        ("[2001:db8:0:1::1]:1", 200),
    ] {
        let field = format!("X-Forwarded-For: {address}\r\n");
        assert_eq!(peer.post("/echo", &field, ECHO).await.status, status, "{address}");
    }
}

#[tokio::test]
async fn the_address_is_that_of_the_connection() {
    let server = worker().rate_limit(RateLimit::new(1, MINUTE)).bind("127.0.0.1:0").await.unwrap();
    let peer = Peer::Tcp(server.url().strip_prefix("http://").unwrap().parse().unwrap());
    tokio::spawn(server.run());
    assert_eq!(peer.post("/echo", "", ECHO).await.status, 200);
    assert_eq!(peer.post("/echo", "X-Forwarded-For: 192.0.2.1\r\n", ECHO).await.status, 429);
}

#[tokio::test(start_paused = true)]
async fn a_mounted_service_has_the_peer_of_the_server_around_it() {
    let service = worker().open_to_all().rate_limit(RateLimit::new(1, MINUTE)).into_service().unwrap();
    let ask = async |address: Option<&str>| {
        let mut request = Request::post("/echo").header("content-type", "application/json");
        if let Some(address) = address {
            let mut peer = From::default();
            peer.address = address.parse().ok();
            request = request.extension(peer);
        }
        let request = request.body(Full::from(ECHO)).unwrap();
        service.clone().oneshot(request).await.unwrap().status().as_u16()
    };
    let (one, two) = (Some("192.0.2.1:1"), Some("192.0.2.2:1"));
    assert_eq!([ask(one).await, ask(two).await, ask(None).await], [200; 3]);
    assert_eq!([ask(one).await, ask(two).await, ask(None).await], [429; 3]);
}

#[tokio::test(start_paused = true)]
async fn failed_authentications_have_a_limit_of_their_own() {
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = asked.clone();
    let authenticator = move |head: &Parts| {
        counted.fetch_add(1, Ordering::Relaxed);
        known(head)
    };
    let limit = RateLimit::new(2, MINUTE);
    let server = || worker().authenticate(authenticator.clone()).failed_authentication_limit(limit);
    let peer = start(server().layer(layer_fn(behind_a_proxy)));
    let send = async |token: &str, address: &str| {
        let fields = format!("Authorization: Bearer {token}\r\nX-Forwarded-For: {address}:1\r\n");
        peer.post("/echo", &fields, ECHO).await
    };
    for (token, status) in [("ali", 200), ("eve", 401), ("ali", 200), ("eve", 401)] {
        let answer = send(token, "192.0.2.1").await;
        assert_eq!((answer.status, rates(&answer)), (status, [None; 3]));
    }
    // From that address nobody is verified any more, whatever it shows.
    for token in ["ali", "eve"] {
        refused(&send(token, "192.0.2.1").await, "30");
    }
    assert_eq!(asked.load(Ordering::Relaxed), 4);
    assert_eq!(send("ali", "192.0.2.2").await.status, 200);
    send("eve", "192.0.2.2").await.is_problem(401, "unauthenticated");
    advance(Duration::from_secs(30)).await;
    assert_eq!(send("ali", "192.0.2.1").await.status, 200);
    // Where no address is known, one cannot lock the others out.
    let peer = start(server());
    for _ in 0..5 {
        let answer = peer.post("/echo", "Authorization: Bearer eve\r\n", ECHO).await;
        answer.is_problem(401, "unauthenticated");
    }
    assert_eq!(peer.post("/echo", ALI, ECHO).await.status, 200);
}

/// Remembers ali, and verifies the others.
struct Remembers;

#[async_trait]
impl Authenticate for Remembers {
    async fn authenticate(&self, head: &Parts) -> Result<Caller, Failure> {
        known(head)
    }

    fn authenticate_now(&self, head: &Parts) -> Option<Result<Caller, Failure>> {
        let token = head.headers.get(header::AUTHORIZATION)?;
        (token == "Bearer ali" || token == "Bearer eve").then(|| known(head))
    }
}

#[tokio::test(start_paused = true)]
async fn who_is_known_already_is_not_refused_for_the_failures_of_others() {
    let server = worker().authenticate(Remembers).failed_authentication_limit(RateLimit::new(1, MINUTE));
    let peer = start(server.layer(layer_fn(behind_a_proxy)));
    let send = async |fields: &str| {
        peer.post("/echo", &format!("{fields}X-Forwarded-For: 192.0.2.1:1\r\n"), ECHO).await
    };
    let eve = "Authorization: Bearer eve\r\n";
    send(eve).await.is_problem(401, "unauthenticated");
    for fields in [eve, BOB, ""] {
        refused(&send(fields).await, "60");
    }
    assert_eq!(send(ALI).await.status, 200);
}

/// A limiter whose store is away, or does not answer.
struct Away(bool);

#[async_trait]
impl RateLimiter for Away {
    async fn take(&self, _: &str, _: &RateLimit, _: u32) -> Result<RateState, Box<dyn Error + Send + Sync>> {
        if self.0 { std::future::pending().await } else { Err("the store is away".into()) }
    }
}

#[tokio::test(start_paused = true)]
async fn a_limiter_that_fails_refuses_nobody() {
    for (hangs, waits) in [(false, Duration::ZERO), (true, Duration::from_millis(500))] {
        let (begun, limit) = (Instant::now(), RateLimit::new(1, MINUTE));
        let peer = start(worker().rate_limit(limit).rate_limiter(Away(hangs)));
        let answer = peer.post("/echo", "", ECHO).await;
        assert_eq!((answer.status, rates(&answer)), (200, [None; 3]));
        let took = begun.elapsed();
        assert!(waits <= took && took < waits + Duration::from_millis(10), "{took:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn instances_share_a_limiter() {
    let (limiter, limit) = (MemoryRateLimiter::new(), RateLimit::new(3, MINUTE));
    let instance = || worker().rate_limit(limit).rate_limiter(limiter.clone());
    let peers = [start(instance()), start(instance())];
    for peer in [0, 1, 0] {
        assert_eq!(peers[peer].post("/echo", "", ECHO).await.status, 200);
    }
    refused(&peers[1].post("/echo", "", ECHO).await, "20");
    // Another arm has counts of its own.
    let other =
        start(Server::new("other").arm::<Echo>(Worker::default()).rate_limit(limit).rate_limiter(limiter));
    assert_eq!(other.post("/echo", "", ECHO).await.status, 200);
}

#[tokio::test(start_paused = true)]
async fn what_starts_work_is_limited_and_what_looks_is_not() {
    let limit = RateLimit::new(1, MINUTE);
    for (path, body) in [
        ("/tasks", r#"{"goal":"review"}"#),
        ("/tasks", "nothing"),
        ("/tasks/task_3fK9aZ0qLw81bXyT/rerun", "{}"),
        ("/preprocess", r#"{"input_text":"a"}"#),
    ] {
        let server = Server::new("brain").orchestrator(brain()).reflex(Careful);
        let peer = start(server.rate_limit(limit).authenticate(known));
        let first = peer.post(path, ALI, body).await;
        assert_eq!(rates(&first), [Some(1), Some(0), Some(60)], "{path}");
        refused(&peer.post(path, ALI, body).await, "60");
        let list = peer.send(format!("GET /tasks HTTP/1.1\r\nHost: x\r\n{ALI}\r\n")).await;
        assert_eq!((list.status, rates(&list)), (200, [None; 3]));
    }
}

#[tokio::test(start_paused = true)]
async fn a_reflex_server_refuses_before_it_forwards() {
    let (network, brain) = (Pipes::new(), brain());
    let orchestrator = Server::new("brain").orchestrator(brain.clone());
    tokio::spawn(orchestrator.listen(network.listen("brain").unwrap()).unwrap().run());
    let client = OrchestratorClient::builder("http://brain").connector(network).build().unwrap();
    let reflex = Server::new("reflex").reflex(Careful).orchestrator(client);
    let peer = start(reflex.rate_limit(RateLimit::new(2, MINUTE)));
    for status in [202, 202, 429] {
        assert_eq!(peer.post("/tasks", "", r#"{"goal":"review"}"#).await.status, status);
    }
    let tasks = brain.list(Default::default(), &Context::detached()).await.unwrap();
    assert_eq!(tasks.tasks.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn limits_that_cannot_hold_are_refused_when_the_server_is_built() {
    let good = RateLimit::new(1, MINUTE);
    let none = RateLimit::new(0, MINUTE);
    for (server, setting, words) in [
        (worker().rate_limit(none), "rate_limit", "allows no request"),
        (worker().total_rate_limit(none), "total_rate_limit", "allows no request"),
        (worker().failed_authentication_limit(none), "failed_authentication_limit", "allows no request"),
        (worker().rate_limit_of::<TaskRequest>(good), "rate_limit_of", "task.run"),
        (worker().total_rate_limit_of::<TaskRequest>(good), "total_rate_limit_of", "task.run"),
        (worker().max_in_flight_of::<TaskRequest>(1), "max_in_flight_of", "task.run"),
        (worker().max_in_flight_of::<Echo>(0), "max_in_flight_of", "from 1"),
    ] {
        let error = server.open_to_all().into_service().unwrap_err();
        assert_eq!(error.setting(), setting);
        assert!(error.to_string().contains(words), "{error}");
    }
    let server = Server::new("brain").orchestrator(brain()).rate_limit_of::<Echo>(good);
    assert!(server.open_to_all().into_service().is_ok(), "an orchestrator may run any contract");
}

struct Review;

/// Calls the worker five times at once.
#[async_trait]
impl Arm<TaskRequest> for Review {
    async fn execute(&self, _: TaskRequest, cx: &Context) -> Result<TaskResult, ArmError> {
        let said = cx.call_all([0; 5].map(|ms| Wait { ms: Some(ms) })).retry(5).each().await;
        Ok(TaskResult::new(said.into_iter().filter(Result::is_ok).count()))
    }
}

#[tokio::test(start_paused = true)]
async fn calls_of_a_task_wait_for_their_turn_and_run_once_each() {
    let network = Pipes::new();
    let worker = Worker::default();
    let limited = server(&worker).rate_limit(RateLimit::new(1, Duration::from_secs(2)));
    tokio::spawn(limited.listen(network.listen("worker").unwrap()).unwrap().run());
    let arms = Arms::builder().endpoint("worker", "http://worker").connector(network).build().unwrap();
    let brain = Brain::builder().arm(Review).arms(arms).build().unwrap();
    let begun = Instant::now();
    let submission = Submission::from(TaskRequest::new("review"));
    let task = brain.submit(submission, &Context::detached()).await.unwrap();
    let task = loop {
        let task = brain.get(&task.task_id, &Context::detached()).await.unwrap();
        if task.status.is_finished() {
            break task;
        }
        sleep(Duration::from_millis(100)).await;
    };
    assert_eq!(
        (task.status, task.result.unwrap().output),
        (TaskStatus::Completed, 5.into()),
        "{:?}",
        task.error
    );
    worker.0.begun(5).await;
    let took = begun.elapsed();
    assert!(Duration::from_secs(8) <= took && took < MINUTE, "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_contract_runs_in_its_places_and_leaves_the_others_theirs() {
    let limited = |server: Server| server.authenticate(known).max_in_flight_of::<Wait>(2);
    let (peer, worker) = start_with(limited);
    let mut lines = Vec::new();
    for _ in 0..2 {
        let mut line = peer.connect().await;
        line.write(post("/wait", ALI, "{}")).await;
        lines.push(line);
    }
    worker.0.begun(2).await;
    let wait = r#"{"contract":"work.wait","input":{"ms":1}}"#;
    for (path, body) in [("/wait", r#"{"ms":1}"#), ("/execute", wait)] {
        let answer = peer.post(path, ALI, body).await;
        let problem = answer.is_problem(503, "overloaded");
        assert_eq!((answer.field("retry-after"), &problem["may_have_executed"]), (Some("1"), &false.into()));
        peer.post(path, "", body).await.is_problem(401, "unauthenticated");
    }
    assert_eq!(peer.post("/echo", ALI, ECHO).await.status, 200);
    // A caller that goes takes its place with it.
    drop(lines.pop());
    worker.0.dropped(1).await;
    assert_eq!(peer.post("/wait", ALI, r#"{"ms":1}"#).await.status, 200);
    assert_eq!(peer.post("/execute", ALI, wait).await.status, 200);
}

#[tokio::test(start_paused = true)]
async fn an_arm_that_panics_gives_its_place_back() {
    let (peer, _) =
        start_with(|server| server.max_in_flight_of::<Panic>(1).rate_limit(RateLimit::new(9, MINUTE)));
    for left in [8, 7, 6] {
        let answer = peer.post(Panic::SPEC.path, "", "{}").await;
        answer.is_problem(500, "arm_panicked");
        assert_eq!(rates(&answer)[1], Some(left), "a failure is counted and reported");
    }
}

#[tokio::test(start_paused = true)]
async fn over_http2_the_answers_are_the_same() {
    let peer = start(worker().rate_limit(RateLimit::new(1, MINUTE)));
    let mut calls = crate::places::caller(peer, 65_535).await;
    for (status, left) in [(200, "0"), (429, "0")] {
        let request = Request::post("http://x/echo").header("content-type", "application/json");
        let answer = calls.send_request(request.body(Full::from(ECHO)).unwrap()).await.unwrap();
        assert_eq!(answer.status().as_u16(), status);
        assert_eq!(answer.headers()["x-ratelimit-remaining"], left);
    }
}
