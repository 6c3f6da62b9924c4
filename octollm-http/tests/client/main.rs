//! The client against servers that do what it must survive, byte by byte: in memory on paused time, on sockets where those matter.

mod alarms;
mod calls;
mod cancelled;
#[cfg(feature = "tls")]
#[path = "../certificates/mod.rs"]
mod certificates;
mod chunks;
mod config;
mod directory;
mod explained;
mod end_to_end;
mod faults;
mod frames;
mod http2;
mod layers;
mod lies;
mod moving;
mod orchestrator;
mod peer;
mod pool;
mod proxy;
mod registered;
mod resilience;
mod rest;
#[cfg(feature = "ws")]
mod sockets;
mod updates;
#[cfg(feature = "tls")]
mod tls;
