//! The suite of stores of idempotency keys.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use octollm_core::{
    conformance::{Subject, idempotency_store_tests},
    idempotency::{IdempotencyStore, MemoryIdempotencyStore},
};

struct Memory(Arc<MemoryIdempotencyStore>);

impl Memory {
    fn new() -> Self {
        Self(Arc::new(MemoryIdempotencyStore::new().retained_for(Duration::from_secs(2))))
    }
}

#[async_trait]
impl Subject<dyn IdempotencyStore> for Memory {
    async fn open(&self) -> Arc<dyn IdempotencyStore> {
        self.0.clone()
    }
}

mod paused {
    use super::*;

    idempotency_store_tests! { #[tokio::test(start_paused = true)] Memory::new() }
}

mod threads {
    use super::*;

    idempotency_store_tests! { #[tokio::test(flavor = "multi_thread", worker_threads = 4)] Memory::new() }
}
