//! The suite of buses.

use std::sync::Arc;

use async_trait::async_trait;
use octollm_core::{
    bus::{DelayBus, DurableBus, EventBus, MemoryBus, MemoryDurableBus},
    conformance::{BusSubject, bus_tests},
};

use crate::plain::PlainBus;

struct Live(MemoryBus);

#[async_trait]
impl BusSubject for Live {
    async fn open(&self) -> Arc<dyn EventBus> {
        Arc::new(self.0.clone())
    }
}

struct Durable(MemoryDurableBus);

#[async_trait]
impl BusSubject for Durable {
    async fn open(&self) -> Arc<dyn EventBus> {
        Arc::new(self.0.clone())
    }

    async fn durable(&self) -> Option<Arc<dyn DurableBus>> {
        Some(Arc::new(self.0.clone()))
    }

    async fn delay(&self) -> Option<Arc<dyn DelayBus>> {
        Some(Arc::new(self.0.clone()))
    }
}

/// A bus without capabilities.
struct Plain(PlainBus);

#[async_trait]
impl BusSubject for Plain {
    async fn open(&self) -> Arc<dyn EventBus> {
        Arc::new(self.0.clone())
    }

    async fn durable(&self) -> Option<Arc<dyn DurableBus>> {
        Some(Arc::new(self.0.clone()))
    }
}

/// On one thread, and in real time.
mod plain {
    use super::*;

    bus_tests! { #[tokio::test] Plain(PlainBus::default()) }
}

mod memory {
    use super::*;

    bus_tests! { #[tokio::test(start_paused = true)] Live(MemoryBus::new()) }
}

mod memory_durable {
    use super::*;

    bus_tests! { #[tokio::test(start_paused = true)] Durable(MemoryDurableBus::new()) }
}

/// In real time, as other buses have it.
mod threads {
    use super::*;

    bus_tests! {
        #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
        Durable(MemoryDurableBus::new())
    }
}
