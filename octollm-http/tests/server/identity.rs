//! Who calls: established by the server, by what it is mounted in, or by nobody.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use http::{Method, Request, header, request::Parts};
use http_body_util::{BodyExt, Full};
use octollm_core::{
    error::{ErrorKind, Failure},
    parts::Caller,
};
use octollm_http::{
    Authenticate, Server,
    io::{Acceptor, Peer as From},
    server::HttpService,
};
use tower::{ServiceExt, layer::layer_fn};

use crate::{
    arms::{Worker, network, server, start, worker},
    peer::{Answer, Peer},
    routed::hello,
    tasks::brain,
};

const ECHO: &str = r#"{"text":"a"}"#;

/// Knows a few tokens.
struct Doorman;

#[async_trait]
impl Authenticate for Doorman {
    async fn authenticate(&self, head: &Parts) -> Result<Caller, Failure> {
        assert!(head.extensions.get::<From>().is_some(), "a connection has another end");
        let token = head.headers.get(header::AUTHORIZATION).and_then(|token| token.to_str().ok());
        tokio::time::sleep(Duration::from_millis(10)).await;
        match token {
            None => Ok(Caller::Anonymous),
            Some("Bearer ali") => Ok(Caller::known("ali", ["text:echo", "task:run"])),
            Some("Bearer bob") => Ok(Caller::known("bob", ["work:wait", "task:run"])),
            Some("Bearer slow") => std::future::pending().await,
            Some("Bearer panic") => panic!("the password is swordfish"),
            Some(_) => Err(Failure::new(ErrorKind::Unauthenticated, "the token is not valid")),
        }
    }
}

async fn echo(peer: Peer, token: &str) -> Answer {
    let field = if token.is_empty() { String::new() } else { format!("Authorization: Bearer {token}\r\n") };
    peer.post("/echo", &field, ECHO).await
}

#[tokio::test(start_paused = true)]
async fn scopes_are_checked_on_every_way_to_a_contract() {
    let peer = start(server(&Worker::default()).authenticate(Doorman));
    assert_eq!(echo(peer, "ali").await.status, 200);
    let execute = r#"{"contract":"text.echo","input":{"text":"a"}}"#;
    for (path, body) in [("/echo", ECHO), ("/execute", execute)] {
        for (field, status, code, challenge) in [
            ("", 401, "unauthenticated", "Bearer"),
            ("Authorization: Bearer eve\r\n", 401, "unauthenticated", "Bearer error=\"invalid_token\""),
            (
                "Authorization: Bearer bob\r\n",
                403,
                "insufficient_scope",
                "Bearer error=\"insufficient_scope\", scope=\"text:echo\"",
            ),
        ] {
            let answer = peer.post(path, field, body).await;
            let problem = answer.is_problem(status, code);
            assert_eq!(answer.field("www-authenticate"), Some(challenge), "{path} {field}");
            assert_eq!(problem["may_have_executed"], false);
        }
    }
    for probe in ["/health", "/ready", "/metrics", "/capabilities", "/openapi.json", "/docs"] {
        assert_eq!(peer.get(probe).await.status, 200, "{probe} needs no identity");
    }
}

#[tokio::test(start_paused = true)]
async fn an_authenticator_that_fails_lets_nobody_in() {
    let worker = Worker::default();
    let peer = start(server(&worker).authenticate(Doorman));
    let begun = tokio::time::Instant::now();
    echo(peer, "slow").await.is_problem(503, "unavailable");
    assert_eq!(begun.elapsed().as_secs(), 5);
    let hurried = "Authorization: Bearer slow\r\nOctollm-Timeout: 1000\r\n";
    let problem = peer.post("/echo", hurried, ECHO).await.is_problem(504, "deadline_exceeded");
    assert_eq!(problem["may_have_executed"], false);
    let answer = echo(peer, "panic").await;
    answer.is_problem(500, "internal");
    assert!(!answer.body.contains("swordfish"));
}

/// Panics before it has a future to return.
struct Rash;

impl Authenticate for Rash {
    fn authenticate<'a, 'b, 'f>(
        &'a self,
        _: &'b Parts,
    ) -> std::pin::Pin<Box<dyn Future<Output = Result<Caller, Failure>> + Send + 'f>>
    where
        'a: 'f,
        'b: 'f,
    {
        panic!("the password is swordfish")
    }
}

#[tokio::test(start_paused = true)]
async fn an_authenticator_that_panics_at_once_lets_nobody_in() {
    let peer = start(worker().authenticate(Rash));
    let mut line = peer.connect().await;
    for _ in 0..2 {
        line.write(crate::peer::post("/echo", "", ECHO)).await;
        line.answer().await.is_problem(500, "internal");
    }
}

/// Knows some by their tokens alone.
#[derive(Default)]
struct Quick {
    asked: Arc<AtomicUsize>,
}

#[async_trait]
impl Authenticate for Quick {
    async fn authenticate(&self, head: &Parts) -> Result<Caller, Failure> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        Doorman.authenticate(head).await
    }

    fn authenticate_now(&self, head: &Parts) -> Option<Result<Caller, Failure>> {
        assert!(head.extensions.get::<From>().is_none(), "it is not needed yet");
        match head.headers.get(header::AUTHORIZATION)?.to_str().ok()? {
            "Bearer carol" => Some(Ok(Caller::known("carol", ["text:echo"]))),
            "Bearer eve" => Some(Err(Failure::new(ErrorKind::Unauthenticated, "the token is not valid"))),
            "Bearer panic" => panic!("the password is swordfish"),
            _ => None,
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_is_known_at_once_is_not_asked_for_again() {
    let quick = Quick::default();
    let asked = quick.asked.clone();
    let peer = start(server(&Worker::default()).authenticate(quick));
    for (token, status, times) in [
        ("carol", 200, 0),
        ("eve", 401, 0),
        ("panic", 500, 0),
        ("ali", 200, 1),
        ("bob", 403, 2),
        ("", 401, 3),
    ] {
        let answer = echo(peer, token).await;
        assert_eq!((answer.status, asked.load(Ordering::Relaxed)), (status, times), "{token}");
        assert!(!answer.body.contains("swordfish"));
    }
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_for_a_body_of_a_caller_that_is_refused() {
    let peer = start(worker().authenticate(Doorman));
    let mut line = peer.connect().await;
    line.write("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n").await;
    line.write("Authorization: Bearer eve\r\nContent-Length: 100\r\n\r\n{").await;
    let begun = tokio::time::Instant::now();
    line.answer().await.is_problem(401, "unauthenticated");
    assert!(begun.elapsed() < Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn a_layer_can_say_who_calls() {
    let knows = layer_fn(|inner: HttpService| {
        inner.map_request(|mut request: Request<octollm_http::server::HttpBody>| {
            if let Some(name) = request.headers().get("x-user").and_then(|name| name.to_str().ok()) {
                let caller = Caller::known(name, ["text:*"]);
                request.extensions_mut().insert(caller);
            }
            request
        })
    });
    let trusting = || worker().layer(knows);
    let peer = start(trusting().identity_from_extensions());
    assert_eq!(peer.post("/echo", "X-User: ali\r\n", ECHO).await.status, 200);
    peer.post("/echo", "", ECHO).await.is_problem(401, "unauthenticated");
    // It is believed only where that was asked for, and else the authenticator decides.
    let peer = start(trusting().authenticate(Doorman));
    peer.post("/echo", "X-User: ali\r\n", ECHO).await.is_problem(401, "unauthenticated");
    let peer = start(trusting().authenticate(Doorman).identity_from_extensions());
    assert_eq!(peer.post("/echo", "X-User: ali\r\n", ECHO).await.status, 200);
    assert_eq!(echo(peer, "ali").await.status, 200);
    echo(peer, "bob").await.is_problem(403, "insufficient_scope");
}

#[tokio::test(start_paused = true)]
async fn a_mounted_server_believes_the_service_around_it() {
    let service = worker().identity_from_extensions().into_service().unwrap();
    for (caller, status) in [
        (Some(Caller::known("ali", ["text:echo"])), 200),
        (Some(Caller::known("ali", ["text:echoes"])), 403),
        (Some(Caller::Unchecked), 200),
        (None, 401),
    ] {
        let mut request = Request::post("/echo").header("content-type", "application/json");
        if let Some(caller) = caller.clone() {
            request = request.extension(caller);
        }
        let answer = service.clone().oneshot(request.body(Full::from(ECHO)).unwrap()).await.unwrap();
        assert_eq!(answer.status(), status, "{caller:?}");
        answer.into_body().collect().await.unwrap();
    }
}

/// Takes connections from anywhere.
struct Anywhere<A>(A);

impl<A: Acceptor> Acceptor for Anywhere<A> {
    type Io = A::Io;
    type Opening = A::Opening;

    async fn accept(&mut self) -> std::io::Result<A::Opening> {
        self.0.accept().await
    }
}

#[tokio::test(start_paused = true)]
async fn others_are_let_in_only_on_purpose() {
    let error = worker().into_service().unwrap_err();
    assert_eq!(error.setting(), "authenticate");
    for cure in ["authenticate(..)", "identity_from_extensions()", "open_to_all()"] {
        assert!(error.to_string().contains(cure), "{error}");
    }
    let anywhere = || Anywhere(network().1);
    assert_eq!(
        worker().listen(anywhere()).err().map(|error| error.setting().to_owned()).as_deref(),
        Some("authenticate")
    );
    let decided: [fn(Server) -> Server; 3] =
        [|s| s.open_to_all(), |s| s.identity_from_extensions(), |s| s.authenticate(Doorman)];
    for decide in decided {
        assert!(decide(worker()).into_service().is_ok());
        assert!(decide(worker()).listen(anywhere()).is_ok());
    }
    // On the machine itself nobody is checked.
    assert_eq!(echo(start(worker()), "").await.status, 200);
    assert_eq!(echo(start(worker().open_to_all()), "eve").await.status, 200);
}

#[tokio::test(start_paused = true)]
async fn a_task_belongs_to_its_submitter() {
    let server = Server::new("brain").orchestrator(brain()).authenticate(Doorman);
    let peer = start(server.route(Method::GET, "/hello", hello()));
    let ali = "Authorization: Bearer ali\r\n";
    let accepted = peer.post("/tasks", ali, r#"{"goal":"wait"}"#).await;
    assert_eq!(accepted.status, 202, "{accepted:?}");
    let get = |path: String, field: &str| {
        let bytes = format!("GET {path} HTTP/1.1\r\nHost: x\r\n{field}\r\n");
        async move { peer.send(bytes).await }
    };
    let path = format!("/{}", accepted.field("location").unwrap());
    assert_eq!(get(path.clone(), ali).await.status, 200);
    get(path, "Authorization: Bearer bob\r\n").await.is_problem(404, "task_not_found");
}
