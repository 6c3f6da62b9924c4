//! Servers that lie about their answers: what one call is sent never answers another, and an answer that is there is read.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use octollm_core::error::ErrorKind;
use octollm_http::{client::Arms, io::Acceptor, wire::Problem};
use octollm_macros::TaskContract;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    time::Instant,
};

use crate::peer::{
    Answer, Check, Peer, Verdict, arms, check, judge, judge_within, network, unused_host, usual,
};

const TRUE: &str = "{\"is_valid\":true}";
const FORGED: &str =
    "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 18\r\n\r\n{\"is_valid\":false}";

#[tokio::test(start_paused = true)]
async fn an_answer_that_nobody_asked_for_answers_no_later_call() {
    let typed = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n";
    let chunked = format!("{typed}transfer-encoding: chunked\r\n");
    for first in [
        format!("{typed}content-length: 17\r\n\r\n{TRUE}{FORGED}"),
        format!("{typed}content-length: 17\r\n\r\n{TRUE}\r\n{FORGED}"),
        format!("{typed}content-length: 17\r\n\r\n{TRUE}HTTP/1.1 100 Continue\r\n\r\n"),
        format!("{chunked}\r\n11\r\n{TRUE}\r\n0\r\n\r\n{FORGED}"),
        format!("{chunked}content-length: 1\r\n\r\n11\r\n{TRUE}\r\n0\r\n\r\n{FORGED}"),
        format!("{chunked}\r\n11\r\n{TRUE}\r\n0\r\nx: y\r\n\r\n{FORGED}"),
        format!("{typed}content-length: 17\r\ncontent-length: 18\r\n\r\n{TRUE}{FORGED}"),
        format!("{typed}content-length: 0\r\n\r\n{FORGED}"),
        format!("HTTP/1.1 204 No Content\r\ncontent-length: 5\r\n\r\n{FORGED}"),
        format!("HTTP/1.1 304 Not Modified\r\n\r\n{FORGED}"),
        format!("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n{FORGED}"),
        format!("HTTP/1.1 503 X\r\ncontent-length: 0\r\n\r\n{FORGED}"),
    ] {
        let answer = first.clone();
        let peer = Peer::arm(move |request| {
            let answer = Answer::Raw(answer.clone().into_bytes());
            std::future::ready(if request.body.ends_with(b"first\"}") { answer } else { Answer::verdict() })
        })
        .await;
        let arms = judge(&peer.url);
        let answered = arms.call(Check { code: "first".into() }).await;
        assert_ne!(answered.ok(), Some(Verdict { is_valid: false }), "{first}");
        for _ in 0..3 {
            assert_eq!(arms.call(check()).await.unwrap(), Verdict { is_valid: true }, "{first}");
        }
    }
}

/// Answers each connection as soon as the head of a request is there, without a look at its body, and closes it.
fn hasty<A: Acceptor<Io: AsyncRead + AsyncWrite>>(mut acceptor: A, answer: &'static str) {
    tokio::spawn(async move {
        while let Ok(opening) = acceptor.accept().await {
            tokio::spawn(async move {
                let (mut socket, _) = opening.await.unwrap();
                let mut seen = Vec::new();
                while !seen.windows(4).any(|bytes| bytes == b"\r\n\r\n") {
                    socket.read_buf(&mut seen).await.unwrap();
                }
                socket.write_all(answer.as_bytes()).await.unwrap();
            });
        }
    });
}

const TOO_LARGE: &str = "HTTP/1.1 413 X\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: 21\r\n\r\n{\"error\":\"too large\"}\n";

fn large() -> Check {
    Check { code: "x".repeat(2 << 20) }
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_comes_before_the_request_is_sent_is_read() {
    let host = unused_host();
    hasty(network().listen(&host).unwrap(), TOO_LARGE);
    let arms = arms().endpoint_serving::<Check>("judge", format!("http://{host}")).build().unwrap();
    let error = arms.call(large()).await.unwrap_err();
    assert_eq!((error.kind(), error.may_have_executed()), (ErrorKind::PayloadTooLarge, false), "{error:?}");
    assert_eq!(error.failure().message, "too large");
}

#[tokio::test]
async fn an_answer_that_comes_before_the_request_is_sent_is_read_from_a_socket_that_was_reset() {
    let acceptor = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", acceptor.local_addr().unwrap());
    hasty(acceptor, TOO_LARGE);
    let arms = Arms::builder().endpoint_serving::<Check>("judge", url).build().unwrap();
    for _ in 0..5 {
        let error = arms.call(large()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::PayloadTooLarge, "{error:?}");
        assert!(!error.may_have_executed());
    }
}

#[tokio::test(start_paused = true)]
async fn each_phase_of_a_call_ends_at_the_deadline() {
    let limit = Duration::from_millis(50);
    let half = b"HTTP/1.1 200 OK\r\ncontent-length: 40\r\n\r\n{".to_vec();
    let layered = Arc::new(AtomicUsize::new(0));
    for layers in [false, true] {
        for (answer, executed) in [(Answer::Silence, true), (Answer::Raw(half.clone()), true)] {
            let peer = Peer::arm(move |_| std::future::ready(answer.clone())).await;
            let counted = Arc::clone(&layered);
            let mut builder =
                usual().max_connections(1).max_idle(1).endpoint_serving::<Check>("judge", &peer.url);
            if layers {
                builder = builder.endpoint_layer(tower::layer::layer_fn(move |inner| {
                    counted.fetch_add(1, Ordering::Relaxed);
                    inner
                }));
                builder = builder.layer(tower::layer::layer_fn(|inner| inner));
                builder = builder.request_layer(tower::layer::layer_fn(|inner| inner));
            }
            let arms = builder.build().unwrap();
            let begun = Instant::now();
            let (first, waiting) =
                tokio::join!(arms.within(limit).call(check()), arms.within(limit).call(check()));
            assert_eq!(begun.elapsed().as_millis() / 10, 5, "{:?}", begun.elapsed());
            let (first, waiting) = (first.unwrap_err(), waiting.unwrap_err());
            assert_eq!((first.kind(), first.may_have_executed()), (ErrorKind::DeadlineExceeded, executed));
            // Nothing was sent for the one that waited for a connection.
            assert_eq!(waiting.kind(), ErrorKind::DeadlineExceeded);
            assert!(!waiting.may_have_executed(), "layers {layers}");
            peer.until_open(0).await;
        }
    }
    assert_eq!(layered.load(Ordering::Relaxed), 2);
    // While its card is asked for, nothing was sent either.
    let peer = Peer::start(|_| std::future::ready(Answer::Silence)).await;
    let error = judge_within(&peer.url, arms()).within(limit).call(check()).await.unwrap_err();
    assert_eq!((error.kind(), error.may_have_executed()), (ErrorKind::DeadlineExceeded, false));
}

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "code.look", output = Verdict, idempotent)]
struct Look {}

#[tokio::test(start_paused = true)]
async fn numbers_without_measure_end_a_call_and_nothing_more() {
    let most = u64::MAX;
    let problem = format!(r#"{{"status":503,"code":"overloaded","retryable":true,"retry_after":{most}}}"#);
    let wait = format!("HTTP/1.1 503 X\r\nretry-after: {most}\r\ncontent-length: 0\r\n\r\n");
    let stated = format!("HTTP/1.1 503 X\r\ncontent-length: {}\r\n\r\n{problem}", problem.len());
    let usage =
        format!("tokens={most};cost_usd=1e300;input={most};output={most};cached={most};unmetered={most}");
    let spent = format!("HTTP/1.1 500 X\r\noctollm-usage: {usage}\r\ncontent-length: 0\r\n\r\n");
    for (answer, kind) in
        [(wait, ErrorKind::Unavailable), (stated, ErrorKind::Overloaded), (spent, ErrorKind::ArmFailed)]
    {
        let bytes = answer.clone().into_bytes();
        let peer = Peer::start(move |_| std::future::ready(Answer::Raw(bytes.clone()))).await;
        let arms = arms().endpoint_serving::<Look>("judge", &peer.url).build().unwrap();
        let cx = arms.within(Duration::from_secs(20));
        let begun = Instant::now();
        for _ in 0..2 {
            let error = cx.call(Look {}).retry(2).await.unwrap_err();
            assert_eq!(error.kind(), kind, "{answer}");
            // What is passed on is as large as it was, and can be written.
            let written = http::Response::<bytes::Bytes>::from(Problem::from(error));
            assert!(written.status().is_server_error());
        }
        assert_eq!((begun.elapsed(), peer.calls().len()), (Duration::ZERO, 2), "{answer}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_very_large_problem_is_truncated() {
    let long = "x".repeat(3 << 20);
    let violations: Vec<_> =
        (0..20_000).map(|n| json!({ "path": format!("a[{n}]"), "message": long[..20] })).collect();
    let details = json!({ "violations": violations });
    for code in ["arm_failed", "validation_failed"] {
        let body =
            json!({ "status": 500, "code": code, "detail": long, "message": long, "details": details });
        let peer = Peer::arm(move |_| std::future::ready(Answer::Json(500, body.clone()))).await;
        let error = judge(&peer.url).call(check()).await.unwrap_err();
        assert!(error.failure().message.len() <= 2048, "{}", error.failure().message.len());
        assert!(error.failure().violations.len() <= 100);
    }
}

#[tokio::test(start_paused = true)]
async fn a_problem_too_large_to_be_read_counts_by_its_status() {
    // The limit, and a byte more: the first is read, and says that the work has not run.
    for (length, kind, executed) in
        [(256 << 10, ErrorKind::Overloaded, false), ((256 << 10) + 1, ErrorKind::ArmFailed, true)]
    {
        let body = |padding: usize| {
            let values = "x".repeat(padding);
            format!(
                r#"{{"status":503,"code":"overloaded","may_have_executed":false,"details":{{"x":"{values}"}}}}"#
            )
        };
        let bytes = body(length - body(0).len());
        let answer = format!("HTTP/1.1 500 X\r\ncontent-length: {length}\r\n\r\n{bytes}");
        let peer = Peer::arm(move |_| std::future::ready(Answer::Raw(answer.clone().into_bytes()))).await;
        let error = judge(&peer.url).call(check()).await.unwrap_err();
        assert_eq!((error.kind(), error.may_have_executed()), (kind, executed), "{length}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_card_too_large_to_be_read_offers_nothing() {
    for (length, offers) in [(1 << 20, true), ((1 << 20) + 1, false)] {
        let padded = |padding: usize| {
            let mut card = crate::peer::card("judge");
            card.description = "x".repeat(padding);
            card
        };
        let bare = serde_json::to_string(&padded(0)).unwrap().len();
        let peer = Peer::with_card(padded(length - bare), |_| async { Answer::verdict() }).await;
        let answer = judge(&peer.url).call(check()).await;
        assert_eq!(answer.is_ok(), offers, "{answer:?}");
        if let Err(error) = answer {
            assert_eq!((error.kind(), error.may_have_executed()), (ErrorKind::Unreachable, false));
            assert!(error.to_string().contains("its card is larger than 1 MiB"), "{error}");
        }
    }
}
