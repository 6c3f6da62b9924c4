//! Telling events and hearing them.
//!
//! An [`EventBus`] is publish and subscribe, at most once: who does not listen does not hear, and who listens too slowly
//! is told how much was lost, never left to guess. What was lost is an item of the stream, beside the events.
//!
//! ```
//! use octollm_core::bus::{EventBus, MemoryBus, Overflow, Signal};
//! use octollm_core::event::Event;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let handle = |event: std::sync::Arc<Event>| assert_eq!(event.event_type(), "task.completed");
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

mod capability;
mod counters;
mod error;
mod event_bus;
mod expiry;
mod feed;
mod memory;
mod overflow;
mod queue;
mod signal;
mod subscription;

pub use capability::{Capabilities, Capability};
pub use counters::{Counters, Counts};
pub use error::BusError;
pub use event_bus::EventBus;
pub use feed::Feed;
pub use memory::{MemoryBus, MemoryBusConfig};
pub use overflow::Overflow;
pub use signal::{Ended, Gap, GapReason, Signal};
pub use subscription::Subscription;
