//! Workers on the bus in memory.

use octollm_core::bus::MemoryDurableBus;

use crate::{job_cases as cases, job_cases::job_tests};

struct InMemory;

impl InMemory {
    async fn bus(&self) -> MemoryDurableBus {
        MemoryDurableBus::new()
    }
}

job_tests!(InMemory);
