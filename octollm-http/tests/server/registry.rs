//! Arms that register at an orchestrator where callers are not checked, or by names in their heads.

use std::time::Duration;

use http::request::Parts;
use octollm_core::{
    brain::Brain,
    bus::{EventBus, MemoryBus, Overflow, Signal, Subscription},
    error::Failure,
    metrics,
    parts::{Caller, Grant},
};
use octollm_http::{
    Arms, Registry, Server,
    resolve::{Endpoint, Resolver},
};
use serde_json::{Value, json};

use crate::{
    arms::{Worker, network, server, start},
    peer::{Answer, Peer, post},
    tasks::{Review, brain},
};

/// The card of the worker, as it registers.
async fn card(endpoint: &str, instance: &str) -> Value {
    let mut card = start(server(&Worker::default())).get("/capabilities").await.json();
    (card["endpoint"], card["instance"]) = (endpoint.into(), instance.into());
    card
}

fn registry() -> Registry {
    Registry::builder().allow("http://worker:*").build().unwrap()
}

async fn register(peer: Peer, card: &Value, lifetime: u64) -> Answer {
    peer.post("/arms/register", "", &json!({ "card": card, "lifetime_s": lifetime }).to_string()).await
}

async fn clear(peer: Peer, id: &str) -> Answer {
    peer.send(format!("DELETE /arms/{id} HTTP/1.1\r\nHost: x\r\n\r\n")).await
}

/// The next event: its type, and what it is about.
async fn next(events: &mut Subscription) -> (String, Value) {
    let within = tokio::time::timeout(Duration::from_secs(3600), events.next()).await;
    let Ok(Some(Signal::Event(event))) = within else { panic!("no event was published") };
    assert_eq!(event.subject(), event.data()["arm_id"].as_str());
    (event.event_type().to_owned(), event.data().clone())
}

fn urls(endpoints: &[Endpoint]) -> Vec<&str> {
    endpoints.iter().map(|endpoint| &*endpoint.url).collect()
}

#[tokio::test(start_paused = true)]
async fn an_arm_is_registered_renewed_lost_and_found_again() {
    let (bus, registry) = (MemoryBus::new(), registry());
    let mut events = bus.subscribe("events:arm:*".parse().unwrap(), Overflow::DropOldest(64)).await.unwrap();
    let mut arms = registry.resolver();
    assert!(arms.next().await.unwrap().is_empty());
    let peer = start(Server::new("registrar").orchestrator(brain()).bus(bus).registry(registry));
    let card = card("http://WORKER:80/", "one").await;

    let first = register(peer, &card, 30).await;
    let expected = json!({ "arm_id": "worker", "endpoint": "http://worker", "lifetime_s": 30 });
    assert_eq!((first.status, first.json()), (201, expected.clone()));
    let again = register(peer, &card, 30).await;
    assert_eq!((again.status, again.json()), (200, expected));
    let about = json!({ "arm_id": "worker", "endpoint": "http://worker", "instance": "one" });
    assert_eq!(next(&mut events).await, ("arm.registered".to_owned(), about.clone()));
    let found = arms.next().await.unwrap();
    assert_eq!(urls(&found), ["http://worker"]);
    assert_eq!(found[0].card.as_ref().unwrap().contracts.len(), 3);
    for path in ["/arms", "/capabilities"] {
        let listed = peer.get(path).await.json();
        assert_eq!(
            (&listed["arms"][0]["status"], &listed["arms"][0]["endpoint"]),
            (&json!("healthy"), &json!("http://worker"))
        );
    }
    let page = || metrics::page();
    let gauge =
        |status: &str| format!("octollm_registry_arms{{server=\"registrar\",status=\"{status}\"}} 1\n");
    assert!(page().contains(&gauge("healthy")));
    assert!(page().contains("octollm_registry_requests_total{code=\"ok\",server=\"registrar\"} 2\n"));

    // It is not renewed.
    let (kind, data) = next(&mut events).await;
    assert_eq!((&*kind, &data["reason"]), ("arm.unavailable", &json!("expired")));
    assert!(arms.next().await.unwrap().is_empty());
    assert_eq!(peer.get("/arms").await.json()["arms"][0]["status"], "unavailable");
    assert!(page().contains(&gauge("unavailable")));

    // The same process comes back, and leaves.
    assert_eq!(register(peer, &card, 30).await.status, 201);
    assert_eq!(next(&mut events).await.0, "arm.registered");
    assert_eq!(next(&mut events).await, ("arm.recovered".to_owned(), about));
    assert_eq!(urls(&arms.next().await.unwrap()), ["http://worker"]);
    assert_eq!(register(peer, &card, 0).await.status, 200);
    assert_eq!(next(&mut events).await.1["reason"], "left");
    assert!(arms.next().await.unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_list_that_has_not_changed_is_not_sent_again() {
    let peer = start(Server::new("brain").orchestrator(brain()).registry(registry()));
    let ask = |tag: String| async move {
        peer.send(format!("GET /arms HTTP/1.1\r\nHost: x\r\nIf-None-Match: {tag}\r\n\r\n")).await
    };
    let tag = peer.get("/arms").await.field("etag").unwrap().to_owned();
    let same = ask(format!("\"other\", {tag}")).await;
    assert_eq!((same.status, &*same.body, same.field("etag")), (304, "", Some(&*tag)));
    assert_eq!(ask("*".into()).await.status, 304);
    assert_eq!(ask(tag[2..].to_owned()).await.status, 304);
    let card = card("http://worker", "one").await;
    register(peer, &card, 30).await;
    let changed = ask(tag.clone()).await;
    assert_eq!(changed.status, 200);
    let tag = changed.field("etag").unwrap().to_owned();
    register(peer, &card, 30).await;
    assert_eq!(ask(tag).await.status, 304);
    assert_eq!(ask("garbage \" , ,".into()).await.status, 200);
}

#[tokio::test(start_paused = true)]
async fn lifetimes_are_within_their_bounds() {
    let peer = start(Server::new("brain").orchestrator(brain()).registry(registry()));
    let card = card("http://worker", "one").await;
    for (asked, granted) in [(1, 5), (5, 5), (300, 300), (u64::MAX, 300)] {
        assert_eq!(register(peer, &card, asked).await.json()["lifetime_s"], granted, "{asked}");
    }
    let answer = peer.post("/arms/register", "", &json!({ "card": card }).to_string()).await;
    assert_eq!(answer.json()["lifetime_s"], 30);
}

#[tokio::test(start_paused = true)]
async fn what_is_no_registration_is_refused() {
    let peer = start(Server::new("brain").orchestrator(brain()).registry(registry()));
    let good = card("http://worker", "one").await;
    let with = |member: &str, value: Value| {
        let mut card = good.clone();
        card[member] = value;
        card
    };
    for (card, status, code) in [
        (with("arm_id", "Worker".into()), 422, "validation_failed"),
        (with("arm_id", "../x".into()), 422, "validation_failed"),
        (with("arm_id", "brain".into()), 409, "conflict"),
        (with("contracts", json!([])), 422, "validation_failed"),
        (with("contracts", json!([{ "name": "no contract" }])), 422, "validation_failed"),
        (with("instance", "i".repeat(129).into()), 422, "validation_failed"),
        (with("endpoint", Value::Null), 422, "validation_failed"),
        (with("endpoint", "http://worker.evil.com".into()), 422, "validation_failed"),
        (with("endpoint", "http://worker@evil.com".into()), 422, "validation_failed"),
        (with("endpoint", "https://worker".into()), 422, "validation_failed"),
        (with("endpoint", "http://worker/../admin".into()), 422, "validation_failed"),
        (with("endpoint", "http://169.254.169.254".into()), 422, "validation_failed"),
    ] {
        let problem = register(peer, &card, 30).await.is_problem(status, code);
        assert_eq!((&problem["may_have_executed"], &problem["retryable"]), (&json!(false), &json!(false)));
    }
    for (body, status) in [
        ("", 400),
        ("{", 400),
        ("[]", 422),
        (r#"{"card":{}}"#, 422),
        (r#"{"card":{"arm_id":"worker"},"lifetime_s":-1}"#, 422),
        (r#"{"card":{"arm_id":"worker"},"lifetime":30}"#, 422),
    ] {
        assert_eq!(peer.post("/arms/register", "", body).await.status, status, "{body}");
    }
    assert_eq!(peer.get("/arms/register").await.status, 405);
    // A later version of a card has more members.
    assert!(peer.get("/arms").await.json()["arms"].as_array().unwrap().is_empty());
    assert_eq!(register(peer, &with("later", json!({ "a": 1 })), 30).await.status, 201);
}

#[tokio::test(start_paused = true)]
async fn an_administrator_clears_an_arm() {
    let (bus, registry) = (MemoryBus::new(), registry());
    let mut events = bus.subscribe("events:arm:*".parse().unwrap(), Overflow::DropOldest(64)).await.unwrap();
    let peer = start(Server::new("brain").orchestrator(brain()).bus(bus).registry(registry));
    clear(peer, "worker").await.is_problem(404, "not_found");
    let card = card("http://worker", "one").await;
    register(peer, &card, 30).await;
    let cleared = clear(peer, "worker").await;
    let expected = json!({ "arm_id": "worker", "endpoints": ["http://worker"] });
    assert_eq!((cleared.status, cleared.json()), (200, expected));
    assert!(peer.get("/arms").await.json()["arms"].as_array().unwrap().is_empty());
    assert_eq!(next(&mut events).await.0, "arm.registered");
    assert_eq!(next(&mut events).await.1["reason"], "cleared");
}

/// The caller in `X-Name`, with the scopes in `X-Scopes`.
fn by_name(head: &Parts) -> Result<Caller, Failure> {
    let field = |name| head.headers.get(name).map(|field| field.to_str().unwrap());
    Ok(match field("x-name") {
        Some(name) => {
            let scopes = field("x-scopes").unwrap_or_default().split(' ');
            Caller::Known(Grant::new(name, scopes).issuer("idp").into())
        }
        None => Caller::Anonymous,
    })
}

#[tokio::test(start_paused = true)]
async fn callers_that_are_known_need_scopes_and_a_key() {
    let peer = start(Server::new("brain").orchestrator(brain()).registry(registry()).authenticate(by_name));
    let body = json!({ "card": card("http://worker", "one").await }).to_string();
    let send = async |fields: &str| peer.send(post("/arms/register", fields, &body)).await;
    send("").await.is_problem(401, "unauthenticated");
    for (scopes, lacking) in [
        ("", "arms.worker:register"),
        ("arms.worker:*", "arms.worker:register"),
        ("arms:register", "arms.worker:register"),
        ("arms.*:register", "arms.worker:register"),
        ("arms.workers:register", "arms.worker:register"),
        ("arms.worker:register text:*", "text:serve"),
        ("arms.worker:register text:serve", "work:serve"),
    ] {
        let answer = send(&format!("X-Name: ali\r\nX-Scopes: {scopes}\r\n")).await;
        answer.is_problem(403, "insufficient_scope");
        assert!(
            answer.field("www-authenticate").unwrap().contains(&format!("scope=\"{lacking}\"")),
            "{scopes}"
        );
    }
    let all = "X-Name: ali\r\nX-Scopes: arms.worker:register text:serve work:serve\r\n";
    let problem = send(all).await.is_problem(401, "unauthenticated");
    assert!(problem["message"].as_str().unwrap().contains("no key"), "{problem}");
    let delete = async |fields: &str| {
        peer.send(format!("DELETE /arms/worker HTTP/1.1\r\nHost: x\r\n{fields}\r\n")).await
    };
    delete("").await.is_problem(401, "unauthenticated");
    delete("X-Name: ali\r\nX-Scopes: arms:*\r\n").await.is_problem(403, "insufficient_scope");
    delete("X-Name: ali\r\nX-Scopes: arms:admin\r\n").await.is_problem(404, "not_found");
}

#[tokio::test(start_paused = true)]
async fn a_registry_needs_what_it_needs() {
    let setting = |server: Server| server.into_service().unwrap_err().setting().to_owned();
    assert_eq!(setting(Server::new("brain").registry(registry()).open_to_all()), "registry");
    let open = || Server::new("brain").orchestrator(brain()).open_to_all();
    assert_eq!(
        setting(open().registry(Registry::new())),
        "registry",
        "the endpoints of this machine, for everybody"
    );
    let shared = registry();
    open().registry(shared.clone()).into_service().unwrap();
    assert_eq!(setting(open().registry(shared)), "registry", "it is that of another server");
    for prefix in ["judge", "ftp://judge", "http://*", "http://judge?x"] {
        assert_eq!(Registry::builder().allow(prefix).build().unwrap_err().setting(), "allow", "{prefix}");
    }
    let short = Registry::builder().lifetime(Duration::from_secs(4)).build();
    assert_eq!(short.unwrap_err().setting(), "lifetime");
    let reserved = Registry::builder().allow("http://worker").reserve("worker").build().unwrap();
    let peer = start(Server::new("brain").orchestrator(brain()).registry(reserved));
    register(peer, &card("http://worker", "one").await, 30).await.is_problem(409, "conflict");
}

#[tokio::test(start_paused = true)]
async fn nobody_registers_an_arm_that_is_in_the_configuration_of_the_brain() {
    let builder = Arms::builder().endpoint("worker", "http://elsewhere:1");
    let arms = builder.resolver(registry().resolver()).build().unwrap();
    let brain = Brain::builder().arm(Review).arms(arms).build().unwrap();
    let registry = registry();
    let peer = start(Server::new("brain").orchestrator(brain).registry(registry.clone()));
    let mut card = card("http://worker", "one").await;
    register(peer, &card, 30).await.is_problem(409, "conflict");
    assert!(registry.cards().is_empty());
    card["arm_id"] = "other".into();
    assert_eq!(register(peer, &card, 30).await.status, 201);
}

#[tokio::test(start_paused = true)]
async fn a_registry_that_is_full_refuses_and_serves_who_is_there() {
    let registry = Registry::builder().allow("http://worker:*").max_registered(8).build().unwrap();
    let peer = start(Server::new("brain").orchestrator(brain()).registry(registry));
    let mut card = card("http://worker", "one").await;
    for (port, status) in [(1, 201), (2, 201), (3, 503)] {
        card["endpoint"] = format!("http://worker:{port}").into();
        let answer = register(peer, &card, 30).await;
        assert_eq!(answer.status, status);
        assert_eq!(answer.field("retry-after").is_some(), status == 503);
    }
    card["endpoint"] = "http://worker:1".into();
    assert_eq!(register(peer, &card, 30).await.status, 200);
}

#[tokio::test(start_paused = true)]
async fn a_card_that_would_fill_the_list_is_refused() {
    let registry = Registry::builder().allow("http://worker:*").build().unwrap();
    let peer = start(Server::new("brain").orchestrator(brain()).registry(registry));
    let mut card = card("http://worker", "one").await;
    card["description"] = "x".repeat(256 * 1024).into();
    register(peer, &card, 30).await.is_problem(413, "payload_too_large");
    // Of many cards of one arm the list has at most a quarter of the bytes, so that a client can read it.
    card["description"] = "x".repeat(250 * 1024).into();
    let mut statuses = Vec::new();
    for port in 1..=40 {
        card["endpoint"] = format!("http://worker:{port}").into();
        statuses.push(register(peer, &card, 30).await.status);
    }
    let accepted = statuses.iter().filter(|status| **status == 201).count();
    assert_eq!((accepted, statuses.last()), (6, Some(&503)));
    assert!(peer.get("/arms").await.body.len() < 2 << 20);
}

#[tokio::test(start_paused = true)]
async fn its_document_has_its_routes() {
    let document = start(Server::new("brain").orchestrator(brain()).registry(registry()))
        .get("/openapi.json")
        .await
        .json();
    let register = &document["paths"]["/arms/register"]["post"]["responses"];
    assert!(register["200"].is_object() && register["201"].is_object() && register["409"].is_object());
    assert_eq!(document["paths"]["/arms/{id}"]["delete"]["x-octollm-scope"], "arms:admin");
    assert!(document["components"]["schemas"]["Registration"].is_object());
    assert!(document["paths"]["/arms"]["get"]["responses"]["304"].is_object());
    let without = start(Server::new("brain").orchestrator(brain())).get("/openapi.json").await.json();
    assert!(without["paths"]["/arms/register"].is_null());
}

#[tokio::test(start_paused = true)]
async fn events_are_published_where_the_registry_is_cleared_by_its_program() {
    let (bus, registry) = (MemoryBus::new(), registry());
    let mut events = bus.subscribe("events:arm:*".parse().unwrap(), Overflow::DropOldest(64)).await.unwrap();
    let (peer, acceptor) = network();
    let bound = Server::new("brain").orchestrator(brain()).bus(bus).registry(registry.clone());
    let server = tokio::spawn(bound.listen(acceptor).unwrap().run());
    register(peer, &card("http://worker", "one").await, 30).await;
    assert_eq!(next(&mut events).await.0, "arm.registered");
    // Registrations end also where the server is gone.
    server.abort();
    assert_eq!(next(&mut events).await.1["reason"], "expired");
    assert_eq!(registry.clear("worker"), Some(vec![]));
    assert_eq!(registry.clear("worker"), None);
}
