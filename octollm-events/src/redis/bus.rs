//! Publish and subscribe, at most once.

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use octollm_core::{
    bus::{BusError, Capability, EventBus, Overflow, Subscription},
    error::ConfigError,
    event::{Event, Pattern},
};
use tokio::sync::watch;

use super::{
    command::Command,
    commands::{Commands, batches},
    connection::Settings,
    error::RedisError,
    live::{Live, Source},
};
use crate::Encoding;

/// An [`EventBus`] over the publish/subscribe of a Redis server, for all processes that use the server. Clones are handles of the same
/// bus.
///
/// Events are delivered at most once, to those that subscribe at the moment. A subscription survives its connection: it is reconnected for ever,
/// and receives a [`ConnectionLost`](octollm_core::bus::Gap::ConnectionLost) once the server has confirmed it again. A server that
/// does not answer is reported by a gap within two heartbeats, before that one.
///
/// Commands have a connection, and subscriptions share another one. A subscription under [`Overflow::Block`] has a connection of its own:
/// while it has no room nothing is read from it, and the server stores what is published up to its `client-output-buffer-limit`. Publishers never
/// wait for subscribers.
///
/// When the last clone is dropped, its subscriptions end.
///
/// ```no_run
/// use octollm_core::{bus::{EventBus, Overflow}, event::Event};
/// use octollm_events::redis::RedisBus;
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let bus = RedisBus::connect("redis://127.0.0.1/").await?;
/// let mut events = bus.subscribe("events:task:*".parse()?, Overflow::DropOldest(1024)).await?;
/// bus.publish(Event::new("task.completed", "brain", "done")?).await?;
/// let first = events.next().await;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct RedisBus(Arc<Owner>);

struct Owner {
    commands: Commands,
    live: Live,
    encoding: Encoding,
    max_event_bytes: usize,
    closed: watch::Sender<bool>,
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.closed.send_replace(true);
    }
}

/// The setters that the builders of buses share.
macro_rules! bus_settings {
    () => {
        /// Sets the encoding of the events (default [`Encoding::Native`]). All programs on one server use the same.
        pub fn encoding(mut self, encoding: Encoding) -> Self {
            self.encoding = encoding;
            self
        }

        /// Sets the time between two PINGs on a connection of subscriptions (default 5 s). A server that is silent for two of them is
        /// connected to again.
        pub fn heartbeat(self, heartbeat: Duration) -> Self {
            self.set(|settings| settings.heartbeat = heartbeat)
        }

        $crate::redis::connection::connection_settings! {}
    };
}
pub(super) use bus_settings;

/// Builds a [`RedisBus`].
#[derive(Debug, Clone)]
#[must_use = "a builder does nothing until `connect` is called"]
pub struct RedisBusBuilder {
    settings: Result<Settings, ConfigError>,
    encoding: Encoding,
    max_event_bytes: usize,
    block_timeout: Duration,
}

impl RedisBus {
    /// Connects with the default settings.
    ///
    /// `url` is `redis://USER:PASSWORD@HOST:PORT`, `rediss://…` for TLS, or `unix:///FILE` for a socket. User, password and port can be left out. Of
    /// a cluster, it is the address of any node.
    ///
    /// # Errors
    /// A [`RedisError`] that names the reason, within 5 s for the connection and 5 s for an answer.
    ///
    /// # Cancel safety
    /// If the future is dropped, the connection is closed.
    pub async fn connect(url: &str) -> Result<Self, RedisError> {
        Self::builder(url).connect().await
    }

    /// Returns a builder, to set the limits.
    pub fn builder(url: &str) -> RedisBusBuilder {
        RedisBusBuilder {
            settings: Settings::parse(url),
            encoding: Encoding::Native,
            max_event_bytes: 1024 * 1024,
            block_timeout: Duration::from_secs(5),
        }
    }

    /// Ends the subscriptions of this handle and its clones. Closing twice has no effect.
    pub fn close(&self) {
        self.0.closed.send_replace(true);
    }

    /// Checks an event, and makes the command that publishes it.
    fn command(&self, event: &Event) -> Result<Command, BusError> {
        if *self.0.closed.borrow() {
            return Err(BusError::Closed);
        }
        let (payload, size) = self.0.encoding.write(event).map_err(RedisError::failed)?;
        let limit = self.0.max_event_bytes;
        if size > limit {
            return Err(BusError::TooLarge { size, limit });
        }
        let channel = event.channel().as_str();
        let mut command = Command::with_capacity("PUBLISH", channel.len() + payload.len() + 32);
        command.arg(channel).arg(payload);
        Ok(command)
    }
}

impl fmt::Debug for RedisBus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisBus").field("max_event_bytes", &self.0.max_event_bytes).finish_non_exhaustive()
    }
}

impl RedisBusBuilder {
    /// Sets the size of the largest event that is accepted (default 1 MiB).
    pub fn max_event_bytes(mut self, bytes: usize) -> Self {
        self.max_event_bytes = bytes;
        self
    }

    /// Sets the time for which a connection is not read for its subscription under [`Overflow::Block`] (default 5 s).
    pub fn block_timeout(mut self, timeout: Duration) -> Self {
        self.block_timeout = timeout;
        self
    }

    bus_settings! {}

    /// Connects.
    ///
    /// # Errors
    /// [`RedisError::Setting`] for the first setting that is not valid, and those of [`RedisBus::connect`].
    ///
    /// # Cancel safety
    /// If the future is dropped, the connection is closed.
    pub async fn connect(self) -> Result<RedisBus, RedisError> {
        let Self { settings, encoding, max_event_bytes, block_timeout } = self;
        if max_event_bytes == 0 {
            return Err(ConfigError::new("max_event_bytes", "is 0").into());
        }
        let connector = Arc::new(settings?.connector().await?);
        let commands = Commands::connect(connector.clone()).await?;
        let closed = watch::Sender::new(false);
        let live = Live::new(Source { connector, encoding, closed: closed.subscribe() }, block_timeout);
        Ok(RedisBus(Arc::new(Owner { commands, live, encoding, max_event_bytes, closed })))
    }
}

#[async_trait]
impl EventBus for RedisBus {
    async fn publish(&self, event: Event) -> Result<(), BusError> {
        let command = self.command(&event)?;
        // Its memory is used again by the next event, while this one waits.
        drop(event);
        // The reply is the number of subscribers of one server.
        self.0.commands.execute(&command).await?;
        Ok(())
    }

    async fn subscribe(&self, pattern: Pattern, overflow: Overflow) -> Result<Subscription, BusError> {
        if *self.0.closed.borrow() {
            return Err(BusError::Closed);
        }
        self.0.live.subscribe(&pattern, overflow).await
    }

    fn capabilities(&self) -> &[Capability] {
        &[Capability::OrderPerKey]
    }

    fn max_event_bytes(&self) -> usize {
        self.0.max_event_bytes
    }

    async fn publish_all(&self, events: Vec<Event>) -> Vec<Result<(), BusError>> {
        let mut results = Vec::with_capacity(events.len());
        for batch in batches(&events) {
            let mut commands = Vec::with_capacity(batch.len());
            let add = |event: &Event| self.command(event).map(|command| commands.push(command));
            let encoded: Vec<_> = batch.iter().map(add).collect();
            let mut answers = self.0.commands.execute_each(&commands).await.into_iter();
            let missing = || Err(RedisError::failed("an answer is missing"));
            let mut next = || answers.next().unwrap_or_else(missing).map_err(BusError::from);
            results.extend(encoded.into_iter().map(|encoded| encoded.and_then(|()| next())));
        }
        results
    }
}
