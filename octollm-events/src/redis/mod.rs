//! Events over Redis: publish and subscribe, at most once, and streams, at least once.

// `connection` opens connections. `commands` is the one for commands, and `listener` one that receives what is published. `session` feeds
// subscriptions from it, and `live` replaces it when it is lost. `bus` is what a program has. `streams` is the durable bus.
mod bus;
mod commands;
mod connection;
mod error;
mod listener;
mod live;
mod reply;
mod session;
mod streams;

pub use self::{
    bus::{RedisBus, RedisBusBuilder},
    error::RedisError,
    streams::{RedisStreamBus, RedisStreamBusBuilder},
};
