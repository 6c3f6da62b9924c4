//! The registration of an arm: what it sends, what it is answered, and the events about it.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use octollm::{
    bus::{EventBus, MemoryBus, Overflow, Signal, Subscription},
    error::Failure,
    event::Event,
    http::{
        Registry, Server,
        io::Pipes,
        registry::{Announce, Announcement},
        token::SigningKey,
    },
};
use serde_json::Value;

use crate::{
    contracts::Judge,
    golden::{NOW, hold, pretty, read, read_json},
    ordered::Ordered,
    review::brain,
    served::{JSON, ask},
};

/// What an orchestrator receives.
#[derive(Default)]
struct Recorder(Mutex<Vec<(Vec<u8>, Option<String>)>>);

#[async_trait]
impl Announce for Recorder {
    async fn announce(&self, announcement: &Announcement) -> Result<Duration, Failure> {
        let proof = announcement.proof("orchestrator");
        self.0.lock().unwrap().push((announcement.body().to_vec(), proof));
        Ok(Duration::from_secs(30))
    }

    fn at(&self) -> &str {
        "http://orchestrator"
    }
}

/// The first announcement of the judge, where it has this key.
async fn announced(key: Option<SigningKey>) -> (Vec<u8>, Option<String>) {
    let recorder = Arc::new(Recorder::default());
    let judge =
        Server::new("judge").version("1.2.3").endpoint("http://judge-arm:8103").arm(Judge).open_to_all();
    let judge = judge.register(recorder.clone());
    let judge = key.into_iter().fold(judge, Server::registration_key);
    let serving = judge.listen(Pipes::new().listen("judge").unwrap()).unwrap().run();
    tokio::time::timeout(Duration::from_secs(1), serving).await.unwrap_err();
    let mut sent = recorder.0.lock().unwrap();
    sent.remove(0)
}

fn registry() -> Registry {
    Registry::builder().allow("http://judge-arm:8103").build().unwrap()
}

#[tokio::test(start_paused = true)]
async fn what_an_arm_sends() {
    let (body, proof) = announced(None).await;
    assert_eq!(proof, None);
    let sent = Ordered::parse(&body).fix("card.instance", "4kQ9fZ2mXb1-0000001");
    hold("registration.json", &pretty(&sent));

    let (_, proof) = announced(Some(SigningKey::generate().unwrap())).await;
    let proof = proof.unwrap();
    let part = |at: usize| {
        use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
        BASE64_URL_SAFE_NO_PAD.decode(proof.split('.').nth(at).unwrap()).unwrap()
    };
    let head: Value = serde_json::from_slice(&part(0)).unwrap();
    assert_eq!(head, serde_json::json!({ "alg": "EdDSA", "typ": "registration+jwt" }));
    let claims = Ordered::parse(&part(1));
    let claims = claims.fix("iat", 1_762_770_600).fix("jti", "4kQ9fZ2mXb1-0000002");
    let claims = claims.fix("bsh", "47DEQpj8HBSa-_TImW-5JCeuQeRkm5NMpJWZG3hSuFU");
    hold("registration_proof.json", &pretty(&claims));
}

async fn next(events: &mut Subscription, name: &str) {
    let Some(Signal::Event(event)) = events.next().await else { panic!("no event was published") };
    let fixed = Ordered::parse(pretty(&event).as_bytes());
    let fixed = fixed.fix("id", "019a6d2f-9c00-7000-8000-000000000001").fix("timestamp", NOW);
    hold(name, &pretty(&fixed));
    assert_eq!(pretty(&read_json::<Event>(name)), read(name), "{name}");
}

#[tokio::test(start_paused = true)]
async fn what_it_is_answered_and_what_is_published() {
    let bus = MemoryBus::new();
    let mut events = bus.subscribe("events:arm:*".parse().unwrap(), Overflow::DropOldest(8)).await.unwrap();
    let server = Server::new("orchestrator").orchestrator(brain(MemoryBus::new())).bus(bus).open_to_all();
    let server = server.registry(registry()).into_service().unwrap();
    let body = read("registration.json");
    ask(&server, "POST", "/arms/register", body.clone()).await.is(201, JSON, "registration_answer.json");
    ask(&server, "POST", "/arms/register", body.clone()).await.is(200, JSON, "registration_answer.json");
    next(&mut events, "event_arm_registered.json").await;
    next(&mut events, "event_arm_unavailable.json").await;
    assert_eq!(ask(&server, "POST", "/arms/register", body).await.status, 201);
    let _again = events.next().await;
    next(&mut events, "event_arm_recovered.json").await;
}
