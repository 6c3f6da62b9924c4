//! Publishing and receiving events.
//!
//! An [`EventBus`] is publish and subscribe, at most once: who has not subscribed receives nothing, and who is too slow
//! receives the number of events lost, as an item of the stream. A [`DurableBus`] delivers at least once: to groups, until a
//! consumer has settled what it received. A [`DelayBus`] can publish later. What authors of a bus need is in [`engine`].
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
mod delivery;
mod durable;
pub mod engine;
mod error;
mod event_bus;
mod feed;
mod memory;
mod memory_durable;
mod settle;
mod subscription;

pub use consumer::{Arrival, Backoff, ConsumeOptions, Consumer, ConsumerCloser, Start};
pub use delivery::{Delivery, Handler, Nack};
pub use durable::{Bound, DeadLetter, DeadLetterBody, DurableBus, GroupStatus};
pub use error::BusError;
pub use event_bus::{DelayBus, EventBus};
pub use memory::{MemoryBus, MemoryBusConfig};
pub use memory_durable::{MemoryDurableBus, MemoryDurableConfig};
pub use subscription::{Ended, Gap, GapReason, Overflow, Signal, Subscription};
