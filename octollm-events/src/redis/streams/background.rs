//! What a bus does by itself: it follows the log, trims it, and warns of the settings of the server.

use std::{sync::Arc, time::Duration};

use redis::Value;

use super::{
    Shared,
    delayed::publish_due,
    entry::{Id, text},
    reader,
    scripts::{TRIM_SCRIPT, of_group},
};
use crate::redis::commands::Commands;

/// Time between two looks for what can be trimmed.
const INTERVAL: Duration = Duration::from_secs(1);

/// What the bus does in the background, until it is closed.
pub(super) async fn work(shared: Arc<Shared>, waiting: Commands, from: Id, history: usize) {
    let mut closed = shared.closed.subscribe();
    tokio::select! {
        _ = closed.wait_for(|closed| *closed) => {}
        () = reader::follow(shared.clone(), waiting, from) => {}
        () = publish_due(&shared) => {}
        () = trim(&shared, history) => {}
    }
    shared.live.end().await;
}

/// Deletes what no group needs, beyond the history.
async fn trim(shared: &Shared, history: usize) {
    loop {
        let mut call = of_group(&TRIM_SCRIPT, &shared.keys, "");
        call.arg(history);
        // Where it fails, the log is longer for a while.
        let _: Result<Value, _> = shared.commands.invoke(&call).await;
        tokio::time::sleep(INTERVAL).await;
    }
}

/// Warns of a server that deletes keys or stores nothing. One that does not say is not warned of.
pub(super) async fn warn_of_settings(commands: &Commands) {
    let info: Result<Value, _> = commands.execute(&redis::cmd("INFO")).await;
    let Ok(info) = info.map(info_text) else { return };
    let find =
        |name: &str| info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim);
    if let Some(policy) = find("maxmemory_policy").filter(|policy| *policy != "noeviction") {
        tracing::warn!(policy, "Redis may delete events: its `maxmemory-policy` is not `noeviction`");
    }
    let save: Result<Value, _> = commands.execute(redis::cmd("CONFIG").arg("GET").arg("save")).await;
    let has_snapshots = !matches!(&save, Ok(Value::Map(found)) if found.iter().all(|(_, value)| text(value.clone()).is_empty()));
    if find("aof_enabled") == Some("0") && !has_snapshots {
        tracing::warn!("Redis stores nothing on its disk: events are lost when it ends");
    }
}

fn info_text(info: Value) -> String {
    match info {
        Value::VerbatimString { text, .. } => text,
        other => text(other),
    }
}
