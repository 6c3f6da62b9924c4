//! The dead letters of a durable bus.

use std::time::Duration;

use http::{header, request::Parts};
use octollm_core::{
    bus::{ConsumeOptions, Consumer, DurableBus, EventBus, MemoryDurableBus, Nack},
    error::Failure,
    event::Event,
    parts::Caller,
};
use octollm_http::Server;
use serde_json::{Value, json};

use crate::{
    arms::start,
    peer::{Answer, Peer},
};

const GROUP: &str = "group=billing%20team";

/// The token is the scope of the caller.
fn known(head: &Parts) -> Result<Caller, Failure> {
    let field = head.headers.get(header::AUTHORIZATION).and_then(|field| field.to_str().ok());
    Ok(match field.and_then(|field| field.strip_prefix("Bearer ")) {
        Some(scope) => Caller::known("ann", [scope]),
        None => Caller::Anonymous,
    })
}

async fn get(peer: Peer, query: &str) -> Answer {
    let fields = "Host: x\r\nAuthorization: Bearer events:admin\r\n";
    peer.send(format!("GET /dead-letters?{query} HTTP/1.1\r\n{fields}\r\n")).await
}

async fn replay(peer: Peer, id: &str, query: &str) -> Answer {
    peer.post(&format!("/dead-letters/{id}/replay?{query}"), "Authorization: Bearer events:admin\r\n", "")
        .await
}

/// A bus with so many dead letters of a group, a server of them, and a consumer of the group.
async fn bus_with(letters: usize) -> (MemoryDurableBus, Peer, Consumer) {
    let bus = MemoryDurableBus::new();
    let pattern = "events:order:paid".parse().unwrap();
    let mut consumer = bus.consume("billing team", pattern, ConsumeOptions::default()).await.unwrap();
    for number in 0..letters {
        bus.publish(Event::new("order.paid", "shop", number).unwrap().with_subject("order")).await.unwrap();
        let delivery = consumer.next().await.unwrap().unwrap();
        delivery.nack(Nack::dead_letter(format!("reason {number}"))).await.unwrap();
    }
    let peer = start(Server::new("brain").authenticate(known).dead_letters(bus.clone()));
    (bus, peer, consumer)
}

fn ids(answer: &Answer) -> Vec<String> {
    assert_eq!(answer.status, 200, "{answer:?}");
    let body = answer.json();
    let letters = body["dead_letters"].as_array().unwrap();
    letters.iter().map(|letter| letter["id"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test(start_paused = true)]
async fn dead_letters_are_listed_with_their_reasons_and_replayed() {
    let (bus, peer, mut consumer) = bus_with(3).await;
    let listed = get(peer, GROUP).await;
    let body = listed.json();
    assert_eq!(body["next"], Value::Null);
    for (number, letter) in body["dead_letters"].as_array().unwrap().iter().enumerate() {
        let reason = format!("reason {number}");
        assert_eq!((&letter["reason"], &letter["attempts"]), (&json!(reason), &json!(1)));
        assert_eq!(
            (&letter["event"]["event_type"], &letter["event"]["data"]),
            (&json!("order.paid"), &json!(number))
        );
        assert_eq!((&letter["event"]["subject"], &letter["bytes"]), (&json!("order"), &Value::Null));
        let history = letter["history"].as_array().unwrap();
        assert_eq!((history.len(), &history[0]["reason"]), (1, &json!(reason)));
        assert_eq!(history[0]["consumer"], json!(consumer.name()));
        assert!(history[0]["at"].as_str().unwrap().ends_with('Z'));
    }
    let all = ids(&listed);
    assert_eq!(all.len(), 3);

    let replayed = replay(peer, &all[1], GROUP).await;
    let expected = json!({ "id": all[1], "group": "billing team" });
    assert_eq!((replayed.status, replayed.json()), (202, expected));
    let delivery =
        tokio::time::timeout(Duration::from_secs(5), consumer.next()).await.unwrap().unwrap().unwrap();
    assert_eq!((delivery.attempt(), delivery.event().data()), (1, &json!(1)));
    delivery.ack().await.unwrap();
    assert_eq!(ids(&get(peer, GROUP).await), [all[0].clone(), all[2].clone()]);
    replay(peer, &all[1], GROUP).await.is_problem(404, "not_found");
    assert_eq!(bus.group("billing team").await.unwrap().dead_letters, 2);
}

#[tokio::test(start_paused = true)]
async fn the_token_of_a_job_is_not_listed() {
    let (bus, peer, mut consumer) = bus_with(0).await;
    let data = json!({ "input": { "token": "a word" }, "token": "secret" });
    bus.publish(Event::new("order.paid", "shop", data).unwrap()).await.unwrap();
    consumer.next().await.unwrap().unwrap().nack(Nack::dead_letter("bad")).await.unwrap();
    let listed = get(peer, GROUP).await.json();
    let expected = json!({ "input": { "token": "a word" }, "token": "[redacted]" });
    assert_eq!(listed["dead_letters"][0]["event"]["data"], expected);
    let id = listed["dead_letters"][0]["id"].as_str().unwrap();
    assert_eq!(replay(peer, id, GROUP).await.status, 202);
    assert_eq!(consumer.next().await.unwrap().unwrap().event().data()["token"], "secret");
}

#[tokio::test(start_paused = true)]
async fn dead_letters_have_pages() {
    let (_bus, peer, _consumer) = bus_with(5).await;
    let (mut after, mut found, mut pages) = (String::new(), Vec::new(), 0);
    loop {
        let page = get(peer, &format!("{GROUP}&limit=2&after={after}")).await;
        found.extend(ids(&page));
        pages += 1;
        match &page.json()["next"] {
            Value::String(next) => after.clone_from(next),
            _ => break,
        }
    }
    assert_eq!((pages, &found), (3, &ids(&get(peer, GROUP).await)));
    assert_eq!(get(peer, &format!("{GROUP}&limit=5")).await.json()["next"], Value::Null);
}

#[tokio::test(start_paused = true)]
async fn a_page_of_large_events_is_shorter() {
    let (bus, peer, mut consumer) = bus_with(0).await;
    for _ in 0..3 {
        bus.publish(Event::new("order.paid", "shop", "x".repeat(600 * 1024)).unwrap()).await.unwrap();
        consumer.next().await.unwrap().unwrap().nack(Nack::dead_letter("large")).await.unwrap();
    }
    let page = get(peer, GROUP).await;
    let found = ids(&page);
    assert_eq!((found.len(), page.json()["next"].as_str()), (2, Some(&*found[1])));
    assert_eq!(ids(&get(peer, &format!("{GROUP}&after={}", found[1])).await).len(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_is_malformed_unknown_or_not_allowed_is_refused() {
    let (_bus, peer, _consumer) = bus_with(1).await;
    let id = &ids(&get(peer, GROUP).await)[0];
    for query in [
        "",
        "group=",
        "group=a&group=b",
        "group=a&limit=0",
        "group=a&limit=101",
        "group=a&more=1",
        "group=%zz",
    ] {
        get(peer, query).await.is_problem(400, "bad_request");
    }
    for query in ["", "group=billing%20team&limit=1"] {
        replay(peer, id, query).await.is_problem(400, "bad_request");
    }
    get(peer, "group=nobody").await.is_problem(404, "not_found");
    get(peer, &format!("{GROUP}&after=x")).await.is_problem(404, "not_found");
    replay(peer, id, "group=nobody").await.is_problem(404, "not_found");
    replay(peer, "0", GROUP).await.is_problem(404, "not_found");
    for (field, status, code) in [
        ("", 401, "unauthenticated"),
        ("Authorization: Bearer events:*\r\n", 403, "insufficient_scope"),
        ("Authorization: Bearer tasks:admin\r\n", 403, "insufficient_scope"),
    ] {
        let head = format!("GET /dead-letters?{GROUP} HTTP/1.1\r\nHost: x\r\n{field}\r\n");
        peer.send(head).await.is_problem(status, code);
        peer.post(&format!("/dead-letters/{id}/replay?{GROUP}"), field, "").await.is_problem(status, code);
    }
    let nowhere = start(Server::new("brain").open_to_all());
    nowhere.get("/dead-letters?group=a").await.is_problem(404, "not_found");
}
