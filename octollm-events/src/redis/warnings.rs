//! Warnings of the settings of a server.

use super::{
    command::Command,
    commands::Commands,
    reply::Reply,
    values::{items, text},
};

/// Warns of a server that deletes keys or stores nothing. One that does not say is not warned of.
pub(super) async fn warn_of_settings(commands: &Commands) {
    let Ok(info) = commands.execute(&Command::new("INFO")).await.map(text) else { return };
    let find =
        |name: &str| info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim);
    if let Some(policy) = find("maxmemory_policy").filter(|policy| *policy != "noeviction") {
        tracing::warn!(
            policy,
            "Redis may delete events and records: its `maxmemory-policy` is not `noeviction`"
        );
    }
    let save = commands.execute(Command::new("CONFIG").arg("GET").arg("save")).await;
    let is_empty = |reply: &Reply| reply.as_text().is_none_or(<[u8]>::is_empty);
    let has_snapshots =
        save.map_or(true, |found| items(found).chunks(2).any(|pair| !pair.last().is_none_or(is_empty)));
    if find("aof_enabled") == Some("0") && !has_snapshots {
        tracing::warn!("Redis stores nothing on its disk: events and records are lost when it ends");
    }
}
