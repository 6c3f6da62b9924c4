//! Following the arms of an orchestrator, and registering over sockets.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use octollm_core::{
    arm::arm_fn,
    brain::Brain,
    error::{ArmError, ErrorKind},
    task::{TaskRequest, TaskResult},
};
use octollm_http::{
    Arms, OrchestratorClient, Registry, Server,
    resolve::{Endpoint, Resolver},
};
use serde_json::{Value, json};
use tokio::time::{Instant, timeout};

use crate::peer::{Answer, Check, Peer, Verdict, card, check, orchestrator, usual};

fn urls(endpoints: &[Endpoint]) -> Vec<&str> {
    endpoints.iter().map(|endpoint| &*endpoint.url).collect()
}

fn list(arms: &[(&str, &str)]) -> Value {
    let card = |(url, status): &(&str, &str)| json!({ "arm_id": "judge", "endpoint": url, "status": status });
    json!({ "arms": arms.iter().map(card).collect::<Vec<_>>() })
}

fn tagged(tag: &str, body: &Value) -> Answer {
    let body = body.to_string();
    let head = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\netag: {tag}\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    Answer::Raw(format!("{head}{body}").into_bytes())
}

#[tokio::test(start_paused = true)]
async fn the_arms_of_an_orchestrator_are_followed_and_stay_while_it_is_away() {
    let answers = Arc::new(Mutex::new(Vec::<Answer>::new()));
    let next = answers.clone();
    let peer = Peer::start(move |_| {
        let answer =
            next.lock().unwrap().pop().unwrap_or(Answer::Raw(b"HTTP/1.1 304 Not Modified\r\n\r\n".to_vec()));
        async move { answer }
    })
    .await;
    let one = list(&[
        ("http://a", "healthy"),
        ("http://b", "degraded"),
        ("http://c", "unavailable"),
        ("http://a", "healthy"),
    ]);
    *answers.lock().unwrap() = vec![
        // In reverse order.
        tagged("\"3\"", &list(&[("http://d", "healthy")])),
        tagged("\"2\"", &one),
        Answer::Json(200, json!({ "arms": 7 })),
        Answer::Json(503, json!({})),
        tagged("\"1\"", &one),
    ];
    let mut resolver = orchestrator(&peer.url).resolver();
    let begun = Instant::now();
    assert_eq!(urls(&resolver.next().await.unwrap()), ["http://a", "http://b"]);
    assert!(begun.elapsed() < Duration::from_secs(1));
    // Errors are returned, and the last list is not replaced.
    assert!(resolver.next().await.is_err());
    assert!(resolver.next().await.is_err());
    // After errors the set is returned again. A list of the same arms is no change.
    assert_eq!(urls(&resolver.next().await.unwrap()), ["http://a", "http://b"]);
    assert_eq!(urls(&resolver.next().await.unwrap()), ["http://d"]);
    let tags: Vec<_> =
        peer.calls().iter().map(|call| call.header("if-none-match").map(str::to_owned)).collect();
    let first = Some("\"1\"".to_owned());
    assert_eq!(tags, [None, first.clone(), first.clone(), first, Some("\"2\"".to_owned())]);
    assert!(peer.calls().iter().all(|call| call.path == "/arms" && call.method == "GET"));
    // Once every 5 s, give or take a tenth.
    let asked = peer.calls().len();
    assert!(timeout(Duration::from_secs(300), resolver.next()).await.is_err());
    assert!((54..=67).contains(&(peer.calls().len() - asked)), "{}", peer.calls().len() - asked);
}

#[tokio::test(start_paused = true)]
async fn the_list_is_returned_after_an_error_also_where_it_has_not_changed() {
    let not_modified = || Answer::Raw(b"HTTP/1.1 304 Not Modified\r\n\r\n".to_vec());
    let answers = Arc::new(Mutex::new(vec![
        not_modified(),
        Answer::Json(503, json!({})),
        not_modified(),
        tagged("\"1\"", &list(&[("http://a", "healthy")])),
        not_modified(),
    ]));
    let next = answers.clone();
    let peer = Peer::start(move |_| {
        let answer = next.lock().unwrap().pop().unwrap_or_else(not_modified);
        async move { answer }
    })
    .await;
    let mut resolver = orchestrator(&peer.url).resolver();
    assert!(resolver.next().await.is_err(), "there is no list that could be the same");
    assert_eq!(urls(&resolver.next().await.unwrap()), ["http://a"]);
    assert!(resolver.next().await.is_err());
    assert_eq!(urls(&resolver.next().await.unwrap()), ["http://a"]);
    assert!(timeout(Duration::from_secs(300), resolver.next()).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn an_orchestrator_that_was_restarted_takes_no_arm_from_those_that_follow_it() {
    let judge = Peer::arm(|_| async { Answer::verdict() }).await;
    let listed = |status: &str| {
        let mut card = serde_json::to_value(card("judge")).unwrap();
        (card["endpoint"], card["status"]) = (judge.url.clone().into(), status.into());
        json!({ "arms": [card] })
    };
    let arms = Arc::new(Mutex::new(listed("healthy")));
    let now = arms.clone();
    let peer = Peer::start(move |_| {
        let answer = Answer::Json(200, now.lock().unwrap().clone());
        async move { answer }
    })
    .await;
    let client = usual().resolver(orchestrator(&peer.url).resolver()).build().unwrap();
    client.call(check()).await.unwrap();
    *arms.lock().unwrap() = json!({ "arms": [] });
    tokio::time::sleep(Duration::from_secs(20)).await;
    client.call(check()).await.unwrap();
    *arms.lock().unwrap() = listed("degraded");
    tokio::time::sleep(Duration::from_secs(60)).await;
    client.call(check()).await.unwrap();
    // One that it lists as unavailable is gone at once, and one that does not come back after the limit.
    for gone in [listed("unavailable"), json!({ "arms": [] })] {
        let after = if gone["arms"][0].is_null() { 36 } else { 6 };
        *arms.lock().unwrap() = gone;
        tokio::time::sleep(Duration::from_secs(after)).await;
        let error = client.call(check()).retry(0).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        *arms.lock().unwrap() = listed("healthy");
        tokio::time::sleep(Duration::from_secs(6)).await;
        client.call(check()).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_resolver_that_is_dropped_while_it_asks_misses_nothing() {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    let peer = Peer::start(move |_| {
        let first = count.fetch_add(1, Ordering::SeqCst) == 0;
        async move {
            match first {
                true => Answer::Silence,
                false => tagged("\"1\"", &list(&[("http://a", "healthy")])),
            }
        }
    })
    .await;
    let mut resolver = orchestrator(&peer.url).resolver();
    assert!(timeout(Duration::from_secs(1), resolver.next()).await.is_err());
    assert_eq!(urls(&resolver.next().await.unwrap()), ["http://a"]);
}

fn judge() -> Server {
    let judge = arm_fn(|_: Check, _| async { Ok::<_, ArmError>(Verdict { is_valid: true }) });
    Server::new("judge").arm(judge)
}

fn brain(registry: Registry) -> Server {
    let work =
        arm_fn(|request: TaskRequest, _| async move { Ok::<_, ArmError>(TaskResult::new(request.goal)) });
    Server::new("brain").orchestrator(Brain::builder().arm(work).build().unwrap()).registry(registry)
}

/// Waits until there are so many endpoints.
async fn until(resolver: &mut impl Resolver, many: usize) -> Vec<Endpoint> {
    let found = async {
        loop {
            let found = resolver.next().await.unwrap();
            if found.len() == many {
                return found;
            }
        }
    };
    timeout(Duration::from_secs(20), found).await.expect("never happened")
}

#[tokio::test]
async fn over_sockets_an_arm_is_found_called_and_gone() {
    let registry = Registry::new();
    let mut found = registry.resolver();
    let server = brain(registry.clone()).bind("127.0.0.1:0").await.unwrap();
    let url = server.url();
    tokio::spawn(server.run());
    let client = || OrchestratorClient::new(&url).unwrap();
    let mut servers = Vec::new();
    for _ in 0..2 {
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let server = judge().register(client()).bind("127.0.0.1:0").await.unwrap();
        let url = server.url();
        let running = tokio::spawn(server.run_until(async {
            let _ = stopped.await;
        }));
        servers.push((url, stop, running));
    }
    let endpoints = until(&mut found, 2).await;
    let elsewhere = client().resolver().next().await.unwrap();
    assert_eq!(elsewhere.len(), 2);
    let arms = Arms::builder().endpoint("judge", urls(&endpoints).join(",")).build().unwrap();
    assert!(arms.call(check()).await.unwrap().is_valid);
    // It leaves before its server ends.
    let (gone, stop, running) = servers.remove(0);
    stop.send(()).unwrap();
    running.await.unwrap();
    let left = until(&mut found, 1).await;
    assert_ne!(left[0].url, gone);
    // One that is killed is still listed, until its registration ends.
    servers.remove(0).2.abort();
    assert_eq!(registry.cards().len(), 1);
}

#[tokio::test]
async fn a_server_registers_as_its_environment_says() {
    let registry = Registry::new();
    let mut found = registry.resolver();
    let server = brain(registry.clone()).bind("127.0.0.1:0").await.unwrap();
    let url = server.url();
    tokio::spawn(server.run());
    let variables = [
        ("OCTOLLM_SERVER_REGISTER_AT", &*url),
        ("OCTOLLM_SERVER_ADVERTISE", "http://localhost:8103/arms/judge"),
        ("OCTOLLM_SERVER_REGISTRATION_LIFETIME", "5s"),
        ("OCTOLLM_CLIENT_CONNECT_TIMEOUT", "300ms"),
    ];
    let server = judge().vars(variables).unwrap().bind("127.0.0.1:0").await.unwrap();
    tokio::spawn(server.run());
    assert_eq!(urls(&until(&mut found, 1).await), ["http://localhost:8103/arms/judge"]);

    let setting = |variables: &[(&'static str, &'static str)]| {
        judge().vars(variables.iter().copied()).unwrap_err().setting().to_owned()
    };
    assert_eq!(setting(&[("OCTOLLM_SERVER_REGISTER_AT", "brain")]), "OCTOLLM_SERVER_REGISTER_AT");
    assert_eq!(setting(&[("OCTOLLM_SERVER_REGISTER_AT", "http://a,")]), "OCTOLLM_SERVER_REGISTER_AT");
    assert_eq!(setting(&[("OCTOLLM_SERVER_ADVERTISE", "")]), "OCTOLLM_SERVER_ADVERTISE");
    assert_eq!(
        setting(&[("OCTOLLM_SERVER_REGISTER_KEY_FILE", "/no/such/file")]),
        "OCTOLLM_SERVER_REGISTER_KEY_FILE"
    );
    assert_eq!(
        setting(&[("OCTOLLM_SERVER_REGISTRATION_LIFETIME", "1s")]),
        "OCTOLLM_SERVER_REGISTRATION_LIFETIME"
    );
    let wildcard =
        judge().vars([("OCTOLLM_SERVER_REGISTER_AT", "http://127.0.0.1:1")]).unwrap().open_to_all();
    assert_eq!(wildcard.bind("0.0.0.0:0").await.unwrap_err().setting(), "endpoint");
}

#[tokio::test(start_paused = true)]
async fn an_orchestrator_that_refuses_is_asked_slowly_and_one_that_is_busy_as_it_says() {
    for (status, body, least, most) in [
        (409, json!({ "code": "conflict", "status": 409 }), 18, 42),
        (503, json!({ "code": "overloaded", "status": 503, "retryable": true, "retry_after": 60 }), 9, 11),
    ] {
        let peer = Peer::start(move |request| {
            let answer = if request.path == "/arms/register" {
                let body = body.to_string();
                let wait = if status == 503 { "retry-after: 60\r\n" } else { "" };
                let head = format!(
                    "HTTP/1.1 {status} X\r\ncontent-type: application/problem+json\r\n{wait}content-length: {}\r\n\r\n",
                    body.len()
                );
                Answer::Raw(format!("{head}{body}").into_bytes())
            } else {
                Answer::Silence
            };
            async move { answer }
        })
        .await;
        let network = octollm_http::io::Pipes::new();
        let server = judge().register(orchestrator(&peer.url)).endpoint("http://judge").open_to_all();
        let server = server.listen(network.listen("judge").unwrap()).unwrap();
        let serving = timeout(Duration::from_secs(600), server.run()).await;
        assert!(serving.is_err());
        let asked = peer.calls().len();
        assert!((least..=most).contains(&asked), "{status}: {asked}");
    }
}

/// The goal is to check something by an arm that nobody has configured.
#[tokio::test]
async fn a_task_calls_an_arm_that_has_registered_and_moved() {
    let registry = Registry::new();
    let mut found = registry.resolver();
    let arms = Arms::builder().resolver(registry.resolver()).build().unwrap();
    let work = arm_fn(|_: TaskRequest, cx: octollm_core::Context| async move {
        let verdict = cx.call(check()).await?;
        Ok::<_, ArmError>(TaskResult::new(verdict.is_valid.to_string()))
    });
    let brain = Brain::builder().arm(work).arms(arms).build().unwrap();
    let server = Server::new("brain").orchestrator(brain).registry(registry.clone());
    let server = server.bind("127.0.0.1:0").await.unwrap();
    let client = OrchestratorClient::new(server.url()).unwrap();
    tokio::spawn(server.run());
    for many in 1..=3 {
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let server = judge().register(client.clone()).bind("127.0.0.1:0").await.unwrap();
        let running = tokio::spawn(server.run_until(async {
            let _ = stopped.await;
        }));
        until(&mut found, 1).await;
        let result = client.run(TaskRequest::new("check")).await.unwrap();
        assert_eq!(result.output, json!("true"), "{many}");
        stop.send(()).unwrap();
        running.await.unwrap();
        until(&mut found, 0).await;
    }
}
