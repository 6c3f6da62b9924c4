//! A server that answers as a test says, byte by byte where need be. It listens on a network in memory, so that tests run on
//! paused time; where the system's own sockets matter, on TCP.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc, LazyLock, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use octollm_core::{card::ArmCard, contract::ContractCard, error::CallError};
use octollm_http::{
    client::{Arms, ArmsBuilder, OrchestratorClient},
    io::{Acceptor, Pipes},
};
use octollm_macros::TaskContract;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream},
    net::TcpStream,
};

/// The network that the peers of all tests listen on, each as a host of its own.
pub(crate) fn network() -> Pipes {
    static NETWORK: LazyLock<Pipes> = LazyLock::new(Pipes::new);
    NETWORK.clone()
}

/// The name of a host that nobody has used yet.
pub(crate) fn unused_host() -> String {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    format!("host{}", COUNT.fetch_add(1, Ordering::Relaxed))
}

/// Arms on that network, with the limits that a builder has by default.
pub(crate) fn usual() -> ArmsBuilder {
    Arms::builder().connector(network())
}

/// Arms on that network, with limits short enough for a test.
pub(crate) fn arms() -> ArmsBuilder {
    short(usual())
}

/// An orchestrator on that network.
pub(crate) fn orchestrator(url: &str) -> OrchestratorClient {
    OrchestratorClient::builder(url).connector(network()).build().unwrap()
}

/// A host that takes connections and never answers, until it is dropped.
pub(crate) fn silent() -> (String, impl Sized) {
    let host = unused_host();
    let listener = network().listen(&host).unwrap();
    (format!("http://{host}"), listener)
}

/// Checks a piece of code.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "code.validate", output = Verdict)]
pub(crate) struct Check {
    pub(crate) code: String,
}

#[derive(Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Verdict {
    pub(crate) is_valid: bool,
}

pub(crate) fn check() -> Check {
    Check { code: "fn main() {}".into() }
}

/// [`Check`], for callers that know it as idempotent.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "code.validate", output = Verdict, idempotent)]
pub(crate) struct CheckAgain {
    code: String,
}

pub(crate) fn again() -> CheckAgain {
    CheckAgain { code: "fn main() {}".into() }
}

/// One request as it came.
#[derive(Debug, Clone)]
pub(crate) struct Received {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) head: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    /// Which connection it came over, from 0.
    pub(crate) connection: usize,
}

impl Received {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| &**value)
    }
}

/// What to do with a request.
#[derive(Debug, Clone)]
pub(crate) enum Answer {
    Json(u16, Value),
    /// These bytes, and the connection stays open.
    Raw(Vec<u8>),
    /// These bytes, and then the connection is closed.
    Last(Vec<u8>),
    /// These bytes, and then the connection is reset; over TCP only.
    Reset(Vec<u8>),
    /// Nothing, for as long as the client waits.
    Silence,
}

impl Answer {
    pub(crate) fn verdict() -> Self {
        Self::Json(200, json!({ "is_valid": true }))
    }

    /// That the arm accepts no work, which it has not begun.
    pub(crate) fn unavailable() -> Self {
        let problem =
            json!({ "status": 503, "code": "unavailable", "retryable": true, "may_have_executed": false });
        Self::Json(503, problem)
    }
}

type Reaction = Arc<dyn Fn(Received) -> Pin<Box<dyn Future<Output = Answer> + Send>> + Send + Sync>;

/// A running server; it ends with the test's runtime.
#[derive(Clone)]
pub(crate) struct Peer {
    pub(crate) url: String,
    seen: Arc<Seen>,
}

#[derive(Default)]
struct Seen {
    received: Mutex<Vec<Received>>,
    accepted: AtomicUsize,
    open: AtomicUsize,
    most_open: AtomicUsize,
    streams: AtomicBool,
}

impl Peer {
    /// Shows `card` at `/capabilities` and reacts to everything else.
    pub(crate) async fn with_card<F>(
        card: ArmCard,
        react: impl Fn(Received) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Answer> + Send + 'static,
    {
        let card = serde_json::to_value(card).unwrap();
        Self::start(move |request| -> Pin<Box<dyn Future<Output = Answer> + Send>> {
            if request.path == "/capabilities" {
                let card = card.clone();
                return Box::pin(async move { Answer::Json(200, card) });
            }
            Box::pin(react(request))
        })
        .await
    }

    /// An arm that offers [`Check`].
    pub(crate) async fn arm<F>(react: impl Fn(Received) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Answer> + Send + 'static,
    {
        Self::with_card(card("judge"), react).await
    }

    pub(crate) async fn start<F>(react: impl Fn(Received) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Answer> + Send + 'static,
    {
        let host = unused_host();
        let acceptor = network().listen(&host).unwrap();
        Self::listen(acceptor, format!("http://{host}"), react)
    }

    /// On a port of the system.
    pub(crate) async fn tcp<F>(react: impl Fn(Received) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Answer> + Send + 'static,
    {
        let acceptor = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", acceptor.local_addr().unwrap());
        Self::listen(acceptor, url, react)
    }

    pub(crate) fn listen<A, F>(
        mut acceptor: A,
        url: String,
        react: impl Fn(Received) -> F + Send + Sync + 'static,
    ) -> Self
    where
        A: Acceptor<Io: Socket>,
        F: Future<Output = Answer> + Send + 'static,
    {
        let react: Reaction = Arc::new(move |request| Box::pin(react(request)));
        let seen = Arc::<Seen>::default();
        let peer = Self { url, seen: Arc::clone(&seen) };
        tokio::spawn(async move {
            while let Ok(opening) = acceptor.accept().await {
                let Ok((socket, _)) = opening.await else { continue };
                let number = seen.accepted.fetch_add(1, Ordering::SeqCst);
                let open = seen.open.fetch_add(1, Ordering::SeqCst) + 1;
                seen.most_open.fetch_max(open, Ordering::SeqCst);
                let (seen, react) = (Arc::clone(&seen), Arc::clone(&react));
                tokio::spawn(async move {
                    let _ = serve(socket, number, &seen, &react).await;
                    seen.open.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        peer
    }

    /// Reacts to requests for the updates of tasks as well. Otherwise it has no such route.
    pub(crate) fn streaming(self) -> Self {
        self.seen.streams.store(true, Ordering::SeqCst);
        self
    }

    /// The requests so far, without those for the card.
    pub(crate) fn calls(&self) -> Vec<Received> {
        let received = self.seen.received.lock().unwrap();
        received.iter().filter(|request| request.path != "/capabilities").cloned().collect()
    }

    pub(crate) fn asked_for_card(&self) -> usize {
        self.seen.received.lock().unwrap().iter().filter(|request| request.path == "/capabilities").count()
    }

    pub(crate) fn accepted(&self) -> usize {
        self.seen.accepted.load(Ordering::SeqCst)
    }

    pub(crate) fn open(&self) -> usize {
        self.seen.open.load(Ordering::SeqCst)
    }

    pub(crate) fn most_open(&self) -> usize {
        self.seen.most_open.load(Ordering::SeqCst)
    }

    /// Waits until the server sees so many connections open.
    pub(crate) async fn until_open(&self, count: usize) {
        until(|| self.open() == count).await;
    }
}

/// Waits for something that is about to happen.
pub(crate) async fn until(condition: impl Fn() -> bool) {
    for _ in 0..1000 {
        if condition() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("it did not come about");
}

/// What a peer needs of a connection.
pub(crate) trait Socket: AsyncRead + AsyncWrite + Unpin + Send {
    fn reset_on_close(&self) -> std::io::Result<()>;
}

impl Socket for TcpStream {
    fn reset_on_close(&self) -> std::io::Result<()> {
        self.set_zero_linger()
    }
}

impl Socket for DuplexStream {
    fn reset_on_close(&self) -> std::io::Result<()> {
        panic!("only sockets of the system can be reset");
    }
}

async fn serve(mut socket: impl Socket, number: usize, seen: &Seen, react: &Reaction) -> std::io::Result<()> {
    let mut buffer = Vec::new();
    while let Some(request) = read_request(&mut socket, &mut buffer, number).await? {
        let is_of_updates = request.path.starts_with("/tasks/") && request.path.contains("/events");
        if is_of_updates && !seen.streams.load(Ordering::SeqCst) {
            socket.write_all(&json_answer(404, &json!({}))).await?;
            continue;
        }
        seen.received.lock().unwrap().push(request.clone());
        let mut reacting = react(request);
        let answer = loop {
            tokio::select! {
                answer = &mut reacting => break answer,
                read = socket.read_buf(&mut buffer) => if read? == 0 {
                    // The client has gone.
                    return Ok(());
                },
            }
        };
        match answer {
            Answer::Json(status, body) => socket.write_all(&json_answer(status, &body)).await?,
            Answer::Raw(bytes) => socket.write_all(&bytes).await?,
            Answer::Last(bytes) => return socket.write_all(&bytes).await,
            Answer::Reset(bytes) => {
                socket.write_all(&bytes).await?;
                // What was written is read first.
                tokio::time::sleep(Duration::from_millis(30)).await;
                return socket.reset_on_close();
            }
            Answer::Silence => {
                let mut rest = [0; 1024];
                while socket.read(&mut rest).await? > 0 {}
                return Ok(());
            }
        }
    }
    Ok(())
}

pub(crate) fn json_answer(status: u16, body: &Value) -> Vec<u8> {
    let body = body.to_string();
    format!(
        "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

async fn read_request(
    socket: &mut impl Socket,
    buffer: &mut Vec<u8>,
    connection: usize,
) -> std::io::Result<Option<Received>> {
    loop {
        if let Some(end) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
            let text = String::from_utf8(buffer[..end].to_vec()).unwrap();
            let mut lines = text.split("\r\n");
            let mut first = lines.next().unwrap().split(' ').map(str::to_owned);
            let head: Vec<_> = lines
                .map(|line| line.split_once(": ").map(|(n, v)| (n.to_owned(), v.to_owned())).unwrap())
                .collect();
            let mut request = Received {
                method: first.next().unwrap(),
                path: first.next().unwrap(),
                head,
                body: vec![],
                connection,
            };
            let length = request.header("content-length").map_or(0, |length| length.parse().unwrap());
            if buffer.len() >= end + 4 + length {
                request.body = buffer[end + 4..end + 4 + length].to_vec();
                buffer.drain(..end + 4 + length);
                return Ok(Some(request));
            }
        }
        if socket.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    }
}

pub(crate) fn card(arm: &str) -> ArmCard {
    let mut card = ArmCard::new(arm);
    card.contracts.push(ContractCard::of::<Check>());
    card
}

/// One arm, `judge`, with limits short enough for a test.
pub(crate) fn judge(url: &str) -> Arms {
    judge_within(url, arms())
}

pub(crate) fn judge_within(url: &str, builder: ArmsBuilder) -> Arms {
    builder.endpoint("judge", url).build().unwrap()
}

pub(crate) fn short(builder: ArmsBuilder) -> ArmsBuilder {
    builder
        .connect_timeout(Duration::from_millis(300))
        .read_idle(Duration::from_millis(200))
        .write_idle(Duration::from_millis(200))
        .pool_wait(Duration::from_millis(200))
        .idle_timeout(Duration::from_millis(500))
        .capabilities_timeout(Duration::from_millis(500))
}

/// The cause of an error on this side.
pub(crate) fn cause(error: &CallError) -> String {
    let facts = std::error::Error::source(error).unwrap();
    facts.source().unwrap().to_string()
}
