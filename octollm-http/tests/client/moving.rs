//! Endpoints that come and go.

use std::{future::pending, time::Duration};

use async_trait::async_trait;
use octollm_core::error::ErrorKind;
use octollm_http::{
    client::Arms,
    resolve::{Endpoint, Resolver},
};
use serde_json::json;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep},
};
use tower::BoxError;

use crate::peer::{Answer, Peer, check, silent, usual};

/// A resolver of the sets that a test sends.
struct Moving(mpsc::UnboundedReceiver<Vec<Endpoint>>);

#[async_trait]
impl Resolver for Moving {
    async fn next(&mut self) -> Result<Vec<Endpoint>, BoxError> {
        match self.0.recv().await {
            Some(set) => Ok(set),
            None => pending().await,
        }
    }
}

fn moving() -> (mpsc::UnboundedSender<Vec<Endpoint>>, Moving) {
    let (sets, receiver) = mpsc::unbounded_channel();
    (sets, Moving(receiver))
}

#[tokio::test(start_paused = true)]
async fn an_arm_that_is_found_while_others_are_asked_does_not_wait_for_them() {
    let (silent, _held) = silent();
    let judge = Peer::arm(|_| async { Answer::verdict() }).await;
    let (sets, resolver) = moving();
    let arms = usual().resolver(resolver).build().unwrap();
    let slow = Endpoint::new("slow", silent);
    sets.send(vec![slow.clone()]).unwrap();
    let begun = Instant::now();
    let call = tokio::spawn(arms.call(check()).retry(0));
    sleep(Duration::from_millis(500)).await;
    sets.send(vec![slow, Endpoint::new("judge", &*judge.url)]).unwrap();
    assert!(call.await.unwrap().unwrap().is_valid);
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn an_arm_that_is_found_after_others_were_asked_is_asked_by_itself() {
    let judge = Peer::arm(|_| async { Answer::verdict() }).await;
    let coder = Peer::arm(|_| async { Answer::verdict() }).await;
    let (sets, resolver) = moving();
    let arms = usual().resolver(resolver).build().unwrap();
    sets.send(vec![Endpoint::new("judge", &*judge.url)]).unwrap();
    arms.call(check()).await.unwrap();
    for _ in 0..3 {
        sets.send(vec![Endpoint::new("judge", &*judge.url), Endpoint::new("coder", &*coder.url)]).unwrap();
        sleep(Duration::from_millis(1500)).await;
        assert_eq!(coder.asked_for_card(), 1, "once");
    }
    // One that is silent is asked once for its card, too, and not again and again.
    let (silent, _held) = silent();
    sets.send(vec![Endpoint::new("judge", &*judge.url), Endpoint::new("slow", silent)]).unwrap();
    let asked = judge.asked_for_card();
    sleep(Duration::from_secs(60)).await;
    assert!(judge.asked_for_card() <= asked + 1, "{}", judge.asked_for_card() - asked);
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_goes_and_returns_has_its_open_breaker_still() {
    let busy = Peer::arm(|_| async { Answer::Json(503, json!({})) }).await;
    let fine = Peer::arm(|_| async { Answer::verdict() }).await;
    let (sets, resolver) = moving();
    let arms: Arms = usual().breaker_open(Duration::from_secs(20)).resolver(resolver).build().unwrap();
    let at = |peer: &Peer| vec![Endpoint::new("judge", &*peer.url)];
    sets.send(at(&busy)).unwrap();
    for _ in 0..5 {
        arms.call(check()).retry(0).await.unwrap_err();
    }
    let is_open = async || arms.call(check()).retry(0).await.unwrap_err().kind() == ErrorKind::CircuitOpen;
    assert!(is_open().await);
    for _ in 0..3 {
        sets.send(at(&fine)).unwrap();
        sleep(Duration::from_secs(2)).await;
        arms.call(check()).retry(0).await.unwrap();
        sets.send(at(&busy)).unwrap();
        sleep(Duration::from_secs(2)).await;
        assert!(is_open().await);
    }
    assert_eq!(busy.calls().len(), 5);
    // After a while nothing is remembered of it.
    sets.send(at(&fine)).unwrap();
    sleep(Duration::from_secs(100)).await;
    sets.send(at(&busy)).unwrap();
    sleep(Duration::from_secs(2)).await;
    assert!(!is_open().await);
}

#[tokio::test(start_paused = true)]
async fn a_change_of_weights_closes_no_connection() {
    let judge = Peer::arm(|_| async { Answer::verdict() }).await;
    let (sets, resolver) = moving();
    let arms = usual().resolver(resolver).build().unwrap();
    for weight in 1..=5 {
        sets.send(vec![Endpoint::new("judge", &*judge.url).weight(weight)]).unwrap();
        sleep(Duration::from_secs(2)).await;
        arms.call(check()).await.unwrap();
    }
    let connections: std::collections::HashSet<_> =
        judge.calls().iter().map(|call| call.connection).collect();
    assert_eq!(connections.len(), 1);
    assert_eq!(judge.asked_for_card(), 1);
}

/// Answers with the second set after the first one, and takes its time for each.
struct Slow(Vec<Vec<Endpoint>>);

#[async_trait]
impl Resolver for Slow {
    async fn next(&mut self) -> Result<Vec<Endpoint>, BoxError> {
        sleep(Duration::from_millis(1500)).await;
        match self.0.pop() {
            Some(set) => Ok(set),
            None => pending().await,
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_resolver_that_takes_its_time_is_heard_while_new_endpoints_are_asked() {
    let (silent, _held) = silent();
    let judge = Peer::arm(|_| async { Answer::verdict() }).await;
    let sets = vec![vec![Endpoint::new("judge", &*judge.url)], vec![Endpoint::new("judge", silent)]];
    let arms = usual().resolver(Slow(sets)).capabilities_timeout(Duration::from_secs(60)).build().unwrap();
    let begun = Instant::now();
    assert!(arms.call(check()).retry(0).await.unwrap().is_valid);
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}
