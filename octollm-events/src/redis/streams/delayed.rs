//! Events that are published later.

use std::time::Duration;

use tokio::time::timeout;

use super::{Keys, Shared, scripts::scripts};
use crate::redis::{
    command::{Call, LazyScript, Script},
    values::number,
};

/// Time between two looks for what is due without a notification, and after a failure.
const INTERVAL: Duration = Duration::from_secs(5);
const FAILURE: Duration = Duration::from_secs(1);

// Publishes what is due. Returns the time in ms until the next one, or -1.
const DELAYED: &str = r"
local delayed, events, ids = KEYS[5], KEYS[6], KEYS[7]
for _, number in ipairs(redis.call('ZRANGEBYSCORE', delayed, '-inf', now, 'LIMIT', 0, 256)) do
  local event = cmsgpack.unpack(redis.call('HGET', events, number))
  redis.call('XADD', log, '*', unpack(event[2]))
  redis.call('ZREM', delayed, number)
  redis.call('HDEL', events, number)
  redis.call('SREM', ids .. ':' .. event[1], number)
end
local first = redis.call('ZRANGE', delayed, 0, 0, 'WITHSCORES')
if not first[2] then return -1 end
return math.max(tonumber(first[2]) - now, 1)
";

// Stores an event that is published later.
const DELAY: &str = r"
local delayed, events, ids, numbers = KEYS[5], KEYS[6], KEYS[7], KEYS[8]
local id, delay, most = ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
if redis.call('ZCARD', delayed) >= most then return 0 end
local number = redis.call('INCR', numbers)
local fields = {}
for at = 5, #ARGV do fields[#fields + 1] = ARGV[at] end
redis.call('ZADD', delayed, later(delay), number)
redis.call('HSET', events, number, cmsgpack.pack({id, fields}))
redis.call('SADD', ids .. ':' .. id, number)
wake_members()
return 1
";

// Removes the delayed events with an id. Returns how many there were.
const CANCEL: &str = r"
local delayed, events, ids = KEYS[5], KEYS[6], KEYS[7]
local own = ids .. ':' .. ARGV[2]
local found = redis.call('SMEMBERS', own)
for _, number in ipairs(found) do
  redis.call('ZREM', delayed, number)
  redis.call('HDEL', events, number)
end
redis.call('DEL', own)
return #found
";

scripts! {
    DELAYED_SCRIPT = DELAYED;
    DELAY_SCRIPT = DELAY;
    CANCEL_SCRIPT = CANCEL;
}

/// A call of a script for delayed events.
pub(super) fn of_delayed<'a>(script: &'a Script, keys: &Keys) -> Call<'a> {
    let of_delayed = ["delayed", "delayed:events", "delayed:ids", "delayed:numbers"];
    let names = keys.of_bus().into_iter().chain(of_delayed.map(|part| keys.of(part)));
    let mut call = script.call(&names.collect::<Vec<_>>());
    call.arg("");
    call
}

/// Publishes delayed events when they are due.
pub(super) async fn publish_due(shared: &Shared) {
    let mut changed = shared.delayed.subscribe();
    loop {
        changed.mark_unchanged();
        let next = shared.commands.invoke(&of_delayed(&DELAYED_SCRIPT, &shared.keys)).await;
        let wait = match next {
            Ok(next) => u64::try_from(number(&next))
                .map_or(INTERVAL, |next| Duration::from_millis(next).min(INTERVAL)),
            Err(_) => FAILURE,
        };
        let _ = timeout(wait, changed.changed()).await;
    }
}
