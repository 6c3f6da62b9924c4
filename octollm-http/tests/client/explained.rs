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
    explain::{CallEvent, CallStep},
};
use serde_json::json;

use crate::peer::{Answer, Peer, arms, check, unused_host};

fn names(steps: &[CallStep]) -> Vec<&'static str> {
    let name = |step: &CallStep| match step.what {
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
    let sent = |steps: &[CallStep]| {
        let endpoints = steps.iter().filter_map(|step| match &step.what {
            CallEvent::Sent { endpoint, arm, .. } if **arm == *"judge" => Some(endpoint.to_string()),
            _ => None,
        });
        endpoints.collect::<Vec<_>>()
    };
    assert!(all.iter().all(|steps| sent(steps).last() == Some(&good.url)), "the last one answers");
    let retried = all.iter().find(|steps| names(steps).contains(&"retried")).expect("one was retried");
    let step = retried.iter().find(|step| matches!(step.what, CallEvent::Retried { .. })).unwrap();
    let CallEvent::Retried { after, budget_left } = step.what else { unreachable!() };
    assert!(after <= Duration::from_millis(50) && budget_left.is_some_and(|left| left < 100), "{step:?}");
    let failed_over = all.iter().find(|steps| sent(steps).first() == Some(&gone)).expect("one was refused");
    assert_eq!(names(failed_over)[..2], ["sent", "failed"]);
    assert!(retried.iter().is_sorted_by_key(|step| step.at), "in order");
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
