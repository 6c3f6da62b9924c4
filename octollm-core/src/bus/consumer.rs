//! A member of a group.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;

use super::{BusError, Delivery, Gap};

/// Takes events from a group, one delivery at a time and as many at once as it was allowed.
///
/// Dropped, it leaves the group. What it handed out is still settled through the [`Delivery`], or comes again to another
/// member when its lease runs out.
#[must_use = "a consumer that is dropped leaves its group"]
pub struct Consumer {
    engine: Box<dyn ConsumerEngine>,
    closer: ConsumerCloser,
}

/// What a consumer yields.
#[derive(Debug)]
pub enum Arrival {
    /// An event to work off.
    Delivery(Delivery),
    /// Something is missing here that will not come.
    Gap(Gap),
}

/// Closes a [`Consumer`] from elsewhere. Clones close the same one.
#[derive(Clone)]
pub struct ConsumerCloser(Arc<dyn CloseConsumer>);

/// What a bus does for a [`Consumer`]. Dropping it leaves the group.
#[async_trait]
pub trait ConsumerEngine: Send + Sync {
    /// The next arrival, or `None` once it is closed. It must be cancel safe: dropped before it is done, it has taken
    /// nothing.
    async fn next(&mut self) -> Option<Arrival>;
}

/// What a bus does to close a consumer.
#[async_trait]
pub trait CloseConsumer: Send + Sync {
    /// Hands out nothing more, and waits until all that was handed out is settled or its lease has run out. Closing again
    /// is `Ok`.
    ///
    /// # Errors
    /// [`BusError::Unavailable`].
    async fn close(&self) -> Result<(), BusError>;
}

impl Consumer {
    /// A consumer that an engine drives.
    pub fn new(engine: Box<dyn ConsumerEngine>, closer: Arc<dyn CloseConsumer>) -> Self {
        Self { engine, closer: ConsumerCloser(closer) }
    }

    /// The next arrival, or `None` when the consumer or its bus was closed. It waits while as many deliveries as allowed
    /// are unsettled.
    ///
    /// # Cancel safety
    /// Dropped before it is done, it has taken nothing.
    pub async fn next(&mut self) -> Option<Arrival> {
        self.engine.next().await
    }

    /// What closes it from elsewhere, from a signal handler for one.
    pub fn closer(&self) -> ConsumerCloser {
        self.closer.clone()
    }

    /// Closes it, as [`ConsumerCloser::close`] does.
    ///
    /// # Errors
    /// [`BusError::Unavailable`].
    ///
    /// # Cancel safety
    /// As [`ConsumerCloser::close`].
    pub async fn close(&self) -> Result<(), BusError> {
        self.closer.close().await
    }
}

impl ConsumerCloser {
    /// Lets the consumer hand out nothing more, and waits until all that it handed out is settled or its lease has run
    /// out. Closing again changes nothing and is `Ok`.
    ///
    /// # Errors
    /// [`BusError::Unavailable`].
    ///
    /// # Cancel safety
    /// Dropped before it is done, nothing more is handed out all the same.
    pub async fn close(&self) -> Result<(), BusError> {
        self.0.close().await
    }
}

impl fmt::Debug for Consumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Consumer").finish_non_exhaustive()
    }
}

impl fmt::Debug for ConsumerCloser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConsumerCloser").finish_non_exhaustive()
    }
}
