//! Calls whose output streams.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use async_trait::async_trait;
use octollm_core::{
    Arm, Context,
    arm::arm_fn,
    brain::Brain,
    budget::Usage,
    card::ArmCard,
    contract::ContractCard,
    error::{ArmError, ErrorKind},
    orchestrator::{Orchestrator, finished},
    task::{Submission, TaskStatus},
};
use octollm_http::{Arms, Server, client::Protocol};
use octollm_macros::TaskContract;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::Notify;

use crate::peer::{Answer, Check, Peer, Verdict, arms, check, network, until, unused_host, usual};

/// Sends so many chunks.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "text.tell", output = Told, chunk = Word, idempotent)]
struct Tell {
    words: usize,
    #[serde(default)]
    size: usize,
    #[serde(default)]
    waits_after: Option<usize>,
    #[serde(default)]
    fails: bool,
}

#[derive(Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
struct Told {
    words: usize,
}

#[derive(Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
struct Word {
    at: usize,
    text: String,
}

#[derive(Clone, Default)]
struct Teller {
    said: Arc<AtomicUsize>,
    runs: Arc<AtomicUsize>,
    goes_on: Arc<Notify>,
    dropped: Arc<AtomicUsize>,
}

struct CountDrop<'a>(&'a AtomicUsize);

impl Drop for CountDrop<'_> {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[async_trait]
impl Arm<Tell> for Teller {
    async fn execute(&self, tell: Tell, cx: &Context) -> Result<Told, ArmError> {
        let _dropped = CountDrop(&self.dropped);
        self.runs.fetch_add(1, Ordering::SeqCst);
        for at in 0..tell.words {
            if tell.waits_after == Some(at) {
                self.goes_on.notified().await;
            }
            cx.chunk::<Tell>(&Word { at, text: "x".repeat(tell.size) }).await;
            self.said.fetch_add(1, Ordering::SeqCst);
        }
        cx.spend(Usage::tokens(tell.words as u64))?;
        if tell.fails { Err(ArmError::from("it broke").retryable()) } else { Ok(Told { words: tell.words }) }
    }
}

/// On a socket of the system.
async fn teller(protocol: Protocol) -> (Teller, Arms) {
    let teller = Teller::default();
    let server = Server::new("teller").arm::<Tell>(teller.clone()).bind("127.0.0.1:0").await.unwrap();
    let arms = Arms::builder().protocol(protocol).endpoint("teller", server.url()).build().unwrap();
    tokio::spawn(server.run());
    (teller, arms)
}

const PROTOCOLS: [Protocol; 2] = [Protocol::Http1, Protocol::Http2];

#[tokio::test]
async fn chunks_arrive_one_by_one_and_end_in_the_output() {
    for protocol in PROTOCOLS {
        let (teller, arms) = teller(protocol).await;
        let cx = arms.context();
        let mut words = cx.stream(Tell { words: 3, waits_after: Some(1), ..Tell::default() });
        // The arm waits until the first chunk was read.
        assert_eq!(words.next().await.unwrap(), Word { at: 0, text: String::new() });
        teller.goes_on.notify_one();
        let mut rest = Vec::new();
        while let Some(word) = words.next().await {
            rest.push(word.at);
        }
        assert_eq!((rest, words.output().await.unwrap()), (vec![1, 2], Told { words: 3 }));
        assert_eq!(cx.used(), Usage::tokens(3));
        // The output alone, of a call that has chunks and of one that has none.
        assert_eq!(arms.stream(Tell { words: 100, ..Tell::default() }).output().await.unwrap().words, 100);
        assert_eq!(arms.stream(Tell::default()).output().await.unwrap().words, 0);
        assert_eq!(arms.call(Tell { words: 7, ..Tell::default() }).await.unwrap().words, 7);
    }
}

#[tokio::test]
async fn an_arm_waits_for_a_reader_that_is_slow() {
    for protocol in PROTOCOLS {
        // In memory, since the buffers of a system's sockets have room for thousands of chunks.
        let (teller, host) = (Teller::default(), unused_host());
        let server =
            Server::new("teller").arm::<Tell>(teller.clone()).listen(network().listen(&host).unwrap());
        tokio::spawn(server.unwrap().run());
        let arms = usual().protocol(protocol).endpoint("teller", format!("http://{host}")).build().unwrap();
        let mut words = arms.stream(Tell { words: 1_000, size: 4096, ..Tell::default() });
        words.next().await.unwrap();
        let mut before = 0;
        loop {
            tokio::time::sleep(Duration::from_millis(200)).await;
            let said = teller.said.load(Ordering::SeqCst);
            if said == before {
                break;
            }
            before = said;
        }
        assert!(before < 300, "{before} words are said although one was read");
        let mut read = 1;
        while let Some(word) = words.next().await {
            assert_eq!(word.at, read);
            read += 1;
        }
        assert_eq!((read, words.output().await.unwrap().words), (1_000, 1_000));
    }
}

#[tokio::test]
async fn many_small_chunks_reach_a_slow_reader() {
    let (_, arms) = teller(Protocol::Http2).await;
    let mut words = arms.stream(Tell { words: 10_000, size: 1, ..Tell::default() });
    let mut read = 0;
    while words.next().await.is_some() {
        read += 1;
        if read % 1_000 == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    assert_eq!((read, words.output().await.unwrap().words), (10_000, 10_000));
}

#[tokio::test]
async fn a_stream_that_is_dropped_cancels_the_arm() {
    for protocol in PROTOCOLS {
        let (teller, arms) = teller(protocol).await;
        let mut words = arms.stream(Tell { words: 2, waits_after: Some(1), ..Tell::default() });
        words.next().await.unwrap();
        drop(words);
        until(|| teller.dropped.load(Ordering::SeqCst) == 1).await;
        assert_eq!(teller.said.load(Ordering::SeqCst), 1);
    }
}

#[tokio::test]
async fn a_failure_says_what_has_arrived_and_is_not_tried_again() {
    let (teller, arms) = teller(Protocol::Http1).await;
    let cx = arms.context();
    let mut words = cx.stream(Tell { words: 2, fails: true, ..Tell::default() });
    while words.next().await.is_some() {}
    let error = words.output().await.unwrap_err();
    assert_eq!((error.kind(), error.retryable(), error.attempts()), (ErrorKind::ArmFailed, false, 1));
    assert_eq!(error.failure().details, Some(json!({ "chunks": 2 })));
    assert_eq!((cx.used(), teller.runs.load(Ordering::SeqCst)), (Usage::tokens(2), 1));
    // Before the first chunk it is a failure as any other.
    let error = arms.stream(Tell { fails: true, ..Tell::default() }).output().await.unwrap_err();
    assert_eq!((error.kind(), error.failure().details.as_ref()), (ErrorKind::ArmFailed, None));
}

fn card() -> ArmCard {
    let mut card = ArmCard::new("teller").started();
    card.contracts.push(ContractCard::of::<Tell>());
    card.contracts.push(ContractCard::of::<Check>());
    card
}

const HEAD: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n";
const TWO: &str = "data: {\"type\":\"chunk\",\"seq\":1,\"data\":{\"at\":0,\"text\":\"\"}}\n\n: ping\n\n\
                   data: {\"type\":\"later\",\"seq\":2}\n\n\
                   data: {\"type\":\"chunk\",\"seq\":3,\"data\":{\"at\":1,\"text\":\"\"}}\n\n";

#[tokio::test(start_paused = true)]
async fn a_stream_that_breaks_says_what_has_arrived() {
    let output = "data: {\"type\":\"output\",\"output\":{\"words\":2},\"usage\":\"tokens=2\"}\n\n";
    for (rest, expected, read) in [
        ("", Err(ErrorKind::ConnectionLost), 2),
        ("data: {\"type\":\"out", Err(ErrorKind::ConnectionLost), 2),
        ("data: x\n\n", Err(ErrorKind::BadResponse), 2),
        ("data: {\"type\":\"chunk\",\"data\":7}\n\n", Err(ErrorKind::BadResponse), 2),
        ("data: {\"type\":\"output\",\"output\":7}\n\n", Err(ErrorKind::BadResponse), 2),
        (output, Ok(2), 2),
    ] {
        let answer = Answer::Last(format!("{HEAD}{TWO}{rest}").into_bytes());
        let peer = Peer::with_card(card(), move |_| std::future::ready(answer.clone())).await;
        let arms = arms().endpoint("teller", &peer.url).build().unwrap();
        let mut words = arms.stream(Tell::default());
        let mut seen = 0;
        while words.next().await.is_some() {
            seen += 1;
        }
        let result = words.output().await;
        if let Err(error) = &result {
            assert_eq!(error.failure().details.as_ref().unwrap()["chunks"], 2, "{error:?}");
            assert!(!error.retryable() && error.may_have_executed(), "{error:?}");
        }
        assert_eq!(result.map(|told| told.words).map_err(|error| error.kind()), expected, "{rest}");
        assert_eq!((seen, peer.calls().len()), (read, 1), "{rest}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_breaks_before_a_chunk_is_tried_again() {
    let asked = AtomicUsize::new(0);
    let peer = Peer::with_card(card(), move |_| {
        let rest = if asked.fetch_add(1, Ordering::SeqCst) == 0 { "" } else { TWO };
        let output = "data: {\"type\":\"output\",\"output\":{\"words\":2}}\n\n";
        let rest = if rest.is_empty() { String::new() } else { format!("{rest}{output}") };
        std::future::ready(Answer::Last(format!("{HEAD}{rest}").into_bytes()))
    })
    .await;
    let arms = arms().endpoint("teller", &peer.url).build().unwrap();
    assert_eq!(arms.stream(Tell::default()).output().await.unwrap(), Told { words: 2 });
    assert_eq!(peer.calls().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn events_are_asked_for_where_somebody_reads_them() {
    let peer = Peer::with_card(card(), |request| {
        let is_check = request.path.contains("validate");
        let answer = if is_check { Answer::verdict() } else { Answer::Json(200, json!({ "words": 4 })) };
        std::future::ready(answer)
    })
    .await;
    let arms = arms().endpoint("teller", &peer.url).build().unwrap();
    arms.call(check()).await.unwrap();
    // An answer of JSON is the output.
    assert_eq!(arms.stream(Tell::default()).output().await.unwrap(), Told { words: 4 });
    let accepts: Vec<_> = peer.calls().iter().map(|call| call.header("accept").map(str::to_owned)).collect();
    assert_eq!(accepts, [None, Some("text/event-stream".into())]);
}

const ANSWERED: &str = "data: {\"type\":\"output\",\"output\":{\"words\":2}}\n\n";

/// The number of words that a peer streams, and what each call accepted.
async fn streamed(peer: &Peer, arms: &Arms) -> (usize, Vec<Option<String>>) {
    let mut words = arms.stream(Tell::default());
    let mut read = 0;
    while words.next().await.is_some() {
        read += 1;
    }
    assert_eq!(words.output().await.unwrap(), Told { words: 2 });
    // Nobody reads the chunks of a call.
    arms.call(Tell::default()).await.unwrap();
    (read, peer.calls().iter().map(|call| call.header("accept").map(str::to_owned)).collect())
}

#[tokio::test(start_paused = true)]
async fn an_arm_of_another_make_streams_by_its_card_or_by_the_contract() {
    let both = || Some("text/event-stream, application/json".to_owned());
    let json = || Some("application/json".to_owned());
    for is_streaming in [true, false] {
        let answer = move |asks: bool| match asks && is_streaming {
            true => Answer::Last(format!("{HEAD}{TWO}{ANSWERED}").into_bytes()),
            false => Answer::Json(200, json!({ "words": 2 })),
        };
        let mut foreign = card();
        foreign.instance = None;
        for with_card in [true, false] {
            let peer = Peer::with_card(foreign.clone(), move |request| {
                let asks = request.header("accept").is_some_and(|accept| accept.contains("event-stream"));
                std::future::ready(answer(asks))
            })
            .await;
            let arms = match with_card {
                true => arms().endpoint("teller", &peer.url),
                false => arms().endpoint_serving::<Tell>("teller", &peer.url),
            };
            let read = if is_streaming { 2 } else { 0 };
            let seen = streamed(&peer, &arms.build().unwrap()).await;
            assert_eq!(seen, (read, vec![both(), json()]), "streams: {is_streaming}, card: {with_card}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_arm_of_another_make_without_chunks_on_its_card_is_asked_for_json() {
    let mut foreign = card();
    foreign.instance = None;
    foreign.contracts.iter_mut().for_each(|contract| contract.chunk_schema = json!(null));
    let peer =
        Peer::with_card(foreign, |_| std::future::ready(Answer::Json(200, json!({ "words": 2 })))).await;
    let arms = arms().endpoint("teller", &peer.url).build().unwrap();
    let json = || Some("application/json".to_owned());
    assert_eq!(streamed(&peer, &arms).await, (0, vec![json(), json()]));
}

#[tokio::test]
async fn a_brain_as_an_arm_streams_the_chunks_of_its_program() {
    for protocol in PROTOCOLS {
        let teller = Teller::default();
        let brain = Brain::builder().arm::<Tell>(teller.clone()).build().unwrap();
        let server = Server::new("brain").arm::<Tell>(brain).bind("127.0.0.1:0").await.unwrap();
        let arms = Arms::builder().protocol(protocol).endpoint("brain", server.url()).build().unwrap();
        tokio::spawn(server.run());
        let mut words = arms.stream(Tell { words: 3, waits_after: Some(1), ..Tell::default() });
        // The program waits until the first chunk was read.
        assert_eq!(words.next().await.unwrap().at, 0);
        teller.goes_on.notify_one();
        let mut rest = Vec::new();
        while let Some(word) = words.next().await {
            rest.push(word.at);
        }
        assert_eq!((rest, words.output().await.unwrap().words), (vec![1, 2], 3));
    }
}

#[tokio::test]
async fn an_attempt_of_a_task_begins_a_stream_anew() {
    let (teller, arms) = teller(Protocol::Http1).await;
    let program = arm_fn(|check: Check, cx: Context| async move {
        let fails = check.code == "fails";
        let told = cx.stream(Tell { words: 2, fails, ..Tell::default() }).output().await?;
        Ok(Verdict { is_valid: told.words == 2 })
    });
    let brain = Brain::builder().arm::<Check>(program).arms(arms).retry_wait(Duration::from_millis(1));
    let (brain, cx) = (brain.build().unwrap(), Context::detached());
    let job = Submission::of(&Check { code: "fails".into() }).unwrap().attempts(3);
    let task = brain.submit(job, &cx).await.unwrap();
    let task = finished(&brain, &task.task_id, &cx).await.unwrap();
    assert_eq!((task.status, task.attempt), (TaskStatus::Failed, 3));
    assert_eq!((teller.runs.load(Ordering::SeqCst), teller.said.load(Ordering::SeqCst)), (3, 6));
}

#[tokio::test]
async fn the_first_chunk_passes_two_hops_at_once() {
    /// Passes the words of the first arm on.
    #[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, TaskContract)]
    #[task(name = "text.retell", output = Told, chunk = Word)]
    struct Retell {}

    struct Reteller;

    #[async_trait]
    impl Arm<Retell> for Reteller {
        async fn execute(&self, _: Retell, cx: &Context) -> Result<Told, ArmError> {
            let mut words = cx.stream(Tell { words: 2, waits_after: Some(1), ..Tell::default() });
            while let Some(word) = words.next().await {
                cx.chunk::<Retell>(&word).await;
            }
            Ok(words.output().await?)
        }
    }

    let (teller, arms) = teller(Protocol::Http1).await;
    let server =
        Server::new("reteller").arm::<Retell>(Reteller).arms(arms).bind("127.0.0.1:0").await.unwrap();
    let arms = Arms::builder().endpoint("reteller", server.url()).build().unwrap();
    tokio::spawn(server.run());
    let mut fastest = Duration::MAX;
    for _ in 0..20 {
        let begun = Instant::now();
        let mut words = arms.stream(Retell {});
        assert_eq!(words.next().await.unwrap().at, 0);
        fastest = fastest.min(begun.elapsed());
        teller.goes_on.notify_one();
        assert_eq!(words.output().await.unwrap(), Told { words: 2 });
    }
    println!("the first chunk over two hops: {fastest:?}");
}
