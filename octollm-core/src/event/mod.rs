//! Events, the channels on which they are published, and patterns of channels.
//!
//! An [`Event`] is published on a [`Channel`] `<domain>:<entity>:<action>`. Its type `<entity>.<action>` and its channel
//! derive from each other, so they cannot disagree. A [`Pattern`] is a channel in which a whole segment may be `*`.
//!
//! ```
//! use octollm_core::event::{Event, Pattern};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let started = Event::new("task.started", "brain", serde_json::json!({ "step": 1 }))?.with_subject("task_1");
//! let completed = Event::new("task.completed", "brain", serde_json::json!({}))?.caused_by(&started);
//!
//! assert_eq!(completed.channel().as_str(), "events:task:completed");
//! assert_eq!(completed.causation_id(), Some(started.id()));
//! assert!("events:task:*".parse::<Pattern>()?.matches(completed.channel()));
//! # Ok(())
//! # }
//! ```

mod channel;
mod envelope;
mod error;
mod pattern;
mod raw;

pub use channel::Channel;
pub use envelope::Event;
pub use error::{ChannelError, EventError};
pub use pattern::{Pattern, Patterns};
pub use raw::RawEvent;
