//! The journal of a task, as a store keeps it.

use octollm::{orchestrator::finished, prelude::*};

use crate::{
    golden::{NOW, hold_again, parsed},
    review::{brain, caller, submit},
};

#[tokio::test(start_paused = true)]
async fn an_answered_call_and_a_failed_one() {
    let brain = brain(MemoryBus::new());
    let task = submit(&brain, "busy").await.task_id;
    finished(&brain, &task, &caller()).await.unwrap();
    let mut entries = brain.journal(&task, &caller()).await.unwrap();
    for entry in &mut entries {
        entry.at = parsed(NOW);
    }
    let [answered, failed] = &entries[..] else { panic!("{entries:?}") };
    hold_again("journal_output.json", answered);
    hold_again("journal_failure.json", failed);
}
