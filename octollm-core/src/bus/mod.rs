//! Publish and receive events.
//!
//! An [`EventBus`] delivers at most once, to the current subscribers. A [`DurableBus`] delivers at least once, to
//! groups of consumers that acknowledge. A [`DelayBus`] can publish an event later. [`engine`] has the parts for the
//! author of a bus.
//!
//! ```
//! use octollm_core::bus::{EventBus, MemoryBus, Overflow, Signal};
//! use octollm_core::event::Event;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let handle = |event: Event| assert_eq!(event.event_type(), "task.completed");
//! # let resync = |_| ();
//! # let warn = |_| ();
//! let bus = MemoryBus::new();
//! let mut events = bus.subscribe("events:task:*".parse()?, Overflow::DropOldest(1024)).await?;
//! bus.publish(Event::new("task.completed", "brain", "done")?).await?;
//! # drop(bus);
//! while let Some(signal) = events.next().await {
//!     match signal {
//!         Signal::Event(event) => handle(event),
//!         Signal::Gap(gap) => resync(gap),
//!         Signal::Lagged(missed) => warn(missed),
//!     }
//! }
//! # Ok(())
//! # }
//! ```

mod buffer;
mod consumer;
mod durable;
pub mod engine;
pub mod layers;
mod map;
mod memory;
mod memory_durable;
mod scopes;
mod subscription;
mod worker;

use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

pub use self::consumer::{Consumer, Delivery, Nack};
pub use self::durable::{ConsumeOptions, DeadLetter, DurableBus, FailedAttempt, GroupStatus};
pub use self::map::BusMap;
pub use self::memory::MemoryBus;
pub use self::memory_durable::{MemoryDurableBus, MemoryDurableBusBuilder};
pub use self::subscription::Subscription;
pub use self::worker::EventHandler;
use crate::error::{ConfigError, Failure};
use crate::event::{Event, Pattern};

/// Publishes events to the current subscribers, at most once.
///
/// It has no acknowledgements. Code that needs guaranteed delivery requires a [`DurableBus`].
#[async_trait]
pub trait EventBus: Send + Sync + 'static {
    /// Publishes an event to the subscribers of its channel. Returns once the bus has accepted the event.
    ///
    /// A subscriber never causes a loss at another one: a publisher waits for a subscriber under [`Overflow::Block`]
    /// only after all others have the event.
    ///
    /// # Errors
    /// [`BusError::TooLarge`], [`BusError::Full`], [`BusError::Closed`] and [`BusError::Unavailable`]. The event was
    /// not delivered, except that a broker which became unavailable may have accepted it.
    ///
    /// # Cancel safety
    /// If the future is dropped, the event may or may not be published. On a bus in memory, either all subscribers with
    /// room receive it or none; a subscriber under [`Overflow::Block`] without room receives [`Signal::Lagged`].
    async fn publish(&self, event: Event) -> Result<(), BusError>;

    /// Subscribes to the channels that `pattern` matches. Returns once the bus has confirmed: events that are published
    /// after that are received, each of them once.
    ///
    /// # Errors
    /// [`BusError::InvalidSetting`] when the capacity of `overflow` is 0, [`BusError::Closed`] and
    /// [`BusError::Unavailable`].
    ///
    /// # Cancel safety
    /// If the future is dropped, there is no subscription.
    async fn subscribe(&self, pattern: Pattern, overflow: Overflow) -> Result<Subscription, BusError>;

    /// Returns the capabilities of the bus. Every other one returns [`BusError::Unsupported`].
    fn capabilities(&self) -> &[Capability];

    /// Returns the size of the largest event that the bus accepts, in the bytes of [`Event::size`].
    fn max_event_bytes(&self) -> usize;

    /// Publishes events in order, each as [`publish`](Self::publish) does. Returns a result for each event, by index.
    /// An error does not affect the other events.
    ///
    /// # Errors
    /// For each event as [`publish`](Self::publish).
    ///
    /// # Cancel safety
    /// If the future is dropped, some events at the end are not published.
    async fn publish_all(&self, events: Vec<Event>) -> Vec<Result<(), BusError>> {
        let mut results = Vec::with_capacity(events.len());
        for event in events {
            results.push(self.publish(event).await);
        }
        results
    }
}

/// A bus that can publish an event later.
///
/// A bus that cannot does not implement this trait:
///
/// ```compile_fail,E0277
/// use octollm_core::bus::{DelayBus, MemoryBus};
///
/// fn remind(bus: impl DelayBus) {}
/// remind(MemoryBus::new());
/// ```
#[async_trait]
pub trait DelayBus: EventBus {
    /// Publishes an event after `delay`, to the subscribers and groups of that time.
    ///
    /// # Errors
    /// As [`publish`](EventBus::publish).
    ///
    /// # Cancel safety
    /// If the future is dropped, the event may or may not be published later.
    async fn publish_after(&self, event: Event, delay: Duration) -> Result<(), BusError>;

    /// Cancels [`publish_after`](Self::publish_after) for all events with this id. Returns `false` if no such event
    /// waits.
    ///
    /// # Errors
    /// [`BusError::Unavailable`].
    ///
    /// # Cancel safety
    /// If the future is dropped, the events may or may not be cancelled.
    async fn cancel_publish(&self, event_id: &str) -> Result<bool, BusError>;
}

/// An item of a [`Subscription`].
#[derive(Debug, Clone)]
pub enum Signal {
    /// An event.
    Event(Event),
    /// Events may be missing at this point. Their number is not known.
    Gap(Gap),
    /// The subscriber was too slow, and exactly this number of events is missing at this point.
    Lagged(u64),
}

/// The reason why events may be missing at a point of a stream.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Gap {
    /// The connection to the broker was lost.
    #[error("the connection to the broker was lost")]
    ConnectionLost,
    /// Events were deleted before they were delivered, to stay within the limits of the bus.
    #[error("events were deleted before they were delivered")]
    Trimmed {
        /// The known ids of deleted events, at most [`Gap::MAX_EVENT_IDS`]. Others may be missing too.
        event_ids: Vec<String>,
    },
    /// The group was lost, and was created again.
    #[error("the group was lost and created again")]
    GroupRecreated,
}

/// What happens to an event for which a subscription has no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Overflow {
    /// The publisher waits for room, for at most the block timeout of the bus (default 5 s). After that the event is
    /// dropped and the subscriber receives [`Signal::Lagged`].
    ///
    /// The capacity is [`Overflow::BLOCK_CAPACITY`]. A publisher does not wait for a subscriber that has received
    /// nothing for the block timeout, until the subscriber receives again.
    Block,
    /// The oldest of this number of events is dropped. The subscriber receives [`Signal::Lagged`] before the events
    /// that are left.
    DropOldest(usize),
    /// The new event is dropped once this number of events waits. The subscriber receives [`Signal::Lagged`] after
    /// those events.
    DropNewest(usize),
    /// The subscription ends with [`BusError::SlowConsumer`] once this number of events waits. Those events are still
    /// received.
    Disconnect(usize),
}

impl Overflow {
    /// Capacity of a subscription under [`Overflow::Block`].
    pub const BLOCK_CAPACITY: usize = 1024;

    /// Returns the number of events that can wait.
    pub fn capacity(self) -> usize {
        match self {
            Self::Block => Self::BLOCK_CAPACITY,
            Self::DropOldest(events) | Self::DropNewest(events) | Self::Disconnect(events) => events,
        }
    }
}

/// Something that a bus may be able to do. Delayed publishing is the trait [`DelayBus`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Capability {
    /// Events of one partition key reach a subscriber or group in the order of publication.
    OrderPerKey,
    /// A new group can start with events that were published before it was created.
    History,
    /// Events survive a restart of the bus.
    Persistence,
    /// Settling a delivery whose event has gone to another consumer returns [`BusError::LeaseLost`].
    FencedSettling,
    /// [`Delivery::attempt`] counts over nacks, crashes and expired leases, and [`ConsumeOptions::max_attempts`]
    /// applies. Without it every delivery is attempt 1.
    AttemptCounts,
    /// [`Nack::Retry`] can have a delay.
    DelayedNack,
    /// A lease can be extended.
    LeaseExtension,
}

impl Capability {
    /// All capabilities.
    pub const ALL: [Self; 7] = [
        Self::OrderPerKey,
        Self::History,
        Self::Persistence,
        Self::FencedSettling,
        Self::AttemptCounts,
        Self::DelayedNack,
        Self::LeaseExtension,
    ];
}

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::OrderPerKey => "order per partition key",
            Self::History => "history",
            Self::Persistence => "persistence",
            Self::FencedSettling => "fenced settling",
            Self::AttemptCounts => "attempt counts",
            Self::DelayedNack => "delayed nacks",
            Self::LeaseExtension => "lease extension",
        })
    }
}

/// A failure of a bus, and the reason why a subscription or consumer has ended.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum BusError {
    /// The event is larger than the bus accepts. It was not delivered.
    #[error("the event has {size} bytes, and the bus accepts at most {limit}")]
    TooLarge {
        /// Size of the event, as [`Event::size`].
        size: usize,
        /// Size of the largest event that is accepted.
        limit: usize,
    },
    /// The bus does not have this capability.
    #[error("the bus does not support {capability}")]
    Unsupported {
        /// The missing capability.
        capability: Capability,
    },
    /// A setting is not valid.
    #[error(transparent)]
    InvalidSetting {
        /// Names the setting.
        #[from]
        source: ConfigError,
    },
    /// The bus has no room for the event until others are settled. It was not delivered.
    #[error("the bus is full: it holds at most {events} events with {bytes} bytes in total")]
    Full {
        /// Maximum number of events.
        events: usize,
        /// Maximum sum of their sizes in bytes.
        bytes: usize,
    },
    /// The caller does not have the scope of the channel, on a bus of [`Context::bus`](crate::Context::bus), or the broker does not let its
    /// user use the channel. The operation had no effect.
    #[error("the caller may not use the channel")]
    Denied {
        /// Names the scope, or has the answer of the broker.
        source: Arc<Failure>,
    },
    /// The broker cannot be reached at the moment.
    #[error("the bus is not available")]
    Unavailable {
        /// The error of the driver.
        source: Option<Arc<dyn Error + Send + Sync>>,
    },
    /// The bus or the consumer was closed, or the last handle of the bus was dropped.
    #[error("the bus is closed")]
    Closed,
    /// The subscriber was too slow under [`Overflow::Disconnect`].
    #[error("the subscriber was too slow")]
    SlowConsumer,
    /// The lease has expired, and the event has since gone to another consumer or to the dead letters.
    #[error("the lease of event {event_id:?} is lost")]
    LeaseLost {
        /// Id of the event.
        event_id: String,
    },
    /// The group exists and consumes another pattern.
    #[error("the group {group:?} already consumes {pattern:?}")]
    OtherPattern {
        /// Name of the group.
        group: String,
        /// Pattern of the group.
        pattern: String,
    },
    /// The group does not exist, or was removed.
    #[error("there is no group {group:?}")]
    UnknownGroup {
        /// Name of the group.
        group: String,
    },
    /// The group has no such dead letter.
    #[error("there is no dead letter {entry:?}")]
    UnknownDeadLetter {
        /// Id of the dead letter.
        entry: String,
    },
}

impl BusError {
    /// Returns whether the same call can succeed later.
    pub fn retryable(&self) -> bool {
        matches!(self, Self::Unavailable { .. } | Self::Full { .. })
    }

    fn unavailable(source: impl Error + Send + Sync + 'static) -> Self {
        Self::Unavailable { source: Some(Arc::new(source)) }
    }
}

#[async_trait]
impl<B: EventBus + ?Sized> EventBus for Arc<B> {
    async fn publish(&self, event: Event) -> Result<(), BusError> {
        (**self).publish(event).await
    }

    async fn subscribe(&self, pattern: Pattern, overflow: Overflow) -> Result<Subscription, BusError> {
        (**self).subscribe(pattern, overflow).await
    }

    fn capabilities(&self) -> &[Capability] {
        (**self).capabilities()
    }

    fn max_event_bytes(&self) -> usize {
        (**self).max_event_bytes()
    }

    async fn publish_all(&self, events: Vec<Event>) -> Vec<Result<(), BusError>> {
        (**self).publish_all(events).await
    }
}

#[async_trait]
impl<B: DelayBus + ?Sized> DelayBus for Arc<B> {
    async fn publish_after(&self, event: Event, delay: Duration) -> Result<(), BusError> {
        (**self).publish_after(event, delay).await
    }

    async fn cancel_publish(&self, event_id: &str) -> Result<bool, BusError> {
        (**self).cancel_publish(event_id).await
    }
}
