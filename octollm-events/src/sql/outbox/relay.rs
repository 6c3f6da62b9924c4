//! Publishes what is in an outbox.

use std::{collections::HashSet, sync::Arc, time::Duration};

use futures_util::FutureExt;
use octollm_core::{
    bus::{BusError, EventBus},
    event::Event,
    id::RequestId,
};
use tokio::time::{sleep, timeout};

use super::{
    Outbox, topic,
    write::{Lease, Renew, Settle},
};
use crate::{
    Encoding,
    sql::{error::SqlError, statement::Sql},
};

/// After a change the outbox is looked at several times: what was stored is committed later. The pauses double.
const FIRST_PAUSE: Duration = Duration::from_millis(5);
/// The outbox is looked at this often without a change.
const LAST_PAUSE: Duration = Duration::from_secs(5);
/// Pause after a failure of the bus, doubled up to the last pause.
const FIRST_FAILURE: Duration = Duration::from_millis(100);
/// Most events that are read at once, and most bytes of them after the first one.
const EVENTS: usize = 256;
const BYTES: usize = 4 << 20;
/// Time limit of the bus.
const PUBLISHING: Duration = Duration::from_secs(30);
/// Most times that a relay reads from one partition before it takes another one.
const TURNS: usize = 8;

/// How a turn of a relay ended.
enum Turn {
    /// All events of the partition are published.
    Empty,
    Published,
    /// The bus takes some events later. Others may be published.
    Failed {
        progress: bool,
    },
    Ended(BusError),
}

pub(super) async fn run<B: EventBus>(outbox: Outbox, bus: Arc<B>) -> BusError {
    let relay = Relay { outbox, bus, holder: RequestId::new().to_string() };
    let mut changed = relay.outbox.database.changes().subscribe(topic());
    let (mut pause, mut failure) = (FIRST_PAUSE, FIRST_FAILURE);
    loop {
        changed.mark_unchanged();
        match relay.partition().await {
            Ok(Some(Turn::Ended(error))) => return error,
            Ok(Some(Turn::Failed { progress })) => {
                if progress {
                    failure = FIRST_FAILURE;
                }
                sleep(failure).await;
                failure = (failure * 2).min(LAST_PAUSE);
            }
            Ok(Some(Turn::Empty | Turn::Published)) => (pause, failure) = (FIRST_PAUSE, FIRST_FAILURE),
            Ok(None) => match timeout(pause, changed.changed()).await {
                Ok(Ok(())) => pause = FIRST_PAUSE,
                Ok(Err(_closed)) => return BusError::Closed,
                Err(_) => pause = (pause * 2).min(LAST_PAUSE),
            },
            Err(SqlError::Closed) => return BusError::Closed,
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "events of the outbox not relayed");
                sleep(failure).await;
                failure = (failure * 2).min(LAST_PAUSE);
            }
        }
    }
}

/// Events with the ids of their rows.
type Stored = Vec<(i64, Event)>;

struct Relay<B> {
    outbox: Outbox,
    bus: Arc<B>,
    holder: String,
}

impl<B: EventBus> Relay<B> {
    /// Publishes events of one partition. `None` where no event waits that another relay does not have.
    async fn partition(&self) -> Result<Option<Turn>, SqlError> {
        // A read costs less than a transaction.
        static ANY: Sql = Sql::new(
            "SELECT 1 FROM octollm_outbox_part AS p WHERE p.until <= {now} AND EXISTS ( \
             SELECT 1 FROM octollm_outbox AS o WHERE o.part = p.part AND o.refused IS NULL) LIMIT 1",
        );
        let database = &self.outbox.database;
        if database.fetch(&ANY, []).await?.is_empty() {
            return Ok(None);
        }
        let lease = Lease { holder: self.holder.clone(), time: self.outbox.lease };
        let Some(part) = database.write(lease).await? else { return Ok(None) };
        let leased = Leased { relay: self, part };
        let turn = tokio::select! {
            turn = self.turns(part) => turn?,
            () = leased.until_lost() => Turn::Published,
        };
        Ok(Some(turn))
    }

    async fn turns(&self, part: i64) -> Result<Turn, SqlError> {
        for _ in 0..TURNS {
            match self.turn(part).await? {
                Turn::Published => {}
                ended => return Ok(ended),
            }
        }
        Ok(Turn::Published)
    }

    async fn turn(&self, part: i64) -> Result<Turn, SqlError> {
        let (mut events, refused) = self.read(part).await?;
        if events.is_empty() && refused.is_empty() {
            return Ok(Turn::Empty);
        }
        let mut settled = Settle { published: Vec::new(), refused };
        let (mut failed, mut progress) = (HashSet::new(), false);
        while !events.is_empty() {
            // Of each key one at a time: an event is not published where one before it was not.
            let (round, later) = first_of_each_key(events, &failed);
            events = later;
            let copies = round.iter().map(|(_, event)| event.clone()).collect();
            let Ok(results) = timeout(PUBLISHING, self.bus.publish_all(copies)).await else {
                tracing::debug!("events of the outbox not published: the bus does not answer");
                return Ok(Turn::Failed { progress: false });
            };
            for ((id, event), result) in round.into_iter().zip(results) {
                match result {
                    Ok(()) => {
                        progress = true;
                        settled.published.push(id);
                    }
                    Err(error) if error.retryable() => {
                        tracing::debug!(event_id = event.id(), %error, "event of the outbox not published");
                        failed.insert(event.partition_key().unwrap_or_default().to_owned());
                    }
                    Err(BusError::Closed) => {
                        self.outbox.database.write(settled).await?;
                        return Ok(Turn::Ended(BusError::Closed));
                    }
                    Err(error) => {
                        tracing::warn!(event_id = event.id(), %error, "the bus refused an event of the outbox");
                        settled.refused.push((id, error.to_string()));
                    }
                }
            }
            self.outbox.database.write(std::mem::take(&mut settled)).await?;
        }
        if !settled.refused.is_empty() {
            self.outbox.database.write(settled).await?;
        }
        Ok(if failed.is_empty() { Turn::Published } else { Turn::Failed { progress } })
    }

    /// The first events of a partition, and those that cannot be read.
    async fn read(&self, part: i64) -> Result<(Stored, Vec<(i64, String)>), SqlError> {
        static READ: Sql = Sql::new(
            "SELECT id, event FROM (SELECT id, event, sum(size) OVER (ORDER BY id) - size AS before FROM ( \
             SELECT id, event, size FROM octollm_outbox WHERE part = $1 AND refused IS NULL ORDER BY id LIMIT $2) AS first) AS summed \
             WHERE before < $3{pg:::bigint} ORDER BY id",
        );
        let (mut events, mut refused) = (Vec::new(), Vec::new());
        let rows = self.outbox.database.fetch(&READ, [part.into(), EVENTS.into(), BYTES.into()]).await?;
        for row in rows {
            match Encoding::Native.decode(&row.bytes(1)?) {
                Ok(event) => events.push((row.int(0)?, event)),
                Err(error) => refused.push((row.int(0)?, error.to_string())),
            }
        }
        Ok((events, refused))
    }
}

/// Splits events into the first of each key with those that have none, and the others. Those of a key that has failed are in
/// neither, nor are later events without a key where one has failed.
fn first_of_each_key(events: Stored, failed: &HashSet<String>) -> (Stored, Stored) {
    let mut keys = HashSet::new();
    let left =
        events.into_iter().filter(|(_, event)| !failed.contains(event.partition_key().unwrap_or_default()));
    left.partition(|(_, event)| event.partition_key().is_none_or(|key| keys.insert(key.to_owned())))
}

/// A leased partition, whose lease ends with the value.
struct Leased<'r, B: EventBus> {
    relay: &'r Relay<B>,
    part: i64,
}

impl<B: EventBus> Leased<'_, B> {
    fn renewal(&self, time: Duration) -> Renew {
        Renew { part: self.part, holder: self.relay.holder.clone(), time }
    }

    /// Renews the lease until it is lost.
    async fn until_lost(&self) {
        let Outbox { database, lease, .. } = &self.relay.outbox;
        loop {
            sleep(*lease / 3).await;
            if let Ok(false) = database.write(self.renewal(*lease)).await {
                return;
            }
        }
    }
}

impl<B: EventBus> Drop for Leased<'_, B> {
    fn drop(&mut self) {
        // An operation that was begun runs to its end.
        let _ = self.relay.outbox.database.write(self.renewal(Duration::ZERO)).now_or_never();
    }
}
