//! Requests hidden in others, and callers that leave at any moment: what is hidden never runs, and every place comes back.

use std::{convert::Infallible, time::Duration};

use bytes::Bytes;
use futures_util::{future::join_all, stream};
use http::{Method, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use octollm_http::{Server, server::HttpBody};
use tokio::time::{sleep, timeout};
use tower::service_fn;

use crate::{
    arms::{Worker, server, start, worker},
    peer::{Peer, post},
    places::caller,
};

const HIDDEN: &str = "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 17\r\n\r\n{\"text\":\"hidden\"}";
const HEAD: &str = "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n";
const CHUNKS: &str = "d\r\n{\"text\":\"hi\"}\r\n0\r\n\r\n";

/// All that a server sends in answer to these bytes, until it closes the connection or has nothing more to say.
async fn all_answers(peer: Peer, bytes: &[u8]) -> String {
    let mut line = peer.connect().await;
    let _ = line.try_write(bytes).await;
    String::from_utf8(line.rest().await).unwrap()
}

/// Fields of a head, and the rest of the bytes, in which somebody may see another request.
fn framings() -> Vec<(&'static str, String)> {
    let in_chunks = |size: usize| format!("{size:x}\r\n{HIDDEN}\r\n0\r\n\r\n");
    vec![
        // Whatever one of the two lengths makes a body of, the other makes a request of.
        ("Content-Length: 4\r\nTransfer-Encoding: chunked\r\n", in_chunks(HIDDEN.len())),
        ("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", format!("0\r\n\r\n{HIDDEN}")),
        ("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", format!("0\r\n\r\n{HIDDEN}")),
        ("Content-Length: 0\r\nContent-Length: 10\r\n", HIDDEN.into()),
        ("Content-Length: 0, 0\r\n", HIDDEN.into()),
        ("Content-Length: -0\r\n", HIDDEN.into()),
        ("Content-Length: 0x0\r\n", HIDDEN.into()),
        ("Content-Length: \r\n", HIDDEN.into()),
        // Codings that somebody else may take for chunked, or not.
        ("Transfer-Encoding: xchunked\r\n", format!("0\r\n\r\n{HIDDEN}")),
        ("Transfer-Encoding: chunkedx\r\n", format!("0\r\n\r\n{HIDDEN}")),
        ("Transfer-Encoding: \"chunked\"\r\n", format!("0\r\n\r\n{HIDDEN}")),
        ("Transfer-Encoding: chunked, identity\r\n", format!("0\r\n\r\n{HIDDEN}")),
        ("Transfer-Encoding: identity, chunked\r\n", format!("0\r\n\r\n{HIDDEN}")),
        ("Transfer-Encoding: chunked, chunked\r\n", format!("0\r\n\r\n{HIDDEN}")),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", format!("0\r\n\r\n{HIDDEN}")),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n", format!("0\r\n\r\n{HIDDEN}")),
        ("Transfer-Encoding: \u{b}chunked\r\n", format!("0\r\n\r\n{HIDDEN}")),
        ("Transfer-Encoding : chunked\r\n", format!("0\r\n\r\n{HIDDEN}")),
        (" Transfer-Encoding: chunked\r\n", format!("0\r\n\r\n{HIDDEN}")),
        ("X: y\r\n Transfer-Encoding: chunked\r\n", format!("0\r\n\r\n{HIDDEN}")),
        ("Transfer-Encoding:\r\n chunked\r\n", format!("0\r\n\r\n{HIDDEN}")),
        ("Transfer_Encoding: chunked\r\nContent-Length: 99999\r\n", format!("0\r\n\r\n{HIDDEN}")),
        // Chunks whose end is not where they say.
        ("Transfer-Encoding: chunked\r\n", format!("-1\r\n{HIDDEN}")),
        ("Transfer-Encoding: chunked\r\n", format!("+0\r\n\r\n{HIDDEN}")),
        ("Transfer-Encoding: chunked\r\n", format!("0x0\r\n\r\n{HIDDEN}")),
        ("Transfer-Encoding: chunked\r\n", format!("0 0\r\n\r\n{HIDDEN}")),
        ("Transfer-Encoding: chunked\r\n", format!("0;\n\r\n\r\n{HIDDEN}")),
        ("Transfer-Encoding: chunked\r\n", format!("10000000000000000\r\n\r\n{HIDDEN}")),
        ("Transfer-Encoding: chunked\r\n", format!("2\r\n{{}}XX0\r\n\r\n{HIDDEN}")),
        ("Transfer-Encoding: chunked\r\n", format!("2\r\n{{}}0\r\n\r\n{HIDDEN}")),
        ("Transfer-Encoding: chunked\r\n", format!("0\r\nX: y\r\n z\r\n{HIDDEN}")),
    ]
}

async fn is_answered_once(peer: Peer, fields: &str, rest: &str) {
    let answers = all_answers(peer, format!("{HEAD}{fields}\r\n{rest}").as_bytes()).await;
    assert!(answers.starts_with("HTTP/1.1 "), "{fields:?} {rest:?}: {answers}");
    assert_eq!(answers.matches("HTTP/1.1 ").count(), 1, "{fields:?} {rest:?}: {answers}");
    assert!(!answers.contains("hidden"), "{fields:?} {rest:?}: {answers}");
}

#[tokio::test(start_paused = true)]
async fn a_request_hidden_by_its_framing_never_runs() {
    let peer = start(worker());
    for (fields, rest) in framings() {
        is_answered_once(peer, fields, &rest).await;
    }
}

#[tokio::test]
async fn a_request_hidden_by_its_framing_never_runs_over_a_socket_either() {
    let limit = Duration::from_millis(300);
    let server = worker().idle_timeout(limit).head_timeout(limit).body_timeout(limit);
    let server = server.bind("127.0.0.1:0").await.unwrap();
    let peer = Peer::Tcp(server.local_addr());
    tokio::spawn(server.run());
    let framings = framings();
    join_all(framings.iter().map(|(fields, rest)| is_answered_once(peer, fields, rest))).await;
}

#[tokio::test(start_paused = true)]
async fn a_request_hidden_in_a_body_that_nobody_reads_never_runs() {
    let peer = start(worker().route(Method::POST, "/early", service_fn(early)));
    let length = HIDDEN.len();
    for head in [
        "GET /health HTTP/1.1\r\nHost: x\r\n",
        "HEAD /health HTTP/1.1\r\nHost: x\r\n",
        "DELETE /nowhere HTTP/1.1\r\nHost: x\r\n",
        "POST /early HTTP/1.1\r\nHost: x\r\n",
        "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\n",
        "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nExpect: 200-ok\r\n",
        "POST /echo HTTP/1.1\r\nHost: x\r\nOctollm-Timeout: 0\r\nExpect: 100-continue\r\n",
        "POST /echo HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: h2c\r\n",
        "CONNECT x:80 HTTP/1.1\r\nHost: x\r\n",
        "BREW /echo HTTP/1.1\r\nHost: x\r\n",
    ] {
        for (fields, body) in [
            (format!("Content-Length: {length}\r\n"), HIDDEN.to_owned()),
            ("Transfer-Encoding: chunked\r\n".to_owned(), format!("{length:x}\r\n{HIDDEN}\r\n0\r\n\r\n")),
        ] {
            let bytes = format!("{head}{fields}\r\n{body}");
            let answers = all_answers(peer, bytes.as_bytes()).await;
            assert_eq!(answers.matches("HTTP/1.1 ").count(), 1, "{bytes}: {answers}");
            assert!(!answers.contains("hidden"), "{bytes}: {answers}");
        }
    }
    // Whoever says that this request is the last one has none answered after it.
    let last = format!("{HEAD}Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n{CHUNKS}{HIDDEN}");
    let answers = all_answers(peer, last.as_bytes()).await;
    assert!(answers.starts_with("HTTP/1.1 200") && !answers.contains("hidden"), "{answers}");
}

/// Answers without a look at the body.
async fn early(_: Request<HttpBody>) -> Result<Response<Full<Bytes>>, Infallible> {
    Ok(Response::new("early".into()))
}

/// Answers with a body that panics, fails or goes on for ever, as its path says.
async fn odd(request: Request<HttpBody>) -> Result<Response<StreamBody<Odd>>, Infallible> {
    let path = request.uri().path().to_owned();
    let pieces: Odd = Box::pin(stream::unfold(0, move |n| {
        let path = path.clone();
        async move {
            sleep(Duration::from_millis(1)).await;
            match &*path {
                "/panics" if n > 1 => panic!("a body panics"),
                "/fails" if n > 1 => Some((Err(std::io::Error::other("a body fails")), n)),
                "/empties" if n > 1 => None,
                _ => Some((Ok(Frame::data(Bytes::from_static(&[b'x'; 3000]))), n + 1)),
            }
        }
    }));
    Ok(Response::new(StreamBody::new(pieces)))
}

type Odd = std::pin::Pin<Box<dyn futures_util::Stream<Item = Result<Frame<Bytes>, std::io::Error>> + Send>>;

const PLACES: usize = 5;

fn crowded(worker: &Worker) -> Server {
    ["/panics", "/fails", "/empties", "/endless"]
        .into_iter()
        .fold(server(worker).max_in_flight(PLACES), |server, path| {
            server.route(Method::GET, path, service_fn(odd))
        })
}

#[tokio::test(start_paused = true)]
async fn every_place_comes_back_whenever_and_however_its_caller_leaves() {
    let worker = Worker::default();
    let peer = start(crowded(&worker));
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").into_bytes();
    let large = format!(r#"{{"text":"{}"}}"#, "a".repeat(200_000));
    let requests = [
        post("/wait", "", "{}"),
        post("/wait", "", r#"{"ms":3}"#),
        post("/echo", "", r#"{"text":"fail"}"#),
        post("/echo", "", &large),
        post("/v2/panic", "", "{}"),
        post("/wait", "Octollm-Timeout: 4\r\n", "{}"),
        b"HEAD /endless HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
        get("/panics"),
        get("/fails"),
        get("/empties"),
        get("/endless"),
    ];
    let mut random = random();
    for _ in 0..300 {
        let mut callers = Vec::new();
        for _ in 0..8 {
            let mut bytes = requests[random(requests.len())].clone();
            if random(4) == 0 {
                bytes.truncate(random(bytes.len()));
            }
            let (stays, reads) = (Duration::from_micros(random(8000) as u64), random(2) == 0);
            callers.push(async move {
                let mut line = peer.connect().await;
                let _ = timeout(stays, async {
                    let _ = line.try_write(&bytes).await;
                    match reads {
                        true => drop(line.rest().await),
                        false => std::future::pending().await,
                    }
                })
                .await;
            });
        }
        join_all(callers).await;
    }
    all_places_are_free(peer).await;
}

#[tokio::test(start_paused = true)]
async fn every_place_comes_back_whenever_a_stream_of_http2_is_reset() {
    let worker = Worker::default();
    let peer = start(crowded(&worker));
    let large = format!(r#"{{"text":"{}"}}"#, "a".repeat(200_000));
    let json = |path: &str, body: &str| {
        let request = Request::post(format!("http://x{path}")).header("content-type", "application/json");
        request.body(Full::from(body.to_owned())).unwrap()
    };
    let get = |path: &str| Request::get(format!("http://x{path}")).body(Full::default()).unwrap();
    let requests = [
        json("/wait", "{}"),
        json("/wait", r#"{"ms":3}"#),
        json("/echo", r#"{"text":"fail"}"#),
        json("/echo", r#"{"text":"a"}"#),
        json("/echo", &large),
        json("/v2/panic", "{}"),
        get("/panics"),
        get("/fails"),
        get("/empties"),
        get("/endless"),
    ];
    let mut random = random();
    for _ in 0..100 {
        let mut calls = caller(peer, [0, 500, 4_000, 65_535][random(4)]).await;
        let mut callers = Vec::new();
        for _ in 0..8 {
            let answer = calls.send_request(requests[random(requests.len())].clone());
            let (stays, reads) = (Duration::from_micros(random(8000) as u64), random(2) == 0);
            callers.push(timeout(stays, async move {
                let answer = answer.await;
                match (answer, reads) {
                    (Ok(answer), true) => drop(answer.into_body().collect().await),
                    (answer, _) => {
                        std::future::pending::<()>().await;
                        drop(answer);
                    }
                }
            }));
        }
        join_all(callers).await;
    }
    all_places_are_free(peer).await;
}

/// Numbers below a bound, the same in each run.
fn random() -> impl FnMut(usize) -> usize {
    let mut state = 88_172_645_463_325_252_u64;
    move |below| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below as u64) as usize
    }
}

async fn all_places_are_free(peer: Peer) {
    sleep(Duration::from_secs(1)).await;
    let mut held = Vec::new();
    for _ in 0..PLACES {
        let mut line = peer.connect().await;
        line.write(post("/wait", "", r#"{"ms":1000}"#)).await;
        held.push(line);
    }
    sleep(Duration::from_millis(1)).await;
    peer.post("/echo", "", r#"{"text":"a"}"#).await.is_problem(503, "overloaded");
    for mut line in held {
        assert_eq!(line.answer().await.status, 200);
    }
}
