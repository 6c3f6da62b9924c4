//! Live updates over a WebSocket: its handshake, its limits and its frames.

use std::time::Duration;

use base64::{Engine, prelude::BASE64_STANDARD};
use http::{HeaderMap, HeaderName, HeaderValue};
use octollm_core::{
    error::{ErrorKind, Failure},
    id::TaskId,
};
use serde::{Deserialize, Serialize};
use sha1::{Digest, Sha1};
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;

/// The version of the protocol.
pub(crate) const VERSION: HeaderValue = HeaderValue::from_static("13");
/// The name that both ends have in `Upgrade`.
pub(crate) const WEBSOCKET: HeaderValue = HeaderValue::from_static("websocket");
/// The subprotocol of a caller that shows its token in the next one.
pub(crate) const BEARER: &str = "bearer";
/// Time for the closing handshake.
pub(crate) const CLOSE: Duration = Duration::from_secs(5);
/// The largest message that is received, in bytes, and the largest frame.
pub(crate) const MAX_MESSAGE: usize = 1024 * 1024;
pub(crate) const MAX_FRAME: usize = 256 * 1024;
/// The largest frame that is sent. Messages that are larger are sent in several.
pub(crate) const FRAGMENT: usize = 64 * 1024;
/// The most bytes that wait to be written, and how many are written together.
const MAX_WRITE_BUFFER: usize = 1024 * 1024;
const WRITE_BUFFER: usize = 16 * 1024;
/// Bytes of one read. Each connection holds as many.
const READ_BUFFER: usize = 4 * 1024;

/// The configuration of a connection that receives messages of at most so many bytes.
pub(crate) fn config(max_message: usize, max_frame: usize) -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER)
        .write_buffer_size(WRITE_BUFFER)
        .max_write_buffer_size(MAX_WRITE_BUFFER)
        .max_message_size(Some(max_message))
        .max_frame_size(Some(max_frame))
}

/// The `Sec-WebSocket-Accept` for a key (RFC 6455 §4.2.2).
pub(crate) fn accept_key(key: &[u8]) -> String {
    const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
    BASE64_STANDARD.encode(Sha1::new().chain_update(key).chain_update(GUID).finalize())
}

/// Whether a comma-separated field has an element, in any case of its letters.
pub(crate) fn lists(head: &HeaderMap, name: &HeaderName, element: &[u8]) -> bool {
    let fields = head.get_all(name).iter().flat_map(|field| field.as_bytes().split(|byte| *byte == b','));
    fields.map(<[u8]>::trim_ascii).any(|listed| listed.eq_ignore_ascii_case(element))
}

/// What the caller sends.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Request {
    /// Send the updates of a task with numbers above `after`.
    Subscribe {
        task_id: TaskId,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        after: Option<u64>,
    },
    /// Send no more updates of a task.
    Unsubscribe { task_id: TaskId },
    /// Cancel a task.
    Cancel { task_id: TaskId },
}

/// What the server sends beside updates.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum Notice {
    /// The updates of a task with numbers above `after` follow.
    Subscribed { task_id: TaskId, after: u64 },
    /// The task has ended, and has no update above `after`.
    Ended { task_id: TaskId },
    /// A request has failed, or the updates of a task have ended before the task.
    Error {
        code: ErrorKind,
        message: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        task_id: Option<TaskId>,
        #[serde(default)]
        retryable: bool,
    },
}

impl Notice {
    /// The error of a failed request.
    pub(crate) fn of(failure: &Failure, task_id: Option<TaskId>) -> Self {
        let (code, message, retryable) = (failure.kind, failure.message.clone(), failure.retryable);
        Self::Error { code, message, task_id, retryable }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_limits_are_those_of_the_page() {
        let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/wire.md");
        let page = std::fs::read_to_string(page).unwrap();
        let (mib, kib) = (1024 * 1024, 1024);
        for row in [
            format!(
                "| a message, a frame that a WebSocket receives | {} MiB, {} KiB | closed with 1009 |",
                MAX_MESSAGE / mib,
                MAX_FRAME / kib
            ),
            format!("| bytes that wait for the reader of a WebSocket | {} MiB |", MAX_WRITE_BUFFER / mib),
            format!("| the closing handshake of a WebSocket | {} s |", CLOSE.as_secs()),
        ] {
            assert!(page.contains(&row), "{row}");
        }
    }

    #[test]
    fn the_accept_key_is_that_of_the_rfc() {
        assert_eq!(accept_key(b"dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }
}
