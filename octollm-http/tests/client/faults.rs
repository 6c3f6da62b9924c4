//! Servers that break, each in its own way.

use std::{
    collections::HashSet,
    io::{self, Read, Write},
    sync::{Mutex, mpsc},
    time::Duration,
};

use async_trait::async_trait;
use http::Uri;
use octollm_core::error::{CallError, ErrorKind};
use octollm_http::{
    client::Arms,
    io::{Acceptor, Connector, Io},
};
use octollm_macros::TaskContract;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::{io::AsyncReadExt, net::TcpListener, time::Instant};

use crate::peer::{
    Answer, Check, Peer, Verdict, arms, card, check, json_answer, judge, judge_within, network, short, until,
    unused_host, usual,
};

/// The error of a call that the server answers so.
async fn fails(answer: Answer) -> CallError {
    let peer = Peer::arm(move |_| std::future::ready(answer.clone())).await;
    fails_at(&peer, &judge(&peer.url)).await
}

/// The same on a socket of the system.
async fn fails_over_tcp(answer: Answer) -> CallError {
    let peer = Peer::tcp(move |_| std::future::ready(answer.clone())).await;
    let arms = short(Arms::builder().endpoint_serving::<Check>("judge", &peer.url)).build().unwrap();
    fails_at(&peer, &arms).await
}

async fn fails_at(peer: &Peer, arms: &Arms) -> CallError {
    let error = arms.call(check()).await.unwrap_err();
    // A connection that failed is not used again.
    peer.until_open(0).await;
    assert_eq!(peer.calls().len(), 1);
    assert_eq!(error.arm(), Some("judge"));
    assert_eq!(error.endpoint(), Some(&*peer.url));
    error
}

#[tokio::test(start_paused = true)]
async fn lost_behind_the_request_the_work_may_have_run() {
    for answer in [Answer::Last(vec![]), Answer::Last(b"HTTP/1.1 200 O".to_vec())] {
        let error = fails(answer.clone()).await;
        assert_eq!(error.kind(), ErrorKind::ConnectionLost, "{answer:?}");
        assert!(error.may_have_executed() && error.retryable());
    }
}

#[tokio::test]
async fn a_reset_is_a_loss_and_never_a_short_answer() {
    let half =
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 40\r\n\r\n{\"is_valid\":true}";
    for bytes in ["", half] {
        let error = fails_over_tcp(Answer::Reset(bytes.into())).await;
        assert_eq!(error.kind(), ErrorKind::ConnectionLost, "{bytes}");
        assert!(error.may_have_executed() && error.retryable());
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_cut_off_is_never_a_short_answer() {
    let head =
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 40\r\n\r\n{\"is_valid\":true}";
    let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n11\r\n{\"is_valid\":true}\r\n";
    for bytes in [head, chunked] {
        let error = fails(Answer::Last(bytes.into())).await;
        assert_eq!(error.kind(), ErrorKind::ConnectionLost, "{bytes}");
        assert!(error.may_have_executed());
    }
}

#[tokio::test(start_paused = true)]
async fn silence_is_given_up_after_the_read_limit() {
    let half = b"HTTP/1.1 200 OK\r\ncontent-length: 40\r\n\r\n{".to_vec();
    for answer in [Answer::Silence, Answer::Raw(b"HTTP/1.1".to_vec()), Answer::Raw(half)] {
        let error = fails(answer.clone()).await;
        assert_eq!(error.kind(), ErrorKind::Timeout, "{answer:?}");
        assert!(error.may_have_executed());
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_not_an_answer_is_a_bad_response() {
    for bytes in [
        "SSH-2.0-OpenSSH\r\n\r\n",
        "HTTP/1.1 abc\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: 6\r\n\r\n<html>",
        "HTTP/1.1 204 No Content\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 4\r\n\r\nnull",
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-encoding: gzip\r\ncontent-length: 2\r\n\r\n{}",
    ] {
        let error = fails_then_closes(bytes.as_bytes().to_vec()).await;
        assert_eq!(error.kind(), ErrorKind::BadResponse, "{bytes}");
        assert!(error.may_have_executed() && !error.retryable(), "{bytes}");
    }
}

async fn fails_then_closes(bytes: Vec<u8>) -> CallError {
    fails(Answer::Last(bytes)).await
}

#[tokio::test(start_paused = true)]
async fn an_answer_beyond_the_limit_is_refused_before_it_is_read() {
    for head in ["content-length: 5000000000", "transfer-encoding: chunked"] {
        let chunk = format!("7d0\r\n{}\r\n", "x".repeat(2000));
        let bytes = format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n{chunk}").into_bytes();
        let peer = Peer::start(move |_| {
            let bytes = bytes.clone();
            async move { Answer::Raw(bytes) }
        })
        .await;
        let arms = arms().endpoint_serving::<Check>("judge", &peer.url).max_answer(1000).build().unwrap();
        let error = arms.call(check()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BadResponse, "{head}");
        assert_eq!(error.failure().message, "the answer is larger than 1000 bytes");
        peer.until_open(0).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_redirect_is_not_followed() {
    let elsewhere = Peer::start(|_| async { Answer::verdict() }).await;
    let url = elsewhere.url.clone();
    let peer = Peer::arm(move |_| {
        let head = format!("HTTP/1.1 307 X\r\nlocation: {url}/validate\r\ncontent-length: 0\r\n\r\n");
        async move { Answer::Raw(head.into_bytes()) }
    })
    .await;
    let error = judge(&peer.url).call(check()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BadResponse);
    assert_eq!(elsewhere.accepted(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_stale_connection_costs_nothing_where_nothing_was_written() {
    let peer =
        Peer::arm(|_| async { Answer::Last(json_answer(200, &serde_json::json!({"is_valid": true}))) }).await;
    let arms = judge(&peer.url);
    for _ in 0..5 {
        arms.call(check()).await.unwrap();
        // The server has closed; the client has not looked since.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(peer.calls().len(), 5);
}

#[tokio::test(start_paused = true)]
async fn a_stale_connection_with_the_request_written_is_an_error_for_a_call_and_none_for_a_question() {
    // Each connection serves one request and dies by the second.
    let used = Mutex::new(HashSet::new());
    let peer = Peer::start(move |request| {
        let first = used.lock().unwrap().insert(request.connection);
        async move {
            match &*request.path {
                _ if !first => Answer::Last(vec![]),
                "/capabilities" => Answer::Json(200, serde_json::to_value(card("judge")).unwrap()),
                _ => Answer::verdict(),
            }
        }
    })
    .await;
    let arms = judge(&peer.url);
    // The card came over the first connection, which dies by the call.
    let error = arms.call(check()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionLost);
    assert!(error.may_have_executed());
    assert_eq!(peer.calls().len(), 1);
    arms.call(check()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(1050)).await;
    // This one dies by the question for the card, which is put once more.
    arms.call(check()).await.unwrap();
    let asked = peer.asked_for_card();
    assert_eq!(arms.cards().await.len(), 1);
    assert_eq!(peer.asked_for_card(), asked + 2);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_does_not_read_is_given_up_after_the_write_limit() {
    let host = unused_host();
    let mut listener = network().listen(&host).unwrap();
    let arms = arms()
        .endpoint_serving::<Check>("judge", format!("http://{host}"))
        .read_idle(Duration::from_secs(20))
        .build()
        .unwrap();
    let call = tokio::spawn({
        let arms = arms.clone();
        async move { arms.call(Check { code: "x".repeat(1 << 20) }).await }
    });
    let (mut socket, _) = listener.accept().await.unwrap().await.unwrap();
    let begun = Instant::now();
    let error = call.await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout);
    assert_eq!(error.failure().message, "the server does not read the request");
    assert_eq!(begun.elapsed(), Duration::from_millis(200));
    // The socket was closed with the call.
    let mut rest = Vec::new();
    let _ = socket.read_to_end(&mut rest).await;
    assert!(rest.len() < 1 << 20);
}

#[tokio::test]
async fn no_connection_means_nothing_was_done() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let refused = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    for (url, message) in [
        (&*refused, "no connection: connection refused"),
        ("http://no-such-host.invalid:80", "no connection: the host is not known"),
    ] {
        let arms = Arms::builder().endpoint_serving::<Check>("judge", url).build().unwrap();
        let error = arms.call(check()).await.unwrap_err();
        assert_eq!((error.kind(), &*error.failure().message), (ErrorKind::Unreachable, message));
        assert!(error.retryable() && !error.may_have_executed());
    }
}

/// Takes connections and never finishes making them.
struct BlackHole;

#[async_trait]
impl Connector for BlackHole {
    async fn connect(&self, _: &Uri) -> io::Result<Box<dyn Io>> {
        std::future::pending().await
    }
}

#[tokio::test(start_paused = true)]
async fn a_black_hole_is_given_up_after_the_connect_limit() {
    let builder = Arms::builder().connector(BlackHole);
    let arms = builder.endpoint_serving::<Check>("judge", "http://judge").build().unwrap();
    let begun = Instant::now();
    let error = arms.call(check()).retry(0).await.unwrap_err();
    assert_eq!(begun.elapsed(), Duration::from_secs(5));
    assert_eq!(error.kind(), ErrorKind::Unreachable);
    assert_eq!(error.failure().message, "no connection within 5s");
    assert!(error.retryable() && !error.may_have_executed());
    // A deadline that passes meanwhile is one, and nothing was done either.
    let error = arms.within(Duration::from_secs(2)).call(check()).await.unwrap_err();
    assert_eq!(begun.elapsed(), Duration::from_secs(7));
    assert_eq!((error.kind(), error.arm()), (ErrorKind::DeadlineExceeded, Some("judge")));
    assert!(!error.may_have_executed());
}

#[tokio::test(start_paused = true)]
async fn interim_answers_without_end_are_a_bad_response() {
    let continues = b"HTTP/1.1 100 Continue\r\n\r\n".repeat(40_000);
    let error = fails(Answer::Raw(continues)).await;
    assert_eq!(error.kind(), ErrorKind::BadResponse);
    assert_eq!(error.failure().message, "the server sends interim answers without end");
    // A few are nothing to complain of.
    let few = b"HTTP/1.1 100 Continue\r\n\r\n".repeat(20);
    let peer = Peer::arm(move |_| {
        let verdict = json_answer(200, &serde_json::json!({ "is_valid": true }));
        std::future::ready(Answer::Raw([few.clone(), verdict].concat()))
    })
    .await;
    judge(&peer.url).call(check()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_contract_that_may_take_minutes_may_be_silent_for_minutes() {
    #[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
    #[task(name = "code.prove", output = Verdict, timeout = "10m")]
    struct Prove {}
    let peer = Peer::start(|_| async {
        tokio::time::sleep(Duration::from_secs(590)).await;
        Answer::verdict()
    })
    .await;
    let arms = usual().endpoint_serving::<Prove>("judge", &peer.url).build().unwrap();
    assert!(arms.call(Prove {}).await.unwrap().is_valid);
}

#[tokio::test]
async fn a_connection_that_is_closed_in_the_instant_of_the_call_costs_nothing() {
    closed_in_the_instant_of_the_call(b"").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_is_closed_while_another_thread_has_the_sockets_costs_nothing() {
    closed_in_the_instant_of_the_call(b"").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_to_nobody_that_comes_in_the_instant_of_the_call_is_not_its_answer() {
    closed_in_the_instant_of_the_call(
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 18\r\n\r\n{\"is_valid\":false}",
    )
    .await;
}

/// Each of 200 calls is made right after the server has sent `last` over the connection of the one before, and closed it.
async fn closed_in_the_instant_of_the_call(last: &'static [u8]) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (close, closing) = mpsc::channel::<()>();
    let (closed, has_closed) = mpsc::channel::<()>();
    // On a thread of its own: the runtime of the client sees nothing of it before the next call.
    let server = std::thread::spawn(move || {
        for served in 0.. {
            let (mut socket, _) = listener.accept().unwrap();
            let mut request = [0; 4096];
            assert!(socket.read(&mut request).unwrap() > 0);
            socket.write_all(&json_answer(200, &serde_json::json!({ "is_valid": true }))).unwrap();
            if closing.recv().is_err() {
                return served;
            }
            socket.write_all(last).unwrap();
            drop(socket);
            closed.send(()).unwrap();
        }
        0
    });
    let arms = Arms::builder().endpoint_serving::<Check>("judge", &url).build().unwrap();
    for round in 0..200 {
        let verdict = arms.call(check()).await.unwrap_or_else(|error| panic!("round {round}: {error}"));
        assert!(verdict.is_valid, "round {round}");
        close.send(()).unwrap();
        has_closed.recv().unwrap();
    }
    arms.call(check()).await.unwrap();
    drop(close);
    assert_eq!(server.join().unwrap(), 200, "each call was made once");
}

#[tokio::test(start_paused = true)]
async fn a_call_that_is_dropped_closes_its_connection() {
    let peer = Peer::arm(|_| async { Answer::Silence }).await;
    let arms = judge_within(&peer.url, usual());
    arms.cards().await;
    let call = tokio::spawn({
        let arms = arms.clone();
        async move { arms.call(check()).await }
    });
    until(|| peer.calls().len() == 1).await;
    assert_eq!(peer.open(), 1);
    call.abort();
    peer.until_open(0).await;
}
