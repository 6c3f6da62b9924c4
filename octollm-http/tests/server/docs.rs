//! The page at `GET /docs`. `scripts/docs_page.sh` opens it in a browser.

use http::Method;
use octollm_core::{error::ErrorKind, error::Failure, parts::Caller};
use octollm_http::Server;

use crate::{
    arms::{Worker, server, start, start_with, worker},
    peer::{Answer, Peer, post},
    routed::hello,
};

const HTML: &str = "text/html; charset=utf-8";

async fn page(peer: Peer) -> Answer {
    let answer = peer.send("GET /docs HTTP/1.1\r\nHost: x\r\nAccept: text/html\r\n\r\n").await;
    assert_eq!((answer.status, answer.field("content-type")), (200, Some(HTML)), "{answer:?}");
    answer
}

/// Asserts that a page runs its own script only.
pub(crate) fn is_page_of_own_script(answer: &Answer) {
    let policy = answer.field("content-security-policy").unwrap();
    let directives: Vec<_> = policy.split(';').map(str::trim).collect();
    for expected in [
        "default-src 'none'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    ] {
        assert!(directives.contains(&expected), "{expected} is not in {policy}");
    }
    let of = |name: &str| directives.iter().find_map(|directive| directive.strip_prefix(name)).unwrap();
    for name in ["script-src ", "style-src "] {
        let sources = of(name);
        assert!(sources.starts_with("'sha256-") && !sources.contains(' '), "{policy}");
    }
    assert!(!policy.contains("unsafe") && !policy.contains('*'), "{policy}");
    assert_eq!(answer.field("x-content-type-options"), Some("nosniff"));
    assert_eq!(answer.field("referrer-policy"), Some("no-referrer"));
}

#[tokio::test(start_paused = true)]
async fn the_page_runs_its_own_script_only() {
    let answer = page(start(worker())).await;
    is_page_of_own_script(&answer);
    // It has no text of the server, so that none can be markup, and finds the document below any prefix.
    assert_eq!(page(start(Server::new("other"))).await.body, answer.body);
    assert!(answer.body.contains("new URL(\"openapi.json\", location.href)"));
    assert!(answer.body.len() < 64 * 1024, "{} bytes", answer.body.len());
}

#[tokio::test(start_paused = true)]
async fn the_page_needs_no_caller_and_no_place() {
    let nobody = |_: &http::request::Parts| Err::<Caller, _>(Failure::of(ErrorKind::Unauthenticated));
    let peer = start(worker().authenticate(nobody));
    page(peer).await;
    peer.post("/echo", "", r#"{"text":"a"}"#).await.is_problem(401, "unauthenticated");

    let (peer, worker) = start_with(|server| server.max_in_flight(1));
    let mut held = peer.connect().await;
    held.write(post("/wait", "", "{}")).await;
    worker.0.begun(1).await;
    peer.post("/echo", "", r#"{"text":"a"}"#).await.is_problem(503, "overloaded");
    page(peer).await;
    let mut line = peer.connect().await;
    line.write("HEAD /docs HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
    assert!(line.head().await.starts_with("HTTP/1.1 200"));
    assert_eq!(line.closed().await, b"");
}

#[tokio::test(start_paused = true)]
async fn the_page_can_be_left_out() {
    let without = start(worker().without_docs());
    without.get("/docs").await.is_problem(404, "not_found");
    for (peer, is_there) in [(start(worker()), true), (without, false)] {
        let document = peer.get("/openapi.json").await.json();
        assert_eq!(document["paths"]["/docs"]["get"].is_object(), is_there);
    }
    // The path is free for a route of the user then.
    let own = Server::new("own-docs").route(Method::GET, "/docs", hello());
    assert!(own.open_to_all().into_service().unwrap_err().to_string().contains("is a route already"));
    let own = Server::new("own-docs").without_docs().route(Method::GET, "/docs", hello());
    assert_eq!(start(own).get("/docs").await.status, 200);
}

#[tokio::test(start_paused = true)]
async fn the_document_is_relative_to_where_it_is_and_groups_what_it_has() {
    let document = start(server(&Worker::default())).get("/openapi.json").await.json();
    assert_eq!(document["servers"], serde_json::json!([{ "url": "." }]));
    assert_eq!(document["info"]["x-octollm-arm"], "worker");
    let tags: Vec<_> =
        document["tags"].as_array().unwrap().iter().map(|tag| tag["name"].as_str().unwrap()).collect();
    assert_eq!(tags, ["contracts", "server"]);
    assert_eq!(document["paths"]["/echo"]["post"]["x-octollm-keys"], "none");
    assert_eq!(document["paths"]["/wait"]["post"]["x-octollm-keys"], "instance");
    let conflict = &document["paths"]["/echo"]["post"]["responses"]["409"];
    assert_eq!(conflict["description"], "Conflict: `conflict`, `outcome_unknown`, `cancelled`.");
    assert_eq!(
        document["paths"]["/echo"]["post"]["responses"]["401"]["$ref"],
        "#/components/responses/Challenge"
    );
    // It does not verify tokens.
    assert!(document["components"].get("securitySchemes").is_none());
    assert!(document["paths"]["/echo"]["post"].get("security").is_none());
}
