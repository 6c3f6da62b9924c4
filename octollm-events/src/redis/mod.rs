//! Events over Redis: publish and subscribe, at most once, and streams, at least once. Records of keys and rates of requests, for all
//! instances.

// `connection` opens connections. `pipe` is one for the `command`s of many callers, which `commands` replaces when it is lost, and `listener` one that receives what is published. `session` feeds
// subscriptions from it, and `live` replaces it when it is lost. `bus` is what a program has. `streams` is the durable bus. `keys` and `limiter` need
// the commands alone.
mod bus;
mod command;
mod commands;
mod connection;
mod error;
mod keys;
mod limiter;
mod listener;
mod live;
mod pipe;
mod reply;
mod session;
mod streams;
mod url;
mod values;
mod warnings;

pub use self::{
    bus::{RedisBus, RedisBusBuilder},
    error::RedisError,
    keys::{RedisIdempotencyStore, RedisIdempotencyStoreBuilder},
    limiter::{RedisRateLimiter, RedisRateLimiterBuilder},
    streams::{RedisStreamBus, RedisStreamBusBuilder},
};
