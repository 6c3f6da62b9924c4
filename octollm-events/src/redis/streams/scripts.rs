//! What the server executes as one step.

use octollm_core::bus::{DeadLetter, FailedAttempt};

use super::Keys;
use crate::redis::command::{Call, LazyScript, Script};

/// Reason of a dead letter whose last attempt failed.
const NO_ATTEMPTS: &str = "no attempts left";

/// A script with the constants of the bus and what is common to all.
pub(super) fn script(body: &str) -> Script {
    let constants = format!(
        "local MAX_HISTORY, MAX_REASON = {}, {}\nlocal LEASE_EXPIRED, NO_ATTEMPTS = {:?}, {NO_ATTEMPTS:?}\n",
        DeadLetter::MAX_HISTORY,
        FailedAttempt::MAX_REASON_BYTES,
        FailedAttempt::LEASE_EXPIRED,
    );
    Script::new([&constants, COMMON, body].concat())
}

// The log is a stream. A group has a position in it, by which XREADGROUP reads without a list of what is pending. `due` has what the group was given
// and has not settled: with the order in which it is ready, which is a small number, or with the time from which it can be claimed, in ms since
// 1970. `claims` has the token of the lease, or none; the number of attempts; how many there may be; when the last one began; and the id of the event.
// `failed` has the attempts that failed, as JSON. A replayed event is in `again`, and its id begins with `r:`.
const COMMON: &str = r"
local log, groups, wake, trimmed = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local due, claims, dead, again, stats, members = KEYS[5], KEYS[6], KEYS[7], KEYS[8], KEYS[9], KEYS[10]
local failed, data, group = KEYS[11], KEYS[12], ARGV[1]
local FIRST_TIME = 100000000000
local CONSUMER = 'octollm'

local clock = redis.call('TIME')
local now = tonumber(clock[1]) * 1000 + math.floor(tonumber(clock[2]) / 1000)

local function later(time) return now + 1 + time end -- a part of this millisecond has passed: nothing is early

local function is_replayed(id) return string.sub(id, 1, 2) == 'r:' end

local function fields_of(id)
  local found
  if is_replayed(id) then
    local place = string.sub(id, 3)
    found = redis.call('XRANGE', again, place, place)
  else
    found = redis.call('XRANGE', log, id, id)
  end
  return found[1] and found[1][2]
end

local function field(fields, name)
  for at = 1, #fields, 2 do
    if fields[at] == name then return fields[at + 1] end
  end
end

local function parse(claim)
  if not claim then return '', 0, 1, 0, '' end
  local token, attempts, most, since, event = string.match(claim, '^([^|]*)|(%d+)|(%d+)|(%d+)|(.*)$')
  return token, tonumber(attempts), tonumber(most), tonumber(since), event
end

local function claim_of(token, attempts, most, since, event)
  return string.format('%s|%d|%d|%d|', token, attempts, most, since) .. event
end

-- The failed attempts with the last one. A reason that is too long is cut between two characters.
local function history_of(id, token, since, reason)
  local last = math.min(#reason, MAX_REASON)
  while last < #reason and last > 0 and math.floor(string.byte(reason, last + 1) / 64) == 2 do last = last - 1 end
  local list = cjson.decode(redis.call('HGET', failed, id) or '[]')
  list[#list + 1] = {since, string.match(token, '^(.*):') or '', string.sub(reason, 1, last)}
  if #list > MAX_HISTORY then table.remove(list, 1) end
  return cjson.encode(list)
end

local function remove(id)
  redis.call('ZREM', due, id)
  redis.call('HDEL', claims, id)
  redis.call('HDEL', failed, id)
  if is_replayed(id) then redis.call('XDEL', again, string.sub(id, 3)) end
end

-- One whose event is gone is a dead letter without fields.
local function bury(id, reason, attempts, history, most)
  local fields = fields_of(id) or {}
  local entry = {'XADD', dead, '*', 'reason', reason, 'attempts', attempts, 'history', history}
  for at = 1, #fields, 2 do
    entry[#entry + 1] = 'f:' .. fields[at]
    entry[#entry + 1] = fields[at + 1]
  end
  redis.call(unpack(entry))
  local discarded = redis.call('XTRIM', dead, 'MAXLEN', most)
  if discarded > 0 then redis.call('HINCRBY', stats, 'discarded', discarded) end
  remove(id)
end

local function wake_members() redis.call('XADD', wake, 'MAXLEN', 1, '*', 'group', group) end

-- Leases that expired with the last attempt become dead letters.
local function end_leases(most_dead)
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', due, FIRST_TIME, now, 'LIMIT', 0, 256)) do
    local token, attempts, most, since = parse(redis.call('HGET', claims, id))
    if token ~= '' and attempts >= most then
      bury(id, NO_ATTEMPTS, attempts, history_of(id, token, since, LEASE_EXPIRED), most_dead)
    end
  end
end

local function alternatives(text)
  local list = {}
  for domain, entity, action in string.gmatch(text, '([^:,]+):([^:,]+):([^:,]+)') do
    list[#list + 1] = {domain, entity, action}
  end
  return list
end

local function matches_kind(list, kind, domain)
  local entity, action = string.match(kind, '^([^.]*)%.(.*)$')
  if not entity then return true end
  for _, one in ipairs(list) do
    if (one[1] == '*' or one[1] == domain) and (one[2] == '*' or one[2] == entity)
      and (one[3] == '*' or one[3] == action) then
      return true
    end
  end
  return false
end

-- What is no event goes to each group, as a dead letter. Of each kind the list remembers whether it matches.
local function matches(list, fields)
  local kind, domain
  for at = 1, #fields, 2 do
    local name = fields[at]
    if name == 'event_type' or (name == 'type' and not kind) then kind = fields[at + 1]
    elseif name == 'domain' then domain = fields[at + 1] end
  end
  if not kind then return true end
  local known = domain and domain .. ':' .. kind or kind
  local verdict = list[known]
  if verdict == nil then
    verdict = matches_kind(list, kind, domain or 'events')
    list[known] = verdict
  end
  return verdict
end

-- Reads further entries of the log, and calls for those of the group. Returns whether there are none left. The trimming of the bus never deletes
-- the last entry that the group has read: where it is gone, somebody else has deleted entries, and perhaps some that the group has not read.
local function read_on(list, count, call)
  local read = redis.pcall('XREADGROUP', 'GROUP', group, CONSUMER, 'COUNT', count, 'NOACK', 'STREAMS', log, '>')
  if read and read.err then
    redis.call('XGROUP', 'CREATE', log, group, '0', 'MKSTREAM')
    redis.call('HSET', stats, 'missing', 1)
    return false
  end
  if not read or not read[1] then return true end
  local entries, position = read[1][2], redis.call('HGET', stats, 'position')
  if position and #redis.call('XRANGE', log, position, position) == 0 then redis.call('HSET', stats, 'missing', 1) end
  redis.call('HSET', stats, 'position', entries[#entries][1])
  for _, entry in ipairs(entries) do
    if entry[2] and matches(list, entry[2]) then call(entry[1], entry[2]) end
  end
  return #entries < count
end

local function make_ready(id)
  redis.call('ZADD', due, redis.call('HINCRBY', stats, 'order', 1), id)
end
";

// Creates a group that is not there, except where the data of the server are those that the member knows: then it was removed. Returns what
// happened, the name of the data, and whether the oldest events are missing.
const JOIN: &str = r"
local pattern, from_start, member, life, known = ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5]), ARGV[6]
redis.call('SET', data, ARGV[7], 'NX')
local name = redis.call('GET', data)
if known == name then return {2, name, 0} end
local found = redis.call('HGET', groups, group)
if found and found ~= pattern then return {0, found, 0} end
local gap = 0
if not found then
  redis.call('HSET', groups, group, pattern)
  redis.pcall('XGROUP', 'CREATE', log, group, from_start == '1' and '0' or '$', 'MKSTREAM')
  local edge = from_start == '1' and redis.call('XRANGE', log, '-', '+', 'COUNT', 1) or redis.call('XREVRANGE', log, '+', '-', 'COUNT', 1)
  if edge[1] then redis.call('HSET', stats, 'position', edge[1][1]) end
  if from_start == '1' and redis.call('EXISTS', trimmed) == 1 then gap = 1 end
end
redis.call('ZADD', members, now + life, member)
return {1, name, gap}
";

// Returns the deliveries, the ids of events that are gone (empty where it is not known), and the time in ms until something is due: -1 where nothing waits, and 0 where more can be read.
const CLAIM: &str = r"
local token, room, lease, most, most_dead, pattern = ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6]), ARGV[7]
local member, life, is_repeated = ARGV[8], tonumber(ARGV[9]), ARGV[10] ~= ''
if redis.call('HEXISTS', groups, group) == 0 or redis.call('GET', data) ~= ARGV[11] then return false end
if life > 0 then redis.call('ZADD', members, now + life, member) end
end_leases(most_dead)
-- The answer to this claim may have been lost: nobody has what it leased.
if is_repeated then
  local all = redis.call('HGETALL', claims)
  for at = 1, #all, 2 do
    local own, attempts, limit, since, event = parse(all[at + 1])
    if own == token then
      redis.call('ZADD', due, 0, all[at])
      redis.call('HSET', claims, all[at], claim_of('', attempts - 1, limit, since, event))
    end
  end
end
local claimed, gone, scores, values, count = {}, {}, {}, {}, 0
local expires = string.format('%.0f', later(lease))
local function lend(id, attempts, claim, fields)
  local at = 2 * count
  count = count + 1
  scores[at + 1], scores[at + 2] = expires, id
  values[at + 1], values[at + 2] = id, claim
  claimed[count] = {id, attempts, fields}
end
local function give_again(id)
  local own, attempts, _, since, event = parse(redis.call('HGET', claims, id))
  local fields = fields_of(id)
  if not fields then
    gone[#gone + 1] = event
    remove(id)
    return
  end
  if own ~= '' then redis.call('HSET', failed, id, history_of(id, own, since, LEASE_EXPIRED)) end
  lend(id, attempts + 1, claim_of(token, attempts + 1, most, now, field(fields, 'id') or ''), fields)
end
-- Most events are given for the first time.
local first_claim = claim_of(token, 1, most, now, '')
local function give(id, fields) lend(id, 1, first_claim .. (field(fields, 'id') or ''), fields) end
for _, range in ipairs({{FIRST_TIME, now}, {'-inf', '(' .. FIRST_TIME}}) do
  if count < room then
    for _, id in ipairs(redis.call('ZRANGEBYSCORE', due, range[1], range[2], 'LIMIT', 0, room - count)) do give_again(id) end
  end
end
local list, is_read, rounds = alternatives(pattern), false, 0
while count < room and not is_read and rounds < 8 do
  rounds = rounds + 1
  is_read = read_on(list, math.max(room - count, 64), function(id, fields)
    if count < room then give(id, fields) else make_ready(id) end
  end)
end
for from = 1, #scores, 2000 do
  redis.call('ZADD', due, unpack(scores, from, math.min(from + 1999, #scores)))
  redis.call('HSET', claims, unpack(values, from, math.min(from + 1999, #values)))
end
if redis.call('HDEL', stats, 'missing') == 1 then gone[#gone + 1] = '' end
local wait = -1
local first = redis.call('ZRANGEBYSCORE', due, FIRST_TIME, '+inf', 'WITHSCORES', 'LIMIT', 0, 1)
if first[2] then wait = math.max(tonumber(first[2]) - now, 1) end
if room > 0 and not is_read then wait = 0 end
return {claimed, gone, wait}
";

// For deliveries of one claim that have the same end: their token, what to do, a number, a reason or both with it, how many there are, and their ids.
// Returns the numbers of those that were not settled, counted from 1.
const SETTLE: &str = r"
local most_dead = tonumber(ARGV[2])
local lost, acked, again_acked, replayed, woken = {}, {}, {}, {}, false
local number, at = 0, 3
local function settle(id, claim, token, act, with)
  local own, attempts, most, since, event = parse(claim)
  if own == '' or own ~= token then
    lost[#lost + 1] = number
  elseif act == 'ack' or act == 'expired' then
    acked[#acked + 1] = id
    if attempts > 1 then again_acked[#again_acked + 1] = id end
    if is_replayed(id) then replayed[#replayed + 1] = string.sub(id, 3) end
    if act == 'expired' then redis.call('HINCRBY', stats, 'expired', 1) end
  elseif act == 'dead' or act == 'last' then
    local history = history_of(id, own, since, with)
    bury(id, act == 'last' and NO_ATTEMPTS or with, attempts, history, most_dead)
  elseif act == 'extend' then
    redis.call('ZADD', due, later(tonumber(with)), id)
    woken = true
  else
    local score = 0
    if act == 'release' then
      attempts = attempts - 1
    else
      local delay, reason = string.match(with, '^(%d+) (.*)$')
      if tonumber(delay) > 0 then score = later(tonumber(delay)) end
      redis.call('HSET', failed, id, history_of(id, own, since, reason))
    end
    redis.call('ZADD', due, score, id)
    redis.call('HSET', claims, id, claim_of('', attempts, most, since, event))
    woken = true
  end
end
while at < #ARGV do
  local token, act, with, ids = ARGV[at], ARGV[at + 1], ARGV[at + 2], {}
  for one = 1, tonumber(ARGV[at + 3]) do ids[one] = ARGV[at + 3 + one] end
  at = at + 4 + #ids
  -- Most events are acknowledged at their first attempt.
  local first, found = token .. '|1|', redis.call('HMGET', claims, unpack(ids))
  local length = act == 'ack' and #first or 0
  for one, id in ipairs(ids) do
    number = number + 1
    local claim = found[one]
    if length > 0 and claim and string.sub(claim, 1, length) == first and not is_replayed(id) then
      acked[#acked + 1] = id
    else
      settle(id, claim, token, act, with)
    end
  end
end
if #acked > 0 then
  redis.call('ZREM', due, unpack(acked))
  redis.call('HDEL', claims, unpack(acked))
  if #again_acked > 0 then redis.call('HDEL', failed, unpack(again_acked)) end
  if #replayed > 0 then redis.call('XDEL', again, unpack(replayed)) end
end
if woken then wake_members() end
return lost
";

// Members, pending, waiting, dead letters, expired, discarded.
const STATUS: &str = r"
local most_dead, leaves = tonumber(ARGV[2]), ARGV[3]
local pattern = redis.call('HGET', groups, group)
if not pattern then return false end
if leaves ~= '' then redis.call('ZREM', members, leaves) end
end_leases(most_dead)
redis.call('ZREMRANGEBYSCORE', members, '-inf', now)
local list, is_read = alternatives(pattern), false
-- What is not read yet is counted by the server, with the events of other channels.
while not is_read and redis.call('ZCARD', due) < 10000 do is_read = read_on(list, 512, make_ready) end
local unread = 0
if not is_read then
  for _, info in ipairs(redis.call('XINFO', 'GROUPS', log)) do
    local of = {}
    for at = 1, #info, 2 do of[info[at]] = info[at + 1] end
    if of.name == group then unread = tonumber(of.lag) or 0 end
  end
end
local pending = 0
local all = redis.call('HGETALL', claims)
for at = 1, #all, 2 do
  if string.sub(all[at + 1], 1, 1) ~= '|' and tonumber(redis.call('ZSCORE', due, all[at])) > now then pending = pending + 1 end
end
local function count(name) return tonumber(redis.call('HGET', stats, name) or 0) end
return {redis.call('ZCARD', members), pending, redis.call('ZCARD', due) - pending + unread, redis.call('XLEN', dead), count('expired'), count('discarded')}
";

const REMOVE: &str = r"
local found = redis.call('HDEL', groups, group)
redis.call('DEL', due, claims, dead, again, stats, members, failed)
redis.pcall('XGROUP', 'DESTROY', log, group)
wake_members()
return found
";

const REPLAY: &str = r"
local entry = ARGV[2]
if redis.call('HEXISTS', groups, group) == 0 then return -1 end
local found = redis.call('XRANGE', dead, entry, entry)
if not found[1] then return 0 end
local event = {'XADD', again, '*'}
for at = 1, #found[1][2], 2 do
  local name = found[1][2][at]
  if string.sub(name, 1, 2) == 'f:' then
    event[#event + 1] = string.sub(name, 3)
    event[#event + 1] = found[1][2][at + 1]
  end
end
local id = redis.call(unpack(event))
redis.call('XDEL', dead, entry)
make_ready('r:' .. id)
wake_members()
return 1
";

macro_rules! scripts {
    ($($name:ident = $body:ident;)*) => {
        $(pub(super) static $name: LazyScript = LazyScript::new(|| $crate::redis::streams::scripts::script($body));)*
    };
}
pub(super) use scripts;

scripts! {
    JOIN_SCRIPT = JOIN;
    CLAIM_SCRIPT = CLAIM;
    SETTLE_SCRIPT = SETTLE;
    STATUS_SCRIPT = STATUS;
    REMOVE_SCRIPT = REMOVE;
    REPLAY_SCRIPT = REPLAY;
}

/// A call of a script for a group.
pub(super) fn of_group<'a>(script: &'a Script, keys: &Keys, group: &str) -> Call<'a> {
    let of_group = ["due", "claims", "dead", "again", "stats", "members", "failed"];
    let names = keys.of_bus().into_iter().chain(of_group.map(|part| keys.of_group(group, part)));
    let mut call = script.call(&names.chain([keys.of("data")]).collect::<Vec<_>>());
    call.arg(group);
    call
}
