use std::future::ready;

use octollm_core::error::ErrorKind;
use serde_json::{Value, json};

use super::{SECRET, answers, client, lost, ok, with};
use crate::peer::{Answer, Peer, Received, network};

fn to(status: u16, location: &str) -> Answer {
    with(status, &[("location", location)], &json!({}))
}

#[tokio::test(start_paused = true)]
async fn redirects_within_the_origin_are_followed_with_credentials() {
    for status in [301, 302, 303, 307, 308] {
        let peer = answers(vec![to(status, "/v2/x"), ok()]).await;
        let memory = client(&peer).build().unwrap();
        memory.get("x").header("x-version", "2").send::<Value>().await.unwrap();
        let sent = peer.calls();
        assert_eq!(sent[1].path, "/v2/x");
        assert_eq!(sent[1].header("authorization"), Some(&*format!("Bearer {SECRET}")));
        assert_eq!(sent[1].header("x-version"), Some("2"));

        let peer = answers(vec![to(status, "y"), ok()]).await;
        let memory = client(&peer).build().unwrap();
        let answer = memory.post("x").json(&"body").key("k").send::<Value>().await;
        let sent = peer.calls();
        if status < 307 {
            let error = answer.unwrap_err();
            assert_eq!((error.kind(), sent.len()), (ErrorKind::BadResponse, 1));
            assert_eq!(error.failure().details, Some(json!({ "status": status })));
        } else {
            answer.unwrap();
            assert_eq!(
                (&*sent[1].method, &*sent[1].path, &*sent[1].body),
                ("POST", "/v1/y", &b"\"body\""[..])
            );
            assert_eq!(sent[1].header("idempotency-key"), Some("k"));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn at_most_five_redirects_are_followed() {
    let five: Vec<_> = (0..5).map(|_| to(302, "/v1/again")).chain([ok()]).collect();
    let peer = answers(five).await;
    client(&peer).build().unwrap().get("x").send::<Value>().await.unwrap();
    let peer = answers(vec![to(302, "/v1/again")]).await;
    let error = client(&peer).build().unwrap().get("x").send::<Value>().await.unwrap_err();
    assert_eq!((error.kind(), peer.calls().len()), (ErrorKind::BadResponse, 6));
}

#[tokio::test(start_paused = true)]
async fn another_origin_gets_no_secret_and_only_if_asked() {
    let elsewhere = answers(vec![ok()]).await;
    let (location, asked) = (format!("{}/there?x=1", elsewhere.url), elsewhere.clone());
    let peer = Peer::start(move |_: Received| ready(to(302, &location))).await;
    let error = client(&peer).build().unwrap().get("x").send::<Value>().await.unwrap_err();
    assert!(error.to_string().contains("follow_elsewhere"), "{error}");
    assert!(asked.calls().is_empty());

    let memory = client(&peer).header("x-api-key", "another-secret").follow_elsewhere().build().unwrap();
    let cx = octollm_core::Context::detached();
    let request = memory.get("x").header("cookie", "a=b").header("x-version", "2").key("k").propagate(&cx);
    request.send::<Value>().await.unwrap();
    let sent = elsewhere.calls().remove(0);
    assert_eq!(sent.path, "/there?x=1");
    let mut names: Vec<_> = sent.head.iter().map(|(name, _)| name.to_ascii_lowercase()).collect();
    names.sort();
    assert_eq!(names, ["accept", "host"], "{sent:?}");
    assert_eq!(sent.header("host"), Some(elsewhere.url.trim_start_matches("http://")));
    let error = memory.post("x").json(&1).send::<Value>().await.unwrap_err();
    assert_eq!((error.kind(), elsewhere.calls().len()), (ErrorKind::BadResponse, 1));
}

#[tokio::test(start_paused = true)]
async fn the_way_back_from_another_origin_has_no_credentials_either() {
    let home = crate::peer::unused_host();
    let acceptor = network().listen(&home).unwrap();
    let back = format!("http://{home}/v1/back");
    let elsewhere = Peer::start(move |_: Received| ready(to(302, &back))).await;
    let location = format!("{}/x", elsewhere.url);
    let peer = Peer::listen(acceptor, format!("http://{home}"), move |request: Received| {
        ready(if request.path == "/v1/back" { ok() } else { to(302, &location) })
    });
    client(&peer).follow_elsewhere().build().unwrap().get("x").send::<Value>().await.unwrap();
    let sent = peer.calls();
    assert!(sent[0].header("authorization").is_some() && sent[1].header("authorization").is_none());
}

#[tokio::test(start_paused = true)]
async fn a_retry_begins_at_the_first_url_with_credentials() {
    let peer = answers(vec![to(307, "/v1/y"), lost(), to(307, "/v1/z"), ok()]).await;
    let memory = client(&peer).build().unwrap();
    memory.post("x").json(&1).key("k").send::<Value>().await.unwrap();
    let sent = peer.calls();
    let paths: Vec<_> = sent.iter().map(|sent| &*sent.path).collect();
    assert_eq!(paths, ["/v1/x", "/v1/y", "/v1/x", "/v1/z"]);
    assert!(sent.iter().all(|sent| sent.header("authorization").is_some()));
    assert!(sent.iter().all(|sent| sent.header("idempotency-key") == Some("k")));
}

#[tokio::test(start_paused = true)]
async fn a_redirect_that_is_not_followed_is_an_answer_of_a_working_service() {
    let answers_that_are_not_followed = [
        to(302, "http://elsewhere/x"),
        to(302, "mailto:x"),
        with(302, &[], &json!({})),
        to(302, "/v1/x"),
        with(304, &[], &json!({})),
        with(300, &[], &json!({})),
    ];
    for answer in answers_that_are_not_followed {
        let peer = answers(vec![answer.clone()]).await;
        let memory = client(&peer).breaker_failures(2).retries(0).build().unwrap();
        for _ in 0..5 {
            let error = memory.get("x").send::<Value>().await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::BadResponse, "{answer:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_another_origin_answers_says_nothing_of_the_service() {
    let hour = [("retry-after", "3600"), ("x-ratelimit-remaining", "0"), ("x-ratelimit-reset", "3600")];
    for answer in
        [with(429, &hour, &json!({})), with(503, &hour, &json!({})), with(500, &[], &json!({})), lost()]
    {
        let elsewhere = answers(vec![answer.clone()]).await;
        let location = format!("{}/there", elsewhere.url);
        let peer = Peer::start(move |request: Received| {
            ready(if request.path == "/v1/moved" { to(302, &location) } else { ok() })
        })
        .await;
        let builder = client(&peer).follow_elsewhere().breaker_failures(2).retries(0);
        let memory = builder.build().unwrap();
        let begun = tokio::time::Instant::now();
        for _ in 0..4 {
            let error = memory.get("moved").send::<Value>().await.unwrap_err();
            assert_ne!(error.kind(), ErrorKind::CircuitOpen, "{answer:?}");
            memory.get("x").send::<Value>().await.unwrap();
        }
        assert_eq!((elsewhere.calls().len(), begun.elapsed().as_secs()), (4, 0), "{answer:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_request_layer_adds_is_not_sent_to_another_origin() {
    let elsewhere = answers(vec![ok()]).await;
    let location = format!("{}/there", elsewhere.url);
    let peer = Peer::start(move |_: Received| ready(to(302, &location))).await;
    let sign = tower::util::MapRequestLayer::new(|mut request: http::Request<bytes::Bytes>| {
        request.headers_mut().insert("x-signature", http::HeaderValue::from_static(SECRET));
        request
    });
    let memory = client(&peer).follow_elsewhere().request_layer(sign).build().unwrap();
    memory.get("x").send::<Value>().await.unwrap();
    assert_eq!(peer.calls()[0].header("x-signature"), Some(SECRET));
    memory.get("x").stream().await.map(drop).unwrap();
    for sent in elsewhere.calls() {
        assert_eq!(sent.header("x-signature"), None, "{sent:?}");
    }
    assert_eq!(elsewhere.calls().len(), 2);
}
