use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::future::join_all;
use octollm_core::{
    Context,
    bus::{EventBus, MemoryBus, Overflow, Signal},
    deadline::Deadline,
    error::{ArmError, ErrorKind},
    parts::ContextParts,
};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};
use tracing::{Event, Metadata, Subscriber, field::Visit, span};

use super::{SECRET, answers, client, lost, ok, with};
use crate::peer::{Answer, Peer, silent, until};

#[tokio::test(start_paused = true)]
async fn a_request_is_sent_and_its_answer_read() {
    let peer = answers(vec![ok()]).await;
    let memory = client(&peer).header("x-api-key", "another-secret").build().unwrap();
    let read: Value = memory
        .post("notes")
        .segment("a/b c")
        .query(&[("q", "x y"), ("n", "ü")])
        .json(&json!({ "text": "t" }))
        .header("x-version", "2")
        .send()
        .await
        .unwrap();
    assert_eq!(read, json!({ "is": "ok" }));
    let sent = peer.calls().remove(0);
    assert_eq!((&*sent.method, &*sent.path), ("POST", "/v1/notes/a%2Fb%20c?q=x%20y&n=%C3%BC"));
    assert_eq!(sent.body, br#"{"text":"t"}"#);
    let bearer = format!("Bearer {SECRET}");
    for (name, value) in [
        ("authorization", &*bearer),
        ("x-api-key", "another-secret"),
        ("x-version", "2"),
        ("content-type", "application/json"),
        ("accept", "application/json"),
    ] {
        assert_eq!(sent.header(name), Some(value), "{name}");
    }
    for name in ["x-request-id", "x-correlation-id", "traceparent", "octollm-timeout", "octollm-attempt"] {
        assert_eq!(sent.header(name), None, "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn each_method_is_sent() {
    let peer = answers(vec![Answer::Raw(b"HTTP/1.1 204 X\r\n\r\n".to_vec())]).await;
    let memory = client(&peer).build().unwrap();
    for request in [memory.get("x"), memory.post("x"), memory.put("x"), memory.patch("x"), memory.delete("x")]
    {
        request.send::<()>().await.unwrap();
    }
    let sent: Vec<_> = peer.calls().into_iter().map(|sent| sent.method).collect();
    assert_eq!(sent, ["GET", "POST", "PUT", "PATCH", "DELETE"]);
}

#[tokio::test(start_paused = true)]
async fn a_retry_follows_only_where_it_is_safe() {
    for (first, method, key, tried) in [
        (lost(), "GET", None, 2),
        (lost(), "PUT", None, 2),
        (lost(), "DELETE", None, 2),
        (lost(), "POST", None, 1),
        (lost(), "PATCH", None, 1),
        (lost(), "POST", Some("k1"), 2),
        (lost(), "POST", Some(""), 2),
        (Answer::Json(503, json!({})), "POST", None, 1),
        (Answer::Json(503, json!({})), "POST", Some("k1"), 2),
        (Answer::Json(429, json!({})), "POST", None, 2),
        (Answer::Json(425, json!({})), "POST", None, 2),
        (Answer::Json(502, json!({})), "GET", None, 2),
        (Answer::Json(500, json!({})), "GET", None, 1),
        (Answer::Json(504, json!({})), "GET", None, 2),
        (Answer::Json(504, json!({})), "POST", None, 1),
        (Answer::Json(504, json!({})), "POST", Some("k1"), 2),
        (Answer::Json(404, json!({})), "GET", None, 1),
        (Answer::Json(422, json!({})), "POST", Some("k1"), 1),
    ] {
        let peer = answers(vec![first.clone(), ok()]).await;
        let memory = client(&peer).build().unwrap();
        let request = match method {
            "GET" => memory.get("x"),
            "PUT" => memory.put("x"),
            "DELETE" => memory.delete("x"),
            "PATCH" => memory.patch("x"),
            _ => memory.post("x"),
        };
        let request = match key {
            None => request,
            Some("") => request.idempotent(),
            Some(key) => request.idempotent().key(key),
        };
        let answer = request.json(&1).send::<Value>().await;
        let sent = peer.calls();
        assert_eq!(sent.len(), tried, "{first:?} {method} {key:?}");
        assert_eq!(answer.is_ok(), tried == 2, "{first:?} {method} {key:?}");
        if let Err(error) = answer {
            assert_eq!(error.attempts(), 1);
        }
        let keys: Vec<_> = sent.iter().map(|sent| sent.header("idempotency-key")).collect();
        match key {
            None => assert!(keys.iter().all(Option::is_none)),
            Some("") => assert!(keys[0].is_some() && keys[0] == keys[1]),
            Some(key) => assert!(keys.iter().all(|sent| *sent == Some(key))),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_large_body_gets_one_attempt_unless_more_are_asked_for() {
    for (size, retry, tried) in [(60_000, None, 3), (70_000, None, 1), (70_000, Some(1), 2), (10, Some(0), 1)]
    {
        let peer = answers(vec![lost()]).await;
        let memory = client(&peer).build().unwrap();
        let request = memory.put("x").json(&"x".repeat(size));
        let request = match retry {
            Some(retry) => request.retry(retry),
            None => request,
        };
        let error = request.send::<Value>().await.unwrap_err();
        assert_eq!((error.kind(), error.attempts() as usize), (ErrorKind::ConnectionLost, tried));
        assert_eq!(peer.calls().len(), tried);
    }
}

#[tokio::test(start_paused = true)]
async fn an_error_says_where_and_what() {
    #[derive(Debug, Deserialize)]
    struct Hit {
        #[serde(rename = "text")]
        _text: String,
    }
    let peer =
        answers(vec![Answer::Json(404, json!({ "error": { "code": "E7", "message": "no such note" } }))])
            .await;
    let memory = client(&peer).build().unwrap();
    let error = memory.get("notes/1").send::<Value>().await.unwrap_err();
    assert_eq!(
        (error.kind(), error.to_string()),
        (ErrorKind::NotFound, "memory.get: answered 404: no such note".into())
    );
    assert_eq!(error.failure().details, Some(json!({ "status": 404, "code": "E7" })));
    // The arm was found: what it has called was not.
    let arm = ArmError::from(error);
    assert_eq!((arm.kind(), arm.failure().retryable), (ErrorKind::UpstreamFailed, false));

    let peer = answers(vec![Answer::Json(200, json!([{ "text": "a" }, { "text": 7 }]))]).await;
    let memory = client(&peer).build().unwrap();
    let error = memory.get("notes").send::<Vec<Hit>>().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BadResponse);
    assert!(
        error.to_string().contains("invalid type: integer `7`, expected a string at line 1 column 23"),
        "{error}"
    );
    assert_eq!(peer.calls().len(), 1);

    let peer = answers(vec![Answer::Json(200, json!("x".repeat(1000)))]).await;
    let memory = client(&peer).max_answer(100).build().unwrap();
    let error = memory.get("x").send::<Value>().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BadResponse);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_sent_is_not() {
    let peer = answers(vec![ok()]).await;
    let memory = client(&peer).build().unwrap();
    for request in [
        memory.get("../admin"),
        memory.get("files").segment(".."),
        memory.get("a/%2e%2e/b"),
        memory.get("//elsewhere"),
        memory.get("files").segment("..%2fadmin"),
        memory.get("files").segment("..;"),
        memory.get("files/..;/admin"),
        memory.get("x").header("host", "elsewhere"),
        memory.get("x").header("accept-encoding", "gzip"),
        memory.get("x").header("x y", "1"),
        memory.get("x").header("x-y", "a\r\nb: c"),
        memory.post("x").key(""),
    ] {
        let error = request.send::<Value>().await.unwrap_err();
        assert_eq!(
            (error.kind(), error.may_have_executed(), error.attempts()),
            (ErrorKind::BadRequest, false, 0)
        );
    }
    // Cleartext to another machine: nothing is sent there, so that it need not exist.
    let exposed = octollm_http::RestClient::builder("http://memory.example").build().unwrap();
    let error = exposed.get("x").header("x-api-key", SECRET).send::<Value>().await.unwrap_err();
    assert!(error.kind() == ErrorKind::BadRequest && !error.to_string().contains(SECRET), "{error}");
    assert!(peer.calls().is_empty());
}

#[tokio::test(start_paused = true)]
async fn one_deadline_is_over_all_attempts() {
    let (url, _silent) = silent();
    let memory = octollm_http::RestClient::builder(url)
        .connector(crate::peer::network())
        .read_idle(Duration::from_secs(60))
        .build()
        .unwrap();
    let begun = Instant::now();
    let error = memory.get("x").send::<Value>().await.unwrap_err();
    assert_eq!((error.kind(), begun.elapsed().as_secs()), (ErrorKind::DeadlineExceeded, 30));
    let error = memory.get("x").within(Duration::from_secs(2)).send::<Value>().await.unwrap_err();
    assert_eq!((error.kind(), begun.elapsed().as_secs()), (ErrorKind::DeadlineExceeded, 32));
    let mut parts = ContextParts::new();
    parts.deadline = Some(Deadline::after(Duration::from_secs(1)));
    let cx = Context::from_parts(parts, Arc::new(()));
    let error = memory.get("x").within_context(&cx).send::<Value>().await.unwrap_err();
    assert_eq!((error.kind(), begun.elapsed().as_secs()), (ErrorKind::DeadlineExceeded, 33));
    let error = memory.get("x").within_context(&cx).send::<Value>().await.unwrap_err();
    assert_eq!((error.kind(), error.attempts()), (ErrorKind::DeadlineExceeded, 0));
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_context_ends_the_request_and_its_connection() {
    let peer = answers(vec![Answer::Silence]).await;
    let memory = client(&peer).build().unwrap();
    let token = tokio_util::sync::CancellationToken::new();
    let cx = Context::detached().with_cancellation(token.clone());
    let request = tokio::spawn(memory.get("x").within_context(&cx).send::<Value>());
    until(|| peer.calls().len() == 1).await;
    token.cancel();
    let error = request.await.unwrap().unwrap_err();
    assert_eq!((error.kind(), error.may_have_executed()), (ErrorKind::Cancelled, true));
    peer.until_open(0).await;
    // A breaker learns nothing of it.
    let error = memory.get("x").within_context(&cx).send::<Value>().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled);
}

#[tokio::test(start_paused = true)]
async fn what_a_context_has_is_sent_only_if_asked() {
    let peer = answers(vec![ok()]).await;
    let memory = client(&peer).build().unwrap();
    let mut parts = ContextParts::new();
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    parts.trace = Some(trace.parse().unwrap());
    parts.deadline = Some(Deadline::after(Duration::from_secs(5)));
    let cx = Context::from_parts(parts, Arc::new(()));
    memory.get("x").within_context(&cx).send::<Value>().await.unwrap();
    memory.get("x").propagate(&cx).send::<Value>().await.unwrap();
    let sent = peer.calls();
    assert!(sent[0].header("traceparent").is_none() && sent[0].header("x-correlation-id").is_none());
    assert_eq!(sent[1].header("traceparent"), Some(trace));
    assert_eq!(sent[1].header("x-correlation-id"), Some(cx.correlation_id().as_str()));
    assert!(sent.iter().all(|sent| sent.head.iter().all(|(name, _)| !name.starts_with("octollm"))));
}

#[tokio::test(start_paused = true)]
async fn a_rate_limit_holds_for_all_requests_within_their_deadlines() {
    let limited = with(200, &[("x-ratelimit-remaining", "0"), ("x-ratelimit-reset", "20")], &json!(1));
    let peer = answers(vec![limited, ok()]).await;
    let memory = client(&peer).build().unwrap();
    let begun = Instant::now();
    memory.get("x").send::<Value>().await.unwrap();
    let error = memory.get("x").within(Duration::from_secs(5)).send::<Value>().await.unwrap_err();
    assert_eq!((error.kind(), begun.elapsed().as_secs()), (ErrorKind::RateLimited, 0));
    assert_eq!(error.retry_after().map(|wait| wait.as_secs_f64().round()), Some(20.0));
    assert_eq!((error.attempts(), error.may_have_executed(), peer.calls().len()), (0, false, 1));
    let other = memory.clone();
    let (one, two) = tokio::join!(memory.get("x").send::<Value>(), other.post("y").send::<Value>());
    assert!(one.is_ok() && two.is_ok());
    assert_eq!(begun.elapsed().as_secs(), 20);
}

#[tokio::test(start_paused = true)]
async fn retry_after_is_waited_for_by_the_request_and_by_others() {
    let peer = answers(vec![with(429, &[("retry-after", "3")], &json!({})), ok()]).await;
    let memory = client(&peer).build().unwrap();
    let begun = Instant::now();
    let first = memory.post("x").json(&1).send::<Value>();
    let second = async {
        sleep(Duration::from_millis(100)).await;
        memory.get("y").send::<Value>().await.map(|_| begun.elapsed())
    };
    let (first, second) = tokio::join!(first, second);
    assert!(first.is_ok() && begun.elapsed() >= Duration::from_secs(3));
    assert!(second.unwrap() >= Duration::from_secs(3));
    assert_eq!(peer.calls().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn one_answer_holds_the_client_back_for_a_bounded_time() {
    let (limit, hour) = (Duration::from_secs(20), [("retry-after", "3600")]);
    for status in [429, 503] {
        let peer = answers(vec![with(status, &hour, &json!({})), ok()]).await;
        let memory = client(&peer).max_retry_after(limit).breaker_failures(0).build().unwrap();
        let begun = Instant::now();
        let error = memory.get("x").send::<Value>().await.unwrap_err();
        assert_eq!((error.attempts(), begun.elapsed().as_secs()), (1, 0), "{status}");
        assert_eq!(error.retry_after(), Some(Duration::from_secs(3600)), "{status}");
        memory.get("y").send::<Value>().await.unwrap();
        assert_eq!(begun.elapsed(), limit, "{status}");
    }
    let spent = with(200, &[("x-ratelimit-remaining", "0"), ("x-ratelimit-reset", "3600")], &json!(1));
    let peer = answers(vec![spent, ok()]).await;
    let memory = client(&peer).build().unwrap();
    let begun = Instant::now();
    memory.get("x").send::<Value>().await.unwrap();
    memory.get("y").within(Duration::from_secs(90)).send::<Value>().await.unwrap();
    assert_eq!(begun.elapsed().as_secs(), 60, "by default");
    let peer = answers(vec![with(503, &hour, &json!({})), ok()]).await;
    let memory = client(&peer).max_retry_after(Duration::ZERO).build().unwrap();
    memory.get("x").send::<Value>().await.unwrap_err();
    memory.get("x").within(Duration::from_millis(1)).send::<Value>().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_refusal_without_retry_after_waits_for_the_reset_of_its_limit() {
    let tokens = [("x-ratelimit-remaining-tokens", "0"), ("x-ratelimit-reset-tokens", "1m30s")];
    let peer = answers(vec![with(429, &tokens, &json!({})), ok()]).await;
    let memory = client(&peer).max_retry_after(Duration::from_secs(100)).build().unwrap();
    let begun = Instant::now();
    let error = memory.post("x").send::<Value>().await.unwrap_err();
    assert_eq!(error.retry_after(), Some(Duration::from_secs(90)), "its deadline is before that");
    memory.post("x").within(Duration::from_secs(120)).send::<Value>().await.unwrap();
    assert_eq!(begun.elapsed().as_secs(), 90);
}

#[tokio::test(start_paused = true)]
async fn a_breaker_opens_after_failures_and_a_rate_limit_is_none() {
    let peer = answers(vec![Answer::Json(500, json!({}))]).await;
    let memory = client(&peer).breaker_failures(3).build().unwrap();
    for _ in 0..3 {
        let error = memory.get("x").send::<Value>().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ArmFailed);
    }
    let error = memory.get("x").retry(0).send::<Value>().await.unwrap_err();
    assert_eq!((error.kind(), peer.calls().len(), error.attempts()), (ErrorKind::CircuitOpen, 3, 0));

    // Refusals and mistakes of the caller are answers of a working service.
    let refused = with(429, &[("retry-after", "0")], &json!({}));
    let peer = answers(vec![refused.clone(), refused.clone(), Answer::Json(404, json!({})), refused]).await;
    let memory = client(&peer).breaker_failures(2).retries(0).build().unwrap();
    for _ in 0..6 {
        let error = memory.get("x").send::<Value>().await.unwrap_err();
        assert!([ErrorKind::RateLimited, ErrorKind::NotFound].contains(&error.kind()), "{error}");
    }
    assert_eq!(peer.calls().len(), 6);
}

#[tokio::test(start_paused = true)]
async fn the_probe_of_a_breaker_waits_for_the_rate_limit() {
    let down = with(503, &[("retry-after", "10")], &json!({}));
    let peer = answers(vec![down, ok()]).await;
    let memory = client(&peer).breaker_failures(1).build().unwrap();
    let begun = Instant::now();
    let error = memory.post("x").send::<Value>().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    memory.get("x").send::<Value>().await.unwrap();
    assert!(begun.elapsed() >= Duration::from_secs(10), "{:?}", begun.elapsed());
    memory.get("x").send::<Value>().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_retry_budget_bounds_what_a_dead_service_gets() {
    let peer = answers(vec![lost()]).await;
    let memory = client(&peer).breaker_failures(0).build().unwrap();
    for _ in 0..200 {
        memory.get("x").send::<Value>().await.unwrap_err();
    }
    let (sent, unbounded) = (peer.calls().len(), 600);
    assert!(sent < unbounded, "{sent}");
}

/// All that is logged and recorded, as text.
#[derive(Clone, Default)]
struct Recorder(Arc<Mutex<String>>);

impl Visit for Recorder {
    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
        self.0.lock().unwrap().push_str(&format!("{field}={value:?} "));
    }
}

impl Subscriber for Recorder {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }
    fn new_span(&self, span: &span::Attributes<'_>) -> span::Id {
        span.record(&mut self.clone());
        span::Id::from_u64(1)
    }
    fn record(&self, _: &span::Id, values: &span::Record<'_>) {
        values.record(&mut self.clone());
    }
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn event(&self, event: &Event<'_>) {
        event.record(&mut self.clone());
    }
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}

#[tokio::test(start_paused = true)]
async fn secrets_appear_nowhere() {
    // What is logged first while a recorder is added may be lost for good, if another test logs it: here nothing is recorded yet.
    let peer = answers(vec![Answer::Json(503, json!({})), ok()]).await;
    client(&peer).build().unwrap().get("x").send::<Value>().await.unwrap();
    let recorder = Recorder::default();
    let _guard = tracing::subscriber::set_default(recorder.clone());
    let echo = json!({ "error": { "message": format!("no such key: {SECRET}"), "code": SECRET } });
    let peer = answers(vec![
        Answer::Json(401, echo.clone()),
        with(302, &[("location", &format!("http://elsewhere/?key={SECRET}"))], &json!({})),
        Answer::Json(200, json!({ "is": SECRET })),
        lost(),
        Answer::Json(503, echo),
    ])
    .await;
    let builder = client(&peer).header("x-api-key", "another-secret");
    let mut shown = format!("{builder:?}");
    let memory = builder.build().unwrap();
    shown += &format!("{memory:?}");
    for _ in 0..4 {
        let request = memory.get("x").header("x-session", "session-secret").query(&[("q", "a")]);
        shown += &format!("{request:?}");
        let error = request.send::<u32>().await.unwrap_err();
        shown += &format!("{error} {error:?} {:?}", error.failure());
        let mut source = std::error::Error::source(&error);
        while let Some(cause) = source {
            shown += &format!("{cause} {cause:?}");
            source = cause.source();
        }
    }
    shown += &recorder.0.lock().unwrap();
    for secret in [SECRET, "another-secret", "session-secret"] {
        assert!(!shown.contains(secret), "{shown}");
    }
    assert!(shown.contains("sent again") && shown.contains("no such key: [redacted]"), "{shown}");
    assert!(peer.calls().len() > 4);
}

#[tokio::test(start_paused = true)]
async fn no_part_of_a_secret_remains_where_a_text_is_cut() {
    let before = |bytes: usize| "x".repeat(bytes);
    let text = |body: String| {
        let head =
            format!("HTTP/1.1 401 X\r\ncontent-type: text/plain\r\ncontent-length: {}\r\n\r\n", body.len());
        Answer::Raw((head + &body).into_bytes())
    };
    for cut in 1..SECRET.len() {
        // A message has 300 characters, and a text is read up to 4096 bytes.
        let message = before(300 - cut) + SECRET;
        let problem = json!({ "status": 401, "code": "unauthenticated", "message": message });
        let broken = json!({ "detail": [{ "loc": ["body", before(1020) + SECRET], "msg": message }] });
        let bodies =
            [json!({ "error": { "message": message } }), problem, broken].map(|json| Answer::Json(401, json));
        let texts = [text(message), text("\n".repeat(4096 - cut) + SECRET)];
        for answer in bodies.into_iter().chain(texts) {
            let peer = answers(vec![answer.clone()]).await;
            let memory = client(&peer).build().unwrap();
            let error = memory.get("x").send::<Value>().await.unwrap_err();
            let shown = format!("{error} {:?}", error.failure());
            assert!(
                !shown.contains(&SECRET[..6]) && !shown.contains(&format!("x{}", &SECRET[..cut])),
                "{shown}"
            );
            let error = memory.get("x").stream().await.err().unwrap();
            assert!(!error.to_string().contains(&SECRET[..6]), "{error}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_last_body_is_sent() {
    let peer = answers(vec![ok()]).await;
    let memory = client(&peer).build().unwrap();
    let stream = || {
        futures_util::stream::iter([Ok::<_, std::convert::Infallible>(bytes::Bytes::from_static(b"stream"))])
    };
    memory.post("x").body(stream()).json(&1).send::<Value>().await.unwrap();
    memory.post("x").json(&1).body(stream()).send::<Value>().await.unwrap();
    memory.post("x").json(&1).json(&2).send::<Value>().await.unwrap();
    memory.post("x").body(stream()).header("content-type", "text/x").json(&1).send::<Value>().await.unwrap();
    let sent = peer.calls();
    let types: Vec<_> = sent.iter().map(|sent| sent.header("content-type").unwrap()).collect();
    assert_eq!(types, ["application/json", "application/octet-stream", "application/json", "text/x"]);
    assert_eq!((&*sent[0].body, &*sent[2].body, &*sent[3].body), (&b"1"[..], &b"2"[..], &b"1"[..]));
    assert_eq!(sent[1].header("transfer-encoding"), Some("chunked"));
    // A body that was replaced does not bound the attempts.
    let peer = answers(vec![lost(), ok()]).await;
    client(&peer).build().unwrap().put("x").body(stream()).json(&1).send::<Value>().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_breaker_of_a_service_is_seen_on_a_bus() {
    let bus = MemoryBus::new();
    let pattern = "events:circuit:*".parse().unwrap();
    let mut events = bus.subscribe(pattern, Overflow::DropOldest(8)).await.unwrap();
    let mut next = async || match events.next().await {
        Some(Signal::Event(event)) => event,
        other => panic!("{other:?}"),
    };
    let peer = answers(vec![lost(), ok()]).await;
    let memory = client(&peer).retries(0).breaker_failures(1).bus(bus).build().unwrap();
    memory.get("x").send::<Value>().await.unwrap_err();
    let opened = next().await;
    assert_eq!((opened.event_type(), &opened.data()["arm_id"]), ("circuit.opened", &json!("memory")));
    sleep(Duration::from_secs(2)).await;
    memory.get("x").send::<Value>().await.unwrap();
    assert_eq!(next().await.event_type(), "circuit.closed");
}

#[tokio::test(start_paused = true)]
async fn requests_are_counted_by_name_and_method() {
    let peer = answers(vec![ok(), Answer::Json(404, json!({}))]).await;
    let counted = client(&peer).name("counted-memory").build().unwrap();
    counted.get("x/1").send::<Value>().await.unwrap();
    counted.get("x/2").send::<Value>().await.unwrap_err();
    let page = octollm_core::metrics::page();
    for code in ["ok", "not_found"] {
        let line = format!(
            "octollm_client_requests_total{{arm=\"counted-memory\",code=\"{code}\",contract=\"counted-memory.get\"}} 1"
        );
        assert!(page.contains(&line), "{page}");
    }
    assert!(page.contains("octollm_breaker_endpoints{arm=\"counted-memory\",state=\"closed\"} 1"));
}

#[tokio::test(start_paused = true)]
async fn a_get_whose_reused_connection_is_lost_is_sent_once_more() {
    // Of each connection the second request is lost.
    let peer = Peer::start(|request| async move {
        sleep(Duration::from_millis(10)).await;
        if request.path.ends_with("/first") { ok() } else { Answer::Last(Vec::new()) }
    })
    .await;
    let memory = client(&peer).retries(0).build().unwrap();
    let first = (0..10).map(|_| memory.get("first").send::<Value>());
    join_all(first).await.into_iter().for_each(|answer| drop(answer.unwrap()));
    assert_eq!(peer.open(), 10);
    let error = memory.get("second").send::<Value>().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionLost);
    let sent = peer.calls().iter().filter(|call| call.path.ends_with("/second")).count();
    assert_eq!(sent, 2);
    assert_eq!(peer.accepted(), 11, "the second time over a new connection");
}
