//! Encodings of events, for transport beyond one process.
//!
//! An event is encoded in the native JSON form or as a CloudEvent 1.0. Each encoding writes a JSON document, or flat
//! fields for brokers whose entries are maps. The buses within one process are in [`octollm_core::bus`].
//!
//! ```
//! use octollm_core::event::Event;
//! use octollm_events::Encoding;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let event = Event::new("task.completed", "brain", "done")?;
//! for encoding in [Encoding::Native, Encoding::CloudEvents] {
//!     assert_eq!(encoding.decode(&encoding.encode(&event)?)?, event);
//!     assert_eq!(encoding.from_fields(encoding.to_fields(&event)?)?, event);
//! }
//! # Ok(())
//! # }
//! ```

mod cloud;
mod encoding;
#[cfg(feature = "redis")]
pub mod redis;
#[cfg(feature = "sql")]
pub mod sql;

pub use encoding::Encoding;
