//! Keys from a URL: how often they are fetched, and what holds where they cannot be.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::join_all;
use http::{Method, Request, Response};
use http_body_util::{Empty, Full};
use octollm_core::error::ErrorKind;
use octollm_http::{
    Server,
    io::Pipes,
    server::HttpBody,
    token::{KeySet, SigningKey, TokenVerifier},
};
use serde_json::json;
use tokio::time::{advance, sleep};
use tower::{ServiceExt, service_fn};

use crate::support::{Clock, Key, head, known, unauthenticated, with};

/// The answer of an issuer to requests for its keys.
#[derive(Clone)]
enum Answers {
    Keys(String),
    Status(u16),
    Never,
}

/// The issuer `brain`, which serves its keys, and `judge`, which fetches them.
struct System {
    issuer: Arc<Mutex<(Answers, usize)>>,
    keys: KeySet,
    verifier: TokenVerifier,
    clock: Clock,
}

fn jwks(keys: &[(&Key, &str)]) -> Answers {
    let keys: Vec<_> = keys.iter().map(|(key, kid)| with(&key.jwk(), json!({ "kid": kid }))).collect();
    Answers::Keys(json!({ "keys": keys }).to_string())
}

impl System {
    fn new(answers: Answers) -> Self {
        let (pipes, clock) = (Pipes::new(), Clock::runtime());
        let issuer = Arc::new(Mutex::new((answers, 0)));
        let state = issuer.clone();
        let service = service_fn(move |_: Request<HttpBody>| {
            let state = state.clone();
            async move {
                let answers = {
                    let mut state = state.lock().unwrap();
                    state.1 += 1;
                    state.0.clone()
                };
                // Long enough that all who wait are there before it is answered.
                sleep(Duration::from_millis(100)).await;
                let (status, body) = match answers {
                    Answers::Keys(jwks) => (200, jwks),
                    Answers::Status(status) => (status, String::new()),
                    Answers::Never => std::future::pending().await,
                };
                let response =
                    Response::builder().status(status).header("location", "http://localhost/other");
                Ok::<_, Infallible>(response.body(Full::new(Bytes::from(body))).unwrap())
            }
        });
        let server = Server::new("brain").route(Method::GET, "/keys", service.clone());
        let server = server.route(Method::GET, "/other", service);
        tokio::spawn(server.listen(pipes.listen("localhost").unwrap()).unwrap().run());
        let keys = KeySet::new("brain").url("http://localhost/keys").unwrap().connector(pipes);
        let verifier = TokenVerifier::builder().audience("judge").root(keys.clone()).clock(clock.read());
        Self { issuer, keys, verifier: verifier.build().unwrap(), clock }
    }

    fn set(&self, answers: Answers) {
        self.issuer.lock().unwrap().0 = answers;
    }

    fn fetches(&self) -> usize {
        self.issuer.lock().unwrap().1
    }

    /// A token of the issuer that is valid for 5 min from now.
    fn token(&self, key: &Key, kid: &str) -> String {
        let now = self.clock.now().as_second();
        let claims = json!({
            "iss": "brain", "sub": "ali", "aud": "judge", "iat": now, "exp": now + 300, "jti": "t",
            "scope": "code:validate",
        });
        key.sign(&with(&head(), json!({ "kid": kid })), &claims)
    }

    /// As a server does.
    async fn verify(&self, token: &str) -> Result<(), String> {
        if let Some(known) = known(&self.verifier, token) {
            return known;
        }
        self.verifier.verify_and_fetch(token).await.map(drop).map_err(|failure| unauthenticated(&failure))
    }
}

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn a_thousand_waiters_make_one_fetch() {
    let (old, new) = (Key::new(), Key::new());
    let system = System::new(jwks(&[(&old, "old")]));
    let all = async |token: String| {
        let results = join_all((0..1_000).map(|_| system.verify(&token))).await;
        assert!(results.iter().all(Result::is_ok), "{:?}", results.iter().find(|result| result.is_err()));
    };
    all(system.token(&old, "old")).await;
    assert_eq!(system.fetches(), 1);

    system.set(jwks(&[(&old, "old"), (&new, "new")]));
    sleep(31 * SECOND).await;
    all(system.token(&new, "new")).await;
    all(system.token(&old, "old")).await;
    assert_eq!(system.fetches(), 2);
}

#[tokio::test(start_paused = true)]
async fn random_key_ids_make_at_most_one_fetch_in_30_s_while_good_tokens_never_fail() {
    let (key, stranger) = (Key::new(), Key::new());
    let system = System::new(jwks(&[(&key, "good")]));
    system.keys.fetch().await.unwrap();
    let begun = system.clock.now();
    for n in 0..1_200 {
        let wrong = system.verify(&system.token(&stranger, &format!("random{n}"))).await;
        assert!(wrong.unwrap_err().contains("has no key of this id"));
        assert_eq!(system.verify(&system.token(&key, "good")).await, Ok(()));
        sleep(SECOND / 2).await;
    }
    let periods = usize::try_from(system.clock.now().duration_since(begun).as_secs() / 30).unwrap();
    let fetches = system.fetches();
    assert!((periods - 2..=periods + 1).contains(&fetches), "{fetches} in {periods} periods of 30 s");
}

#[tokio::test(start_paused = true)]
async fn stale_keys_are_valid_for_an_hour_and_then_401() {
    let key = Key::new();
    for gone in [Answers::Status(503), Answers::Status(302), Answers::Never, Answers::Keys("{}".into())] {
        let system = System::new(jwks(&[(&key, "k")]));
        system.keys.fetch().await.unwrap();
        system.set(gone);
        let mut minutes = 0;
        let refused = loop {
            if let Err(refused) = system.verify(&system.token(&key, "k")).await {
                break refused;
            }
            sleep(60 * SECOND).await;
            minutes += 1;
        };
        assert_eq!(minutes, 60);
        assert!(refused.contains("the keys of its issuer cannot be fetched"), "{refused}");
        // From 5 min on each attempt fails, and no more than one in a minute is due here.
        assert!((50..=60).contains(&system.fetches()), "{} fetches", system.fetches());
        assert_eq!(system.keys.fetch().await.unwrap_err().kind, ErrorKind::Unreachable);

        system.set(jwks(&[(&key, "k")]));
        sleep(31 * SECOND).await;
        assert_eq!(system.verify(&system.token(&key, "k")).await, Ok(()), "it is back");
    }
}

#[tokio::test(start_paused = true)]
async fn verified_tokens_end_with_stale_keys_too() {
    let key = Key::new();
    let system = System::new(jwks(&[(&key, "k")]));
    system.keys.fetch().await.unwrap();
    system.set(Answers::Status(500));
    advance(58 * 60 * SECOND).await;
    let token = system.token(&key, "k");
    system.verifier.verify(&token).unwrap();
    advance(119 * SECOND).await;
    system.verifier.verify(&token).unwrap();
    advance(2 * SECOND).await;
    assert!(system.verifier.verify(&token).is_err(), "the token itself is valid for 3 min more");
}

#[tokio::test(start_paused = true)]
async fn a_key_that_is_gone_from_a_fetched_set_ends_with_what_it_has_verified() {
    let (old, new) = (Key::new(), Key::new());
    let system = System::new(jwks(&[(&old, "old")]));
    system.keys.fetch().await.unwrap();
    sleep(299 * SECOND).await;
    let token = system.token(&old, "old");
    assert_eq!(system.verify(&token).await, Ok(()));
    system.set(jwks(&[(&new, "new")]));
    sleep(2 * SECOND).await;
    assert_eq!(system.verify(&token).await, Ok(()), "the fetch that begins here delays nobody");
    sleep(SECOND).await;
    assert!(system.verify(&token).await.unwrap_err().contains("has no key of this id"));
    assert_eq!(system.fetches(), 2);
}

#[tokio::test(start_paused = true)]
async fn after_a_pause_the_first_token_waits_for_the_present_keys() {
    let (old, new) = (Key::new(), Key::new());
    let system = System::new(jwks(&[(&old, "old")]));
    system.keys.fetch().await.unwrap();
    system.set(jwks(&[(&new, "new")]));
    sleep(20 * 60 * SECOND).await;
    assert!(system.verify(&system.token(&old, "old")).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_rotation_under_load_fails_no_call() {
    let keys: Vec<_> = (0..4).map(|_| Key::new()).collect();
    let system = System::new(jwks(&[(&keys[0], "k0")]));
    let mut verified = 0;
    for (turn, pair) in keys.windows(2).enumerate() {
        let (old, new) = (format!("k{turn}"), format!("k{}", turn + 1));
        system.set(jwks(&[(&pair[0], &old), (&pair[1], &new)]));
        // For 40 s both sign, and then the old one is gone.
        for second in 0..400 {
            if second == 40 {
                system.set(jwks(&[(&pair[1], &new)]));
            }
            let mut tokens = vec![system.token(&pair[1], &new)];
            if second < 40 {
                tokens.push(system.token(&pair[0], &old));
            }
            // Tokens of both keys, some of which were verified before.
            let results = join_all(tokens.iter().cycle().take(8).map(|token| system.verify(token))).await;
            assert!(results.iter().all(Result::is_ok), "turn {turn}, {second} s: {results:?}");
            verified += results.len();
            sleep(SECOND).await;
        }
    }
    assert_eq!(verified, 3 * 400 * 8);
}

#[tokio::test(start_paused = true)]
async fn keys_that_were_never_fetched_are_tried_again_soon_and_a_caller_that_leaves_stops_nothing() {
    let key = Key::new();
    let system = System::new(Answers::Status(503));
    assert!(system.verify(&system.token(&key, "k")).await.is_err());
    system.set(jwks(&[(&key, "k")]));
    sleep(SECOND).await;
    let token = system.token(&key, "k");
    let left = tokio::time::timeout(SECOND / 20, system.verify(&token)).await;
    assert!(left.is_err(), "it answered at once");
    sleep(SECOND).await;
    assert_eq!(system.verify(&token).await, Ok(()));
    assert_eq!(system.fetches(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_set_that_is_too_large_or_private_replaces_nothing() {
    let key = Key::new();
    let private = Answers::Keys(json!({ "kty": "OKP", "crv": "Ed25519", "x": "AA", "d": "AA" }).to_string());
    let large = Answers::Keys(format!("{{\"keys\":[],\"x\":\"{}\"}}", "x".repeat(300 * 1024)));
    let system = System::new(jwks(&[(&key, "k")]));
    system.keys.fetch().await.unwrap();
    for answers in [private, large] {
        system.set(answers);
        sleep(31 * SECOND).await;
        assert!(system.keys.fetch().await.is_err());
        assert_eq!(system.verify(&system.token(&key, "k")).await, Ok(()));
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_waits_for_the_keys_of_a_token_and_challenges_those_that_are_not_known() {
    let (old, new, stranger) = (Key::new(), Key::new(), Key::new());
    let system = System::new(jwks(&[(&old, "old")]));
    let answer = service_fn(|_: Request<HttpBody>| async {
        Ok::<_, Infallible>(Response::new(Full::<Bytes>::default()))
    });
    let server =
        Server::new("judge").authenticate(system.verifier.clone()).route(Method::GET, "/own", answer);
    let service = server.into_service().unwrap();
    let ask = async |token: String| {
        let request = Request::get("/own").header("authorization", format!("Bearer {token}"));
        let response = service.clone().oneshot(request.body(Empty::<Bytes>::new()).unwrap()).await.unwrap();
        (response.status().as_u16(), response.headers().contains_key("www-authenticate"))
    };
    assert_eq!(ask(system.token(&old, "old")).await, (200, false));
    system.set(jwks(&[(&old, "old"), (&new, "new")]));
    sleep(31 * SECOND).await;
    let (accepted, refused, known) = tokio::join!(
        ask(system.token(&new, "new")),
        ask(system.token(&stranger, "random")),
        ask(system.token(&old, "old")),
    );
    assert_eq!((accepted, refused, known), ((200, false), (401, true), (200, false)));
    assert_eq!(system.fetches(), 2);
}

#[test]
fn urls_over_which_others_could_change_the_keys_are_refused() {
    let set = |url: &str| KeySet::new("brain").url(url).map(drop).map_err(|error| error.to_string());
    for url in ["http://localhost/k", "http://127.0.0.1:8000/k?v=1", "http://[::1]/k"] {
        assert_eq!(set(url), Ok(()), "{url}");
    }
    for url in
        ["http://brain/k", "http://127.0.0.1.evil.test/", "ftp://localhost/", "/k", "http://a@localhost/", ""]
    {
        assert!(set(url).is_err(), "{url}");
    }
    assert_eq!(set("https://brain/k").is_ok(), cfg!(feature = "tls"));
}

#[tokio::test(start_paused = true)]
async fn a_server_serves_the_keys_that_another_fetches() {
    let (key, pipes) = (SigningKey::generate().unwrap(), Pipes::new());
    let own = KeySet::new("brain").with_key(&key).unwrap();
    let server = Server::new("brain").jwks(own.clone());
    tokio::spawn(server.listen(pipes.listen("localhost").unwrap()).unwrap().run());
    let url = "http://localhost/.well-known/jwks.json";
    let fetched = KeySet::new("brain").url(url).unwrap().connector(pipes);
    fetched.fetch().await.unwrap();
    assert_eq!(fetched.to_jwks(), own.to_jwks());
}
