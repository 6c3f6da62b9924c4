//! The updates of a task as server-sent events.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use async_trait::async_trait;
use octollm_core::{
    Arm, Context,
    brain::Brain,
    error::{ArmError, ErrorKind},
    id::TaskId,
    orchestrator::{Orchestrator, TaskUpdates},
    task::{Submission, TaskUpdate},
};
use octollm_http::{OrchestratorClient, Server};
use octollm_macros::TaskContract;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::{sync::oneshot, task::JoinHandle};

use crate::{
    orchestrator::task,
    peer::{Answer, Peer, network, orchestrator},
};

/// Says a word every few milliseconds.
#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "text.dictate", output = usize, chunk = usize, timeout = "60s")]
pub(crate) struct Dictate {
    pub(crate) words: usize,
    pub(crate) ms: u64,
}

pub(crate) struct Dictator;

#[async_trait]
impl Arm<Dictate> for Dictator {
    async fn execute(&self, dictate: Dictate, cx: &Context) -> Result<usize, ArmError> {
        for word in 0..dictate.words {
            cx.chunk::<Dictate>(&word).await;
            tokio::time::sleep(Duration::from_millis(dictate.ms)).await;
        }
        Ok(dictate.words)
    }
}

/// A server of the system, and what stops it.
pub(crate) async fn serve(brain: &Brain, address: &str) -> (String, oneshot::Sender<()>, JoinHandle<()>) {
    // It is closed with each of its servers, and other brains go on with its store.
    let bound = Server::new("brain").orchestrator(brain.clone()).bind(address).await.unwrap();
    let (url, (stop, stopped)) = (bound.url(), oneshot::channel());
    let server = tokio::spawn(bound.run_until(async {
        let _ = stopped.await;
    }));
    (url, stop, server)
}

pub(crate) async fn submitted(client: &OrchestratorClient, words: usize, ms: u64) -> TaskId {
    let submission = Submission::of(&Dictate { words, ms }).unwrap();
    Orchestrator::submit(client, submission, &Context::detached()).await.unwrap().task_id
}

pub(crate) async fn rest(mut updates: TaskUpdates) -> Vec<TaskUpdate> {
    let mut all = Vec::new();
    while let Some(update) = updates.next().await {
        all.push(update);
    }
    all
}

pub(crate) fn words(updates: &[TaskUpdate]) -> Vec<usize> {
    let words = updates.iter().filter_map(|update| match update {
        TaskUpdate::Chunk { data, .. } => Some(data.read().unwrap()),
        _ => None,
    });
    words.collect()
}

#[tokio::test]
async fn a_task_is_followed_as_it_runs_with_its_chunks() {
    let brain = Brain::builder().arm::<Dictate>(Dictator).build().unwrap();
    let (url, _stop, _) = serve(&brain, "127.0.0.1:0").await;
    let client = OrchestratorClient::new(&url).unwrap();
    let id = submitted(&client, 20, 5).await;
    let updates = rest(client.watch(&id, None, &Context::detached()).await.unwrap()).await;
    let numbers: Vec<_> = updates.iter().map(TaskUpdate::seq).collect();
    assert_eq!(numbers, (1..=updates.len() as u64).collect::<Vec<_>>());
    assert_eq!(words(&updates), (0..20).collect::<Vec<_>>());
    assert!(updates.last().unwrap().is_last());
    for after in [1, 7, updates.len() as u64] {
        let resumed = rest(client.watch(&id, Some(after), &Context::detached()).await.unwrap()).await;
        assert_eq!(resumed, updates[usize::try_from(after).unwrap()..], "{after}");
    }
    let unknown = "task_0000000000000000".parse().unwrap();
    let failure = client.watch(&unknown, None, &Context::detached()).await.unwrap_err();
    assert_eq!(failure.kind, ErrorKind::TaskNotFound);
}

#[tokio::test]
async fn a_task_is_followed_over_the_end_of_a_server() {
    let store = std::sync::Arc::new(octollm_core::store::MemoryStore::new());
    let brain = || Brain::builder().arm::<Dictate>(Dictator).store(store.clone()).build().unwrap();
    // The one that runs the task, and the one that the client knows.
    let runs = brain();
    let (front, stop, ended) = serve(&brain(), "127.0.0.1:0").await;
    let client = OrchestratorClient::new(&front).unwrap();
    let submission = Submission::of(&Dictate { words: 100, ms: 10 }).unwrap();
    let id = Orchestrator::submit(&runs, submission, &Context::detached()).await.unwrap().task_id;
    let mut updates = client.watch(&id, None, &Context::detached()).await.unwrap();
    let mut seen = Vec::new();
    while words(&seen).len() < 10 {
        seen.push(updates.next().await.unwrap());
    }
    stop.send(()).unwrap();
    ended.await.unwrap();
    let address = front.strip_prefix("http://").unwrap();
    let (_, _stop, _) = serve(&brain(), address).await;
    seen.extend(rest(updates).await);
    let numbers: Vec<_> = seen.iter().map(TaskUpdate::seq).collect();
    assert_eq!(numbers, (1..=seen.len() as u64).collect::<Vec<_>>(), "each number once");
    assert_eq!(words(&seen), (0..100).collect::<Vec<_>>());
}

/// The updates of a finished task after its last one end, also at a server that follows another one.
pub(crate) async fn updates_after_the_last_end(client: impl Fn(&str) -> OrchestratorClient) {
    let (url, _stop, _) =
        serve(&Brain::builder().arm::<Dictate>(Dictator).build().unwrap(), "127.0.0.1:0").await;
    let front = Server::new("front").orchestrator(client(&url)).bind("127.0.0.1:0").await.unwrap();
    let front_url = front.url();
    tokio::spawn(front.run());
    let id = submitted(&client(&url), 3, 0).await;
    let cx = Context::detached();
    let updates = rest(client(&front_url).watch(&id, None, &cx).await.unwrap()).await;
    let last = updates.last().unwrap();
    assert!(last.is_last());
    for url in [&url, &front_url] {
        let rest = async { rest(client(url).watch(&id, Some(last.seq()), &cx).await.unwrap()).await };
        let rest = tokio::time::timeout(Duration::from_secs(10), rest).await.expect("the updates do not end");
        assert!(rest.is_empty(), "{rest:?}");
    }
}

#[tokio::test]
async fn updates_after_the_last_end_at_once() {
    updates_after_the_last_end(|url| OrchestratorClient::new(url).unwrap()).await;
}

pub(crate) const ID: &str = "task_3fK9aZ0qLw81bXyT";

fn events(numbers: &[u64], of: &str) -> String {
    let event = |seq: &u64| {
        let data = match seq {
            100 => json!({ "type": "status", "task_id": of, "seq": seq, "status": "completed" }),
            50 => json!({ "type": "gap", "task_id": of, "seq": seq, "missed": 2 }),
            _ => json!({ "type": "chunk", "task_id": of, "seq": seq, "data": seq }),
        };
        format!("id: {seq}\ndata: {data}\n\n")
    };
    numbers.iter().map(event).collect()
}

#[tokio::test(start_paused = true)]
async fn every_number_arrives_once_or_in_a_gap() {
    let asked = AtomicUsize::new(0);
    let peer = Peer::start(move |_| {
        let body = match asked.fetch_add(1, Ordering::SeqCst) {
            0 => events(&[1, 2, 3], ID),
            // The last one again, and then one of another task.
            1 => events(&[3, 4], ID) + &events(&[5], "task_0000000000000000"),
            2 => "data: x\n\n".into(),
            3 => return std::future::ready(Answer::Json(503, json!({}))),
            // Some are missing, and what is said to be missing is less than that.
            4 => events(&[8, 50, 60], ID),
            5 => format!("{}id: 62\ndata: {{\"ty", events(&[61], ID)),
            _ => events(&[62, 100], ID),
        };
        let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n\r\n";
        std::future::ready(Answer::Last(format!("{head}{body}").into_bytes()))
    })
    .await;
    let peer = peer.streaming();
    let client = orchestrator(&peer.url);
    let updates = rest(client.watch(&ID.parse().unwrap(), None, &Context::detached()).await.unwrap()).await;
    let seen: Vec<_> = updates
        .iter()
        .map(|update| match update {
            TaskUpdate::Gap { seq, missed, .. } => format!("{}-{seq}", seq - missed + 1),
            update => update.seq().to_string(),
        })
        .collect();
    assert_eq!(seen, ["1", "2", "3", "4", "5-7", "8", "9-50", "51-59", "60", "61", "62", "63-99", "100"]);
    let asked: Vec<_> = peer.calls().iter().map(|call| call.path.clone()).collect();
    let path = |after: &str| format!("/tasks/{ID}/events{after}");
    let expected = ["", "?after=3", "?after=4", "?after=4", "?after=4", "?after=60", "?after=61"].map(path);
    assert_eq!(asked, expected);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_ends_each_stream_at_once_is_given_up() {
    let peer = Peer::start(|_| {
        let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n";
        std::future::ready(Answer::Last(head.into()))
    })
    .await;
    let peer = peer.streaming();
    let client = orchestrator(&peer.url);
    let begun = tokio::time::Instant::now();
    let updates = client.watch(&ID.parse().unwrap(), None, &Context::detached()).await.unwrap();
    assert!(rest(updates).await.is_empty());
    let streams = peer.calls().iter().filter(|call| call.path.contains("/events")).count();
    assert!((20..=25).contains(&streams), "{streams}");
    assert!((30..=33).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
    let client =
        OrchestratorClient::builder(&peer.url).connector(network()).resume_timeout(Duration::from_secs(5));
    let begun = tokio::time::Instant::now();
    let updates =
        client.build().unwrap().watch(&ID.parse().unwrap(), None, &Context::detached()).await.unwrap();
    assert!(rest(updates).await.is_empty());
    assert!((5..=8).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn an_orchestrator_that_is_away_for_twenty_seconds_is_followed_again() {
    for streams in [true, false] {
        let begun = tokio::time::Instant::now();
        let peer = Peer::start(move |call| {
            let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n";
            let away = (1..20).contains(&begun.elapsed().as_secs());
            std::future::ready(match (call.path.contains("/events"), away) {
                (_, true) => Answer::Json(503, json!({})),
                (true, false) if !streams => Answer::Json(404, json!({})),
                (true, false) if call.path.ends_with("after=2") => {
                    Answer::Last((head.to_owned() + &events(&[3, 100], ID)).into_bytes())
                }
                (true, false) => Answer::Last((head.to_owned() + &events(&[1, 2], ID)).into_bytes()),
                (false, false) if begun.elapsed().as_secs() >= 20 => {
                    Answer::Json(200, task("completed", 100))
                }
                (false, false) => Answer::Json(200, task("processing", 10)),
            })
        })
        .await;
        let peer = peer.streaming();
        let client = orchestrator(&peer.url);
        let mut updates = client.watch(&ID.parse().unwrap(), None, &Context::detached()).await.unwrap();
        assert!(!updates.next().await.unwrap().is_last());
        tokio::time::advance(Duration::from_secs(1)).await;
        let updates = rest(updates).await;
        assert!(updates.last().unwrap().is_last(), "{streams} {updates:?}");
        assert!((20..=35).contains(&begun.elapsed().as_secs()), "{streams} {:?}", begun.elapsed());
    }
}

#[tokio::test]
async fn streams_leave_half_of_the_connections_to_requests() {
    let brain = Brain::builder().arm::<Dictate>(Dictator).build().unwrap();
    let (url, _stop, _) = serve(&brain, "127.0.0.1:0").await;
    let client = OrchestratorClient::builder(&url).max_connections(4).build().unwrap();
    let id = submitted(&client, 40, 25).await;
    let mut followed = tokio::task::JoinSet::new();
    for _ in 0..10 {
        let (client, id) = (client.clone(), id.clone());
        followed
            .spawn(async move { rest(client.watch(&id, None, &Context::detached()).await.unwrap()).await });
    }
    let mut streamed = 0;
    while let Some(updates) = followed.join_next().await {
        let updates = updates.unwrap();
        assert!(updates.last().unwrap().is_last());
        streamed += usize::from(words(&updates).len() == 40);
    }
    assert_eq!(streamed, 2, "the others are polled");
}
