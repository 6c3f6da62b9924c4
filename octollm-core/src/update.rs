//! Progress and other updates of running work.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::Failure;

/// A phase of a task.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Phase {
    /// Before planning.
    #[default]
    Preprocessing,
    /// The goal is turned into steps.
    Planning,
    /// Steps run.
    Execution,
    /// Results are checked.
    Validation,
    /// Results are joined.
    Synthesis,
}

/// The progress of a task.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[non_exhaustive]
pub struct Progress {
    /// The current phase.
    pub current_step: Phase,
    /// Steps done.
    pub completed_steps: u64,
    /// Steps in total, as far as known.
    pub total_steps: u64,
    /// 0 to 100.
    #[schemars(range(max = 100))]
    pub percentage: u8,
    /// The current activity.
    pub message: String,
}

/// An update of running work.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Update {
    /// Progress in percent, and the current activity.
    Progress(u8, String),
    /// It entered a phase.
    Phase(Phase),
    /// Steps done, and steps in total.
    Steps(u64, u64),
    /// A part of the output, as the contract's chunk.
    Chunk(Value),
}

impl Progress {
    /// Applies an update. A chunk changes nothing.
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

/// Receives the updates of running work.
#[async_trait]
pub trait UpdateSink: Send + Sync + 'static {
    /// Receives an update. It is called while work runs: it must not block, and may drop updates that arrive too fast.
    fn update(&self, update: Update);

    /// Receives a chunk of the output, which must not be dropped. Returns when there is room for the next one.
    ///
    /// # Cancel safety
    /// A chunk whose future is dropped may or may not have been received.
    async fn chunk(&self, chunk: Value) {
        self.update(Update::Chunk(chunk));
    }

    /// Whether anybody receives the updates. If not, a transport need not carry them. `true` by default.
    fn is_read(&self) -> bool {
        true
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

/// Drops every update where there is no sink.
#[async_trait]
impl UpdateSink for Option<Arc<dyn UpdateSink>> {
    fn update(&self, update: Update) {
        if let Some(sink) = self {
            sink.update(update);
        }
    }

    async fn chunk(&self, chunk: Value) {
        if let Some(sink) = self {
            sink.chunk(chunk).await;
        }
    }

    fn is_read(&self) -> bool {
        self.as_ref().is_some_and(|sink| sink.is_read())
    }

    async fn handle(&self, handle: String) -> Result<(), Failure> {
        match self {
            Some(sink) => sink.handle(handle).await,
            None => Ok(()),
        }
    }
}

/// Counts the chunks that a sink receives.
pub(crate) struct CountedChunks {
    to: Arc<dyn UpdateSink>,
    chunks: AtomicU64,
}

impl CountedChunks {
    pub(crate) fn new(to: Arc<dyn UpdateSink>) -> Arc<Self> {
        Arc::new(Self { to, chunks: AtomicU64::new(0) })
    }

    /// Chunks so far, with one that is being received.
    pub(crate) fn count(&self) -> u64 {
        self.chunks.load(Ordering::Relaxed)
    }

    fn add(&self) {
        self.chunks.fetch_add(1, Ordering::Relaxed);
    }
}

#[async_trait]
impl UpdateSink for CountedChunks {
    fn update(&self, update: Update) {
        if matches!(update, Update::Chunk(_)) {
            self.add();
        }
        self.to.update(update);
    }

    async fn chunk(&self, chunk: Value) {
        self.add();
        self.to.chunk(chunk).await;
    }

    fn is_read(&self) -> bool {
        self.to.is_read()
    }

    async fn handle(&self, handle: String) -> Result<(), Failure> {
        self.to.handle(handle).await
    }
}
