//! The limits of a server.

use std::time::Duration;

use octollm_core::error::ConfigError;

const KIB: usize = 1024;

/// What a server puts up with. Checked when the server is built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerConfig {
    /// From the first byte of a request to the end of its head, and from the opening of a connection to the end of its
    /// first head.
    pub head_timeout: Duration,
    /// From the end of the head to the end of the body.
    pub body_timeout: Duration,
    /// How long a connection stays open between two requests, and over HTTP/2 without a stream. A client should keep it
    /// for less.
    pub idle_timeout: Duration,
    /// How long a caller may take for 16 KiB of what is written to it, or for the rest of it (default 30 s). Over HTTP/2 this
    /// is the limit for a stream as well.
    pub write_timeout: Duration,
    /// How long it may take to establish who calls. After that the caller is answered 503.
    pub authenticate_timeout: Duration,
    /// Bytes of a body.
    pub max_body: usize,
    /// Bytes of all bodies that are still arriving. A request whose body would exceed them is answered 503; a body that
    /// arrives in one piece is not counted.
    pub max_arriving: usize,
    /// Bytes of a head, the request line included.
    pub max_head: usize,
    /// Header fields of a head.
    pub max_headers: usize,
    /// Bytes of a request target.
    pub max_uri: usize,
    /// Connections at a time. Those beyond wait in the system's queue.
    pub max_connections: usize,
    /// Requests that run at a time, from the end of the request's body to the end of the answer's; those for
    /// `/capabilities`, `/arms` and `/openapi.json` are counted by themselves, those for `/health` and `/ready` not at all. Those
    /// beyond are answered 503.
    pub max_in_flight: usize,
    /// HTTP/2 streams at a time on one connection.
    pub max_streams: u32,
    /// HTTP/2 flow control: bytes on the way on one stream.
    pub stream_window: u32,
    /// HTTP/2 flow control: bytes on the way on one connection.
    pub connection_window: u32,
    /// How long one readiness check may take before it counts as failed.
    pub check_timeout: Duration,
    /// After SIGTERM: how long the server goes on accepting while it already says that it is not ready.
    pub drain_notice: Duration,
    /// After that: how long requests that are running may go on.
    pub drain_grace: Duration,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            head_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(30),
            write_timeout: Duration::from_secs(30),
            authenticate_timeout: Duration::from_secs(5),
            max_body: 2 * KIB * KIB,
            max_arriving: 256 * KIB * KIB,
            max_head: 16 * KIB,
            max_headers: 100,
            max_uri: 8 * KIB,
            max_connections: 10_000,
            max_in_flight: 1024,
            max_streams: 100,
            stream_window: 64 * 1024,
            connection_window: 1024 * 1024,
            check_timeout: Duration::from_secs(2),
            drain_notice: Duration::from_secs(5),
            drain_grace: Duration::from_secs(30),
        }
    }
}

const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);
/// RFC 9113 §6.9.1.
const MAX_WINDOW: u32 = (1 << 31) - 1;

impl ServerConfig {
    /// Checks every limit.
    ///
    /// # Errors
    /// The first that is zero where that would let nothing through, or out of range.
    pub fn check(&self) -> Result<(), ConfigError> {
        let times = [
            ("head_timeout", self.head_timeout, true),
            ("body_timeout", self.body_timeout, true),
            ("idle_timeout", self.idle_timeout, true),
            ("write_timeout", self.write_timeout, true),
            ("authenticate_timeout", self.authenticate_timeout, true),
            ("check_timeout", self.check_timeout, true),
            ("drain_notice", self.drain_notice, false),
            ("drain_grace", self.drain_grace, false),
        ];
        for (field, time, needed) in times {
            within(field, u128::from(needed), time.as_nanos(), YEAR.as_nanos())?;
        }
        let counts = [
            ("max_body", self.max_body, 1, u32::MAX as usize),
            ("max_arriving", self.max_arriving, 1, usize::MAX),
            ("max_head", self.max_head, 256, 1024 * KIB),
            ("max_headers", self.max_headers, 1, 4096),
            ("max_uri", self.max_uri, 16, 64 * KIB),
            ("max_connections", self.max_connections, 1, tokio::sync::Semaphore::MAX_PERMITS),
            ("max_in_flight", self.max_in_flight, 1, tokio::sync::Semaphore::MAX_PERMITS),
            ("max_streams", self.max_streams as usize, 1, u32::MAX as usize),
            ("stream_window", self.stream_window as usize, 1, MAX_WINDOW as usize),
            ("connection_window", self.connection_window as usize, 1, MAX_WINDOW as usize),
        ];
        for (field, count, least, most) in counts {
            within(field, least as u128, count as u128, most as u128)?;
        }
        Ok(())
    }
}

fn within(field: &'static str, least: u128, value: u128, most: u128) -> Result<(), ConfigError> {
    match value {
        _ if value < least => Err(ConfigError::new(field, "is too small")),
        _ if value > most => Err(ConfigError::new(field, "is too great")),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_hold() {
        ServerConfig::default().check().unwrap();
    }

    #[test]
    fn limits_that_let_nothing_through_are_refused() {
        let default = ServerConfig::default;
        for (field, config) in [
            ("head_timeout", ServerConfig { head_timeout: Duration::ZERO, ..default() }),
            ("idle_timeout", ServerConfig { idle_timeout: Duration::MAX, ..default() }),
            ("max_body", ServerConfig { max_body: 0, ..default() }),
            ("max_in_flight", ServerConfig { max_in_flight: usize::MAX, ..default() }),
            ("stream_window", ServerConfig { stream_window: u32::MAX, ..default() }),
        ] {
            assert_eq!(config.check().unwrap_err().setting(), field);
        }
    }
}
