//! The journal of a task, as a store keeps it.

use std::sync::Arc;

use octollm::{
    bus::MemoryBus,
    orchestrator::finished,
    prelude::*,
    store::{MemoryStore, TaskStore},
};

use crate::{
    golden::{NOW, hold_again, hold_json, parsed},
    review::{brain_on, caller, submit},
};

#[tokio::test(start_paused = true)]
async fn an_answered_call_and_a_failed_one() {
    let store = Arc::new(MemoryStore::new());
    let brain = brain_on(MemoryBus::new(), store.clone());
    let task = submit(&brain, "busy").await.task_id;
    finished(&brain, &task, &caller()).await.unwrap();
    let (mut steps, next) = brain.journal(&task, None, None, &caller()).await.unwrap();
    assert_eq!(next, None);
    for step in &mut steps {
        step.at = parsed(NOW);
    }
    hold_json("journal_steps.json", &steps);
    let mut entries = store.journal(&task, None, 10).await.unwrap();
    for entry in &mut entries {
        entry.at = parsed(NOW);
    }
    let [answered, failed] = &entries[..] else { panic!("{entries:?}") };
    hold_again("journal_output.json", answered);
    hold_again("journal_failure.json", failed);
}
