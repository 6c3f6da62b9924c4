//! Measures live updates over one connection: a server that has each next update ready, and a client that counts what arrives.
//!
//! ```text
//! cargo run --release --features ws --example bench_ws -- MESSAGES [ROUNDS]
//! cargo run --release --features ws --example bench_ws -- sockets COUNT UPDATES
//! cargo run --features ws --example bench_ws -- serve
//! ```
//!
//! `ws` is the server of octollm beside `tokio-tungstenite` alone, `sse` the same beside `hyper` alone. The bare server writes the same update
//! as JSON for each message, and both have the same client, which reads no JSON. `client` has the client of octollm as well, which reads
//! each update. One server thread and one client thread, each with a runtime of its own. Prints a line for each, of the best of the rounds:
//! `cpu_us` is the CPU time of both ends for each message, and `ratio` compares the rate with that of the bare server.
//!
//! `sockets` opens so many WebSockets of one task of a brain, and one more that is not read. It prints how long the updates took to all, and
//! the memory of both ends for each connection. It fails if a connection has not every update.
//!
//! `serve` prints the URL of a brain whose arm counts (`text.count`), for callers with a token such as `ann` or `eve`, and runs until it is
//! stopped. `scripts/interop_ws.sh` runs it.

use std::{
    net::{SocketAddr, TcpListener},
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt, stream};
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

fn updates(count: u64) -> impl Iterator<Item = TaskUpdate> {
    (1..=count).filter_map(|seq| update(seq).ok())
}

/// An orchestrator with one task, all of whose updates are there.
struct Ready(Vec<TaskUpdate>);

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
        let updates = stream::iter(self.0.get(after..).unwrap_or_default().to_vec());
        Ok(TaskUpdates::new(updates.chain(stream::pending())))
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
    let updates: Vec<_> = updates(count).collect();
    if matches!(kind, Kind::Octollm) {
        drop(listener);
    } else {
        thread::spawn(move || -> Result<()> {
            runtime()?.block_on(async move {
                let (io, _) = tokio::net::TcpListener::from_std(listener)?.accept().await?;
                io.set_nodelay(true)?;
                match kind {
                    Kind::BareSocket => bare_socket(io, &updates).await,
                    _ => bare_events(io, updates).await,
                }
            })
        });
        return Ok(address);
    }
    let (send, bound) = std::sync::mpsc::channel();
    thread::spawn(move || -> Result<()> {
        runtime()?.block_on(async move {
            let server = Server::new("brain").orchestrator(Ready(updates)).bind("127.0.0.1:0").await?;
            send.send(server.local_addr())?;
            server.run().await;
            Ok(())
        })
    });
    Ok(bound.recv()?)
}

/// The library alone, after a handshake that is not measured.
async fn bare_socket(mut io: TcpStream, updates: &[TaskUpdate]) -> Result<()> {
    head(&mut io).await?;
    io.write_all(b"HTTP/1.1 101 Switching Protocols\r\n\r\n").await?;
    let mut ws = WebSocketStream::from_raw_socket(io, Role::Server, None).await;
    for (update, number) in updates.iter().zip(1..) {
        ws.feed(Message::text(serde_json::to_string(update)?)).await?;
        if number % BATCH == 0 {
            ws.flush().await?;
        }
    }
    ws.flush().await?;
    ws.next().await;
    Ok(())
}

async fn bare_events(io: TcpStream, updates: Vec<TaskUpdate>) -> Result<()> {
    let answer = service_fn(move |_| {
        let updates = updates.clone();
        async move {
            let events = stream::iter(updates).map(|update| {
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
    if arguments.first().is_some_and(|first| first == "serve") {
        return runtime()?.block_on(server());
    }
    compare(number(0, 200_000)? as u64, number(1, 5)?)
}
