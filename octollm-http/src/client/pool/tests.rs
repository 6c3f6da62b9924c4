//! Streams in both directions, addresses, and endpoints that come and go.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use futures_util::{StreamExt, stream};
use http_body::Frame;
use http_body_util::{BodyExt, BodyStream, StreamBody};
use hyper::{
    body::Incoming,
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    time::{Instant, sleep},
};
use tower::BoxError;

use super::*;
use crate::io::{Acceptor, Io, Pipes};

const BOTH: [Protocol; 2] = [Protocol::Http1, Protocol::Http2];

struct Network {
    pipes: Pipes,
    open: Arc<AtomicUsize>,
    opened: Arc<AtomicUsize>,
}

/// Echoes bodies as they arrive: `/slow` a byte per second, `/halt` half of it, and then nothing, `/cut` half, and then the end of
/// the connection.
async fn echo(
    request: Request<Incoming>,
) -> Result<Response<http_body_util::combinators::UnsyncBoxBody<Bytes, BoxError>>, Infallible> {
    let path = request.uri().path().to_owned();
    let body = BodyStream::new(request.into_body()).map(|frame| frame.map_err(BoxError::from));
    let body = match &*path {
        "/slow" => StreamBody::new(stream::unfold(0, |n| async move {
            sleep(Duration::from_secs(1)).await;
            (n < 60).then(|| (Ok(Frame::data(Bytes::from_static(b"x"))), n + 1))
        }))
        .boxed_unsync(),
        "/large" => {
            StreamBody::new(stream::repeat_with(|| Ok(Frame::data(Bytes::from(vec![0; 10_000])))).take(1000))
                .boxed_unsync()
        }
        "/halt" | "/cut" => {
            let is_cut = path == "/cut";
            let first = stream::iter([Ok(Frame::data(Bytes::from_static(b"half")))]);
            let rest = stream::once(async move {
                sleep(Duration::from_secs(if is_cut { 1 } else { 1000 })).await;
                Err(BoxError::from("cut"))
            });
            StreamBody::new(first.chain(rest)).boxed_unsync()
        }
        _ => StreamBody::new(body).boxed_unsync(),
    };
    Ok(Response::new(body))
}

async fn serve<I, S, B>(protocol: Protocol, socket: I, service: S)
where
    I: Io,
    S: hyper::service::HttpService<Incoming, ResBody = B, Error: Into<BoxError>, Future: Send + 'static>,
    B: http_body::Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
{
    let socket = TokioIo::new(socket);
    let _ = match protocol {
        Protocol::Http2 => http2::Builder::new(TokioExecutor::new()).serve_connection(socket, service).await,
        _ => http1::Builder::new().serve_connection(socket, service).await,
    };
}

impl Network {
    /// The host `x` over a network in memory.
    fn new(protocol: Protocol) -> Self {
        let pipes = Pipes::new();
        let mut acceptor = pipes.listen("x").unwrap();
        let (open, opened) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let counts = (open.clone(), opened.clone());
        tokio::spawn(async move {
            loop {
                let (socket, _) = acceptor.accept().await.unwrap().await.unwrap();
                let open = counts.0.clone();
                open.fetch_add(1, Ordering::SeqCst);
                counts.1.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(async move {
                    serve(protocol, socket, service_fn(echo)).await;
                    open.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        Self { pipes, open, opened }
    }

    fn pool(&self, protocol: Protocol, limits: impl FnOnce(&mut ClientConfig)) -> Pool {
        let mut config = ClientConfig::default();
        limits(&mut config);
        Pool::new(config, Arc::new(self.pipes.clone()), ClientTls::default(), protocol, 1)
    }

    async fn until_open(&self, count: usize) {
        for _ in 0..100 {
            if self.open.load(Ordering::SeqCst) == count {
                return;
            }
            sleep(Duration::from_millis(10)).await;
        }
        panic!("{} are open", self.open.load(Ordering::SeqCst));
    }
}

fn request(path: &str, body: Upload) -> Request<Upload> {
    Request::post(format!("http://x{path}")).body(body).unwrap()
}

fn judge() -> Arc<str> {
    Arc::from("judge")
}

fn limits() -> ExchangeLimits {
    ExchangeLimits { work: Duration::from_secs(30), ..ExchangeLimits::default() }
}

async fn stream_of(pool: &Pool, path: &str) -> Response<Download> {
    pool.exchange_streamed(request(path, Bytes::new().into()), &judge(), limits()).await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn bodies_stream_both_ways_and_the_connection_is_used_again() {
    for protocol in BOTH {
        let network = Network::new(protocol);
        let pool = network.pool(protocol, |_| {});
        for _ in 0..3 {
            let pieces = stream::iter(0..200_u32).then(|n| async move {
                sleep(Duration::from_millis(10)).await;
                Ok::<_, BoxError>(Frame::data(Bytes::from(vec![n as u8; 1000])))
            });
            let body = Upload::Streamed(StreamBody::new(pieces).boxed_unsync());
            let answer = pool.exchange_streamed(request("/echo", body), &judge(), limits()).await.unwrap();
            let body = answer.into_body().collect().await.unwrap().to_bytes();
            assert_eq!(body.len(), 200_000, "{protocol:?}");
            assert!(body.chunks(1000).zip(0..).all(|(piece, n)| piece.iter().all(|byte| *byte == n)));
        }
        // A whole body, and an answer that is read whole, use it too.
        let whole = Request::post("http://x/echo").body(Bytes::from("whole")).unwrap();
        let answer = pool.exchange(whole, &judge(), limits()).await.unwrap();
        assert_eq!(answer.into_body(), "whole");
        assert_eq!(network.opened.load(Ordering::SeqCst), 1, "{protocol:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_may_last_longer_than_the_read_limit_but_not_pause_for_it() {
    for protocol in BOTH {
        let network = Network::new(protocol);
        let pool = network.pool(protocol, |_| {});
        let body = stream_of(&pool, "/slow").await.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(body.len(), 60);
        let began = Instant::now();
        let error = stream_of(&pool, "/halt").await.into_body().collect().await.unwrap_err();
        assert_eq!((error.failure.kind, began.elapsed()), (ErrorKind::Timeout, Duration::from_secs(30)));
        assert_eq!(error.failure.details, Some(json!({ "phase": "read_body" })));
        let error = stream_of(&pool, "/cut").await.into_body().collect().await.unwrap_err();
        assert_eq!(error.failure.kind, ErrorKind::ConnectionLost, "{protocol:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_ends_at_the_deadline_and_gives_its_place_back_however_it_ends() {
    for protocol in BOTH {
        let network = Network::new(protocol);
        let pool = network.pool(protocol, |config| (config.max_connections, config.max_streams) = (1, 1));
        let deadline = Some(Deadline::after(Duration::from_secs(5)));
        let within = ExchangeLimits { deadline, ..limits() };
        let slow = request("/slow", Bytes::new().into());
        let body = pool.exchange_streamed(slow, &judge(), within).await.unwrap().into_body();
        let began = Instant::now();
        let error = body.collect().await.unwrap_err();
        assert_eq!(error.failure.kind, ErrorKind::DeadlineExceeded);
        assert_eq!(began.elapsed(), Duration::from_secs(5));
        // Dropped half way.
        let mut body = stream_of(&pool, "/slow").await.into_body();
        body.frame().await.unwrap().unwrap();
        drop(body);
        // While one holds the place, others wait.
        let held = stream_of(&pool, "/halt").await;
        let waiting = pool.exchange_streamed(request("/echo", Bytes::new().into()), &judge(), limits()).await;
        let error = waiting.err().unwrap();
        assert_eq!(error.failure.details, Some(json!({ "phase": "pool_wait" })), "{protocol:?}");
        drop(held);
        stream_of(&pool, "/echo").await.into_body().collect().await.unwrap();
        sleep(Duration::from_secs(20)).await;
        network.until_open(0).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_reader_of_one_stream_does_not_stop_the_others() {
    let network = Network::new(Protocol::Http2);
    let pool = network.pool(Protocol::Http2, |config| config.max_connections = 1);
    // Nobody reads these: each has filled its window.
    let unread = futures_util::future::join_all((0..8).map(|_| stream_of(&pool, "/large"))).await;
    sleep(Duration::from_secs(1)).await;
    for _ in 0..20 {
        let body = Upload::from(Bytes::from(vec![1; 300_000]));
        let answer = pool.exchange_streamed(request("/echo", body), &judge(), limits()).await.unwrap();
        assert_eq!(answer.into_body().collect().await.unwrap().to_bytes().len(), 300_000);
    }
    for answer in unread {
        assert_eq!(answer.into_body().collect().await.unwrap().to_bytes().len(), 10_000_000);
    }
    assert_eq!(network.opened.load(Ordering::SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_cannot_be_produced_fails_the_call_and_is_sent_once() {
    for protocol in BOTH {
        let network = Network::new(protocol);
        let pool = network.pool(protocol, |_| {});
        let broken = stream::iter([Ok(Frame::data(Bytes::from_static(b"a"))), Err(BoxError::from("broken"))]);
        let body = Upload::Streamed(StreamBody::new(broken).boxed_unsync());
        let sent = pool.exchange_streamed(request("/echo", body), &judge(), limits()).await;
        let error = match sent {
            Ok(answer) => answer.into_body().collect().await.unwrap_err(),
            Err(error) => error,
        };
        assert!(
            matches!(error.failure.kind, ErrorKind::Internal | ErrorKind::ConnectionLost),
            "{protocol:?} {error}"
        );
        stream_of(&pool, "/echo").await.into_body().collect().await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_is_forgotten_keeps_its_running_calls_only() {
    for protocol in BOTH {
        let network = Network::new(protocol);
        let pool = network.pool(protocol, |_| {});
        let origin = Origin::of(&Uri::from_static("http://x/echo"), None).unwrap();
        let running = stream_of(&pool, "/slow").await;
        let one = stream_of(&pool, "/slow").await;
        drop(stream_of(&pool, "/echo").await.into_body().collect().await.unwrap());
        pool.forget("judge", &origin);
        network.until_open(if protocol == Protocol::Http1 { 2 } else { 1 }).await;
        assert_eq!(running.into_body().collect().await.unwrap().to_bytes().len(), 60);
        assert_eq!(one.into_body().collect().await.unwrap().to_bytes().len(), 60);
        network.until_open(0).await;
        // It may come back.
        stream_of(&pool, "/echo").await.into_body().collect().await.unwrap();
        network.until_open(1).await;
        pool.set_arms(3);
    }
}

/// Connects to addresses, and notes the URIs.
struct Noting(Mutex<Vec<Uri>>);

#[async_trait::async_trait]
impl Connector for Noting {
    async fn connect(&self, to: &Uri) -> std::io::Result<Box<dyn Io>> {
        self.0.lock().unwrap().push(to.clone());
        crate::io::Tcp.connect(to).await
    }
}

#[tokio::test]
async fn a_fixed_address_is_connected_to_and_the_host_stays_that_of_the_url() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address: SocketAddr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        for number in 0.. {
            let (socket, _) = listener.accept().await.unwrap();
            let host = service_fn(|request: Request<Incoming>| async move {
                let named = request.uri().authority().map(ToString::to_string);
                let host = request.headers().get("host").map(|host| host.to_str().unwrap().to_owned());
                Ok::<_, Infallible>(Response::new(named.or(host).unwrap_or_default()))
            });
            tokio::spawn(async move {
                // The first connection is that of HTTP/1.1.
                serve(if number == 0 { Protocol::Http1 } else { Protocol::Http2 }, socket, host).await;
            });
        }
    });
    for protocol in BOTH {
        let connector = Arc::new(Noting(Mutex::default()));
        let pool = Pool::new(ClientConfig::default(), connector.clone(), ClientTls::default(), protocol, 1);
        let hints = ServerHints { address: Some(address), ..ServerHints::default() };
        let asked = Request::get("http://judge.internal:9/").body(Bytes::new()).unwrap();
        let answer = pool.exchange(asked, &judge(), ExchangeLimits { hints, ..limits() }).await.unwrap();
        assert_eq!(answer.into_body(), "judge.internal:9");
        let connected: Vec<_> = connector.0.lock().unwrap().iter().map(ToString::to_string).collect();
        assert_eq!(connected, [format!("http://{address}/")]);
    }
}

#[tokio::test(start_paused = true)]
async fn calls_to_many_endpoints_leave_their_connections_open() {
    let network = Network::new(Protocol::Http1);
    let pool = network.pool(Protocol::Http1, |_| {});
    let endpoints: Vec<Arc<str>> = (0..16).map(|number| format!("judge{number}").into()).collect();
    // 32 at a time, each to another endpoint than the one before.
    let calls = (0..32_usize).map(|caller| {
        let (pool, endpoints) = (pool.clone(), endpoints.clone());
        async move {
            for call in 0..50 {
                let request = Request::post("http://x/echo").body(Bytes::from("body")).unwrap();
                let arm = &endpoints[(caller * 7 + call * call) % endpoints.len()];
                pool.exchange(request, arm, limits()).await.unwrap();
            }
        }
    });
    futures_util::future::join_all(calls).await;
    let opened = network.opened.load(Ordering::SeqCst);
    assert!(opened <= 100, "{opened} connections for 1600 calls");
    // After a second the usual number is left.
    sleep(Duration::from_secs(3)).await;
    network.until_open(20).await;
}

/// A server on the host `x` each of whose connections answers one request and is closed by the next. Counts the requests.
fn dies_by_the_second(pipes: &Pipes) -> Arc<AtomicUsize> {
    let (mut acceptor, seen) = (pipes.listen("x").unwrap(), Arc::new(AtomicUsize::new(0)));
    let counted = seen.clone();
    tokio::spawn(async move {
        loop {
            let (mut socket, _) = acceptor.accept().await.unwrap().await.unwrap();
            let seen = counted.clone();
            tokio::spawn(async move {
                let mut request = [0; 4096];
                for answer in [&b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"[..], b""] {
                    let length = socket.read(&mut request).await.unwrap();
                    seen.fetch_add(usize::from(length > 0), Ordering::SeqCst);
                    sleep(Duration::from_millis(10)).await;
                    socket.write_all(answer).await.unwrap();
                }
            });
        }
    });
    seen
}

#[tokio::test(start_paused = true)]
async fn a_question_whose_connection_was_stale_is_put_once_more_and_not_again() {
    let pipes = Pipes::new();
    let seen = dies_by_the_second(&pipes);
    let pool = Pool::new(ClientConfig::default(), Arc::new(pipes), ClientTls::default(), Protocol::Http1, 1);
    let ask = || {
        let asked = Request::get("http://x/").body(Bytes::new()).unwrap();
        let pool = pool.clone();
        async move { pool.exchange(asked, &judge(), limits()).await }
    };
    futures_util::future::try_join_all((0..5).map(|_| ask())).await.unwrap();
    assert_eq!(seen.load(Ordering::SeqCst), 5);
    // The second one goes over a new connection, though four idle ones are left.
    ask().await.unwrap();
    assert_eq!(seen.load(Ordering::SeqCst), 7);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_fails_closes_its_own_connection_only() {
    let network = Network::new(Protocol::Http1);
    let pool = network.pool(Protocol::Http1, |_| {});
    let call = |path| {
        let (pool, request) = (pool.clone(), Request::post(format!("http://x{path}")));
        async move { pool.exchange(request.body(Bytes::from("body")).unwrap(), &judge(), limits()).await }
    };
    futures_util::future::try_join_all((0..3).map(|_| call("/slow"))).await.unwrap();
    assert_eq!(call("/cut").await.unwrap_err().failure.kind, ErrorKind::ConnectionLost);
    network.until_open(2).await;
    futures_util::future::try_join_all((0..2).map(|_| call("/slow"))).await.unwrap();
    assert_eq!(network.opened.load(Ordering::SeqCst), 3);
}

#[tokio::test(start_paused = true)]
async fn an_arm_that_is_forgotten_leaves_others_at_its_origin_their_connections() {
    for protocol in BOTH {
        let network = Network::new(protocol);
        let pool = network.pool(protocol, |_| {});
        let (judge, coder) = (judge(), Arc::from("coder"));
        let call = async |arm| {
            let request = request("/echo", Bytes::new().into());
            pool.exchange_streamed(request, arm, limits())
                .await
                .unwrap()
                .into_body()
                .collect()
                .await
                .unwrap();
        };
        call(&judge).await;
        call(&coder).await;
        pool.forget("judge", &Origin::of(&Uri::from_static("http://x/"), None).unwrap());
        network.until_open(1).await;
        call(&coder).await;
        assert_eq!(network.opened.load(Ordering::SeqCst), 2, "{protocol:?}");
    }
}

#[test]
fn lanes_of_runtimes_that_have_ended_are_removed() {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let first = runtime();
    let network = first.block_on(async { Network::new(Protocol::Http1) });
    let pool = network.pool(Protocol::Http1, |_| {});
    // While this one is open, the pool is not quiet.
    let held = first.block_on(stream_of(&pool, "/halt"));
    for host in 0..1000 {
        let asked = Request::get(format!("http://host{}/", host % 10)).body(Bytes::new()).unwrap();
        runtime().block_on(pool.exchange(asked, &judge(), limits())).unwrap_err();
    }
    let lanes = pool.0.state().lanes.len();
    assert!(lanes <= 64, "{lanes}");
    drop(held);
}

/// A connector that takes its time.
struct Slow(Pipes, Duration);

#[async_trait::async_trait]
impl Connector for Slow {
    async fn connect(&self, to: &Uri) -> std::io::Result<Box<dyn Io>> {
        sleep(self.1).await;
        self.0.connect(to).await
    }
}

#[tokio::test(start_paused = true)]
async fn one_limit_holds_for_a_connection_and_the_one_after_its_trial() {
    let pipes = Pipes::new();
    // It accepts, and sends no SETTINGS.
    let _silent = pipes.listen("x").unwrap();
    let origin = Origin::of(&Uri::from_static("http://x/"), None).unwrap();
    for (connecting, expected) in [(4500, None), (3000, None), (1000, Some(3000))] {
        let connector = Arc::new(Slow(pipes.clone(), Duration::from_millis(connecting)));
        let pool = Pool::new(ClientConfig::default(), connector, ClientTls::default(), Protocol::Auto, 1);
        let began = Instant::now();
        let opened = connect::open(&pool.0, &origin, connect::Versions::Either).await;
        assert!(began.elapsed() <= Duration::from_millis(5001), "{:?}", began.elapsed());
        match opened {
            Err(error) => {
                assert_eq!((error.failure.kind, expected), (ErrorKind::Unreachable, None));
                assert_eq!(error.failure.message, "no connection within 5s");
            }
            Ok(_) => assert_eq!(expected, Some(began.elapsed().as_millis() as u64)),
        }
    }
}
