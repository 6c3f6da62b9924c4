//! Measures live updates over one connection: a server that has each next update ready, and a client that counts what arrives.
//!
//! ```text
//! cargo run --release --features ws --example bench_ws -- MESSAGES [ROUNDS]
//! cargo run --release --features ws --example bench_ws -- sockets COUNT UPDATES
//! cargo run --release --features ws --example bench_ws -- first [ROUNDS]
//! cargo run --features ws --example bench_ws -- serve
//! ```
//!
//! `ws` is the server of octollm beside `tokio-tungstenite` alone, `sse` the same beside `hyper` alone. The bare server takes its updates
//! from the same stream, and writes each as JSON. Both have the same client, which reads no JSON. `client` has the client of octollm as well, which reads
//! each update. One server thread and one client thread, each with a runtime of its own. Prints a line for each, of the best of the rounds:
//! `cpu_us` is the CPU time of both ends for each message, and `ratio` compares the rate with that of the bare server.
//!
//! `sockets` opens so many WebSockets of one task of a brain, and one more that is not read. It prints how long the updates took to all, and
//! the memory of both ends for each connection. It fails if a connection has not every update.
//!
//! `first` measures how long the first chunk takes from an arm to a client over two hops on loopback: by `stream`, through another arm, and as
//! an update over a WebSocket, through a brain. Prints the median, the 99th percentile and the longest time. It fails if the median is 5 ms.
//!
//! `serve` prints the URL of a brain whose arm counts (`text.count`), for callers with a token such as `ann` or `eve`, and runs until it is
//! stopped. `scripts/interop_ws.sh` runs it.

use std::{
    net::{SocketAddr, TcpListener},
    pin::pin,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::{SinkExt, Stream, StreamExt, stream};
use http_body_util::StreamBody;
use hyper::{body::Frame, service::service_fn};
use hyper_util::rt::TokioIo;
use nix::sys::{
    resource::{UsageWho, getrusage},
    time::TimeValLike,
};
use octollm::{
    card::ArmCard,
    context::Caller,
    error::{ErrorKind, Failure},
    id::TaskId,
    orchestrator::{Orchestrator, TaskPage, TaskUpdates},
    prelude::*,
    task::{Submission, Task, TaskQuery, TaskUpdate},
};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    runtime,
    task::JoinSet,
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Message,
        protocol::{Role, WebSocketConfig},
    },
};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

const ID: &str = "task_3fK9aZ0qLw81bXyT";
/// Messages after which the bare servers flush: as many as the server of octollm writes between two reads.
const BATCH: u64 = 64;

/// Update number `seq` of 150 bytes.
fn update(seq: u64) -> Result<TaskUpdate> {
    let words = "The quick brown fox jumps over the lazy dog, and the octopus";
    Ok(serde_json::from_value(json!({ "type": "chunk", "task_id": ID, "seq": seq, "data": words }))?)
}

/// The updates of the one task, all of which are there.
#[derive(Clone)]
struct Ready(Arc<[TaskUpdate]>);

impl Ready {
    fn after(&self, seq: usize) -> impl Stream<Item = TaskUpdate> + Send + use<> {
        let updates = self.0.clone();
        stream::iter((seq..updates.len()).map(move |at| updates[at].clone()))
    }
}

#[async_trait]
impl Orchestrator for Ready {
    async fn submit(&self, _: Submission, _: &Context) -> std::result::Result<Task, Failure> {
        Err(Failure::of(ErrorKind::Unavailable))
    }

    async fn get(&self, _: &TaskId, _: &Context) -> std::result::Result<Task, Failure> {
        Err(Failure::of(ErrorKind::TaskNotFound))
    }

    async fn list(&self, _: TaskQuery, _: &Context) -> std::result::Result<TaskPage, Failure> {
        Ok(TaskPage::new(Vec::new(), None))
    }

    async fn cancel(&self, _: &TaskId, _: &Context) -> std::result::Result<Task, Failure> {
        Err(Failure::of(ErrorKind::TaskNotFound))
    }

    async fn watch(
        &self,
        _: &TaskId,
        after: Option<u64>,
        _: &Context,
    ) -> std::result::Result<TaskUpdates, Failure> {
        let after = usize::try_from(after.unwrap_or(0)).unwrap_or(usize::MAX);
        Ok(TaskUpdates::new(self.after(after).chain(stream::pending())))
    }

    async fn cards(&self) -> std::result::Result<Vec<ArmCard>, Failure> {
        Ok(Vec::new())
    }
}

/// The servers that are compared.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Octollm,
    BareSocket,
    BareEvents,
}

fn runtime() -> Result<runtime::Runtime> {
    Ok(runtime::Builder::new_current_thread().enable_all().build()?)
}

/// Serves one connection on a thread of its own.
fn serve(kind: Kind, count: u64) -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    let ready = Ready((1..=count).map(update).collect::<Result<_>>()?);
    if matches!(kind, Kind::Octollm) {
        drop(listener);
    } else {
        thread::spawn(move || -> Result<()> {
            runtime()?.block_on(async move {
                let (io, _) = tokio::net::TcpListener::from_std(listener)?.accept().await?;
                io.set_nodelay(true)?;
                match kind {
                    Kind::BareSocket => bare_socket(io, &ready).await,
                    _ => bare_events(io, ready).await,
                }
            })
        });
        return Ok(address);
    }
    let (send, bound) = std::sync::mpsc::channel();
    thread::spawn(move || -> Result<()> {
        runtime()?.block_on(async move {
            let server = Server::new("brain").orchestrator(ready).bind("127.0.0.1:0").await?;
            send.send(server.local_addr())?;
            server.run().await;
            Ok(())
        })
    });
    Ok(bound.recv()?)
}

/// The library alone, after a handshake that is not measured.
async fn bare_socket(mut io: TcpStream, ready: &Ready) -> Result<()> {
    head(&mut io).await?;
    io.write_all(b"HTTP/1.1 101 Switching Protocols\r\n\r\n").await?;
    let mut ws = WebSocketStream::from_raw_socket(io, Role::Server, None).await;
    let mut updates = pin!(ready.after(0));
    while let Some(update) = updates.next().await {
        ws.feed(Message::text(serde_json::to_string(&update)?)).await?;
        if update.seq() % BATCH == 0 {
            ws.flush().await?;
        }
    }
    ws.flush().await?;
    ws.next().await;
    Ok(())
}

async fn bare_events(io: TcpStream, ready: Ready) -> Result<()> {
    let answer = service_fn(move |_| {
        let ready = ready.clone();
        async move {
            let events = ready.after(0).map(|update| {
                let data = serde_json::to_string(&update)?;
                let event = Bytes::from(format!("id: {}\ndata: {data}\n\n", update.seq()));
                Ok::<_, serde_json::Error>(Frame::data(event))
            });
            let body = StreamBody::new(events.chain(stream::pending()));
            hyper::Response::builder().header("content-type", "text/event-stream").body(body)
        }
    });
    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(io), answer).await?;
    Ok(())
}

/// Reads a head, and returns what was read after it.
async fn head(io: &mut TcpStream) -> Result<Vec<u8>> {
    let mut read = Vec::new();
    loop {
        if let Some(end) = read.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
            return Ok(read.split_off(end + 4));
        }
        if io.read_buf(&mut read).await? == 0 {
            return Err("the connection has ended".into());
        }
    }
}

async fn open_socket(address: SocketAddr, path: &str) -> Result<WebSocketStream<TcpStream>> {
    let mut io = TcpStream::connect(address).await?;
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    io.write_all(request.as_bytes()).await?;
    let rest = head(&mut io).await?;
    let config = WebSocketConfig::default().read_buffer_size(4096);
    Ok(WebSocketStream::from_partially_read(io, rest, Role::Client, Some(config)).await)
}

/// Reads so many messages.
async fn socket(address: SocketAddr, count: u64) -> Result<()> {
    let mut ws = open_socket(address, &format!("/ws/tasks/{ID}")).await?;
    for _ in 0..count {
        ws.next().await.ok_or("the WebSocket has ended")??;
    }
    Ok(())
}

/// Reads so many events.
async fn events(address: SocketAddr, count: u64) -> Result<()> {
    let mut io = TcpStream::connect(address).await?;
    let request = format!("GET /tasks/{ID}/events HTTP/1.1\r\nHost: x\r\n\r\n");
    io.write_all(request.as_bytes()).await?;
    let (mut space, mut last, mut ends) = (vec![0; 16 * 1024], 0, 0);
    // Each ends with two line feeds.
    while ends < count {
        let read = io.read(&mut space).await?;
        if read == 0 {
            return Err("the stream has ended".into());
        }
        for byte in &space[..read] {
            ends += u64::from(*byte == b'\n' && last == b'\n');
            last = *byte;
        }
    }
    Ok(())
}

async fn client(address: SocketAddr, count: u64) -> Result<()> {
    let client = octollm::http::client::OrchestratorClient::builder(format!("http://{address}"))
        .websockets()
        .build()?;
    let mut updates = client.watch(&ID.parse()?, None, &Context::detached()).await?;
    let mut last = 0;
    while last < count {
        last = updates.next().await.ok_or("the updates have ended")?.seq();
    }
    Ok(())
}

/// User and system time of this process.
fn cpu() -> Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    let micros = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    Ok(Duration::from_micros(u64::try_from(micros)?))
}

/// Messages per second, and the CPU time of each in microseconds.
fn measured<F: Future<Output = Result<()>>>(
    kind: Kind,
    count: u64,
    read: impl Fn(SocketAddr, u64) -> F,
) -> Result<(f64, f64)> {
    let address = serve(kind, count)?;
    let runtime = runtime()?;
    let (before, begun) = (cpu()?, Instant::now());
    runtime.block_on(read(address, count))?;
    let (elapsed, used) = (begun.elapsed(), cpu()? - before);
    Ok((count as f64 / elapsed.as_secs_f64(), used.as_secs_f64() * 1e6 / count as f64))
}

fn compare(count: u64, rounds: usize) -> Result<()> {
    let mut best = [(0.0, 0.0); 5];
    for _ in 0..rounds {
        let round = [
            measured(Kind::BareSocket, count, socket)?,
            measured(Kind::Octollm, count, socket)?,
            measured(Kind::Octollm, count, client)?,
            measured(Kind::BareEvents, count, events)?,
            measured(Kind::Octollm, count, events)?,
        ];
        for (best, round) in best.iter_mut().zip(round) {
            *best = if round.0 > best.0 { round } else { *best };
        }
    }
    let [bare_socket, socket, client, bare_events, events] = best;
    for (name, (rate, cpu), bare) in [
        ("ws bare", bare_socket, bare_socket),
        ("ws octollm", socket, bare_socket),
        ("ws octollm client", client, bare_socket),
        ("sse bare", bare_events, bare_events),
        ("sse octollm", events, bare_events),
    ] {
        println!("{name} messages={count} rate={rate:.0} cpu_us={cpu:.2} ratio={:.2}", rate / bare.0);
    }
    Ok(())
}

/// Counts.
#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "text.count", output = usize, chunk = usize, timeout = "60s")]
struct Count {
    to: usize,
}

struct Counter;

#[async_trait]
impl Arm<Count> for Counter {
    async fn execute(&self, count: Count, cx: &Context) -> std::result::Result<usize, ArmError> {
        for number in 0..count.to {
            cx.chunk::<Count>(&number).await;
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Ok(count.to)
    }
}

/// KiB of memory of this process.
fn resident() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
    Ok(line.trim().trim_end_matches("kB").trim().parse()?)
}

async fn sockets(count: usize, updates: usize) -> Result<()> {
    let brain = Brain::builder().arm::<Count>(Counter).build()?;
    let server = Server::new("brain")
        .orchestrator(brain.clone())
        .max_live_streams(count + 1)
        .bind("127.0.0.1:0")
        .await?;
    let address = server.local_addr();
    tokio::spawn(server.run());
    let submission = Submission::of(&Count { to: updates })?.run_in(Duration::from_secs(3));
    let id = Orchestrator::submit(&brain, submission, &Context::detached()).await?.task_id;
    let path = format!("/ws/tasks/{id}");
    let before = resident()?;
    let unread = open_socket(address, &path).await?;
    let mut open = Vec::new();
    for _ in 0..count {
        open.push(open_socket(address, &path).await?);
    }
    let opened = resident()?;
    let mut followed = JoinSet::new();
    for mut ws in open {
        followed.spawn(async move {
            let (mut last, mut began) = (0, Instant::now());
            while let Some(Ok(message)) = ws.next().await {
                let Message::Text(text) = message else { continue };
                let update: TaskUpdate = serde_json::from_str(&text)?;
                if update.seq() != last + 1 {
                    return Err("an update is missing".into());
                }
                last = update.seq();
                if matches!(update, TaskUpdate::Chunk { .. }) && last < 5 {
                    began = Instant::now();
                }
            }
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>((last, began.elapsed()))
        });
    }
    let (mut longest, mut all) = (Duration::ZERO, 0);
    while let Some(done) = followed.join_next().await {
        let (last, elapsed) = done??;
        if last < updates as u64 {
            return Err(format!("{last} updates in place of {updates}").into());
        }
        (longest, all) = (longest.max(elapsed), all + last);
    }
    drop(unread);
    println!(
        "sockets={count} updates={all} seconds={:.2} open_kib={:.1} most_kib={:.1}",
        longest.as_secs_f64(),
        (opened.saturating_sub(before)) as f64 / count as f64,
        (resident()?.saturating_sub(before)) as f64 / count as f64,
    );
    Ok(())
}

/// Sends the time as a chunk.
#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "time.tell", output = u64, chunk = u64)]
struct Tell {}

struct Teller(Instant);

#[async_trait]
impl Arm<Tell> for Teller {
    async fn execute(&self, _: Tell, cx: &Context) -> std::result::Result<u64, ArmError> {
        let nanos = u64::try_from(self.0.elapsed().as_nanos())?;
        cx.chunk::<Tell>(&nanos).await;
        Ok(nanos)
    }
}

/// Passes the chunks of another arm on.
#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "time.pass", output = u64, chunk = u64)]
struct Pass {}

struct Passer;

#[async_trait]
impl Arm<Pass> for Passer {
    async fn execute(&self, _: Pass, cx: &Context) -> std::result::Result<u64, ArmError> {
        let mut chunks = cx.stream(Tell {});
        while let Some(nanos) = chunks.next().await {
            cx.chunk::<Pass>(&nanos).await;
        }
        Ok(chunks.output().await?)
    }
}

async fn first(rounds: usize) -> Result<()> {
    let begun = Instant::now();
    let since = |nanos: u64| begun.elapsed().saturating_sub(Duration::from_nanos(nanos));
    let teller = Server::new("teller").arm(Teller(begun)).bind("127.0.0.1:0").await?;
    let arms = Arms::builder().endpoint("teller", teller.url()).build()?;
    let brain = Brain::builder().arm::<Pass>(Passer).arms(arms.clone()).build()?;
    let passer = Server::new("passer").arm(Passer).arms(arms).bind("127.0.0.1:0").await?;
    let arms = Arms::builder().endpoint("passer", passer.url()).build()?;
    let brain = Server::new("brain").orchestrator(brain).bind("127.0.0.1:0").await?;
    let client = octollm::http::client::OrchestratorClient::builder(brain.url()).websockets().build()?;
    for server in [teller, passer, brain] {
        tokio::spawn(server.run());
    }
    let (mut streamed, mut watched) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let mut chunks = arms.stream(Pass {});
        streamed.push(since(chunks.next().await.ok_or("no chunk")?));
        chunks.output().await?;

        let mut updates = client.submit(Pass {}).await?.watch().await?;
        let data = loop {
            match updates.next().await.ok_or("no chunk")? {
                TaskUpdate::Chunk { data, .. } => break data,
                _ => continue,
            }
        };
        watched.push(since(serde_json::from_str(data.as_str())?));
        while updates.next().await.is_some() {}
    }
    for (name, mut times) in [("stream", streamed), ("websocket", watched)] {
        times.sort_unstable();
        let micros =
            |part: usize| times.get(times.len() * part / 100).or(times.last()).map_or(0, Duration::as_micros);
        println!("first chunk by {name} p50_us={} p99_us={} max_us={}", micros(50), micros(99), micros(100));
        if micros(50) >= 5_000 {
            return Err("5 ms are missed".into());
        }
    }
    Ok(())
}

/// Serves callers whose token is their name.
async fn server() -> Result<()> {
    let by_name =
        |head: &http::request::Parts| match head.headers.get("authorization").map(|token| token.as_bytes()) {
            None => Ok(Caller::Anonymous),
            Some(b"Bearer ann") => Ok(Caller::known("ann", ["text:*"])),
            Some(b"Bearer eve") => Ok(Caller::known("eve", ["text:*"])),
            Some(_) => Err(Failure::of(ErrorKind::Unauthenticated)),
        };
    let brain = Brain::builder().arm::<Count>(Counter).build()?;
    let server = Server::new("brain").orchestrator(brain).authenticate(by_name);
    let server =
        server.event_ping(Duration::from_millis(500)).max_socket_messages(20).bind("127.0.0.1:0").await?;
    println!("{}", server.url());
    server.run_until_signal().await;
    Ok(())
}

/// The text at the top of this file.
fn usage() -> String {
    let lines = include_str!("bench_ws.rs").lines().map_while(|line| line.strip_prefix("//!"));
    lines.map(|line| format!("{}\n", line.trim_start())).collect()
}

fn main() -> Result<()> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let number = |at: usize, default: usize| match arguments.get(at) {
        Some(text) => text.parse(),
        None => Ok(default),
    };
    if arguments.iter().any(|argument| argument == "--help" || argument == "-h") {
        print!("{}", usage());
        return Ok(());
    }
    if arguments.first().is_some_and(|first| first == "sockets") {
        return runtime()?.block_on(sockets(number(1, 1_000)?, number(2, 100)?));
    }
    if arguments.first().is_some_and(|first| first == "first") {
        return runtime()?.block_on(first(number(1, 1_000)?));
    }
    if arguments.first().is_some_and(|first| first == "serve") {
        return runtime()?.block_on(server());
    }
    compare(number(0, 200_000)? as u64, number(1, 5)?)
}
