//! Warnings of the settings of a server.

use redis::Value;

use super::{commands::Commands, values::text};

/// Warns of a server that deletes keys or stores nothing. One that does not say is not warned of.
pub(super) async fn warn_of_settings(commands: &Commands) {
    let info: Result<Value, _> = commands.execute(&redis::cmd("INFO")).await;
    let Ok(info) = info.map(info_text) else { return };
    let find =
        |name: &str| info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim);
    if let Some(policy) = find("maxmemory_policy").filter(|policy| *policy != "noeviction") {
        tracing::warn!(
            policy,
            "Redis may delete events and records: its `maxmemory-policy` is not `noeviction`"
        );
    }
    let save: Result<Value, _> = commands.execute(redis::cmd("CONFIG").arg("GET").arg("save")).await;
    let has_snapshots = !matches!(&save, Ok(Value::Map(found)) if found.iter().all(|(_, value)| text(value.clone()).is_empty()));
    if find("aof_enabled") == Some("0") && !has_snapshots {
        tracing::warn!("Redis stores nothing on its disk: events and records are lost when it ends");
    }
}

fn info_text(info: Value) -> String {
    match info {
        Value::VerbatimString { text, .. } => text,
        other => text(other),
    }
}
