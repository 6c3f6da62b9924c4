//! The server over pipes on a clock that is paused, byte by byte where it matters; over sockets where they matter.

mod arms;
mod attacks;
mod audited;
mod bad_http2;
mod bad_input;
#[cfg(feature = "compression")]
mod compressed;
mod dashboard;
mod dead_letters;
mod docs;
#[cfg(feature = "tls")]
#[path = "../certificates/mod.rs"]
mod certificates;
mod ending;
mod env;
mod events;
mod faults;
mod floods;
mod identity;
mod keyed;
mod lifecycle;
mod limits;
mod metrics;
mod mounted;
mod openapi;
mod own_keys;
mod peer;
mod places;
mod process;
mod rates;
mod ready;
mod registry;
mod cached;
mod routed;
mod routes;
#[cfg(feature = "ws")]
mod sockets;
mod statuses;
mod tasks;
#[cfg(feature = "tls")]
mod tls;
#[cfg(unix)]
mod unix;
