//! Telling events and hearing them.
//!
//! An [`EventBus`] is publish and subscribe, at most once: who does not listen does not hear, and who listens too slowly
//! is told how much was lost, never left to guess. What was lost is an item of the stream, beside the events.
//! A [`DurableBus`] delivers at least once: to groups, until a member has settled what it got.
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

mod consumer;
mod delivery;
mod durable_bus;
pub mod engine;
mod error;
mod event_bus;
mod memory;
mod memory_durable;
mod subscription;

pub use consumer::{
    Arrival, Backoff, CloseConsumer, ConsumeOptions, Consumer, ConsumerCloser, ConsumerEngine, Start,
};
pub use delivery::{Delivery, Handler, Lease, Nack, Settlement};
pub use durable_bus::{DeadLetter, DeadLetterBody, DurableBus, GroupStatus};
pub use error::BusError;
pub use event_bus::EventBus;
pub use memory::{MemoryBus, MemoryBusConfig};
pub use memory_durable::{MemoryDurableBus, MemoryDurableConfig};
pub use subscription::{Ended, Gap, GapReason, Overflow, Signal, Subscription};
