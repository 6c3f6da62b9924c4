use std::{convert::Infallible, time::Duration};

use axum::{Router, response::sse, routing};
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use octollm_core::{Context, error::ErrorKind};
use octollm_http::RestClient;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::{answers, client, lost, ok, with};
use crate::peer::{Answer, Peer, Received, until};

fn chunked(media_type: &str, chunks: &[&str], whole: bool) -> Vec<u8> {
    let mut answer =
        format!("HTTP/1.1 200 X\r\ncontent-type: {media_type}\r\ntransfer-encoding: chunked\r\n\r\n");
    for chunk in chunks {
        answer += &format!("{:x}\r\n{chunk}\r\n", chunk.len());
    }
    if whole {
        answer += "0\r\n\r\n";
    }
    answer.into_bytes()
}

const EVENTS: &str = "text/event-stream; charset=utf-8";

#[tokio::test(start_paused = true)]
async fn events_arrive_one_by_one() {
    let pieces = ["id: 1\ndata: a", "\n\nevent: x\nda", "ta: b\n\n: ping\n\ndata: [DONE]\n\n"];
    let peer = answers(vec![Answer::Raw(chunked(EVENTS, &pieces, true)), ok()]).await;
    let memory = client(&peer).build().unwrap();
    let events = memory.post("chat").json(&json!({})).events().await.unwrap();
    let events: Vec<_> = events.try_collect().await.unwrap();
    let read: Vec<_> = events.iter().map(|event| (&*event.id, &*event.event, &*event.data)).collect();
    assert_eq!(read, [("1", "message", "a"), ("1", "x", "b"), ("1", "message", "[DONE]")]);
    assert_eq!(peer.calls()[0].header("accept"), Some("text/event-stream"));
    // The connection is free again.
    memory.get("x").send::<Value>().await.unwrap();
    assert_eq!(peer.accepted(), 1);
}

#[tokio::test(start_paused = true)]
async fn events_that_are_cut_end_with_one_error_and_no_retry() {
    let cut = Answer::Last(chunked(EVENTS, &["data: a\n\nda"], false));
    let peer = answers(vec![cut, ok()]).await;
    let memory = client(&peer).build().unwrap();
    let mut events = memory.get("chat").events().await.unwrap();
    assert_eq!(events.next().await.unwrap().unwrap().data, "a");
    let error = events.next().await.unwrap().unwrap_err();
    assert_eq!((error.kind(), error.may_have_executed()), (ErrorKind::ConnectionLost, true));
    assert!(events.next().await.is_none());
    assert_eq!(peer.calls().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_stream_is_tried_again_until_it_begins() {
    let whole = Answer::Raw(chunked(EVENTS, &["data: a\n\n"], true));
    let peer = answers(vec![Answer::Json(503, json!({ "error": "soon" })), lost(), whole.clone()]).await;
    let memory = client(&peer).build().unwrap();
    let events: Vec<_> = memory.get("chat").events().await.unwrap().try_collect().await.unwrap();
    assert_eq!((events.len(), peer.calls().len()), (1, 3));

    let peer = answers(vec![Answer::Json(503, json!({ "error": "soon" })), whole]).await;
    let memory = client(&peer).build().unwrap();
    let error = memory.post("chat").json(&1).events().await.err().unwrap();
    assert_eq!(
        (error.kind(), error.to_string()),
        (ErrorKind::Unavailable, "memory.post: answered 503: soon".into())
    );
    memory.post("chat").json(&1).key("k").events().await.map(drop).unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_no_events_is_a_bad_response() {
    let peer = answers(vec![ok()]).await;
    let memory = client(&peer).build().unwrap();
    let error = memory.get("chat").events().await.err().unwrap();
    assert_eq!(error.kind(), ErrorKind::BadResponse);
    let large = "x".repeat((1 << 20) + 1);
    let peer = answers(vec![Answer::Raw(chunked(EVENTS, &["data: a\n\n", &large], true))]).await;
    let memory = client(&peer).build().unwrap();
    let mut events = memory.get("chat").events().await.unwrap();
    assert_eq!(events.next().await.unwrap().unwrap().data, "a");
    assert_eq!(events.next().await.unwrap().unwrap_err().kind(), ErrorKind::BadResponse);
    assert!(events.next().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn an_answer_in_a_coding_that_was_not_asked_for_is_a_bad_response() {
    let coded = |status: u16, coding: &str| {
        with(status, &[("content-encoding", coding), ("x-coded", "1")], &json!("not what it says"))
    };
    let events = |coding: &str| {
        let answer = String::from_utf8(chunked(EVENTS, &["data: a\n\n"], true)).unwrap();
        Answer::Raw(answer.replacen("\r\n", &format!("\r\ncontent-encoding: {coding}\r\n"), 1).into_bytes())
    };
    let peer = answers(vec![
        coded(200, "gzip"),
        coded(200, "br"),
        events("gzip"),
        coded(401, "gzip"),
        events("identity"),
    ])
    .await;
    let memory = client(&peer).build().unwrap();
    for error in [
        memory.get("x").send::<Value>().await.unwrap_err(),
        memory.get("x").stream().await.err().unwrap(),
        memory.get("x").events().await.err().unwrap(),
    ] {
        assert_eq!(error.kind(), ErrorKind::BadResponse);
        assert!(error.to_string().contains("content coding"), "{error}");
    }
    let error = memory.get("x").events().await.err().unwrap();
    assert_eq!(error.to_string(), "memory.get: answered 401 Unauthorized");
    let events: Vec<_> = memory.get("x").events().await.unwrap().try_collect().await.unwrap();
    assert_eq!(events.len(), 1);
    assert!(peer.calls().iter().all(|sent| sent.header("accept-encoding").is_none()));
}

#[tokio::test(start_paused = true)]
async fn a_stream_outlives_the_limit_of_its_head_but_no_limit_of_its_own() {
    let peer = answers(vec![Answer::Raw(chunked(EVENTS, &["data: a\n\n"], false))]).await;
    let memory = client(&peer).read_idle(Duration::from_secs(100)).build().unwrap();
    let begun = Instant::now();
    let mut events = memory.get("chat").events().await.unwrap();
    events.next().await.unwrap().unwrap();
    let error = events.next().await.unwrap().unwrap_err();
    assert_eq!((error.kind(), begun.elapsed().as_secs()), (ErrorKind::Timeout, 100));

    let begun = Instant::now();
    let mut events = memory.get("chat").within(Duration::from_secs(7)).events().await.unwrap();
    events.next().await.unwrap().unwrap();
    let error = events.next().await.unwrap().unwrap_err();
    assert_eq!((error.kind(), begun.elapsed().as_secs()), (ErrorKind::DeadlineExceeded, 7));
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_is_read_more_slowly_than_it_arrives_ends_at_its_limit_too() {
    let peer = answers(vec![Answer::Raw(chunked(EVENTS, &["data: a\n\n"; 100], true)), ok()]).await;
    let memory = client(&peer).build().unwrap();
    let mut events = memory.get("chat").within(Duration::from_secs(2)).events().await.unwrap();
    let begun = Instant::now();
    let error = loop {
        sleep(Duration::from_millis(100)).await;
        match events.next().await.expect("it does not end as if it were whole") {
            Ok(_) => assert!(begun.elapsed() < Duration::from_secs(3)),
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
    assert!(events.next().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn cancelling_and_dropping_end_a_stream_and_its_connection() {
    let peer = answers(vec![Answer::Raw(chunked(EVENTS, &["data: a\n\n"], false))]).await;
    let memory = client(&peer).build().unwrap();
    let token = tokio_util::sync::CancellationToken::new();
    let cx = Context::detached().with_cancellation(token.clone());
    let mut events = memory.get("chat").within_context(&cx).events().await.unwrap();
    events.next().await.unwrap().unwrap();
    token.cancel();
    assert_eq!(events.next().await.unwrap().unwrap_err().kind(), ErrorKind::Cancelled);
    assert!(events.next().await.is_none());
    peer.until_open(0).await;

    let mut events = memory.get("chat").events().await.unwrap();
    events.next().await.unwrap().unwrap();
    assert_eq!(peer.open(), 1);
    drop(events);
    peer.until_open(0).await;
}

#[tokio::test(start_paused = true)]
async fn a_request_layer_sees_what_streams_with_empty_bodies() {
    let peer = answers(vec![Answer::Raw(chunked(EVENTS, &["data: a\n\n"], true)), ok()]).await;
    let sign = tower::util::MapRequestLayer::new(|mut request: http::Request<Bytes>| {
        let length = request.body().len();
        request.headers_mut().insert("x-signed", length.into());
        request
    });
    let memory = client(&peer).request_layer(sign).build().unwrap();
    let events: Vec<_> = memory.post("chat").json(&"ab").events().await.unwrap().try_collect().await.unwrap();
    assert_eq!((events.len(), peer.calls()[0].header("x-signed")), (1, Some("4")));
    assert_eq!(peer.calls()[0].body, b"\"ab\"");
    memory.get("x").send::<Value>().await.unwrap();
}

/// A piece of an answer of a model that speaks as many do.
#[derive(serde::Deserialize)]
struct Chunk {
    choices: Vec<Choice>,
}

#[derive(serde::Deserialize)]
struct Choice {
    delta: Delta,
}

#[derive(serde::Deserialize)]
struct Delta {
    content: Option<String>,
}

/// A model that answers these in turn, the last one for ever, each after as many seconds.
async fn model(script: Vec<(u64, Answer)>) -> (RestClient, Peer) {
    let count = std::sync::atomic::AtomicUsize::new(0);
    let peer = Peer::start(move |_| {
        let at = count.fetch_add(1, std::sync::atomic::Ordering::SeqCst).min(script.len() - 1);
        let (wait, answer) = script[at].clone();
        async move {
            sleep(Duration::from_secs(wait)).await;
            answer
        }
    })
    .await;
    (client(&peer).name("model").build().unwrap(), peer)
}

/// The words that arrive, and how the stream ended.
async fn words(request: octollm_http::client::RestRequest) -> (String, Option<ErrorKind>) {
    let mut events = match request.events().await {
        Ok(events) => events,
        Err(error) => return (String::new(), Some(error.kind())),
    };
    let mut words = String::new();
    loop {
        match events.try_next().await {
            Ok(Some(event)) if event.data == "[DONE]" => return (words, None),
            Ok(Some(event)) => {
                let chunk: Chunk = event.json().unwrap();
                words += chunk.choices[0].delta.content.as_deref().unwrap_or_default();
            }
            Ok(None) => return (words, None),
            Err(error) => return (words, Some(error.kind())),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_model_that_limits_fails_is_slow_and_breaks_off() {
    let piece =
        |text: &str| format!("data: {}\n\n", json!({ "choices": [{ "delta": { "content": text } }] }));
    let (hel, lo) = (piece("Hel"), piece("lo"));
    let pieces = [&*hel, &lo, "data: [DONE]\n\n"];
    let whole = || Answer::Raw(chunked(EVENTS, &pieces, true));
    let cut = Answer::Last(chunked(EVENTS, &pieces[..1], false));
    let error = |status| {
        Answer::Json(status, json!({ "error": { "message": "no", "type": "server_error", "code": null } }))
    };
    let spent = [("x-ratelimit-remaining-tokens", "0"), ("x-ratelimit-reset-tokens", "7s")];
    let limited = with(429, &spent, &json!({ "error": { "message": "slow down" } }));
    let hello = || (String::from("Hello"), None);
    let chat = |model: &RestClient| model.post("chat/completions").json(&json!({ "stream": true }));

    // It waits for the reset of the limit, and is sent again, without a key.
    let (limiting, peer) = model(vec![(0, limited), (0, whole())]).await;
    let begun = Instant::now();
    assert_eq!(words(chat(&limiting)).await, hello());
    assert_eq!((begun.elapsed().as_secs(), peer.calls().len()), (7, 2));

    // A failure of the model is sent again where the request allows that: a gateway's, and not its own.
    let (failing, peer) = model(vec![(0, error(502)), (0, whole())]).await;
    assert_eq!(words(chat(&failing)).await, (String::new(), Some(ErrorKind::UpstreamFailed)));
    assert_eq!(peer.calls().len(), 1);
    let (again, peer) = model(vec![(0, error(502)), (0, error(504)), (0, whole())]).await;
    assert_eq!((words(chat(&again).idempotent()).await, peer.calls().len()), (hello(), 3));
    let (failing, peer) = model(vec![(0, error(500))]).await;
    let failure = chat(&failing).idempotent().send::<Value>().await.unwrap_err();
    assert_eq!((failure.kind(), peer.calls().len()), (ErrorKind::ArmFailed, 1));
    assert_eq!(failure.failure().details, Some(json!({ "status": 500, "code": "server_error" })));

    // A stream that breaks off ends with an error, after what has arrived.
    let (broken, peer) = model(vec![(0, cut)]).await;
    assert_eq!(words(chat(&broken).idempotent()).await, ("Hel".into(), Some(ErrorKind::ConnectionLost)));
    assert_eq!(peer.calls().len(), 1);

    // The time of the request is what the first byte may take, also beyond `read_idle` and the time of the client.
    let (slow, _) = model(vec![(60, whole())]).await;
    assert_eq!(words(chat(&slow).within(Duration::from_secs(90))).await, hello());
    let (slow, _) = model(vec![(60, ok())]).await;
    chat(&slow).within(Duration::from_secs(90)).send::<Value>().await.unwrap();
    let (slow, _) = model(vec![(60, whole())]).await;
    let begun = Instant::now();
    assert_eq!(words(chat(&slow)).await.1, Some(ErrorKind::Timeout));
    assert_eq!(begun.elapsed().as_secs(), 5, "`read_idle` of this client");
}

/// A service of axum, on a port of the system.
async fn service() -> RestClient {
    let app = Router::new()
        .route(
            "/v1/count",
            routing::post(|body: axum::body::Body| async move {
                let size =
                    body.into_data_stream().try_fold(0, |sum, piece| async move { Ok(sum + piece.len()) });
                ([("content-type", "application/json")], size.await.unwrap().to_string())
            }),
        )
        .route(
            "/v1/chat",
            routing::get(|| async {
                let events = stream::iter(0..100).then(|number| async move {
                    sleep(Duration::from_millis(1)).await;
                    Ok::<_, Infallible>(
                        sse::Event::default().id(number.to_string()).data(format!("a\nb {number}")),
                    )
                });
                sse::Sse::new(events)
            }),
        )
        .route("/v1/moved", routing::put(|| async { axum::response::Redirect::temporary("/v1/count") }))
        .route("/v1/file", routing::get(|| async { vec![7_u8; 20 << 20] }));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/v1", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, app).await });
    RestClient::builder(url).bearer("secret").build().unwrap()
}

#[tokio::test]
async fn bodies_stream_in_both_directions_with_a_real_service() {
    let memory = service().await;
    let pieces = stream::iter((0..300).map(|_| Ok::<_, Infallible>(Bytes::from(vec![0; 10_000]))));
    let counted: usize = memory.post("count").body(pieces).send().await.unwrap();
    assert_eq!(counted, 3_000_000);
    let file = memory.get("file").stream().await.unwrap();
    let size = file.try_fold(0, |sum, piece| async move { Ok(sum + piece.len()) }).await.unwrap();
    assert_eq!(size, 20 << 20, "a stream may be larger than `max_answer`");
    let events: Vec<_> = memory.get("chat").events().await.unwrap().try_collect().await.unwrap();
    assert_eq!((events.len(), &*events[99].data, &*events[99].id), (100, "a\nb 99", "99"));
}

#[tokio::test]
async fn a_body_that_streams_is_not_sent_again_by_a_redirect() {
    let memory = service().await;
    let body = stream::iter([Ok::<_, Infallible>(Bytes::from_static(b"a"))]);
    let error = memory.put("moved").body(body).send::<Value>().await.unwrap_err();
    assert_eq!((error.kind(), error.attempts()), (ErrorKind::BadResponse, 1), "{error}");
    assert_eq!(error.failure().details, Some(json!({ "status": 307 })));
}

#[tokio::test]
async fn the_answer_to_a_body_that_streams_is_bounded_too() {
    let memory = service().await;
    let body = stream::iter([Ok::<_, Infallible>(Bytes::from_static(b"a"))]);
    let error = memory.get("file").body(body).send::<Value>().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BadResponse, "{error}");
    assert!(error.to_string().contains("8388608"), "{error}");
}

#[tokio::test]
async fn a_body_that_fails_ends_the_request() {
    let memory = service().await;
    let pieces = stream::iter([Ok(Bytes::from_static(b"a")), Err(std::io::Error::other("no more"))]);
    let error = memory.post("count").body(pieces).key("k").send::<Value>().await.unwrap_err();
    assert_eq!((error.attempts(), error.may_have_executed()), (1, true), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_body_that_streams_is_sent_once() {
    let peer = Peer::start(|_: Received| std::future::ready(lost())).await;
    let memory = client(&peer).build().unwrap();
    let body = stream::iter([Ok::<_, Infallible>(Bytes::from_static(b"a"))]);
    let error = memory.put("x").body(body).retry(5).send::<Value>().await.unwrap_err();
    assert_eq!(error.attempts(), 1);
    until(|| peer.calls().len() == 1).await;
}
