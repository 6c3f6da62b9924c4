//! The limits of a server.

use std::time::Duration;

use octollm_core::error::ConfigError;
use tokio::sync::Semaphore;

use crate::limits::limits_struct;

const KIB: usize = 1024;
const SHORTEST: Duration = Duration::from_nanos(1);
const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);
/// RFC 9113 §6.9.1.
const MAX_WINDOW: u32 = (1 << 31) - 1;

/// Hands the limits of a server to another macro.
macro_rules! server_limits {
    ($then:ident $($arguments:tt)*) => {
        $then! { $($arguments)* {
            /// Sets the time limit from the first byte of a request to the end of its head, and from the opening of a
            /// connection to the end of its first head. Default 10 s, at most a year.
            head_timeout: Duration = Duration::from_secs(10), SHORTEST => YEAR;
            /// Sets the time limit from the end of the head to the end of the body. Default 30 s, at most a year.
            body_timeout: Duration = Duration::from_secs(30), SHORTEST => YEAR;
            /// Sets the time that a connection stays open between two requests, and over HTTP/2 without a stream. A client
            /// should reuse connections for less. Default 30 s, at most a year.
            idle_timeout: Duration = Duration::from_secs(30), SHORTEST => YEAR;
            /// Sets the time that a caller may take to read 16 KiB of what is written to it, or the rest of it. Over HTTP/2
            /// this is the limit for each stream as well. Default 30 s, at most a year.
            write_timeout: Duration = Duration::from_secs(30), SHORTEST => YEAR;
            /// Sets the time limit on [authentication](Server::authenticate). A request that exceeds it is answered 503.
            /// Default 5 s, at most a year.
            authenticate_timeout: Duration = Duration::from_secs(5), SHORTEST => YEAR;
            /// Sets the largest body of a request, in bytes. Default 2 MiB.
            max_body: usize = 2 * KIB * KIB, 1 => u32::MAX as usize;
            /// Sets the bytes that all bodies still arriving may hold together. A request whose body would exceed them is
            /// answered 503. A body that arrives in one piece is not counted. Default 256 MiB.
            max_arriving: usize = 256 * KIB * KIB, 1 => usize::MAX;
            /// Sets the largest head of a request, in bytes, with the request line. Default 16 KiB, 256 bytes to 1 MiB.
            max_head: usize = 16 * KIB, 256 => 1024 * KIB;
            /// Sets the most header fields of a request. Default 100, at most 4096.
            max_headers: usize = 100, 1 => 4096;
            /// Sets the largest path and query of a request, in bytes. Default 8 KiB, 16 bytes to 64 KiB.
            max_uri: usize = 8 * KIB, 16 => 64 * KIB;
            /// Sets the most connections at a time. Further ones wait in the queue of the system. Default 10,000.
            max_connections: usize = 10_000, 1 => Semaphore::MAX_PERMITS;
            /// Sets the most requests that run at a time, each from the end of its body to the end of the answer's. Further
            /// ones are answered 503. Requests for `/capabilities`, `/arms` and `/openapi.json` have a limit of the same
            /// size of their own; those for `/health` and `/ready` have none. Default 1024.
            max_in_flight: usize = 1024, 1 => Semaphore::MAX_PERMITS;
            /// Sets the most HTTP/2 streams at a time on one connection. Default 100.
            max_streams: u32 = 100, 1 => u32::MAX;
            /// Sets the HTTP/2 flow-control window of a stream, in bytes. Default 64 KiB, at most 2 GiB.
            stream_window: u32 = 64 * 1024, 1 => MAX_WINDOW;
            /// Sets the HTTP/2 flow-control window of a connection, in bytes. Default 1 MiB, at most 2 GiB.
            connection_window: u32 = 1024 * 1024, 1 => MAX_WINDOW;
            /// Sets the time limit on a readiness [check](Server::check), which fails after it. Default 2 s, at most a year.
            check_timeout: Duration = Duration::from_secs(2), SHORTEST => YEAR;
            /// Sets the time after SIGTERM in which the server still accepts requests, while `/ready` answers 503. Default
            /// 5 s, at most a year; zero for none.
            drain_notice: Duration = Duration::from_secs(5), Duration::ZERO => YEAR;
            /// Sets the time that running requests and tasks have to finish after that. Default 30 s, at most a year; zero
            /// for none.
            drain_grace: Duration = Duration::from_secs(30), Duration::ZERO => YEAR;
        } }
    };
}
pub(super) use server_limits;

server_limits!(limits_struct ServerConfig);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_in_range() {
        ServerConfig::default().check().unwrap();
    }

    #[test]
    fn limits_out_of_range_are_refused() {
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
        let error = ServerConfig { max_head: 1, ..default() }.check().unwrap_err();
        assert_eq!(error.to_string(), "`max_head` is 1: set it to a value from 256 to 1048576");
    }
}
