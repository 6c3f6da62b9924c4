//! What a bus does by itself: it follows the log, and trims it.

use std::{sync::Arc, time::Duration};

use super::{
    Shared,
    delayed::publish_due,
    entry::Id,
    reader,
    scripts::{of_group, scripts},
};
use crate::redis::{command::LazyScript, commands::Commands};

/// Time between two looks for what can be trimmed.
const INTERVAL: Duration = Duration::from_secs(1);

// Deletes the oldest entries beyond the limit that no group needs. Returns how many.
const TRIM: &str = r"
local history = tonumber(ARGV[2])
local length = redis.call('XLEN', log)
-- One process at a time looks what can be deleted.
if length <= history or not redis.call('SET', trimmed .. ':at', '1', 'NX', 'PX', 900) then return 0 end
local function parts(id)
  local time, number = string.match(id, '^(%d+)-(%d+)$')
  return tonumber(time), tonumber(number)
end
local function is_before(one, other)
  local time, number = parts(one)
  local other_time, other_number = parts(other)
  return time < other_time or (time == other_time and number < other_number)
end
local needed
local function need(id) if not needed or is_before(id, needed) then needed = id end end
for _, info in ipairs(redis.call('XINFO', 'GROUPS', log)) do
  local name, position
  for at = 1, #info, 2 do
    if info[at] == 'name' then name = info[at + 1] elseif info[at] == 'last-delivered-id' then position = info[at + 1] end
  end
  need(position)
  local open = string.gsub(due, ':due$', '')
  open = string.sub(open, 1, #open - #group) .. name .. ':due'
  for _, id in ipairs(redis.call('ZRANGE', open, 0, -1)) do
    if not is_replayed(id) then need(id) end
  end
end
if not needed then
  local last = redis.call('XREVRANGE', log, '+', '-', 'COUNT', 1)
  needed = last[1][1]
end
local deleted = redis.call('XTRIM', log, 'MINID', '~', needed, 'LIMIT', length - history)
if deleted > 0 then redis.call('SET', trimmed, '1') end
return deleted
";

scripts! {
    TRIM_SCRIPT = TRIM;
}

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
        call.number(history);
        // Where it fails, the log is longer for a while.
        drop(shared.commands.invoke(&call).await);
        tokio::time::sleep(INTERVAL).await;
    }
}
