//! HTTP/2 callers that do not read: what their answers hold is bounded, in room and in time.

use std::{convert::Infallible, time::Duration};

use bytes::Bytes;
use futures_util::stream;
use http::{Method, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use octollm_http::{Server, server::HttpBody};
use tokio::time::{Instant, sleep};
use tower::{layer::layer_fn, service_fn};

use crate::{
    arms::{start, start_with, worker},
    peer::{Line, Peer},
};

const ECHO: &str = r#"{"text":"a"}"#;

fn large() -> Bytes {
    format!(r#"{{"text":"{}"}}"#, "a".repeat(1_000_000)).into()
}

/// A caller with a window of so many bytes, which answers pings.
pub(crate) async fn caller(peer: Peer, window: u32) -> http2::SendRequest<Full<Bytes>> {
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder.timer(TokioTimer::new()).initial_stream_window_size(window).adaptive_window(false);
    let (calls, connection) = builder.handshake(TokioIo::new(peer.stream().await)).await.unwrap();
    tokio::spawn(connection);
    calls
}

fn echo(body: Bytes) -> Request<Full<Bytes>> {
    let request = Request::post("http://x/echo").header("content-type", "application/json");
    request.body(Full::new(body)).unwrap()
}

#[tokio::test(start_paused = true)]
async fn answers_that_nobody_takes_hold_their_places_and_are_given_up() {
    let (peer, _) = start_with(|server| server.max_in_flight(4));
    for window in [0, 1, 40_000] {
        let mut calls = caller(peer, window).await;
        let mut answers = Vec::new();
        for _ in 0..4 {
            answers.push(calls.send_request(echo(large())).await.unwrap());
        }
        assert!(answers.iter().all(|answer| answer.status() == StatusCode::OK));
        sleep(Duration::from_secs(25)).await;
        peer.post("/echo", "", ECHO).await.is_problem(503, "overloaded");
        sleep(Duration::from_secs(10)).await;
        assert_eq!(peer.post("/echo", "", ECHO).await.status, 200, "window {window}");
        for answer in answers {
            assert!(answer.into_body().collect().await.is_err(), "was reset");
        }
        // The connection is none the worse for it.
        if window == 40_000 {
            assert_eq!(calls.send_request(echo(ECHO.into())).await.unwrap().status(), StatusCode::OK);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_reader_gets_all_of_it() {
    let (peer, _) = start_with(|server| server.max_in_flight(1));
    let mut calls = caller(peer, 100_000).await;
    let answer = calls.send_request(echo(large())).await.unwrap();
    let (mut body, mut bytes, begun) = (answer.into_body(), 0, Instant::now());
    while let Some(frame) = body.frame().await {
        bytes += frame.unwrap().into_data().unwrap().len();
        sleep(Duration::from_secs(2)).await;
    }
    assert_eq!(bytes, 1_000_000 + r#"{"text":"","caller":null}"#.len());
    assert!(begun.elapsed() > Duration::from_secs(60), "slower than any limit on the whole");
    assert_eq!(peer.post("/echo", "", ECHO).await.status, 200);
}

#[tokio::test(start_paused = true)]
async fn a_connection_without_streams_rests_for_thirty_seconds() {
    let (peer, _) = start_with(|server| server);
    let mut calls = caller(peer, 100_000).await;
    for _ in 0..3 {
        sleep(Duration::from_secs(28)).await;
        let answer = calls.send_request(echo(ECHO.into())).await.unwrap();
        answer.into_body().collect().await.unwrap();
    }
    let wait = Request::post("http://x/wait").header("content-type", "application/json");
    let answer = calls.send_request(wait.body(Full::from(r#"{"ms":50000}"#)).unwrap()).await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK, "work is no rest");
    answer.into_body().collect().await.unwrap();
    let begun = Instant::now();
    while calls.ready().await.is_ok() {
        sleep(Duration::from_secs(1)).await;
    }
    assert!((30..=32).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());

    // One that opens with the preface and says nothing more has no longer.
    let mut line: Line = peer.connect().await;
    line.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
    let begun = Instant::now();
    line.rest().await;
    assert!(begun.elapsed() <= Duration::from_secs(60), "{:?}", begun.elapsed());
}

/// Answers with so many pieces, one after each pause.
fn pieces(count: usize, pause: Duration) -> Server {
    let route = service_fn(move |_: Request<HttpBody>| async move {
        let pieces = stream::unfold(0, move |n| async move {
            sleep(pause).await;
            (n < count).then(|| (Ok::<_, Infallible>(Frame::data(Bytes::from_static(&[b'x'; 20]))), n + 1))
        });
        Ok::<_, Infallible>(Response::new(StreamBody::new(pieces)))
    });
    worker().max_in_flight(1).route(Method::GET, "/pieces", route)
}

fn get() -> Request<Full<Bytes>> {
    Request::get("http://x/pieces").body(Full::default()).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_stream_of_pieces_may_take_its_time_on_both_sides() {
    // A slow reader of many, and a patient one of few: the source rests for longer than any write may.
    for (count, pause, window, wait) in [(10_000, 0, 1_000, 10), (5, 100_000, 65_535, 0)] {
        let peer = start(pieces(count, Duration::from_millis(pause)));
        let mut calls = caller(peer, window).await;
        let (mut body, mut bytes) = (calls.send_request(get()).await.unwrap().into_body(), 0);
        while let Some(frame) = body.frame().await {
            bytes += frame.unwrap().into_data().unwrap().len();
            sleep(Duration::from_millis(wait)).await;
            if bytes == count / 5 * 20 {
                peer.post("/echo", "", ECHO).await.is_problem(503, "overloaded");
            }
        }
        assert_eq!(bytes, count * 20);
        sleep(Duration::from_millis(1)).await;
        assert_eq!(peer.post("/echo", "", ECHO).await.status, 200);
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_nobody_reads_is_reset() {
    let peer = start(pieces(10_000, Duration::ZERO));
    let mut calls = caller(peer, 1_000).await;
    let answer = calls.send_request(get()).await.unwrap();
    sleep(Duration::from_secs(29)).await;
    peer.post("/echo", "", ECHO).await.is_problem(503, "overloaded");
    sleep(Duration::from_secs(2)).await;
    assert_eq!(peer.post("/echo", "", ECHO).await.status, 200);
    assert!(answer.into_body().collect().await.is_err());
}

#[tokio::test(start_paused = true)]
async fn answers_of_any_size_and_through_layers_are_given_up_while_their_connection_is_in_use() {
    let whole = || {
        service_fn(async |_: Request<HttpBody>| {
            Ok::<_, Infallible>(Response::new(Full::from(vec![b'x'; 1_000_000])))
        })
    };
    let plain = || worker().max_in_flight(5).route(Method::GET, "/whole", whole());
    let medium = Bytes::from(format!(r#"{{"text":"{}"}}"#, "a".repeat(10_000)));
    let whole = Request::get("http://x/whole").body(Full::default()).unwrap();
    for layered in [false, true] {
        for request in [echo(medium.clone()), echo(large()), whole.clone()] {
            let peer = start(if layered { plain().layer(layer_fn(|inner| inner)) } else { plain() });
            let mut calls = caller(peer, 1).await;
            let wait = Request::post("http://x/wait").header("content-type", "application/json");
            let _busy = calls.send_request(wait.body(Full::from("{}")).unwrap());
            let mut answers = Vec::new();
            for _ in 0..4 {
                answers.push(calls.send_request(request.clone()).await.unwrap());
            }
            sleep(Duration::from_secs(25)).await;
            peer.post("/echo", "", ECHO).await.is_problem(503, "overloaded");
            sleep(Duration::from_secs(10)).await;
            assert_eq!(peer.post("/echo", "", ECHO).await.status, 200, "layered {layered} {request:?}");
            for answer in answers {
                assert!(answer.into_body().collect().await.is_err(), "was reset");
            }
        }
    }
}

/// Breaks so many rules that the problem is a long one.
fn invalid() -> Request<Full<Bytes>> {
    let unknown: Vec<_> = (0..100).map(|n| format!(r#""{n}{}":0"#, "k".repeat(900))).collect();
    echo(format!(r#"{{"text":"a",{}}}"#, unknown.join(",")).into())
}

#[tokio::test(start_paused = true)]
async fn problems_that_nobody_takes_hold_their_places_too() {
    let (peer, _) = start_with(|server| server.max_in_flight(4));
    let mut calls = caller(peer, 0).await;
    let mut answers = Vec::new();
    for _ in 0..4 {
        answers.push(calls.send_request(invalid()).await.unwrap());
    }
    assert!(answers.iter().all(|answer| answer.status() == StatusCode::UNPROCESSABLE_ENTITY));
    sleep(Duration::from_secs(25)).await;
    peer.post("/echo", "", ECHO).await.is_problem(503, "overloaded");
    sleep(Duration::from_secs(10)).await;
    assert_eq!(peer.post("/echo", "", ECHO).await.status, 200);
}

#[tokio::test(start_paused = true)]
async fn documents_that_nobody_takes_are_bounded_and_cost_no_work_its_place() {
    let (peer, _) = start_with(|server| server.max_in_flight(4));
    let mut calls = caller(peer, 0).await;
    let mut answers = Vec::new();
    for path in ["/capabilities", "/openapi.json", "/capabilities", "/openapi.json"] {
        let request = Request::get(format!("http://x{path}")).body(Full::default()).unwrap();
        answers.push(calls.send_request(request).await.unwrap());
    }
    peer.get("/capabilities").await.is_problem(503, "overloaded");
    assert_eq!(peer.post("/echo", "", ECHO).await.status, 200);
    assert_eq!((peer.get("/health").await.status, peer.get("/ready").await.status), (200, 200));
    sleep(Duration::from_secs(35)).await;
    assert_eq!(peer.get("/capabilities").await.status, 200);
}
