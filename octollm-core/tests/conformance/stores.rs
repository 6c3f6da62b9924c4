//! The suite of task stores.

use std::sync::Arc;

use async_trait::async_trait;
use octollm_core::{
    conformance::{Subject, task_store_tests},
    store::{MemoryStore, TaskStore},
};

struct Memory(Arc<MemoryStore>);

#[async_trait]
impl Subject<dyn TaskStore> for Memory {
    async fn open(&self) -> Arc<dyn TaskStore> {
        self.0.clone()
    }
}

mod paused {
    use super::*;

    task_store_tests! { #[tokio::test(start_paused = true)] Memory(Arc::new(MemoryStore::new())) }
}

/// On several threads, and in real time as other stores have it.
mod threads {
    use super::*;

    task_store_tests! {
        #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
        Memory(Arc::new(MemoryStore::new()))
    }
}
