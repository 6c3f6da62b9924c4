//! What a bus over streams warns of at its start.

use std::{
    fmt,
    sync::{Arc, Mutex},
};

use octollm_events::redis::RedisStreamBus;
use tracing::{
    Event, Level, Metadata, Subscriber,
    field::{Field, Visit},
    span,
};

use crate::redis_server::Redis;

/// The warnings of this thread, as text.
#[derive(Clone, Default)]
struct Warnings(Arc<Mutex<Vec<String>>>);

struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.0.push_str(&format!("{field}={value:?} "));
    }
}

impl Subscriber for Warnings {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() == Level::WARN && metadata.target().starts_with("octollm_events")
    }
    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }
    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn event(&self, event: &Event<'_>) {
        let mut line = Line(String::new());
        event.record(&mut line);
        self.0.lock().unwrap().push(line.0);
    }
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}

/// Connects to a server with these settings, and returns the warnings.
async fn warnings(settings: &[&str]) -> Vec<String> {
    let server = Redis::start(settings);
    // The first time without a subscriber: what is logged first while one is added, by another test too, may be lost.
    RedisStreamBus::connect(&server.url()).await.unwrap();
    let warnings = Warnings::default();
    let guard = tracing::subscriber::set_default(warnings.clone());
    RedisStreamBus::connect(&server.url()).await.unwrap();
    drop(guard);
    let lines = warnings.0.lock().unwrap();
    lines.clone()
}

const VOLATILE: &str = "Redis stores nothing on its disk: events and records are lost when it ends";
const EVICTING: &str = "Redis may delete events and records: its `maxmemory-policy` is not `noeviction`";

#[tokio::test]
async fn a_server_that_stores_nothing_is_warned_of() {
    let lines = warnings(&[]).await;
    assert!(matches!(&lines[..], [line] if line.contains(VOLATILE)), "{lines:?}");
    assert_eq!(warnings(&["--appendonly yes"]).await, [""; 0]);
    assert_eq!(warnings(&["--save 3600 1"]).await, [""; 0]);
}

#[tokio::test]
async fn a_server_that_deletes_keys_is_warned_of() {
    let lines = warnings(&["--maxmemory-policy allkeys-lru", "--appendonly yes"]).await;
    assert!(
        matches!(&lines[..], [line] if line.contains(EVICTING) && line.contains("policy=\"allkeys-lru\"")),
        "{lines:?}"
    );
    let lines = warnings(&["--maxmemory-policy volatile-ttl"]).await;
    assert!(
        matches!(&lines[..], [evicting, other] if evicting.contains(EVICTING) && other.contains(VOLATILE)),
        "{lines:?}"
    );
}

#[tokio::test]
async fn a_server_that_does_not_say_is_not_warned_of() {
    let rights = "--user default on nopass ~* &* +@all";
    assert_eq!(warnings(&[rights, "-info", "-config"]).await, [""; 0]);
    assert_eq!(warnings(&[rights, "-config"]).await, [""; 0]);
}
