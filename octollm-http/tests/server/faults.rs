//! Faults of callers and of the machine, by their numbers in `docs/reliability.md`: what must hold with the default values on a
//! clock that is paused, and over sockets with short limits.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{future::join_all, stream};
use http::Request;
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use octollm_http::{
    Server,
    io::{Acceptor, Io, Peer as From},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpListener,
    time::{Instant, sleep, timeout},
};

use crate::{
    arms::{Worker, network, server, start_with, worker},
    floods::{self, HEADERS, frame},
    peer::{Line, Peer, post},
    places::caller,
};

const ECHO: &str = r#"{"text":"a"}"#;
const HEAD: &str = "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n";

fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// Accepts connections, and counts those that the server holds.
struct Counting<A>(A, Arc<AtomicUsize>);

struct Counted<I>(I, Arc<AtomicUsize>);

impl<A: Acceptor> Acceptor for Counting<A> {
    type Io = Counted<A::Io>;
    type Opening = Pin<Box<dyn Future<Output = io::Result<(Self::Io, From)>> + Send>>;

    async fn accept(&mut self) -> io::Result<Self::Opening> {
        let (opening, count) = (self.0.accept().await?, self.1.clone());
        Ok(Box::pin(async move {
            let (io, peer) = opening.await?;
            count.fetch_add(1, Ordering::SeqCst);
            Ok((Counted(io, count), peer))
        }))
    }

    fn is_local(&self) -> bool {
        self.0.is_local()
    }
}

impl<I> Drop for Counted<I> {
    fn drop(&mut self) {
        self.1.fetch_sub(1, Ordering::SeqCst);
    }
}

impl<I: Io> AsyncRead for Counted<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl<I: Io> AsyncWrite for Counted<I> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

/// Connections of a server, which are open now.
#[derive(Clone)]
pub(crate) struct Sockets(Arc<AtomicUsize>);

impl Sockets {
    pub(crate) fn open(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }

    /// Returns when none is open. On a clock that is paused, it is known at once whether that will be.
    async fn are_closed(&self, within: Duration) {
        let closed = async {
            while self.open() > 0 {
                sleep(Duration::from_millis(10)).await;
            }
        };
        assert!(timeout(within, closed).await.is_ok(), "{} are open", self.open());
    }
}

/// Starts a server in memory whose connections are counted.
pub(crate) fn start_counted(limits: impl FnOnce(Server) -> Server) -> (Peer, Worker, Sockets) {
    let (worker, count, (peer, acceptor)) = (Worker::default(), Arc::new(AtomicUsize::new(0)), network());
    let server = limits(server(&worker)).listen(Counting(acceptor, count.clone())).unwrap();
    tokio::spawn(server.run());
    (peer, worker, Sockets(count))
}

/// The same on TCP.
async fn start_on_tcp(limits: impl FnOnce(Server) -> Server) -> (Peer, Worker, Sockets) {
    let (worker, count) = (Worker::default(), Arc::new(AtomicUsize::new(0)));
    let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let peer = Peer::Tcp(tcp.local_addr().unwrap());
    let server = limits(server(&worker)).listen(Counting(tcp, count.clone())).unwrap();
    tokio::spawn(server.run());
    (peer, worker, Sockets(count))
}

/// What a slow caller sends before it says nothing more.
fn slow_heads() -> Vec<Vec<u8>> {
    let half = HEAD.as_bytes();
    ["", "P", "\r\n", "POST /echo HTTP/1.1\r\nHost:", "PRI * HTTP/2.0\r\n"]
        .map(|text| text.as_bytes().to_vec())
        .into_iter()
        .chain([half.to_vec(), half[..half.len() - 1].to_vec()])
        .collect()
}

#[tokio::test(start_paused = true)]
async fn fault_26_slow_loris_heads_are_closed_at_10_s() {
    let (peer, _, sockets) = start_counted(|server| server);
    let begun = Instant::now();
    let mut slow = Vec::new();
    for _ in 0..50 {
        for bytes in slow_heads() {
            let mut line = peer.connect().await;
            line.write(bytes).await;
            slow.push(line);
        }
    }
    // One byte each second is no more than none.
    let trickling = (0..50).map(|_| async {
        let mut line = peer.connect().await;
        for byte in HEAD.repeat(2).as_bytes() {
            if line.try_write(&[*byte]).await.is_err() {
                return;
            }
            sleep(secs(1)).await;
        }
        panic!("was never closed");
    });
    let served = async {
        for _ in 0..9 {
            sleep(secs(1)).await;
            let sent = Instant::now();
            assert_eq!(peer.post("/echo", "Connection: close\r\n", ECHO).await.status, 200);
            assert_eq!(sent.elapsed(), Duration::ZERO, "nobody waits for them");
        }
        assert!(sockets.open() >= 50 * slow_heads().len() + 50);
    };
    let closed = async {
        for line in slow {
            assert_eq!(line.closed().await, b"");
            assert_eq!(begun.elapsed().as_secs(), 10);
        }
    };
    tokio::join!(served, closed, join_all(trickling));
    sockets.are_closed(secs(2)).await;
    assert!(begun.elapsed() <= secs(13), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn fault_26_a_slow_head_over_http2_is_closed_too() {
    let (peer, _, sockets) = start_counted(|server| server);
    let mut lines = Vec::new();
    // The preface, half a frame, half a head, and pings with it.
    for more in [vec![], vec![0, 0, 99, HEADERS], frame(HEADERS, 0, 1, b"\x83\x86")] {
        let mut line = floods::connect(peer).await;
        line.write(more).await;
        lines.push(line);
    }
    let begun = Instant::now();
    assert_eq!(peer.post("/echo", "Connection: close\r\n", ECHO).await.status, 200);
    sockets.are_closed(secs(65)).await;
    assert!(begun.elapsed() >= secs(29), "as long as a connection without streams may be open");
}

#[tokio::test]
async fn fault_26_over_sockets() {
    let limit = Duration::from_millis(300);
    let (peer, _, sockets) = start_on_tcp(|server| server.head_timeout(limit)).await;
    let mut slow = Vec::new();
    for _ in 0..20 {
        for bytes in slow_heads() {
            let mut line = peer.connect().await;
            line.write(bytes).await;
            slow.push(line);
        }
    }
    assert_eq!(peer.post("/echo", "Connection: close\r\n", ECHO).await.status, 200);
    for line in slow {
        assert_eq!(line.rest().await, b"");
    }
    sockets.are_closed(secs(10)).await;
}

/// Sends one byte each second until it is answered.
async fn trickle(line: &mut Line, bytes: &[u8]) -> crate::peer::Answer {
    for byte in bytes {
        let _ = line.try_write(&[*byte]).await;
        if let Ok(answer) = timeout(secs(1), line.answer()).await {
            return answer;
        }
    }
    line.answer().await
}

#[tokio::test(start_paused = true)]
async fn fault_27_a_body_that_trickles_is_408_by_the_limit_on_the_whole() {
    let (peer, worker, sockets) = start_counted(|server| server);
    let chunks = "1\r\n{\r\n".repeat(100);
    for (head, body) in [
        (format!("{HEAD}Content-Length: 100\r\n\r\n"), "{".repeat(99)),
        (format!("{HEAD}Transfer-Encoding: chunked\r\n\r\n"), chunks),
    ] {
        let mut line = peer.connect().await;
        line.write(head.replace("/echo", "/wait")).await;
        let begun = Instant::now();
        let answer = trickle(&mut line, body.as_bytes()).await;
        let problem = answer.is_problem(408, "request_timeout");
        assert_eq!((&problem["retryable"], &problem["may_have_executed"]), (&true.into(), &false.into()));
        assert_eq!((begun.elapsed().as_secs(), answer.field("connection")), (30, Some("close")));
    }
    // Over HTTP/2 the connection goes on.
    let (calls, connection) =
        http2::handshake(TokioExecutor::new(), TokioIo::new(peer.stream().await)).await.unwrap();
    tokio::spawn(connection);
    let mut calls = calls;
    let bytes = stream::unfold((), |()| async {
        sleep(secs(1)).await;
        Some((Ok::<_, io::Error>(Frame::data(Bytes::from_static(b"{"))), ()))
    });
    let trickling = Request::post("http://x/wait").header("content-type", "application/json");
    let begun = Instant::now();
    let answer = calls.send_request(trickling.body(StreamBody::new(Box::pin(bytes))).unwrap()).await.unwrap();
    assert_eq!((answer.status().as_u16(), begun.elapsed().as_secs()), (408, 30));
    drop((answer, calls));
    sockets.are_closed(secs(35)).await;
    assert!(timeout(secs(1), worker.0.begun(1)).await.is_err(), "the arm was never called");
}

#[tokio::test(start_paused = true)]
async fn fault_28_an_arm_that_panics_is_500_and_others_go_on() {
    let (peer, worker) = start_with(|server| server.max_in_flight(2));
    let mut busy = peer.connect().await;
    busy.write(post("/wait", "", r#"{"ms":5000}"#)).await;
    worker.0.begun(1).await;
    let mut line = peer.connect().await;
    let mut calls = caller(peer, 65_535).await;
    let executed = r#"{"contract":"work.panic@2","input":{}}"#;
    for _ in 0..10 {
        for (path, body) in [("/v2/panic", "{}"), ("/execute", executed)] {
            line.write(post(path, "", body)).await;
            let answer = line.answer().await;
            let problem = answer.is_problem(500, "arm_panicked");
            assert_eq!((&problem["retryable"], &problem["may_have_executed"]), (&false.into(), &true.into()));
            assert!(!answer.body.contains("swordfish"), "{answer:?}");
            let request = Request::post(format!("http://x{path}")).header("content-type", "application/json");
            let answer = calls.send_request(request.body(Full::from(body)).unwrap()).await.unwrap();
            assert_eq!(answer.status(), 500);
            let body = answer.into_body().collect().await.unwrap().to_bytes();
            assert!(!String::from_utf8_lossy(&body).contains("swordfish"));
        }
    }
    // The same connection, and the place of each.
    line.write(post("/echo", "", ECHO)).await;
    assert_eq!(line.answer().await.status, 200);
    assert_eq!(busy.answer().await.status, 200, "which ran all the time");
}

#[tokio::test(start_paused = true)]
async fn fault_29_overload_is_503_at_once_and_admitted_calls_are_as_fast_as_before() {
    const PLACES: usize = 8;
    let (peer, worker) = start_with(|server| server.max_in_flight(PLACES));
    let begun = Instant::now();
    let admitted = (0..PLACES).map(|_| async {
        assert_eq!(peer.post("/wait", "", r#"{"ms":1000}"#).await.status, 200);
        assert_eq!(begun.elapsed(), secs(1), "an admitted call has its own time and no more");
    });
    let refused = async {
        worker.0.begun(PLACES).await;
        for n in 0..1000 {
            if n % 4 == 0 {
                sleep(Duration::from_millis(1)).await;
            }
            let sent = Instant::now();
            let answer = peer.post("/echo", "", ECHO).await;
            let problem = answer.is_problem(503, "overloaded");
            assert_eq!(
                (answer.field("retry-after"), &problem["may_have_executed"]),
                (Some("1"), &false.into())
            );
            for probe in ["/health", "/ready"] {
                assert_eq!(peer.get(probe).await.status, 200);
            }
            assert_eq!(sent.elapsed(), Duration::ZERO, "nobody waits in a queue");
        }
    };
    tokio::join!(join_all(admitted), refused);
    assert_eq!(peer.post("/echo", "", ECHO).await.status, 200);
}

#[tokio::test]
async fn fault_29_over_sockets() {
    let (peer, worker, _) = start_on_tcp(|server| server.max_in_flight(1)).await;
    let mut held = peer.connect().await;
    held.write(post("/wait", "", r#"{"ms":1000}"#)).await;
    worker.0.begun(1).await;
    let mut line = peer.connect().await;
    let mut times = Vec::new();
    for _ in 0..100 {
        let sent = Instant::now();
        line.write(post("/echo", "", ECHO)).await;
        line.answer().await.is_problem(503, "overloaded");
        times.push(sent.elapsed());
    }
    times.sort();
    assert!(times[50] < Duration::from_millis(5), "half of them took {:?}", times[50]);
    assert_eq!(held.answer().await.status, 200);
}

/// Has no file descriptors for so many attempts.
struct Exhausted<A>(A, usize, Arc<AtomicUsize>);

impl<A: Acceptor> Acceptor for Exhausted<A> {
    type Io = A::Io;
    type Opening = A::Opening;

    async fn accept(&mut self) -> io::Result<Self::Opening> {
        const EMFILE: i32 = 24;
        if self.1 > 0 {
            (self.1, _) = (self.1 - 1, self.2.fetch_add(1, Ordering::SeqCst));
            return Err(io::Error::from_raw_os_error(EMFILE));
        }
        self.0.accept().await
    }

    fn is_local(&self) -> bool {
        self.0.is_local()
    }
}

#[tokio::test(start_paused = true)]
async fn fault_31_accept_fails_and_is_tried_again_without_spinning() {
    let ((peer, acceptor), attempts) = (network(), Arc::new(AtomicUsize::new(0)));
    let server = worker().listen(Exhausted(acceptor, 100, attempts.clone())).unwrap();
    tokio::spawn(server.run());
    let mut line = peer.connect().await;
    line.write(post("/echo", "", ECHO)).await;
    sleep(secs(5)).await;
    let so_far = attempts.load(Ordering::SeqCst);
    assert!((45..=52).contains(&so_far), "one attempt every 100 ms, not {so_far}");
    assert_eq!(line.answer().await.status, 200);
    assert_eq!(attempts.load(Ordering::SeqCst), 100);
}
