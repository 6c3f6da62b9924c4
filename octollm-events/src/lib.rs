//! How events look as bytes.
//!
//! Every engine that carries events beyond one process writes them in one of two encodings: the native JSON form, or
//! CloudEvents 1.0. Both come as one JSON document, and as flat fields for brokers whose entries are maps. This crate has
//! these encodings; buses within one process are in [`octollm_core::bus`].
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
mod error;
mod fields;

pub use encoding::Encoding;
pub use error::{DecodeError, EncodeError};
