//! A whole process: it gets a signal to end, or runs out of file descriptors. It runs in a child, which is
//! this test binary once more.

use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use tokio::{net::TcpStream, task::spawn_blocking};

use crate::{
    arms::worker,
    peer::{Peer, post},
};

const IN_A_CHILD: &str = "OCTOLLM_TEST_IN_A_CHILD";

/// Runs the server below in a child, after these shell commands. Returns when it has printed its address.
pub(crate) async fn child(before: &'static str) -> (Child, Peer) {
    spawn_blocking(move || {
        let mut command = Command::new("sh");
        command.args(["-c", &format!("{before} exec \"$0\" \"$@\"")]).arg(std::env::current_exe().unwrap());
        command.args(["--exact", "process::served_in_a_child", "--nocapture"]).env(IN_A_CHILD, "1");
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let address =
            lines.find_map(|line| Some(line.unwrap().split_once("listens at ")?.1.parse().unwrap()));
        // Whoever reads no more makes it fail when it writes.
        std::thread::spawn(move || lines.for_each(drop));
        (child, Peer::Tcp(address.unwrap()))
    })
    .await
    .unwrap()
}

async fn end_of(mut child: Child) -> ExitStatus {
    tokio::time::timeout(Duration::from_secs(10), spawn_blocking(move || child.wait().unwrap()))
        .await
        .expect("does not end")
        .unwrap()
}

pub(crate) fn send(child: &Child, signal: &str) {
    let sent = Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
}

/// The child; in any other process it does nothing.
#[tokio::test]
async fn served_in_a_child() {
    if std::env::var_os(IN_A_CHILD).is_none() {
        return;
    }
    let server = worker().drain_notice(Duration::from_millis(300)).bind("127.0.0.1:0").await.unwrap();
    println!("listens at {}", server.local_addr());
    server.run_until_signal().await;
}

#[cfg(unix)]
#[tokio::test]
async fn sigterm_is_told_before_it_is_done() {
    let (child, peer) = child("").await;
    assert_eq!(peer.get("/ready").await.status, 200);
    let mut busy = peer.connect().await;
    busy.write(post("/wait", "", r#"{"ms":600}"#)).await;
    send(&child, "-TERM");
    while peer.get("/ready").await.status == 200 {
        tokio::task::yield_now().await;
    }
    // Not ready any more, but not deaf either: it takes a while until everybody knows.
    assert_eq!(peer.get("/capabilities").await.json()["status"], "unavailable");
    assert_eq!(peer.post("/echo", "", r#"{"text":"a"}"#).await.status, 200);
    assert_eq!(busy.answer().await.status, 200);
    assert!(end_of(child).await.success());
}

#[cfg(unix)]
#[tokio::test]
async fn ctrl_c_ends_at_once() {
    let (child, peer) = child("").await;
    assert_eq!(peer.get("/ready").await.status, 200);
    send(&child, "-INT");
    assert!(end_of(child).await.success());
}

#[cfg(unix)]
#[tokio::test]
async fn ctrl_c_while_ending_ends_at_once() {
    for first in ["-TERM", "-INT"] {
        let (child, peer) = child("").await;
        let mut busy = peer.connect().await;
        busy.write(post("/wait", "", "{}")).await;
        assert_eq!(peer.get("/ready").await.status, 200);
        send(&child, first);
        // Once the first signal has arrived: the answers end, or there is nobody to answer.
        while matches!(peer, Peer::Tcp(at) if TcpStream::connect(at).await.is_ok()) {
            tokio::task::yield_now().await;
        }
        send(&child, "-INT");
        let ended = tokio::time::Instant::now();
        assert!(end_of(child).await.success());
        assert!(ended.elapsed() < Duration::from_secs(3), "{:?}", ended.elapsed());
        busy.rest().await;
    }
}

#[cfg(unix)]
#[tokio::test]
async fn callers_that_come_at_once_all_get_into_the_queue() {
    let server = worker().bind("127.0.0.1:0").await.unwrap();
    let begun = tokio::time::Instant::now();
    let mut lines = Vec::new();
    for _ in 0..400 {
        lines.push(Peer::Tcp(server.local_addr()).stream().await);
    }
    // Whoever does not get in tries again after a second.
    assert!(begun.elapsed() < Duration::from_millis(900), "{:?}", begun.elapsed());
}

#[cfg(unix)]
#[tokio::test]
async fn a_server_without_descriptors_serves_on_when_it_has_some() {
    let (mut child, peer) = child("ulimit -n 24;").await;
    let mut held = Vec::new();
    for _ in 0..64 {
        held.push(peer.stream().await);
    }
    // Behind all the others, it is answered only when they are gone.
    let mut waiting = peer.connect().await;
    waiting.write(post("/echo", "", r#"{"text":"a"}"#)).await;
    drop(held);
    assert_eq!(waiting.answer().await.status, 200);
    child.kill().unwrap();
    child.wait().unwrap();
}
