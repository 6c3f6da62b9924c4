//! The end of a whole process by a signal, as a supervisor or a terminal sends it. The process is this program once more.

use std::{
    net::SocketAddr,
    process::{ExitStatus, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use octollm::{
    bus::{EventBus, MemoryBus, Overflow, Signal},
    prelude::*,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines},
    net::TcpStream,
    task::{JoinHandle, JoinSet},
    time::{sleep, timeout},
};

/// Returns its number after a moment, or waits for ever.
#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "ending.work", output = u64, timeout = "60s")]
struct Work {
    ms: Option<u64>,
}

struct Works;

#[async_trait]
impl Arm<Work> for Works {
    async fn execute(&self, input: Work, _: &Context) -> Result<u64, ArmError> {
        match input.ms {
            Some(ms) => sleep(Duration::from_millis(ms)).await,
            None => std::future::pending().await,
        }
        Ok(input.ms.unwrap_or_default())
    }
}

const IN_A_CHILD: &str = "OCTOLLM_TEST_IN_A_CHILD";
/// Enough for callers to be answered once more, whatever else the machine does.
const NOTICE: Duration = Duration::from_secs(2);

/// The process; in any other one it does nothing.
#[tokio::test]
async fn served_in_a_child() {
    if std::env::var_os(IN_A_CHILD).is_none() {
        return;
    }
    tracing_subscriber::fmt().with_ansi(false).with_writer(std::io::stderr).init();
    let bus = MemoryBus::new();
    let all = "events:request:*".parse().unwrap();
    let mut events = bus.subscribe(all, Overflow::DropOldest(100)).await.unwrap();
    let server = Server::new("ends").arm(Works).bus(bus).drain_notice(NOTICE);
    let server = server.bind("127.0.0.1:0").await.unwrap();
    println!("\nlistens at {}", server.local_addr());
    server.run_until_signal().await;
    while let Ok(Some(Signal::Event(event))) = timeout(Duration::from_millis(1), events.next()).await {
        println!("\npublished {}", serde_json::to_string(&event).unwrap());
    }
}

struct Child {
    process: tokio::process::Child,
    address: SocketAddr,
    lines: Lines<BufReader<tokio::process::ChildStdout>>,
    /// Read from the start: a process whose lines nobody reads stands still.
    logged: JoinHandle<String>,
}

impl Child {
    async fn start() -> Self {
        let mut command = tokio::process::Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "ending::served_in_a_child", "--nocapture"]).env(IN_A_CHILD, "1");
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut process = command.spawn().unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let address = loop {
            let line = lines.next_line().await.unwrap().expect("it listens");
            if let Some(address) = line.strip_prefix("listens at ") {
                break address.parse().unwrap();
            }
        };
        let mut errors = process.stderr.take().unwrap();
        let logged = tokio::spawn(async move {
            let mut text = String::new();
            errors.read_to_string(&mut text).await.unwrap();
            text
        });
        Self { process, address, lines, logged }
    }

    fn signal(&self, name: &str) {
        let id = self.process.id().expect("it runs").to_string();
        assert!(std::process::Command::new("kill").args([name, &id]).status().unwrap().success());
    }

    /// What it published and logged, once it has ended.
    async fn ended(mut self) -> (ExitStatus, Vec<serde_json::Value>, String) {
        let mut published = Vec::new();
        let read = async {
            while let Some(line) = self.lines.next_line().await.unwrap() {
                if let Some(event) = line.strip_prefix("published ") {
                    published.push(serde_json::from_str(event).unwrap());
                }
            }
            self.logged.await.unwrap()
        };
        let logged = timeout(Duration::from_secs(30), read).await.expect("it ends");
        (self.process.wait().await.unwrap(), published, logged)
    }
}

fn head(length: usize, fields: &str) -> String {
    format!(
        "POST /work HTTP/1.1\r\nhost: ends\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n{fields}\r\n"
    )
}

/// A request over HTTP/1.1. Returns the status, and whether the connection stays open.
async fn post(stream: &mut TcpStream, body: &str) -> std::io::Result<(u16, bool)> {
    let request = head(body.len(), "") + body;
    stream.write_all(request.as_bytes()).await?;
    let (mut answer, mut piece) = (Vec::new(), [0; 4096]);
    loop {
        let text = String::from_utf8_lossy(&answer).to_ascii_lowercase();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length =
                head.split("content-length: ").nth(1).and_then(|rest| rest.lines().next()?.parse().ok());
            if length.is_some_and(|length: usize| body.len() >= length) {
                let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
                return Ok((status.expect("a status"), !head.contains("connection: close")));
            }
        }
        match stream.read(&mut piece).await? {
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            read => answer.extend_from_slice(&piece[..read]),
        }
    }
}

/// What the callers of two instances count.
#[derive(Default)]
struct Load {
    instances: [Option<SocketAddr>; 2],
    ends: AtomicBool,
    answered: [AtomicUsize; 2],
    failed: AtomicUsize,
}

impl Load {
    /// Connects to the first instance, or to the second one if nobody listens there any more.
    async fn connect(&self) -> (usize, TcpStream) {
        for (n, address) in self.instances.iter().flatten().enumerate() {
            if let Ok(stream) = TcpStream::connect(address).await {
                return (n, stream);
            }
        }
        panic!("nobody listens");
    }

    fn count(&self, instance: usize, is_answered: bool) {
        let counter = if is_answered { &self.answered[instance] } else { &self.failed };
        counter.fetch_add(1, Ordering::SeqCst);
    }

    fn goes_on(&self) -> bool {
        !self.ends.load(Ordering::SeqCst)
    }

    /// A caller that leaves its connection open, and closes it when it is asked to.
    async fn over_http1(self: Arc<Self>, body: &'static str) {
        while self.goes_on() {
            let (instance, mut stream) = self.connect().await;
            loop {
                let answer = post(&mut stream, body).await;
                if !matches!(answer, Ok((200, _))) {
                    println!("lost over HTTP/1.1: {answer:?}");
                }
                self.count(instance, matches!(answer, Ok((200, _))));
                if !self.goes_on() || !matches!(answer, Ok((_, true))) {
                    break;
                }
            }
        }
    }

    /// A caller with several streams on a connection, which sends none after GOAWAY.
    async fn over_http2(self: Arc<Self>, body: &'static str) {
        while self.goes_on() {
            let (instance, stream) = self.connect().await;
            let handshake = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
            let Ok((calls, connection)) = handshake else { continue };
            tokio::spawn(connection);
            let streams = (0..4).map(|_| self.clone().stream(calls.clone(), instance, body));
            streams.collect::<JoinSet<()>>().join_all().await;
        }
    }

    async fn stream(
        self: Arc<Self>,
        mut calls: SendRequest<Full<Bytes>>,
        instance: usize,
        body: &'static str,
    ) {
        while self.goes_on() && calls.ready().await.is_ok() {
            let request = Request::post("http://ends/work").header("content-type", "application/json");
            let answer = calls.send_request(request.body(Full::from(body)).unwrap()).await;
            match answer {
                // It was not sent, since the connection takes no more: another one takes it.
                Err(error) if error.is_canceled() || is_refused(&error) => return,
                Err(error) => {
                    println!("lost over HTTP/2: {error:?}");
                    return self.count(instance, false);
                }
                Ok(answer) => {
                    let is_answered = answer.status() == 200 && answer.into_body().collect().await.is_ok();
                    self.count(instance, is_answered);
                }
            }
        }
    }
}

/// Whether GOAWAY has come before the request was sent, or names an earlier one as the last that is answered.
fn is_refused(error: &hyper::Error) -> bool {
    let cause = std::error::Error::source(error).and_then(|cause| cause.downcast_ref::<h2::Error>());
    cause.is_some_and(|cause| {
        cause.is_go_away() && cause.is_remote() && cause.reason() == Some(h2::Reason::NO_ERROR)
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_under_load_fails_no_request() {
    let (first, second) = (Child::start().await, Child::start().await);
    let instances = [Some(first.address), Some(second.address)];
    let load = Arc::new(Load { instances, ..Load::default() });
    let mut callers = JoinSet::new();
    for n in 0..8 {
        let body = [r#"{"ms":0}"#, r#"{"ms":5}"#][n % 2];
        callers.spawn(load.clone().over_http1(body));
        callers.spawn(load.clone().over_http2(body));
    }
    let answered = |n: usize| load.answered[n].load(Ordering::SeqCst);
    let until = async |n: usize, count: usize| {
        while answered(n) < count {
            tokio::task::yield_now().await;
            sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(Duration::from_secs(30), until(0, 500)).await.expect("they are answered");
    let before = answered(0);
    first.signal("-TERM");
    let (status, published, logged) = first.ended().await;
    assert!(status.success(), "{logged}");
    timeout(Duration::from_secs(30), until(1, 500)).await.expect("the other instance answers");
    load.ends.store(true, Ordering::SeqCst);
    callers.join_all().await;
    let counts = (answered(0), answered(1), load.failed.load(Ordering::SeqCst));
    assert_eq!(counts.2, 0, "{counts:?} {logged}");
    assert!(published.is_empty() && !logged.contains("given up"), "{published:?} {logged}");
    assert!(counts.0 > before + 50, "requests went on during the notice: {before} {counts:?}");
    println!("answered by the first and the second instance, failed: {counts:?}");
}

#[tokio::test]
async fn a_second_signal_ends_at_once_and_what_ran_is_logged_and_published() {
    for (first, second) in [("-TERM", "-TERM"), ("-TERM", "-INT"), ("-INT", "-TERM"), ("-INT", "-INT")] {
        let child = Child::start().await;
        let (address, body) = (child.address, r#"{"ms":null}"#);
        let mut busy = TcpStream::connect(address).await.unwrap();
        let ids = "x-request-id: r1\r\nx-correlation-id: c1\r\noctollm-task-id: task_3fK9aZ0qLw81bXyT\r\n";
        busy.write_all((head(body.len(), ids) + body).as_bytes()).await.unwrap();
        // One that is answered came after it, so that it runs.
        let mut other = TcpStream::connect(address).await.unwrap();
        assert_eq!(post(&mut other, r#"{"ms":20}"#).await.unwrap().0, 200);
        child.signal(first);
        let is_draining = async {
            // After the first signal, each answer is the last one of its connection, or nobody listens.
            while let Ok(mut stream) = TcpStream::connect(address).await {
                if !matches!(post(&mut stream, r#"{"ms":0}"#).await, Ok((_, true))) {
                    return;
                }
            }
        };
        timeout(Duration::from_secs(10), is_draining).await.expect("it drains");
        child.signal(second);
        let sent = tokio::time::Instant::now();
        let (status, published, logged) = child.ended().await;
        assert!(status.success() && sent.elapsed() < Duration::from_secs(10), "{:?}", sent.elapsed());
        let line = logged.lines().find(|line| line.contains("request given up"));
        let line = line.unwrap_or_else(|| panic!("{first} {second}: {logged}"));
        for part in [
            "WARN",
            "request=\"r1\"",
            "correlation=\"c1\"",
            "route=\"/work\"",
            "contract=\"ending.work\"",
            "task=\"task_3fK9aZ0qLw81bXyT\"",
            "running_ms=",
            "reason=\"signal\"",
        ] {
            assert!(line.contains(part), "{part}: {line}");
        }
        assert_eq!(published.len(), 1, "{published:?}");
        assert_eq!(published[0]["event_type"], "request.dropped");
        assert_eq!(
            (&published[0]["data"]["request_id"], &published[0]["subject"]),
            (&"r1".into(), &"r1".into())
        );
        drop(busy);
    }
}

#[tokio::test]
async fn one_signal_ends_a_process_without_running_requests() {
    for signal in ["-TERM", "-INT"] {
        let child = Child::start().await;
        let mut idle = TcpStream::connect(child.address).await.unwrap();
        assert_eq!(post(&mut idle, r#"{"ms":0}"#).await.unwrap(), (200, true));
        child.signal(signal);
        let (status, published, logged) = child.ended().await;
        assert!(status.success() && published.is_empty(), "{signal}: {published:?} {logged}");
        assert_eq!(logged.contains("not ready any more"), signal == "-TERM", "{logged}");
        assert_eq!(idle.read(&mut [0]).await.unwrap(), 0, "closed");
    }
}
