//! The client against servers that do what it must survive: real sockets, real bytes.

mod calls;
mod config;
mod directory;
mod faults;
mod layers;
mod orchestrator;
mod peer;
mod pool;
