//! Tasks that are followed over WebSockets.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use octollm_core::{
    Context,
    brain::Brain,
    error::ErrorKind,
    orchestrator::Orchestrator,
    store::MemoryStore,
    task::{Submission, TaskUpdate},
};
use octollm_http::{OrchestratorClient, Server};
use serde_json::json;
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
    time::{sleep, timeout},
};

use crate::{
    peer::{Answer, Peer, until},
    updates::{Dictate, Dictator, ID, rest, serve, submitted, updates_after_the_last_end, words},
};

fn brain() -> Brain {
    Brain::builder().arm::<Dictate>(Dictator).build().unwrap()
}

fn client(url: &str) -> OrchestratorClient {
    OrchestratorClient::builder(url).websockets().build().unwrap()
}

fn each_number_is_there_once(updates: &[TaskUpdate]) {
    let numbers: Vec<_> = updates.iter().map(TaskUpdate::seq).collect();
    assert_eq!(numbers, (1..=updates.len() as u64).collect::<Vec<_>>());
}

#[tokio::test]
async fn one_connection_follows_many_tasks() {
    let server = Server::new("brain").orchestrator(brain()).max_live_streams(1);
    let bound = server.bind("127.0.0.1:0").await.unwrap();
    let client = client(&bound.url());
    tokio::spawn(bound.run());
    let mut followed = JoinSet::new();
    for count in 1..=40 {
        let (client, id) = (client.clone(), submitted(&client, count, 2).await);
        followed.spawn(async move {
            let cx = Context::detached();
            let updates = rest(client.watch(&id, None, &cx).await.unwrap()).await;
            each_number_is_there_once(&updates);
            assert_eq!(words(&updates), (0..count).collect::<Vec<_>>());
            assert!(updates.last().unwrap().is_last());
            for after in [1, 3, updates.len() as u64] {
                let resumed = rest(client.watch(&id, Some(after), &cx).await.unwrap()).await;
                assert_eq!(resumed, updates[usize::try_from(after).unwrap()..], "{after}");
            }
        });
    }
    while let Some(done) = followed.join_next().await {
        done.unwrap();
    }
    let unknown = "task_0000000000000000".parse().unwrap();
    let failure = client.watch(&unknown, None, &Context::detached()).await.unwrap_err();
    assert_eq!(failure.kind, ErrorKind::TaskNotFound);
}

#[tokio::test]
async fn a_task_is_followed_over_the_end_of_a_server() {
    let store = Arc::new(MemoryStore::new());
    let brain = || Brain::builder().arm::<Dictate>(Dictator).store(store.clone()).build().unwrap();
    let runs = brain();
    let (front, stop, ended) = serve(&brain(), "127.0.0.1:0").await;
    let client = client(&front);
    let submission = Submission::of(&Dictate { words: 100, ms: 10 }).unwrap();
    let id = Orchestrator::submit(&runs, submission, &Context::detached()).await.unwrap().task_id;
    let mut updates = client.watch(&id, None, &Context::detached()).await.unwrap();
    let mut seen = Vec::new();
    while words(&seen).len() < 10 {
        seen.push(updates.next().await.unwrap());
    }
    stop.send(()).unwrap();
    ended.await.unwrap();
    let (_, _stop, _) = serve(&brain(), front.strip_prefix("http://").unwrap()).await;
    seen.extend(rest(updates).await);
    each_number_is_there_once(&seen);
    assert_eq!(words(&seen), (0..100).collect::<Vec<_>>());
}

#[tokio::test]
async fn updates_after_the_last_end_at_once() {
    updates_after_the_last_end(client).await;
}

/// Passes connections on to an address: its URL, what freezes those that are open, and its number of connections. Each is cut after
/// `life`.
async fn proxy(to: SocketAddr, life: Duration) -> (String, watch::Sender<()>, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let ((freeze, frozen), count) = (watch::channel(()), Arc::new(AtomicUsize::new(0)));
    let accepted = count.clone();
    tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            accepted.fetch_add(1, Ordering::SeqCst);
            let mut frozen = frozen.clone();
            frozen.mark_unchanged();
            tokio::spawn(async move {
                let mut far = TcpStream::connect(to).await.unwrap();
                tokio::select! {
                    _ = copy_bidirectional(&mut near, &mut far) => return,
                    () = sleep(life) => return,
                    Ok(()) = frozen.changed() => {}
                }
                // Nothing passes any more, and neither end learns it.
                std::future::pending::<()>().await;
            });
        }
    });
    (url, freeze, count)
}

#[tokio::test]
async fn connections_that_are_cut_lose_and_repeat_nothing() {
    let (url, _stop, _) = serve(&brain(), "127.0.0.1:0").await;
    let address = url.strip_prefix("http://").unwrap().parse().unwrap();
    let (through, _freeze, count) = proxy(address, Duration::from_millis(70)).await;
    let (direct, client) = (OrchestratorClient::new(&url).unwrap(), client(&through));
    let mut followed = JoinSet::new();
    for _ in 0..5 {
        let (client, id) = (client.clone(), submitted(&direct, 150, 5).await);
        followed.spawn(async move {
            let updates = rest(client.watch(&id, None, &Context::detached()).await.unwrap()).await;
            each_number_is_there_once(&updates);
            assert_eq!(words(&updates), (0..150).collect::<Vec<_>>());
        });
    }
    while let Some(done) = followed.join_next().await {
        done.unwrap();
    }
    assert!(count.load(Ordering::SeqCst) > 5, "{count:?}");
}

#[tokio::test]
async fn a_peer_that_vanishes_is_noticed_by_a_ping() {
    let (url, _stop, _) = serve(&brain(), "127.0.0.1:0").await;
    let address = url.strip_prefix("http://").unwrap().parse().unwrap();
    let (through, freeze, count) = proxy(address, Duration::from_secs(3600)).await;
    let client = OrchestratorClient::builder(&through)
        .websockets()
        .ping_interval(Duration::from_millis(100))
        .ping_timeout(Duration::from_millis(200));
    let (direct, client) = (OrchestratorClient::new(&url).unwrap(), client.build().unwrap());
    let id = submitted(&direct, 100, 10).await;
    let mut updates = client.watch(&id, None, &Context::detached()).await.unwrap();
    let mut seen = vec![updates.next().await.unwrap()];
    freeze.send(()).unwrap();
    seen.extend(timeout(Duration::from_secs(20), rest(updates)).await.expect("was not noticed"));
    each_number_is_there_once(&seen);
    assert_eq!(count.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn whoever_is_slow_slows_nobody_and_has_each_number_once_or_in_a_gap() {
    let (url, _stop, _) = serve(&brain(), "127.0.0.1:0").await;
    let client = client(&url);
    let (long, short) = (submitted(&client, 3_000, 0).await, submitted(&client, 10, 1).await);
    let cx = Context::detached();
    let mut slow = client.watch(&long, None, &cx).await.unwrap();
    let first = slow.next().await.unwrap();
    assert_eq!(
        octollm_core::orchestrator::finished(&client, &long, &cx).await.unwrap().status.to_string(),
        "completed"
    );
    let others = rest(client.watch(&short, None, &cx).await.unwrap()).await;
    each_number_is_there_once(&others);
    let (mut last, mut gaps) = (first.seq(), 0);
    for update in rest(slow).await {
        last = match update {
            TaskUpdate::Gap { seq, missed, .. } => {
                gaps += 1;
                assert_eq!(seq - missed, last);
                seq
            }
            update => {
                assert_eq!(update.seq(), last + 1);
                update.seq()
            }
        };
    }
    assert!(last > 3_000 && gaps > 0, "{last}, {gaps} gaps");
}

#[tokio::test]
async fn what_is_dropped_frees_the_connection() {
    let server = Server::new("brain").orchestrator(brain()).max_live_streams(1);
    let bound = server.bind("127.0.0.1:0").await.unwrap();
    let url = bound.url();
    tokio::spawn(bound.run());
    let builder = OrchestratorClient::builder(&url).websockets().idle_timeout(Duration::from_millis(50));
    let (first, second) = (builder.build().unwrap(), client(&url));
    let id = submitted(&second, 1, 60_000).await;
    let cx = Context::detached();
    let mut updates = first.watch(&id, None, &cx).await.unwrap();
    updates.next().await.unwrap();
    let streamed = |client: &OrchestratorClient| {
        let (client, id, cx) = (client.clone(), id.clone(), cx.clone());
        async move {
            let mut updates = client.watch(&id, None, &cx).await.unwrap();
            let mut seen = Vec::new();
            while let Ok(Some(update)) = timeout(Duration::from_millis(300), updates.next()).await {
                seen.push(update);
            }
            words(&seen).len()
        }
    };
    drop(updates);
    // Without a place the server refuses, and the client tries again.
    let has_place = async { while streamed(&second).await == 0 {} };
    timeout(Duration::from_secs(10), has_place).await.expect("the place is not free");
    drop((first, second));
}

#[tokio::test]
async fn an_orchestrator_without_websockets_streams_events() {
    let peer = Peer::start(|received| {
        let event = |seq: u64, data: serde_json::Value| format!("id: {seq}\ndata: {data}\n\n");
        let answer = match &*received.path {
            "/ws" => Answer::Json(404, json!({})),
            path => {
                assert!(path.contains("/events"), "{path}");
                let chunk = event(1, json!({ "type": "chunk", "task_id": ID, "seq": 1, "data": 1 }));
                let last =
                    event(2, json!({ "type": "status", "task_id": ID, "seq": 2, "status": "completed" }));
                let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n";
                Answer::Last(format!("{head}{chunk}{last}").into_bytes())
            }
        };
        std::future::ready(answer)
    })
    .await;
    let peer = peer.streaming();
    let client = OrchestratorClient::builder(&peer.url).websockets();
    let client = client.connector(crate::peer::network()).build().unwrap();
    for _ in 0..2 {
        let updates =
            rest(client.watch(&ID.parse().unwrap(), None, &Context::detached()).await.unwrap()).await;
        each_number_is_there_once(&updates);
    }
    let asked: Vec<_> = peer.calls().iter().map(|call| call.path.clone()).collect();
    assert_eq!(asked, ["/ws".to_owned(), format!("/tasks/{ID}/events"), format!("/tasks/{ID}/events")]);
    until(|| peer.open() <= 1).await;
}
