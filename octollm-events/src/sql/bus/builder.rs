//! How a bus is opened.

use std::{sync::Arc, time::Duration};

use octollm_core::error::ConfigError;
use tokio::sync::watch;

use super::{
    Owner, Shared, SqlBus,
    live::{self, Live, publish_due, until_closed},
    publish::Limits,
    state::Limit,
    tables::TABLES,
};
use crate::sql::{database::SqlDatabase, error::SqlError};

const MEBIBYTE: usize = 1024 * 1024;

/// Builds a [`SqlBus`].
///
/// Each limit is a number of events and the sum of their [`size`](octollm_core::event::Event::size)s in bytes. The processes on one database set the
/// same limits.
#[derive(Debug, Clone)]
#[must_use = "a builder does nothing until `open` is called"]
pub struct SqlBusBuilder {
    database: SqlDatabase,
    max_event_bytes: usize,
    block_timeout: Duration,
    history: Limit,
    backlog: Limit,
    delayed: Limit,
    dead_letters: Limit,
}

impl SqlBusBuilder {
    pub(super) fn new(database: &SqlDatabase) -> Self {
        Self {
            database: database.clone(),
            max_event_bytes: MEBIBYTE,
            block_timeout: Duration::from_secs(5),
            history: Limit { events: 65_536, bytes: 64 * MEBIBYTE },
            backlog: Limit { events: 1_048_576, bytes: 256 * MEBIBYTE },
            delayed: Limit { events: 65_536, bytes: 64 * MEBIBYTE },
            dead_letters: Limit { events: 65_536, bytes: 64 * MEBIBYTE },
        }
    }

    /// Sets the size of the largest event that is accepted (default 1 MiB). Each limit below has room for such an event, except that
    /// the history can be empty.
    pub fn max_event_bytes(mut self, bytes: usize) -> Self {
        self.max_event_bytes = bytes;
        self
    }

    /// Sets the time for which the subscriptions of this handle wait for one under [`Overflow::Block`](octollm_core::bus::Overflow::Block) (default 5 s).
    pub fn block_timeout(mut self, timeout: Duration) -> Self {
        self.block_timeout = timeout;
        self
    }

    /// Limits the events that are stored for later groups and slow subscriptions (default 65 536 events, 64 MiB). Events that a group
    /// has not settled are stored beside.
    pub fn history(mut self, events: usize, bytes: usize) -> Self {
        self.history = Limit { events, bytes };
        self
    }

    /// Limits the unsettled events of a group (default 1 048 576 events, 256 MiB). Publishing another one to the group returns
    /// [`BusError::Full`](octollm_core::bus::BusError::Full).
    pub fn backlog(mut self, events: usize, bytes: usize) -> Self {
        self.backlog = Limit { events, bytes };
        self
    }

    /// Limits the events that are to be published later (default 65 536 events, 64 MiB). Adding another one returns
    /// [`BusError::Full`](octollm_core::bus::BusError::Full).
    pub fn delayed(mut self, events: usize, bytes: usize) -> Self {
        self.delayed = Limit { events, bytes };
        self
    }

    /// Limits the dead letters of a group (default 65 536 events, 64 MiB with their reasons). The oldest are deleted to make room.
    pub fn dead_letters(mut self, events: usize, bytes: usize) -> Self {
        self.dead_letters = Limit { events, bytes };
        self
    }

    /// Opens the bus. Creates its tables where there are none.
    ///
    /// # Errors
    /// [`SqlError::Setting`] for the first setting that is not valid, and a [`SqlError`] that names the reason.
    ///
    /// # Cancel safety
    /// The tables are created wholly or not at all.
    pub async fn open(self) -> Result<SqlBus, SqlError> {
        if self.max_event_bytes == 0 {
            return Err(ConfigError::new("max_event_bytes", "is 0").into());
        }
        let rooms =
            [("backlog", self.backlog), ("delayed", self.delayed), ("dead_letters", self.dead_letters)];
        if let Some((name, _)) =
            rooms.into_iter().find(|(_, room)| !room.allows(1, self.max_event_bytes as u64))
        {
            return Err(ConfigError::new(name, "has no room for the largest event").into());
        }
        self.database.migrate(&TABLES).await?;
        let Self { database, max_event_bytes, block_timeout, history, backlog, delayed, dead_letters } = self;
        let (live, closed) = (Live::default(), watch::Sender::new(false));
        let is_creating = Arc::default();
        let shared = Shared { database, block_timeout, dead_letters, live, closed, is_creating };
        let shared = Arc::new(shared);
        let limits = Limits { history, backlog };
        tokio::spawn({
            let shared = shared.clone();
            async move {
                until_closed(shared.closed.subscribe(), publish_due(shared.clone(), limits)).await;
                let _ = shared.closed.subscribe().wait_for(|closed| *closed).await;
                live::end(&shared.live).await;
            }
        });
        Ok(SqlBus(Arc::new(Owner { shared, max_event_bytes, limits, delayed })))
    }
}
