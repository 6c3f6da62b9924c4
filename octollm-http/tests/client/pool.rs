//! How many connections there are, and what becomes of them.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use http::Uri;
use octollm_core::error::ErrorKind;
use octollm_http::{
    client::Arms,
    io::{Connector, Io},
};
use octollm_macros::TaskContract;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

use crate::peer::{Answer, Check, Peer, Verdict, arms, card, check, judge_within, network, until, usual};

async fn slow(after: Duration) -> Peer {
    Peer::arm(move |_| async move {
        tokio::time::sleep(after).await;
        Answer::verdict()
    })
    .await
}

#[tokio::test(start_paused = true)]
async fn a_call_waits_for_its_turn_but_not_for_ever() {
    let peer = slow(Duration::from_millis(150)).await;
    let arms = judge_within(&peer.url, arms().max_connections(2).max_idle(2));
    arms.cards().await;
    let results = arms.context().call_all((0..10).map(|_| check())).retry(0).each().await;
    let (served, waited): (Vec<_>, Vec<_>) = results.into_iter().partition(Result::is_ok);
    assert_eq!((served.len(), waited.len()), (4, 6));
    for error in waited.into_iter().filter_map(Result::err) {
        assert_eq!(error.kind(), ErrorKind::Timeout);
        assert!(!error.may_have_executed() && error.retryable());
        assert_eq!(error.failure().message, "all connections are busy");
    }
    assert_eq!((peer.most_open(), peer.calls().len()), (2, 4));
}

/// A contract of another arm.
#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "code.write", output = Verdict)]
struct Write {}

#[tokio::test(start_paused = true)]
async fn the_limit_holds_over_all_arms_together() {
    let (one, two) = (slow(Duration::from_millis(50)).await, slow(Duration::from_millis(50)).await);
    let arms = usual()
        .endpoint_serving::<Check>("judge", &one.url)
        .endpoint_serving::<Write>("coder", &two.url)
        .max_connections(4)
        .max_idle(3)
        .build()
        .unwrap();
    // Two are half: of three calls, one waits.
    arms.context().call_all((0..3).map(|_| check())).await.unwrap();
    assert_eq!(one.most_open(), 2);
    let (checking, writing) = (arms.context(), arms.context());
    let (checked, written) =
        tokio::join!(checking.call_all((0..6).map(|_| check())), writing.call_all((0..6).map(|_| Write {})));
    checked.unwrap();
    written.unwrap();
    assert_eq!((one.most_open(), two.most_open()), (2, 2));
    assert_eq!((one.accepted(), two.accepted()), (2, 2), "none was closed for another");
}

#[tokio::test(start_paused = true)]
async fn a_thousand_callers_share_a_hundred_connections() {
    let peer = slow(Duration::from_millis(1)).await;
    let arms = judge_within(&peer.url, usual());
    let mut callers = JoinSet::new();
    for _ in 0..1000 {
        let arms = arms.clone();
        callers.spawn(async move {
            for _ in 0..5 {
                arms.call(check()).await.unwrap();
            }
        });
    }
    callers.join_all().await;
    assert_eq!(peer.calls().len(), 5000);
    assert!(peer.accepted() <= 100, "{} connections in the whole run", peer.accepted());
}

#[tokio::test(start_paused = true)]
async fn a_slow_arm_does_not_delay_calls_to_another() {
    let (judge, coder) = (slow(Duration::from_secs(60)).await, slow(Duration::ZERO).await);
    let arms = arms()
        .endpoint_serving::<Check>("judge", &judge.url)
        .endpoint_serving::<Write>("coder", &coder.url)
        .build()
        .unwrap();
    let mut stuck = JoinSet::new();
    for _ in 0..150 {
        let arms = arms.clone();
        stuck.spawn(async move { arms.call(check()).await });
    }
    until(|| judge.calls().len() == 50).await;
    for _ in 0..60 {
        arms.within(Duration::from_secs(1)).call(Write {}).await.unwrap();
    }
    arms.within(Duration::from_secs(1)).call_all((0..60).map(|_| Write {})).await.unwrap();
    assert_eq!((judge.most_open(), judge.calls().len()), (50, 50));
}

/// A contract of a third arm.
#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "code.run", output = Verdict)]
struct Run {}

#[tokio::test(start_paused = true)]
async fn two_slow_arms_do_not_delay_calls_to_a_third() {
    let (judge, runner) = (slow(Duration::from_secs(60)).await, slow(Duration::from_secs(60)).await);
    let coder = slow(Duration::ZERO).await;
    let arms = arms()
        .endpoint_serving::<Check>("judge", &judge.url)
        .endpoint_serving::<Run>("runner", &runner.url)
        .endpoint_serving::<Write>("coder", &coder.url)
        .build()
        .unwrap();
    let mut stuck = JoinSet::new();
    for _ in 0..150 {
        let (one, two) = (arms.clone(), arms.clone());
        stuck.spawn(async move { one.call(check()).await });
        stuck.spawn(async move { two.call(Run {}).await });
    }
    until(|| judge.open() + runner.open() >= 66).await;
    arms.within(Duration::from_secs(1)).call_all((0..60).map(|_| Write {})).await.unwrap();
    assert!(judge.open() + runner.open() <= 80, "{} and {}", judge.open(), runner.open());
}

#[test]
fn connections_belong_to_their_runtime() {
    let server = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let peer = server.block_on(Peer::tcp(|request| async move {
        if request.path == "/capabilities" {
            return Answer::Json(200, serde_json::to_value(card("judge")).unwrap());
        }
        Answer::verdict()
    }));
    let arms = Arms::builder().endpoint("judge", &peer.url).build().unwrap();
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (first, second) = (runtime(), runtime());
    // While one runs, nobody drives the sockets of the other.
    for (round, runtime) in [&first, &second, &first, &second].into_iter().enumerate() {
        let call = arms.within(Duration::from_secs(5)).call(check());
        runtime.block_on(call).unwrap_or_else(|error| panic!("round {round}: {error}"));
    }
    assert_eq!(peer.accepted(), 2);
    drop(first);
    second.block_on(arms.call(check())).unwrap();
    let third = runtime();
    third.block_on(arms.call(check())).unwrap();
    assert_eq!(peer.accepted(), 3);
}

#[test]
fn runtimes_that_run_at_once_share_one_connection_in_turn() {
    let server = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let peer = server.block_on(Peer::tcp(|_| std::future::ready(Answer::verdict())));
    let arms = Arms::builder()
        .max_connections(1)
        .max_idle(1)
        .endpoint_serving::<Check>("judge", &peer.url)
        .build()
        .unwrap();
    let callers: Vec<_> = (0..3)
        .map(|_| {
            let arms = arms.clone();
            std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(async {
                    for _ in 0..50 {
                        arms.context().call_all((0..3).map(|_| check())).await.unwrap();
                    }
                });
            })
        })
        .collect();
    callers.into_iter().for_each(|caller| caller.join().unwrap());
    assert_eq!(peer.calls().len(), 3 * 50 * 3);
    server.block_on(peer.until_open(0));
}

#[tokio::test(start_paused = true)]
async fn what_rests_too_long_is_closed() {
    let peer = slow(Duration::from_millis(20)).await;
    let arms = judge_within(&peer.url, arms().idle_timeout(Duration::from_secs(3)).max_idle(4));
    arms.context().call_all((0..10).map(|_| check())).await.unwrap();
    // Those beyond `max_idle` rest for a second.
    until(|| peer.open() <= 4).await;
    assert!(peer.open() > 0);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(peer.open() > 0);
    peer.until_open(0).await;
    // And again, with a new reaper.
    arms.call(check()).await.unwrap();
    assert_eq!(peer.open(), 1);
    peer.until_open(0).await;
}

#[tokio::test(start_paused = true)]
async fn a_connection_does_not_rest_for_longer_than_its_server_announces() {
    let secs = Duration::from_secs;
    for (field, longest) in [
        ("timeout=5", secs(4)),
        ("max=100, Timeout=1", secs(1) / 2),
        ("timeout=60", secs(15)),
        ("timeout=x", secs(15)),
    ] {
        let answer = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nkeep-alive: {field}\r\ncontent-length: 17\r\n\r\n{}",
            r#"{"is_valid":true}"#
        );
        let peer = Peer::start(move |_| std::future::ready(Answer::Raw(answer.clone().into()))).await;
        let arms = usual().endpoint_serving::<Check>("judge", &peer.url);
        let arms = arms.build().unwrap();
        for (rest, connections) in [(Duration::ZERO, 1), (longest - secs(1) / 100, 1), (longest, 2)] {
            tokio::time::sleep(rest).await;
            arms.call(check()).await.unwrap();
            assert_eq!(peer.accepted(), connections, "{field} {rest:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_retires_at_its_age() {
    let peer = slow(Duration::ZERO).await;
    let arms = judge_within(&peer.url, arms().max_age(Duration::from_millis(100)));
    arms.call(check()).await.unwrap();
    arms.call(check()).await.unwrap();
    assert_eq!(peer.accepted(), 1);
    tokio::time::sleep(Duration::from_millis(150)).await;
    arms.call(check()).await.unwrap();
    assert_eq!(peer.accepted(), 2);
}

#[tokio::test(start_paused = true)]
async fn calls_dropped_at_any_moment_give_back_what_they_held() {
    let peer = slow(Duration::from_millis(10)).await;
    let arms = judge_within(&peer.url, arms().max_connections(4).max_idle(4));
    arms.cards().await;
    for round in 0..2500_u64 {
        let calls = (0..4).map(|_| arms.call(check()));
        let limit = Duration::from_millis(round.wrapping_mul(7919) % 40);
        let _ = tokio::time::timeout(limit, futures_util::future::join_all(calls)).await;
    }
    arms.context().call_all((0..16).map(|_| check())).await.unwrap();
    assert!(peer.most_open() <= 4 + 4, "the server may see an end later than the client");
    peer.until_open(0).await;
}

/// The network, to which no connection can be opened for a while: it hangs.
struct Hanging(Arc<AtomicBool>);

#[async_trait]
impl Connector for Hanging {
    async fn connect(&self, to: &Uri) -> io::Result<Box<dyn Io>> {
        if self.0.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        network().connect(to).await
    }
}

#[tokio::test(start_paused = true)]
async fn the_calls_that_waited_for_a_connection_to_share_are_all_served_where_its_caller_goes() {
    let mut judge = card("judge");
    judge.instance = Some("one".into());
    let peer = Peer::with_card(judge, |_| async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        Answer::verdict()
    })
    .await;
    let hangs = Arc::new(AtomicBool::new(false));
    let arms =
        Arms::builder().connector(Hanging(hangs.clone())).endpoint("judge", &peer.url).build().unwrap();
    arms.cards().await;
    // Until its connection is closed.
    tokio::time::sleep(Duration::from_secs(20)).await;
    hangs.store(true, Ordering::SeqCst);
    // The last of so many are to share a connection, which the first of them opens.
    let begin = || tokio::spawn(arms.call(check()).retry(0));
    let mut calls = Vec::new();
    for _ in 0..40 {
        calls.push(begin());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let waiting = calls.split_off(33);
    let opens = calls.pop().unwrap();
    for call in calls {
        call.abort();
    }
    tokio::time::sleep(Duration::from_millis(1)).await;
    hangs.store(false, Ordering::SeqCst);
    // With so few no connection is to be shared any more.
    let last = begin();
    tokio::time::sleep(Duration::from_millis(1)).await;
    opens.abort();
    for call in waiting.into_iter().chain([last]) {
        call.await.unwrap().unwrap();
    }
    assert!(peer.most_open() >= 8, "{} connections", peer.most_open());
}
