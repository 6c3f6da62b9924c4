//! What work tells while it runs.

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::Failure;

/// Where a task stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Phase {
    /// Before anything was planned.
    #[default]
    Preprocessing,
    /// The goal is being turned into steps.
    Planning,
    /// Steps are being run.
    Execution,
    /// Results are being checked.
    Validation,
    /// Results are being joined.
    Synthesis,
}

/// How far a task is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[non_exhaustive]
pub struct Progress {
    /// Where it stands.
    pub current_step: Phase,
    /// Steps done.
    pub completed_steps: u64,
    /// Steps known of.
    pub total_steps: u64,
    /// 0 to 100.
    #[schemars(range(max = 100))]
    pub percentage: u8,
    /// What is being done.
    pub message: String,
}

/// One thing that work tells while it runs.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Update {
    /// How far it is, in percent, and what it is doing.
    Progress(u8, String),
    /// It entered a phase.
    Phase(Phase),
    /// Steps done, and steps known of.
    Steps(u64, u64),
    /// A part of the output, as the contract's chunk.
    Chunk(Value),
}

impl Progress {
    /// Takes an update in. A chunk changes nothing here.
    pub fn apply(&mut self, update: &Update) {
        match update {
            Update::Progress(percentage, message) => {
                self.percentage = (*percentage).min(100);
                self.message.clone_from(message);
            }
            Update::Phase(phase) => self.current_step = *phase,
            Update::Steps(completed, total) => {
                self.completed_steps = *completed.min(total);
                self.total_steps = *total;
                if let Some(percentage) = self.completed_steps.saturating_mul(100).checked_div(*total) {
                    self.percentage = percentage as u8;
                }
            }
            Update::Chunk(_) => {}
        }
    }
}

/// Where the updates of running work go.
#[async_trait]
pub trait UpdateSink: Send + Sync + 'static {
    /// Takes one update. Called while work runs: it must not block, and may drop what comes too fast.
    fn update(&self, update: Update);

    /// Takes one chunk of the output, which is never dropped: it returns when there is room for the next one.
    ///
    /// # Cancel safety
    /// A chunk whose future is dropped may or may not have been taken.
    async fn chunk(&self, chunk: Value) {
        self.update(Update::Chunk(chunk));
    }

    /// Stores the handle of a call that a foreign service runs by itself, such as the id of its task: enough to find the
    /// work again after a crash. Its text is the transport's own. By default it is dropped.
    ///
    /// # Errors
    /// A [`Failure`] where it cannot be stored. The call then ends with it.
    ///
    /// # Cancel safety
    /// A handle whose future is dropped may or may not have been stored.
    async fn handle(&self, handle: String) -> Result<(), Failure> {
        drop(handle);
        Ok(())
    }
}
