//! The record of a call, and the events of circuit breakers.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use octollm_core::{
    bus::{EventBus, MemoryBus, Overflow, Signal},
    error::ErrorKind,
    explain::CallEvent,
};
use serde_json::json;

use crate::peer::{Answer, Peer, arms, check, judge, unused_host};

fn names(steps: &[(Duration, CallEvent)]) -> Vec<&'static str> {
    let name = |(_, what): &(Duration, CallEvent)| match what {
        CallEvent::Sent { .. } => "sent",
        CallEvent::Failed { .. } => "failed",
        CallEvent::Retried { .. } => "retried",
        CallEvent::CircuitOpen { .. } => "circuit open",
        CallEvent::BudgetSpent => "budget spent",
        _ => "other",
    };
    steps.iter().map(name).collect()
}

#[tokio::test(start_paused = true)]
async fn the_record_has_attempts_endpoints_waits_and_what_is_left_of_the_budget() {
    let busy = Peer::arm(|_| std::future::ready(Answer::unavailable())).await;
    let good = Peer::arm(|_| std::future::ready(Answer::verdict())).await;
    let gone = format!("http://{}", unused_host());
    let client = arms().endpoint("judge", format!("{gone},{},{}", busy.url, good.url)).build().unwrap();
    client.cards().await;
    let mut all = Vec::new();
    // At random the first endpoint is one that refuses, one that is busy, or one that answers.
    for _ in 0..40 {
        let (answer, steps) = client.call(check()).explained().await;
        answer.unwrap();
        tokio::time::advance(Duration::from_secs(200)).await;
        all.push(steps);
    }
    let sent = |steps: &[(Duration, CallEvent)]| {
        let endpoints = steps.iter().filter_map(|(_, what)| match what {
            CallEvent::Sent { endpoint, arm, .. } if **arm == *"judge" => Some(endpoint.to_string()),
            _ => None,
        });
        endpoints.collect::<Vec<_>>()
    };
    assert!(all.iter().all(|steps| sent(steps).last() == Some(&good.url)), "the last one answers");
    let retried = all.iter().find(|steps| names(steps).contains(&"retried")).expect("one was retried");
    let (_, step) = retried.iter().find(|(_, what)| matches!(what, CallEvent::Retried { .. })).unwrap();
    let CallEvent::Retried { after, budget_left } = *step else { unreachable!() };
    assert!(after <= Duration::from_millis(50) && budget_left.is_some_and(|left| left < 100), "{step:?}");
    let failed_over = all.iter().find(|steps| sent(steps).first() == Some(&gone)).expect("one was refused");
    assert_eq!(names(failed_over)[..2], ["sent", "failed"]);
    assert!(retried.iter().is_sorted_by_key(|(at, _)| *at), "in order");
}

#[tokio::test(start_paused = true)]
async fn a_breaker_that_opens_and_closes_is_published_and_in_the_record() {
    let works = Arc::new(AtomicBool::new(false));
    let is_up = works.clone();
    let peer = Peer::arm(move |_| {
        let up = is_up.load(Ordering::SeqCst);
        std::future::ready(if up { Answer::verdict() } else { Answer::Json(500, json!({})) })
    })
    .await;
    let bus = MemoryBus::new();
    let pattern = "events:circuit:*".parse().unwrap();
    let mut events = bus.subscribe(pattern, Overflow::DropOldest(8)).await.unwrap();
    let client = arms().endpoint("judge", &peer.url).bus(bus).build().unwrap();
    for _ in 0..5 {
        client.call(check()).retry(0).await.unwrap_err();
    }
    let (answer, steps) = client.call(check()).retry(0).explained().await;
    let error = answer.unwrap_err();
    assert_eq!((error.kind(), error.endpoint()), (ErrorKind::CircuitOpen, Some(&*peer.url)));
    assert_eq!(
        (error.may_have_executed(), error.attempts(), names(&steps)),
        (false, 0, vec!["circuit open"])
    );
    let mut next = async || match events.next().await {
        Some(Signal::Event(event)) => event,
        other => panic!("{other:?}"),
    };
    let opened = next().await;
    assert_eq!((opened.event_type(), &opened.data()["endpoint"]), ("circuit.opened", &json!(peer.url)));
    assert!(opened.data()["retry_after_ms"].as_u64().is_some_and(|wait| (750..=1000).contains(&wait)));
    // The breaker is open for a second at most, and the call waits for that.
    works.store(true, Ordering::SeqCst);
    client.call(check()).await.unwrap();
    let closed = next().await;
    assert_eq!((closed.event_type(), &closed.data()["arm_id"]), ("circuit.closed", &json!("judge")));
}

#[tokio::test(start_paused = true)]
async fn each_endpoint_whose_breaker_is_open_is_in_the_record_once_also_where_another_one_answers() {
    let works = Arc::new(AtomicBool::new(true));
    let mut peers = Vec::new();
    for is_bad in [true, true, false] {
        let works = works.clone();
        let peer = Peer::arm(move |_| {
            let fails = is_bad || !works.load(Ordering::SeqCst);
            std::future::ready(if fails { Answer::Json(500, json!({})) } else { Answer::verdict() })
        });
        peers.push(peer.await);
    }
    let urls: Vec<_> = peers.iter().map(|peer| peer.url.clone()).collect();
    let client = arms().breaker_failures(1).endpoint("judge", urls.join(",")).build().unwrap();
    let open = |steps: &[(Duration, CallEvent)]| {
        let open = steps.iter().filter_map(|(_, what)| match what {
            CallEvent::CircuitOpen { endpoint, retry_after } if !retry_after.is_zero() => {
                Some(endpoint.to_string())
            }
            _ => None,
        });
        let mut open: Vec<_> = open.collect();
        open.sort_unstable();
        open
    };
    while peers[..2].iter().any(|peer| peer.calls().is_empty()) {
        let _ = client.call(check()).retry(0).await;
    }
    let mut bad = urls[..2].to_vec();
    bad.sort_unstable();
    let (answer, steps) = client.call(check()).retry(0).explained().await;
    answer.unwrap();
    assert_eq!(open(&steps), bad);
    assert_eq!(names(&steps), ["circuit open", "circuit open", "sent"]);
    works.store(false, Ordering::SeqCst);
    client.call(check()).retry(0).await.unwrap_err();
    let (answer, steps) = client.call(check()).retry(0).explained().await;
    assert_eq!(answer.unwrap_err().kind(), ErrorKind::CircuitOpen);
    let mut all = urls;
    all.sort_unstable();
    assert_eq!(open(&steps), all);
}

#[tokio::test(start_paused = true)]
async fn the_failure_of_a_call_with_one_attempt_is_recorded_too() {
    let peer = Peer::arm(|_| async { Answer::Json(500, json!({})) }).await;
    let (answer, steps) = judge(&peer.url).call(check()).retry(0).explained().await;
    answer.unwrap_err();
    let is_failed = |step: &(_, CallEvent)| matches!(step.1, CallEvent::Failed { .. });
    assert_eq!(steps.iter().filter(|step| is_failed(step)).count(), 1, "{steps:?}");
}
