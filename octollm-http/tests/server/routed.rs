//! Routes and layers of the user's own: bodies that stream, connections that are taken over.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::StreamExt;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper_util::rt::TokioIo;
use octollm_core::parts::{Caller, ContextParts};
use octollm_http::{Server, server::HttpBody};
use tokio::{
    sync::oneshot,
    time::{Instant, sleep, timeout},
};
use tower::{Service, layer::layer_fn, service_fn};

use crate::{
    arms::{Worker, network, server, start, worker},
    peer::post,
};

type Answer = Response<Full<Bytes>>;

/// Answers everything with the same.
pub(crate) fn hello() -> impl Service<Request<HttpBody>, Response = Answer, Error = Infallible, Future: Send>
+ Clone
+ Send
+ Sync
+ 'static {
    service_fn(async |_: Request<HttpBody>| Ok(Response::new(Full::from("hello"))))
}

fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// Takes the connection over, and sends back what comes.
async fn echoes(mut request: Request<HttpBody>) -> Result<Answer, Infallible> {
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let (mut read, mut write) = tokio::io::split(TokioIo::new(upgrade.await.unwrap()));
        let _ = tokio::io::copy(&mut read, &mut write).await;
    });
    let response = Response::builder().status(StatusCode::SWITCHING_PROTOCOLS);
    let response = response.header(header::CONNECTION, "upgrade").header(header::UPGRADE, "echo");
    Ok(response.body(Full::default()).unwrap())
}

const UPGRADE: &str = "GET /echoes HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n";

#[tokio::test(start_paused = true)]
async fn an_upgrade_carries_bytes_both_ways_for_a_minute() {
    let server = worker().max_connections(1).route(Method::GET, "/echoes", service_fn(echoes));
    let peer = start(server);
    let mut line = peer.connect().await;
    line.write(UPGRADE).await;
    let answer = line.answer().await;
    assert_eq!((answer.status, answer.field("upgrade")), (101, Some("echo")), "{answer:?}");
    assert!(answer.field("x-request-id").is_some());
    let begun = Instant::now();
    for n in 0..60 {
        // What looks like HTTP is none any more.
        let text = format!("GET /{n} HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n");
        line.write(&text).await;
        assert_eq!(line.read(text.len()).await, text.as_bytes());
        sleep(secs(1)).await;
    }
    // Neither rest nor a reader that takes its time ends it.
    sleep(secs(300)).await;
    let large = vec![b'x'; 50_000];
    line.write(&large).await;
    sleep(secs(300)).await;
    assert_eq!(line.read(large.len()).await, large);
    assert!(begun.elapsed() >= secs(660));

    // It is one of the connections, until it is gone.
    let mut second = peer.connect().await;
    second.write("GET /health HTTP/1.1\r\nHost: x\r\n\r\n").await;
    sleep(secs(5)).await;
    drop(line);
    assert_eq!(second.answer().await.status, 200);
}

#[tokio::test(start_paused = true)]
async fn an_upgraded_connection_ends_with_the_server() {
    let (peer, acceptor) = network();
    let server = worker().route(Method::GET, "/echoes", service_fn(echoes)).listen(acceptor).unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let running = tokio::spawn(server.run_until(async {
        let _ = stopped.await;
    }));
    let mut line = peer.connect().await;
    line.write(UPGRADE).await;
    assert_eq!(line.answer().await.status, 101);
    let begun = Instant::now();
    stop.send(()).unwrap();
    assert_eq!(line.closed().await, b"");
    running.await.unwrap();
    assert_eq!(begun.elapsed().as_secs(), 30, "the grace");
}

#[tokio::test(start_paused = true)]
async fn bodies_stream_both_ways() {
    // Answers each piece with its length, as it comes.
    let lengths = service_fn(async |request: Request<HttpBody>| {
        let pieces = request.into_body().into_data_stream();
        let lengths =
            pieces.map(|piece| piece.map(|piece| Frame::data(Bytes::from(format!("{};", piece.len())))));
        Ok::<_, Infallible>(Response::new(StreamBody::new(lengths)))
    });
    let peer = start(worker().max_in_flight(1).route(Method::POST, "/lengths/{of}", lengths));
    let mut line = peer.connect().await;
    line.write("POST /lengths/all HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n").await;
    assert!(line.head().await.starts_with("HTTP/1.1 200"));
    for n in [1, 30, 3] {
        line.write(format!("{n:x}\r\n{}\r\n", "a".repeat(n))).await;
        let answer = format!("{:x}\r\n{n};\r\n", format!("{n};").len());
        assert_eq!(line.read(answer.len()).await, answer.as_bytes());
        // A stream that rests is no connection that does, and has its place for as long as it lasts.
        sleep(secs(100)).await;
        peer.post("/echo", "", r#"{"text":"a"}"#).await.is_problem(503, "overloaded");
    }
    line.write("0\r\n\r\n").await;
    assert_eq!(line.read(5).await, b"0\r\n\r\n");
    assert_eq!(peer.post("/echo", "", r#"{"text":"a"}"#).await.status, 200);
}

#[tokio::test(start_paused = true)]
async fn a_route_is_checked_and_finds_what_travels() {
    let seen = service_fn(async |request: Request<HttpBody>| {
        let parts: &ContextParts = request.extensions().get().unwrap();
        let caller: &Caller = request.extensions().get().unwrap();
        let text = format!("{} {:?} {}", request.uri().path(), caller.subject(), parts.request_id.as_str());
        Ok::<_, Infallible>(Response::new(Full::from(text)))
    });
    let fails = service_fn(async |_: Request<HttpBody>| {
        Err::<Answer, _>(std::io::Error::other("the password is swordfish"))
    });
    let panics = service_fn(async |request: Request<HttpBody>| -> Result<Answer, Infallible> {
        panic!("the password is swordfish {}", request.uri())
    });
    let server = worker()
        .authenticate(|_: &http::request::Parts| Ok(Caller::known("ali", ["a:b"])))
        .route(Method::GET, "/seen/{what}", seen)
        .route(Method::GET, "/fails", fails)
        .route(Method::GET, "/panics", panics)
        .route(Method::GET, "/hello", hello());
    let peer = start(server);
    let get = "GET /seen/this HTTP/1.1\r\nHost: x\r\nX-Request-ID: r1\r\nAccept: text/html\r\n\r\n";
    let answer = peer.send(get).await;
    assert_eq!((answer.status, &*answer.body), (200, "/seen/this Some(\"ali\") r1"));
    assert_eq!(answer.field("x-request-id"), Some("r1"));
    for path in ["/fails", "/panics"] {
        let answer = peer.get(path).await;
        answer.is_problem(500, "internal");
        assert!(!answer.body.contains("swordfish"));
    }
    peer.post("/hello", "", "{}").await.is_problem(405, "method_not_allowed");
    let mut line = peer.connect().await;
    line.write("HEAD /hello HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
    assert!(line.head().await.contains("content-length: 5"));
    assert_eq!(line.closed().await, b"");
}

#[tokio::test(start_paused = true)]
async fn layers_are_around_everything() {
    #[derive(Clone)]
    struct Stamp<S>(S, &'static str);

    impl<S: Service<Request<HttpBody>, Response = Response<B>, Future: Send + 'static>, B>
        Service<Request<HttpBody>> for Stamp<S>
    {
        type Response = Response<B>;
        type Error = S::Error;
        type Future = std::pin::Pin<Box<dyn Future<Output = Result<Response<B>, S::Error>> + Send>>;

        fn poll_ready(&mut self, cx: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), S::Error>> {
            self.0.poll_ready(cx)
        }

        fn call(&mut self, request: Request<HttpBody>) -> Self::Future {
            let (answer, stamp) = (self.0.call(request), self.1);
            Box::pin(async move {
                let mut answer = answer.await?;
                answer.headers_mut().append("x-stamp", HeaderValue::from_static(stamp));
                Ok(answer)
            })
        }
    }

    let refuses = |_| {
        service_fn(async |request: Request<HttpBody>| match request.uri().path() {
            "/broken" => Err(std::io::Error::other("the password is swordfish")),
            _ => Ok(Response::new(Full::from("cut short"))),
        })
    };
    let layered = || {
        worker().layer(layer_fn(|inner| Stamp(inner, "inner"))).layer(layer_fn(|inner| Stamp(inner, "outer")))
    };
    let peer = start(layered());
    let answer = peer.post("/echo", "", r#"{"text":"a"}"#).await;
    assert_eq!(answer.json()["text"], "a");
    let stamps: Vec<_> = answer.head.lines().filter_map(|line| line.strip_prefix("x-stamp: ")).collect();
    assert_eq!(stamps, ["inner", "outer"]);
    let missing = peer.get("/nowhere").await;
    missing.is_problem(404, "not_found");
    assert_eq!(missing.field("x-stamp"), Some("inner"));
    // How the request came is known below the layers too.
    peer.send("GET /health HTTP/1.1\r\n\r\n").await.is_problem(400, "bad_request");
    assert_eq!(peer.get("/capabilities").await.json()["endpoint"], serde_json::Value::Null);

    let peer = start(server(&Worker::default()).layer(layer_fn(refuses)));
    assert_eq!(peer.get("/health").await.body, "cut short");
    let broken = peer.get("/broken").await;
    broken.is_problem(500, "internal");
    assert!(!broken.body.contains("swordfish"));
}

#[tokio::test(start_paused = true)]
async fn one_server_has_everything() {
    let server = Server::new("all").arm::<crate::arms::Echo>(Worker::default());
    let peer = start(server.orchestrator(crate::tasks::brain()).reflex(crate::tasks::Careful));
    assert_eq!(peer.post("/echo", "", r#"{"text":"spam"}"#).await.json()["text"], "spam");
    let body = r#"{"contract":"text.echo","input":{"text":"spam"}}"#;
    assert_eq!(peer.post("/execute", "", body).await.status, 200, "calls are not screened");
    peer.post("/tasks", "", r#"{"goal":"spam"}"#).await.is_problem(403, "refused");
    assert_eq!(peer.post("/tasks", "", r#"{"goal":"ham"}"#).await.status, 202);
    assert_eq!(
        peer.post("/preprocess", "", r#"{"input_text":"spam"}"#).await.json()["should_proceed"],
        false
    );
    let card = peer.get("/capabilities").await.json();
    assert_eq!((&card["arm_id"], &card["arms"]), (&"all".into(), &serde_json::json!([])));
    assert_eq!(peer.get("/arms").await.json(), card);
    let mut line = peer.connect().await;
    line.write(post("/echo", "", r#"{"text":"a"}"#)).await;
    assert_eq!(line.answer().await.status, 200);
}

#[tokio::test(start_paused = true)]
async fn a_route_for_head_is_not_hidden_by_that_for_get() {
    let named = |name: &'static str| {
        service_fn(move |_: Request<HttpBody>| async move {
            let answer = Response::builder().header("x-route", name);
            Ok::<_, Infallible>(answer.body(Full::<Bytes>::default()).unwrap())
        })
    };
    let peer = start(
        worker()
            .route(Method::GET, "/both", named("get"))
            .route(Method::HEAD, "/both", named("head"))
            .route(Method::HEAD, "/head", named("head"))
            .route(Method::GET, "/get", named("get")),
    );
    let ask = |method: &str, path: &str| {
        let bytes = format!("{method} {path} HTTP/1.1\r\nHost: x\r\n\r\n");
        async move { peer.send(bytes).await }
    };
    for (method, path, route) in [
        ("HEAD", "/both", "head"),
        ("GET", "/both", "get"),
        ("HEAD", "/head", "head"),
        ("HEAD", "/get", "get"),
    ] {
        assert_eq!(ask(method, path).await.field("x-route"), Some(route), "{method} {path}");
    }
    for (path, allowed) in [("/both", "GET, HEAD"), ("/head", "HEAD"), ("/get", "GET, HEAD")] {
        assert_eq!(ask("PUT", path).await.field("allow"), Some(allowed), "{path}");
    }
}

#[tokio::test(start_paused = true)]
async fn no_path_leads_upwards_however_it_is_written() {
    let peer = start(worker().route(Method::GET, "/files/{*path}", hello()));
    assert_eq!(peer.get("/files/a.b/.c/...").await.body, "hello");
    for path in [
        "/files/../etc",
        "/files/a/..",
        "/files/./a",
        "/files/%2e%2e/etc",
        "/files/a/.%2e",
        "/files/..%5cetc",
    ] {
        peer.get(path).await.is_problem(400, "bad_request");
    }
}

#[tokio::test(start_paused = true)]
async fn a_layer_that_panics_or_fails_is_answered_for_with_the_ids_of_its_request() {
    let odd = layer_fn(|_| {
        service_fn(async |request: Request<HttpBody>| match request.uri().path() {
            "/panics" => panic!("the password is swordfish"),
            _ => Err::<Answer, _>(std::io::Error::other("the password is swordfish")),
        })
    });
    let peer = start(worker().layer(odd));
    let mut line = peer.connect().await;
    for path in ["/panics", "/fails"] {
        line.write(format!(
            "GET {path} HTTP/1.1\r\nHost: x\r\nX-Request-ID: r-1\r\nX-Correlation-ID: c-1\r\n\r\n"
        ))
        .await;
        let answer = line.answer().await;
        let problem = answer.is_problem(500, "internal");
        assert_eq!((&problem["request_id"], answer.field("x-correlation-id")), (&"r-1".into(), Some("c-1")));
        assert!(!answer.body.contains("swordfish"));
    }
}

/// Sets its flag when it is dropped.
struct Flag(Arc<AtomicBool>);

impl Drop for Flag {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[tokio::test]
async fn a_body_that_never_waits_holds_back_nothing_and_has_its_limits() {
    let dropped = Arc::<AtomicBool>::default();
    let flag = Arc::clone(&dropped);
    // A piece of this size, then nothing more, without ever giving the thread away on its own.
    let route = service_fn(move |request: Request<HttpBody>| {
        let size: usize = request.uri().query().unwrap().parse().unwrap();
        let flag = Flag(Arc::clone(&flag));
        let pieces = futures_util::stream::unfold((false, flag), move |(is_sent, flag)| async move {
            if is_sent {
                loop {
                    tokio::task::coop::consume_budget().await;
                }
            }
            Some((Ok::<_, Infallible>(Frame::data(Bytes::from(vec![b'x'; size]))), (true, flag)))
        });
        std::future::ready(Ok::<_, Infallible>(Response::new(StreamBody::new(pieces))))
    });
    let peer = start(worker().write_timeout(Duration::from_millis(100)).route(Method::GET, "/busy", route));
    let get = |size: usize| format!("GET /busy?{size} HTTP/1.1\r\nHost: x\r\n\r\n");
    let until_dropped = || async {
        while !dropped.swap(false, Ordering::SeqCst) {
            tokio::task::yield_now().await;
        }
    };
    let mut line = peer.connect().await;
    line.write(get(5)).await;
    assert!(line.head().await.starts_with("HTTP/1.1 200"));
    assert_eq!(line.read(10).await, b"5\r\nxxxxx\r\n");
    drop(line);
    timeout(secs(10), until_dropped()).await.expect("its caller has gone");
    // More than the way holds, and nobody reads it.
    let mut line = peer.connect().await;
    line.write(get(1 << 20)).await;
    timeout(secs(10), until_dropped()).await.expect("its caller does not read");
}
