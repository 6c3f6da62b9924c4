//! The buses over Redis, as the suite opens them.

use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use octollm_core::{
    bus::{DelayBus, DurableBus, EventBus},
    conformance::{BrokerFault, BusSubject},
};
use octollm_events::redis::{RedisBus, RedisStreamBus};

use crate::redis_server::Redis;

/// The cases that do something to the broker.
const FAULTS: [&str; 9] =
    ["case_18", "case_27", "case_28", "case_29", "case_30", "case_31", "case_35", "case_36", "case_37"];

/// The shared server, or one of its own once it is to fail.
struct Broker {
    /// `None` for the shared one.
    own: Option<Mutex<Redis>>,
    url: String,
}

impl Broker {
    /// The cases of faults have a server of their own.
    fn new(settings: &[&str]) -> Self {
        let case = std::thread::current().name().unwrap_or_default().to_owned();
        if !FAULTS.iter().any(|fault| case.contains(fault)) {
            return Self { own: None, url: Redis::shared().url() };
        }
        let server = Redis::start(settings);
        let url = server.url();
        Self { own: Some(Mutex::new(server)), url }
    }

    /// Does all but `Garbage`, which is for the bus to store.
    fn fault(&self, fault: BrokerFault<'_>, store: impl FnOnce(&Redis, &str, &[u8])) -> bool {
        let server = self.own.as_ref().expect("a case of faults");
        let mut server = server.lock().unwrap_or_else(PoisonError::into_inner);
        match fault {
            BrokerFault::Kill => server.kill(),
            BrokerFault::Start => server.restart(),
            BrokerFault::Stop => server.stop(),
            BrokerFault::Continue => server.resume(),
            BrokerFault::Disconnect => server.disconnect(),
            BrokerFault::Garbage { channel, bytes } => store(&server, channel, bytes),
            // The events of all channels: the case has the server for itself.
            BrokerFault::Trim { .. } => drop(server.execute("XTRIM {octollm}:log MAXLEN 0")),
            BrokerFault::Empty => drop(server.execute("FLUSHALL")),
            _ => return false,
        }
        true
    }
}

/// Publish and subscribe.
pub(crate) struct PubSub(Broker);

impl PubSub {
    pub(crate) fn new() -> Self {
        Self(Broker::new(&[]))
    }
}

#[async_trait]
impl BusSubject for PubSub {
    async fn open(&self) -> Arc<dyn EventBus> {
        Arc::new(RedisBus::connect(&self.0.url).await.unwrap())
    }

    async fn broker(&self, fault: BrokerFault<'_>) -> bool {
        self.0.fault(fault, |server, channel, bytes| {
            server.execute_words(&[b"PUBLISH", channel.as_bytes(), bytes]);
        })
    }
}

/// Streams, on a server that has written what it acknowledges.
pub(crate) struct Streams(Broker);

impl Streams {
    pub(crate) fn new() -> Self {
        Self(Broker::new(&["--appendonly yes", "--appendfsync always"]))
    }

    async fn bus(&self) -> Arc<RedisStreamBus> {
        Arc::new(RedisStreamBus::connect(&self.0.url).await.unwrap())
    }
}

#[async_trait]
impl BusSubject for Streams {
    async fn open(&self) -> Arc<dyn EventBus> {
        self.bus().await
    }

    async fn durable(&self) -> Option<Arc<dyn DurableBus>> {
        Some(self.bus().await)
    }

    async fn delay(&self) -> Option<Arc<dyn DelayBus>> {
        Some(self.bus().await)
    }

    async fn broker(&self, fault: BrokerFault<'_>) -> bool {
        self.0.fault(fault, |server, channel, bytes| {
            let kind = channel.strip_prefix("events:").unwrap().replace(':', ".");
            server.execute_words(&[
                b"XADD",
                b"{octollm}:log",
                b"*",
                b"event_type",
                kind.as_bytes(),
                b"data",
                bytes,
            ]);
        })
    }
}
