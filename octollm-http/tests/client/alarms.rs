//! What an operator sees and sets of a client: events of breakers, also of arms that were never reached, budgets of retries, and errors.

use std::time::Duration;

use async_trait::async_trait;
use octollm_core::{
    bus::{EventBus, MemoryBus, Overflow, Signal},
    error::ErrorKind,
};
use octollm_http::{
    Server,
    client::Arms,
    resolve::{Endpoint, Resolver},
};
use serde_json::json;
use tokio::time::sleep;
use tower::BoxError;

use crate::peer::{Answer, Check, Peer, Verdict, again, arms, check, network, unused_host};

#[tokio::test(start_paused = true)]
async fn an_arm_that_was_never_reached_opens_its_breaker_and_closes_it_once_it_is_there() {
    let (host, bus) = (unused_host(), MemoryBus::new());
    let pattern = "events:circuit:*".parse().unwrap();
    let mut events = bus.subscribe(pattern, Overflow::DropOldest(8)).await.unwrap();
    let mut next = async || match events.next().await {
        Some(Signal::Event(event)) => event,
        other => panic!("{other:?}"),
    };
    let url = format!("http://{host}");
    let client =
        arms().endpoint("judge", &url).name("checkout").breaker_failures(3).bus(bus).build().unwrap();
    for _ in 0..3 {
        let down = client.call(check()).retry(0).await.unwrap_err();
        assert_eq!((down.kind(), down.may_have_executed()), (ErrorKind::Unreachable, false));
        sleep(Duration::from_secs(2)).await;
    }
    let opened = next().await;
    assert_eq!((opened.event_type(), opened.source()), ("circuit.opened", "checkout"));
    assert_eq!((&opened.data()["arm_id"], &opened.data()["endpoint"]), (&json!("judge"), &json!(url)));
    let judge = octollm_core::arm::arm_fn(|_: Check, _| async { Ok(Verdict { is_valid: true }) });
    let server = Server::new("judge").arm::<Check>(judge).listen(network().listen(&host).unwrap()).unwrap();
    tokio::spawn(server.run());
    client.call(check()).await.unwrap();
    assert_eq!(next().await.event_type(), "circuit.closed");
}

#[tokio::test(start_paused = true)]
async fn a_client_has_a_name_that_is_not_empty() {
    let error = Arms::builder().name(" ").build().unwrap_err();
    assert_eq!(error.setting(), "name");
}

#[tokio::test(start_paused = true)]
async fn the_budget_of_retries_is_that_of_its_settings() {
    for (percent, per_second, most) in [(0, 0, 1), (0, 1, 10), (20, 10, 60)] {
        let peer = Peer::arm(|_| std::future::ready(Answer::unavailable())).await;
        let client = arms()
            .breaker_failures(0)
            .retry_budget_percent(percent)
            .retry_budget_per_second(per_second)
            .endpoint("judge", &peer.url)
            .build()
            .unwrap();
        client.cards().await;
        let calls = (0..60).map(|_| client.call(again()).retry(1));
        futures_util::future::join_all(calls).await;
        let retried = peer.calls().len() - 60;
        assert!(retried <= most + usize::from(per_second > 0), "{retried} of {most}");
        assert!(retried >= most.min(59), "{retried} of {most}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_breaker_opens_by_its_window_and_stays_open_as_long_as_is_set() {
    let peer = Peer::arm(|_| std::future::ready(Answer::Json(500, json!({})))).await;
    let client = arms()
        .breaker_failures(1_000)
        .breaker_window(Duration::from_secs(2))
        .breaker_min_calls(3)
        .breaker_open(Duration::from_secs(8))
        .breaker_max_open(Duration::from_secs(10))
        .endpoint("judge", &peer.url)
        .build()
        .unwrap();
    client.cards().await;
    let fail = async || client.call(check()).retry(0).await.unwrap_err();
    // Two calls in each window.
    for _ in 0..4 {
        assert_eq!((fail().await.kind(), fail().await.kind()), (ErrorKind::ArmFailed, ErrorKind::ArmFailed));
        sleep(Duration::from_secs(5)).await;
    }
    for _ in 0..3 {
        assert_eq!(fail().await.kind(), ErrorKind::ArmFailed);
    }
    let open = fail().await;
    assert_eq!(open.kind(), ErrorKind::CircuitOpen);
    assert!(open.retry_after().is_some_and(|wait| wait >= Duration::from_secs(6)), "{open:?}");
    // Twice as long would be 16 s.
    sleep(Duration::from_secs(8)).await;
    assert_eq!(fail().await.kind(), ErrorKind::ArmFailed, "the probe");
    assert!(fail().await.retry_after().is_some_and(|wait| wait <= Duration::from_secs(10)));
}

/// Fails whenever it is asked.
struct Broken;

#[async_trait]
impl Resolver for Broken {
    async fn next(&mut self) -> Result<Vec<Endpoint>, BoxError> {
        sleep(Duration::from_secs(1)).await;
        Err("the name server refuses".into())
    }
}

#[tokio::test(start_paused = true)]
async fn an_error_without_any_endpoint_says_which_resolver_has_failed_and_names_the_contract_once() {
    let client = arms().resolver(Broken).build().unwrap();
    client.call(check()).retry(0).await.unwrap_err();
    sleep(Duration::from_secs(2)).await;
    let error = client.call(check()).retry(0).await.unwrap_err();
    let text = error.to_string();
    assert!(text.contains("resolver 1 has failed: the name server refuses"), "{text}");
    assert_eq!(text.matches(&error.contract().to_string()).count(), 1, "{text}");
}
