//! Answers and bodies in gzip.

use std::io::{Read, Write};

use bytes::Bytes;
use flate2::{Compression, read::GzDecoder, write::GzEncoder};
use http::{HeaderMap, Method, Request};
use http_body_util::{BodyExt, Full};
use octollm_core::brain::Brain;
use octollm_http::{Server, server::HttpService};
use serde_json::Value;
use tower::{ServiceExt, service_fn};

use crate::{
    arms::{Worker, start, worker},
    places,
};

fn gzip(text: impl AsRef<[u8]>) -> Bytes {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(text.as_ref()).unwrap();
    encoder.finish().unwrap().into()
}

fn read(coded: &[u8]) -> String {
    let mut text = String::new();
    GzDecoder::new(coded).read_to_string(&mut text).unwrap();
    text
}

fn service() -> HttpService {
    worker().compression().open_to_all().into_service().unwrap()
}

fn echo(text: &str) -> Bytes {
    format!(r#"{{"text":"{text}"}}"#).into()
}

async fn ask(
    service: &HttpService,
    method: &str,
    path: &str,
    fields: &[(&str, &str)],
    body: Bytes,
) -> (u16, HeaderMap, Bytes) {
    let mut request = Request::builder().method(method).uri(path).header("content-type", "application/json");
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    let answer = service.clone().oneshot(request.body(Full::new(body)).unwrap()).await.unwrap();
    let (head, body) = answer.into_parts();
    (head.status.as_u16(), head.headers, body.collect().await.unwrap().to_bytes())
}

#[tokio::test(start_paused = true)]
async fn an_answer_of_a_kibibyte_is_compressed_for_who_accepts_it() {
    let service = service();
    // `{"text":"..","caller":null}`
    for (length, is_large) in [(1024 - 26, false), (1024 - 25, true), (1_000_000, true)] {
        for (field, is_accepted) in [("gzip, br", true), ("br", false), ("identity", false)] {
            let text = "a".repeat(length);
            let fields = [("accept-encoding", field)];
            let (status, head, body) = ask(&service, "POST", "/echo", &fields, echo(&text)).await;
            let coding = head.get("content-encoding").map(|coding| coding.to_str().unwrap());
            assert_eq!(
                (status, coding),
                (200, (is_large && is_accepted).then_some("gzip")),
                "{length} {field}"
            );
            assert_eq!(head.contains_key("vary"), is_large, "{length}");
            assert_eq!(head["octollm-usage"], "tokens=3;cost_usd=0");
            let body = if coding.is_some() { read(&body) } else { String::from_utf8(body.into()).unwrap() };
            assert_eq!(serde_json::from_str::<Value>(&body).unwrap()["text"], text);
        }
    }
    let (_, head, body) =
        ask(&service, "GET", "/openapi.json", &[("accept-encoding", "gzip")], Bytes::new()).await;
    assert_eq!(head["content-encoding"], "gzip");
    assert_eq!(serde_json::from_str::<Value>(&read(&body)).unwrap()["openapi"], "3.1.0");
    let (_, of_head, body) =
        ask(&service, "HEAD", "/openapi.json", &[("accept-encoding", "gzip")], Bytes::new()).await;
    assert_eq!((&of_head["content-encoding"], body.len()), (&head["content-encoding"], 0));
}

#[tokio::test(start_paused = true)]
async fn problems_small_answers_and_routes_of_the_user_are_sent_as_they_are() {
    let own = service_fn(async |_: Request<octollm_http::server::HttpBody>| {
        Ok::<_, std::convert::Infallible>(http::Response::new(Full::new(Bytes::from("a".repeat(5000)))))
    });
    let server = worker().compression().route(Method::GET, "/own", own).open_to_all();
    let service = server.into_service().unwrap();
    let unknown: String = (0..100).map(|number| format!(r#""unknown_{number}":1,"#)).collect();
    for (method, path, body, status) in [
        ("POST", "/echo", format!(r#"{{{unknown}"text":"a"}}"#), 422),
        ("POST", "/echo", r#"{"text":"a"}"#.into(), 200),
        ("GET", "/own", String::new(), 200),
        ("GET", "/health", String::new(), 200),
    ] {
        let (answered, head, _) =
            ask(&service, method, path, &[("accept-encoding", "gzip")], body.into()).await;
        assert_eq!((answered, head.get("content-encoding")), (status, None), "{path}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_in_gzip_is_decompressed_up_to_its_limit() {
    let (peer, coded) = (service(), [("content-encoding", "gzip")]);
    let large = "a".repeat(3 << 20);
    let (status, _, body) = ask(&peer, "POST", "/echo", &coded, gzip(echo(&large))).await;
    assert_eq!(status, 200, "three MiB, which is more than a body on the network may have");
    assert_eq!(serde_json::from_slice::<Value>(&body).unwrap()["text"], large);
    // A bomb of a hundred MiB, and bodies that are no gzip, or that claim to be something else.
    let bomb = gzip(vec![b'a'; 100 << 20]);
    assert!(bomb.len() < 2 << 20);
    let plain = || echo("a");
    for (codings, body, status, code) in [
        (&["gzip"][..], bomb, 413, "payload_too_large"),
        (&["gzip"], plain(), 400, "bad_request"),
        (&["gzip"], gzip(plain()).slice(..20), 400, "bad_request"),
        (&["gzip"], [gzip(plain()), "{}".into()].concat().into(), 400, "bad_request"),
        (&["gzip"], gzip("{"), 400, "bad_request"),
        (&["gzip"], Bytes::new(), 400, "bad_request"),
        (&["gzip, gzip"], gzip(gzip(plain())), 415, "unsupported_media_type"),
        (&["gzip", "gzip"], gzip(gzip(plain())), 415, "unsupported_media_type"),
        (&["br"], plain(), 415, "unsupported_media_type"),
        (&["deflate"], plain(), 415, "unsupported_media_type"),
        (&["identity"], plain(), 200, ""),
    ] {
        let fields: Vec<_> = codings.iter().map(|coding| ("content-encoding", *coding)).collect();
        let (answered, _, body) = ask(&peer, "POST", "/echo", &fields, body).await;
        let body: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(
            (answered, body["code"].as_str().unwrap_or_default()),
            (status, code),
            "{codings:?} {body}"
        );
    }
    let exact = r#"{"text":"aaaa"}"#;
    let limited = |most| worker().compression().max_decoded(most).open_to_all().into_service().unwrap();
    assert_eq!(ask(&limited(exact.len()), "POST", "/echo", &coded, gzip(exact)).await.0, 200);
    assert_eq!(ask(&limited(exact.len() - 1), "POST", "/echo", &coded, gzip(exact)).await.0, 413);
}

#[tokio::test(start_paused = true)]
async fn without_the_setting_nothing_is_coded() {
    let service = worker().open_to_all().into_service().unwrap();
    let fields = [("accept-encoding", "gzip")];
    let (status, head, _) = ask(&service, "POST", "/echo", &fields, echo(&"a".repeat(5000))).await;
    assert_eq!((status, head.get("content-encoding")), (200, None));
    let fields = [("content-encoding", "gzip")];
    assert_eq!(ask(&service, "POST", "/echo", &fields, gzip(echo("a"))).await.0, 415);
}

#[tokio::test(start_paused = true)]
async fn compressed_answers_hold_their_places_and_arrive_over_both_protocols() {
    let peer = start(worker().compression().max_in_flight(2));
    let text: String =
        (0..200_000_u32).map(|number| (number.wrapping_mul(2_654_435_761) >> 8).to_string()).collect();
    let request = || {
        let request = Request::post("http://x/echo").header("content-type", "application/json");
        request.header("accept-encoding", "gzip").body(Full::new(echo(&text))).unwrap()
    };
    // Nobody reads these two.
    let mut slow = places::caller(peer, 1000).await;
    let answers = [slow.send_request(request()).await.unwrap(), slow.send_request(request()).await.unwrap()];
    let mut calls = places::caller(peer, 65_535).await;
    assert_eq!(calls.send_request(request()).await.unwrap().status(), 503);
    drop((answers, slow));
    loop {
        let answer = calls.send_request(request()).await.unwrap();
        if answer.status() == 503 {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            continue;
        }
        let coded = answer.into_body().collect().await.unwrap().to_bytes();
        assert!(coded.len() < text.len() * 2 / 3);
        assert_eq!(serde_json::from_str::<Value>(&read(&coded)).unwrap()["text"], text);
        break;
    }
    let mut line = peer.connect().await;
    let fields = "Accept-Encoding: gzip\r\nConnection: close\r\n";
    line.write(crate::peer::post("/echo", fields, echo(&text))).await;
    let head = line.head().await;
    assert!(head.contains("transfer-encoding: chunked") && head.contains("content-encoding: gzip"), "{head}");
    assert!(line.rest().await.ends_with(b"\r\n0\r\n\r\n"));
}

#[tokio::test(start_paused = true)]
async fn tasks_are_submitted_and_listed_in_gzip() {
    let brain = Brain::builder().arm::<crate::arms::Echo>(Worker::default()).build().unwrap();
    let service =
        Server::new("brain").orchestrator(brain).compression().open_to_all().into_service().unwrap();
    let goal = format!(
        r#"{{"contract":"text.echo","input":{{"text":"a"}},"metadata":{{"note":"{}"}}}}"#,
        "b".repeat(2000)
    );
    let fields = [("content-encoding", "gzip"), ("accept-encoding", "gzip")];
    let (status, head, body) = ask(&service, "POST", "/tasks", &fields, gzip(goal)).await;
    assert_eq!((status, &head["content-encoding"]), (202, &"gzip".parse().unwrap()));
    let id = serde_json::from_str::<Value>(&read(&body)).unwrap()["task_id"].clone();
    let (_, _, body) = ask(&service, "GET", "/tasks", &fields[1..], Bytes::new()).await;
    assert_eq!(serde_json::from_str::<Value>(&read(&body)).unwrap()["tasks"][0]["task_id"], id);
}
