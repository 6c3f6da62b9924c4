//! The settings of a bus over streams.

use std::{sync::Arc, time::Duration};

use octollm_core::error::ConfigError;
use tokio::sync::watch;

use super::{
    Keys, Owner, RedisStreamBus, Shared,
    background::work,
    reader::{self, Live},
};
use crate::{
    Encoding,
    redis::{
        bus::bus_settings,
        commands::Commands,
        connection::{Settings, check_prefix},
        error::RedisError,
        warnings::warn_of_settings,
    },
};

/// Builds a [`RedisStreamBus`]. The processes on one server set the same prefix and limits.
#[derive(Debug, Clone)]
#[must_use = "a builder does nothing until `connect` is called"]
pub struct RedisStreamBusBuilder {
    settings: Result<Settings, ConfigError>,
    encoding: Encoding,
    prefix: String,
    max_event_bytes: usize,
    block_timeout: Duration,
    history: usize,
    delayed: usize,
    dead_letters: usize,
}

impl RedisStreamBusBuilder {
    pub(super) fn new(url: &str) -> Self {
        Self {
            settings: Settings::parse(url),
            encoding: Encoding::Native,
            prefix: "octollm".to_owned(),
            max_event_bytes: 1024 * 1024,
            block_timeout: Duration::from_secs(5),
            history: 65_536,
            delayed: 65_536,
            dead_letters: 65_536,
        }
    }

    /// Sets the prefix of all keys (default `octollm`). Buses with other prefixes have other events.
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// Sets the size of the largest event that is accepted (default 1 MiB).
    pub fn max_event_bytes(mut self, bytes: usize) -> Self {
        self.max_event_bytes = bytes;
        self
    }

    /// Sets the time for which the subscriptions of this handle wait for one under [`Overflow::Block`](octollm_core::bus::Overflow::Block) (default 5 s).
    pub fn block_timeout(mut self, timeout: Duration) -> Self {
        self.block_timeout = timeout;
        self
    }

    /// Limits the events that are stored for later groups and slow subscriptions (default 65 536). Events that a group has not settled are
    /// stored beside. The limit is approximate: the server deletes about a hundred at a time.
    pub fn history(mut self, events: usize) -> Self {
        self.history = events;
        self
    }

    /// Limits the events that are to be published later (default 65 536). Adding another one returns
    /// [`BusError::Full`](octollm_core::bus::BusError::Full).
    pub fn delayed(mut self, events: usize) -> Self {
        self.delayed = events;
        self
    }

    /// Limits the dead letters of a group (default 65 536). The oldest are deleted to make room.
    pub fn dead_letters(mut self, events: usize) -> Self {
        self.dead_letters = events;
        self
    }

    bus_settings! {}

    /// Connects.
    ///
    /// # Errors
    /// [`RedisError::Setting`] for the first setting that is not valid, and those of [`RedisStreamBus::connect`].
    ///
    /// # Cancel safety
    /// If the future is dropped, the connection is closed.
    pub async fn connect(self) -> Result<RedisStreamBus, RedisError> {
        let Self {
            settings,
            encoding,
            prefix,
            max_event_bytes,
            block_timeout,
            history,
            delayed,
            dead_letters,
        } = self;
        if max_event_bytes == 0 {
            return Err(ConfigError::new("max_event_bytes", "is 0").into());
        }
        check_prefix(&prefix)?;
        let connector = Arc::new(settings?.connector().await?);
        let heartbeat = connector.settings.heartbeat;
        let commands = Commands::connect(connector.clone()).await?;
        let shared = Arc::new(Shared {
            commands,
            keys: Keys { prefix },
            encoding,
            block_timeout,
            heartbeat,
            dead_letters,
            live: Live::default(),
            changed: watch::Sender::new(()),
            delayed: watch::Sender::new(()),
            closed: watch::Sender::new(false),
        });
        warn_of_settings(&shared.commands).await;
        let waiting = Commands::connect(Arc::new(connector.waiting(heartbeat))).await?;
        let from = reader::last(&shared.commands, &shared.keys).await?;
        tokio::spawn(work(shared.clone(), waiting, from, history));
        Ok(RedisStreamBus(Arc::new(Owner { shared, max_event_bytes, delayed })))
    }
}
