//! Readiness checks: their time limits, panics, probes at once, callers without tokens, and the end of a server.

use std::{
    future::{pending, ready},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::future::join_all;
use octollm_core::error::{ErrorKind, Failure};
use octollm_http::Server;
use serde_json::json;
use tokio::{
    sync::Notify,
    time::{Instant, sleep},
};

use crate::{
    arms::{start, worker},
    peer::Peer,
};

#[tokio::test(start_paused = true)]
async fn checks_run_at_once_and_each_ends_at_its_own_limit() {
    let (second, five) = (Duration::from_secs(1), Duration::from_secs(5));
    let server = worker()
        .check("hangs", pending)
        .check_within("hangs longer", five, pending)
        .check_within("is slow", five, || async {
            sleep(Duration::from_secs(4)).await;
            true
        })
        .check_within("is too slow", second, || async {
            sleep(Duration::from_secs(4)).await;
            true
        })
        .check("panics", || -> std::future::Ready<bool> { panic!("a check panics") })
        .check("panics later", || async {
            sleep(Duration::from_millis(1)).await;
            panic!("a check panics")
        })
        .check("holds", || ready(true));
    let (peer, asked) = (start(server), Instant::now());
    let answer = peer.get("/ready").await;
    assert_eq!(asked.elapsed(), five, "they run at once, until the longest limit");
    assert_eq!(answer.status, 503);
    assert_eq!(
        answer.json()["checks"],
        json!({
            "hangs": false, "hangs longer": false, "is slow": true, "is too slow": false, "panics": false,
            "panics later": false, "holds": true
        })
    );
    for limit in [Duration::ZERO, Duration::MAX] {
        let error =
            worker().check_within("x", limit, || ready(true)).open_to_all().into_service().unwrap_err();
        assert_eq!(error.setting(), "check_within");
    }
}

/// A check that waits until it may end, and how often it was begun.
fn counted(server: Server) -> (Server, Arc<AtomicUsize>, Arc<Notify>) {
    let (begun, end) = (Arc::<AtomicUsize>::default(), Arc::<Notify>::default());
    let (counts, ends) = (begun.clone(), end.clone());
    let server = server.check("store", move || {
        counts.fetch_add(1, Ordering::SeqCst);
        let ends = ends.clone();
        async move {
            ends.notified().await;
            true
        }
    });
    (server, begun, end)
}

#[tokio::test(start_paused = true)]
async fn probes_at_once_share_a_run_and_the_next_one_begins_another() {
    let (server, begun, end) = counted(worker());
    let peer = start(server);
    let probes = tokio::spawn(join_all((0..100).map({
        let peer = peer.clone();
        move |_| {
            let peer = peer.clone();
            async move { peer.get("/ready").await.status }
        }
    })));
    // One of them gives up, which ends the run of nobody.
    let given_up = tokio::spawn({
        let peer = peer.clone();
        async move { peer.get("/ready").await.status }
    });
    sleep(Duration::from_millis(100)).await;
    given_up.abort();
    sleep(Duration::from_millis(100)).await;
    assert_eq!(begun.load(Ordering::SeqCst), 1);
    end.notify_one();
    assert_eq!(probes.await.unwrap(), [200; 100]);

    end.notify_one();
    assert_eq!(peer.get("/ready").await.status, 200);
    assert_eq!(begun.load(Ordering::SeqCst), 2);
}

#[tokio::test(start_paused = true)]
async fn a_run_that_nobody_waits_for_any_more_ends_and_the_next_probe_begins_another() {
    let (server, begun, end) = counted(worker());
    let peer = start(server);
    let mut line = peer.clone().connect().await;
    line.write("GET /ready HTTP/1.1\r\nHost: x\r\n\r\n").await;
    sleep(Duration::from_millis(100)).await;
    drop(line);
    sleep(Duration::from_millis(100)).await;
    end.notify_one();
    assert_eq!(peer.get("/ready").await.status, 200);
    assert_eq!(begun.load(Ordering::SeqCst), 2);
}

#[tokio::test(start_paused = true)]
async fn probes_need_no_caller_and_no_place_among_the_requests_that_run() {
    let nobody = |_: &http::request::Parts| Err(Failure::new(ErrorKind::Unauthenticated, "nobody is known"));
    let server = worker().authenticate(nobody).max_in_flight(1).check("holds", || ready(true));
    let peer = start(server);
    peer.post("/echo", "", r#"{"text":"hi"}"#).await.is_problem(401, "unauthenticated");
    assert_eq!((peer.get("/ready").await.status, peer.get("/health").await.status), (200, 200));

    let busy = start(worker().max_in_flight(1).check("holds", || ready(true)));
    let mut line = busy.clone().connect().await;
    line.write(crate::peer::post("/wait", "", "{}")).await;
    sleep(Duration::from_millis(100)).await;
    busy.post("/echo", "", r#"{"text":"hi"}"#).await.is_problem(503, "overloaded");
    assert_eq!((busy.get("/ready").await.status, busy.get("/health").await.status), (200, 200));
}

#[cfg(unix)]
#[tokio::test]
async fn after_sigterm_a_server_whose_checks_hold_is_not_ready_and_alive() {
    let (mut child, peer): (_, Peer) = crate::process::child("").await;
    assert_eq!(peer.clone().get("/ready").await.status, 200);
    crate::process::send(&child, "-TERM");
    // Within its notice of 300 ms; until it has the signal it is ready.
    let not_ready = async {
        loop {
            let answer = peer.clone().get("/ready").await;
            if answer.status == 503 {
                return answer.json();
            }
        }
    };
    let answer = tokio::time::timeout(Duration::from_secs(5), not_ready).await.unwrap();
    assert_eq!((&answer["ready"], &answer["checks"]), (&json!(false), &json!({})));
    assert_eq!(peer.get("/health").await.status, 200);
    let ended = tokio::task::spawn_blocking(move || child.wait().unwrap());
    assert!(ended.await.unwrap().success());
}
