//! The page at `GET /dashboard`. `scripts/dashboard.sh` opens it in a browser.

use octollm_core::brain::Brain;
use octollm_http::Server;

use crate::arms::start;
#[cfg(feature = "dashboard")]
use crate::{
    arms::worker,
    docs::is_page_of_own_script,
    peer::{Answer, Peer},
    routed::hello,
};

fn desk() -> Server {
    Server::new("desk").orchestrator(Brain::builder().build().unwrap())
}

#[cfg(not(feature = "dashboard"))]
#[tokio::test(start_paused = true)]
async fn without_the_feature_there_is_no_page() {
    let peer = start(desk());
    peer.get("/dashboard").await.is_problem(404, "not_found");
    assert!(peer.get("/openapi.json").await.json()["paths"].get("/dashboard").is_none());
}

#[cfg(feature = "dashboard")]
async fn page(peer: &Peer, more: &str) -> Answer {
    peer.send(&format!("GET /dashboard HTTP/1.1\r\nHost: x\r\nAccept: text/html\r\n{more}\r\n")).await
}

#[cfg(feature = "dashboard")]
#[tokio::test(start_paused = true)]
async fn the_page_runs_its_own_script_only() {
    let answer = page(&start(desk()), "").await;
    assert_eq!((answer.status, answer.field("content-type")), (200, Some("text/html; charset=utf-8")));
    is_page_of_own_script(&answer);
    assert_eq!(answer.field("cross-origin-opener-policy"), Some("same-origin"));
    // It has no text of the server, so that none can be markup, and finds its routes below any prefix.
    let other = Server::new("other").orchestrator(Brain::builder().build().unwrap());
    assert_eq!(page(&start(other), "").await.body, answer.body);
    assert!(answer.body.contains("new URL(\".\", location.href)"));
    assert!(answer.body.len() < 128 * 1024, "{} bytes", answer.body.len());
}

#[cfg(feature = "dashboard")]
#[tokio::test(start_paused = true)]
async fn the_page_is_sent_once() {
    let peer = start(desk());
    let first = page(&peer, "").await;
    let tag = first.field("etag").unwrap();
    assert_eq!(first.field("cache-control"), Some("no-cache"));
    let second = page(&peer, &format!("If-None-Match: {tag}\r\n")).await;
    assert_eq!((second.status, second.body.len(), second.field("etag")), (304, 0, Some(tag)));
    assert_eq!(second.field("content-security-policy"), first.field("content-security-policy"));
}

#[cfg(feature = "dashboard")]
#[tokio::test(start_paused = true)]
async fn the_page_needs_no_caller_and_its_data_do() {
    use octollm_core::{error::ErrorKind, error::Failure, parts::Caller};

    let nobody = |_: &http::request::Parts| Err::<Caller, _>(Failure::of(ErrorKind::Unauthenticated));
    let peer = start(desk().authenticate(nobody));
    assert_eq!(page(&peer, "").await.status, 200);
    peer.get("/tasks").await.is_problem(401, "unauthenticated");
}

#[cfg(feature = "dashboard")]
#[tokio::test(start_paused = true)]
async fn the_page_is_there_where_tasks_are_and_can_be_left_out() {
    for (server, is_there) in [(desk(), true), (desk().without_dashboard(), false), (worker(), false)] {
        let peer = start(server);
        assert_eq!(page(&peer, "").await.status, if is_there { 200 } else { 404 });
        let document = peer.get("/openapi.json").await.json();
        assert_eq!(document["paths"]["/dashboard"]["get"].is_object(), is_there);
    }
    // The path is free for a route of the user then.
    let own = || Server::new("desk").orchestrator(Brain::builder().build().unwrap());
    let taken = own().route(http::Method::GET, "/dashboard", hello()).open_to_all().into_service();
    assert!(taken.unwrap_err().to_string().contains("is a route already"));
    let peer = start(own().without_dashboard().route(http::Method::GET, "/dashboard", hello()));
    assert_eq!(peer.get("/dashboard").await.status, 200);
}
