//! The tables of tasks.

use crate::sql::migration::{Part, Version};

pub(super) static TASKS: Part = Part { name: "tasks", versions: &[FIRST, SECOND] };

/// Counters of the queue are distributed over so many rows, so that several processes seldom wait for each other.
pub(super) const STRIPES: u64 = 64;

/// Columns of `octollm_tasks`:
/// - `owner` is a key of the caller, `size` the bytes of the submission.
/// - `run_at` is the time before which a task is not free. `waits_until` is the same as long as it has not come: a claim removes it
///   where it has, so that the task takes its place among those that are ready.
/// - `unique_key` is that of the record.
/// - `holder` and `leased_until` are the lease. `first_claim` and `last_claim` are the times of the claims since the record was
///   written, which `run` counts.
/// - `oldest`, `latest` and `update_bytes` are the stored updates. `appended` is how many were appended in run `appended_run`.
///
/// Times are in microseconds since 1970.
const FIRST: Version = Version {
    sqlite: "
CREATE TABLE octollm_tasks (
    no INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    contract TEXT NOT NULL,
    status INTEGER NOT NULL,
    priority INTEGER NOT NULL,
    owner TEXT NOT NULL,
    size INTEGER NOT NULL,
    run INTEGER NOT NULL,
    revision INTEGER NOT NULL,
    run_at INTEGER,
    waits_until INTEGER,
    unique_key TEXT,
    holder TEXT,
    leased_until INTEGER,
    first_claim INTEGER,
    last_claim INTEGER,
    oldest INTEGER NOT NULL DEFAULT 1,
    latest INTEGER NOT NULL DEFAULT 0,
    update_bytes INTEGER NOT NULL DEFAULT 0,
    appended_run INTEGER NOT NULL DEFAULT 0,
    appended INTEGER NOT NULL DEFAULT 0,
    finished_at INTEGER
) STRICT;
CREATE INDEX octollm_tasks_ready ON octollm_tasks (contract, priority DESC, id) WHERE status = 0 AND waits_until IS NULL;
CREATE INDEX octollm_tasks_delayed ON octollm_tasks (contract, waits_until) WHERE status = 0 AND waits_until IS NOT NULL;
CREATE INDEX octollm_tasks_leased ON octollm_tasks (contract, leased_until) WHERE status = 1;
CREATE UNIQUE INDEX octollm_tasks_unique ON octollm_tasks (unique_key) WHERE unique_key IS NOT NULL AND status <= 1;
CREATE INDEX octollm_tasks_finished ON octollm_tasks (finished_at) WHERE finished_at IS NOT NULL;
CREATE INDEX octollm_tasks_owner ON octollm_tasks (owner, status, id);
CREATE INDEX octollm_tasks_status ON octollm_tasks (status, id);
CREATE TABLE octollm_records (
    task INTEGER PRIMARY KEY,
    format INTEGER NOT NULL,
    record TEXT NOT NULL
) STRICT;
CREATE TABLE octollm_journal (
    task INTEGER NOT NULL,
    step TEXT NOT NULL,
    seq INTEGER NOT NULL,
    at INTEGER NOT NULL,
    format INTEGER NOT NULL,
    entry TEXT NOT NULL,
    PRIMARY KEY (task, step)
) STRICT;
CREATE INDEX octollm_journal_seq ON octollm_journal (task, seq);
CREATE TABLE octollm_updates (
    task INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    bytes INTEGER NOT NULL,
    format INTEGER NOT NULL,
    body TEXT NOT NULL,
    PRIMARY KEY (task, seq)
) STRICT;
CREATE TABLE octollm_events (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL,
    format INTEGER NOT NULL,
    body TEXT NOT NULL
) STRICT;
CREATE INDEX octollm_events_id ON octollm_events (id);
CREATE TABLE octollm_relay (
    one INTEGER PRIMARY KEY,
    name TEXT NOT NULL,
    until INTEGER NOT NULL,
    last INTEGER NOT NULL
) STRICT;
CREATE TABLE octollm_counts (
    stripe INTEGER PRIMARY KEY,
    queued INTEGER NOT NULL,
    queued_bytes INTEGER NOT NULL,
    finished INTEGER NOT NULL
) STRICT;
INSERT INTO octollm_counts VALUES (0, 0, 0, 0);
",
    postgres: "
CREATE TABLE octollm_tasks (
    no BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    id TEXT COLLATE \"C\" NOT NULL UNIQUE,
    contract TEXT COLLATE \"C\" NOT NULL,
    status BIGINT NOT NULL,
    priority BIGINT NOT NULL,
    owner TEXT COLLATE \"C\" NOT NULL,
    size BIGINT NOT NULL,
    run BIGINT NOT NULL,
    revision BIGINT NOT NULL,
    run_at BIGINT,
    waits_until BIGINT,
    unique_key TEXT COLLATE \"C\",
    holder TEXT,
    leased_until BIGINT,
    first_claim BIGINT,
    last_claim BIGINT,
    oldest BIGINT NOT NULL DEFAULT 1,
    latest BIGINT NOT NULL DEFAULT 0,
    update_bytes BIGINT NOT NULL DEFAULT 0,
    appended_run BIGINT NOT NULL DEFAULT 0,
    appended BIGINT NOT NULL DEFAULT 0,
    finished_at BIGINT
) WITH (fillfactor = 70);
CREATE INDEX octollm_tasks_ready ON octollm_tasks (contract, priority DESC, id) WHERE status = 0 AND waits_until IS NULL;
CREATE INDEX octollm_tasks_delayed ON octollm_tasks (contract, waits_until) WHERE status = 0 AND waits_until IS NOT NULL;
CREATE INDEX octollm_tasks_leased ON octollm_tasks (contract, leased_until) WHERE status = 1;
CREATE UNIQUE INDEX octollm_tasks_unique ON octollm_tasks (unique_key) WHERE unique_key IS NOT NULL AND status <= 1;
CREATE INDEX octollm_tasks_finished ON octollm_tasks (finished_at) WHERE finished_at IS NOT NULL;
CREATE INDEX octollm_tasks_owner ON octollm_tasks (owner, status, id);
CREATE INDEX octollm_tasks_status ON octollm_tasks (status, id);
CREATE TABLE octollm_records (
    task BIGINT PRIMARY KEY,
    format BIGINT NOT NULL,
    record TEXT NOT NULL
);
CREATE TABLE octollm_journal (
    task BIGINT NOT NULL,
    step TEXT COLLATE \"C\" NOT NULL,
    seq BIGINT NOT NULL,
    at BIGINT NOT NULL,
    format BIGINT NOT NULL,
    entry TEXT NOT NULL,
    PRIMARY KEY (task, step)
);
CREATE INDEX octollm_journal_seq ON octollm_journal (task, seq);
CREATE TABLE octollm_updates (
    task BIGINT NOT NULL,
    seq BIGINT NOT NULL,
    bytes BIGINT NOT NULL,
    format BIGINT NOT NULL,
    body TEXT NOT NULL,
    PRIMARY KEY (task, seq)
);
CREATE TABLE octollm_events (
    seq BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    id TEXT COLLATE \"C\" NOT NULL,
    format BIGINT NOT NULL,
    body TEXT NOT NULL
);
CREATE INDEX octollm_events_id ON octollm_events (id);
CREATE UNLOGGED TABLE octollm_relay (
    one BIGINT PRIMARY KEY,
    name TEXT NOT NULL,
    until BIGINT NOT NULL,
    last BIGINT NOT NULL
);
CREATE TABLE octollm_counts (
    stripe BIGINT PRIMARY KEY,
    queued BIGINT NOT NULL,
    queued_bytes BIGINT NOT NULL,
    finished BIGINT NOT NULL
) WITH (fillfactor = 20);
INSERT INTO octollm_counts SELECT stripe, 0, 0, 0 FROM generate_series(0, 63) AS stripe;
",
};

/// Fewer indexes: an event is deleted by its number, and the entries of one task are sorted when they are read. `octollm_dead_events`
/// are events that cannot be read.
const SECOND: Version = Version {
    sqlite: "
DROP INDEX octollm_events_id;
DROP INDEX octollm_journal_seq;
CREATE TABLE octollm_dead_events (
    seq INTEGER PRIMARY KEY,
    id TEXT NOT NULL,
    format INTEGER NOT NULL,
    body TEXT NOT NULL,
    at INTEGER NOT NULL
) STRICT;
",
    postgres: "
DROP INDEX octollm_events_id;
DROP INDEX octollm_journal_seq;
ALTER TABLE octollm_records SET (fillfactor = 60);
CREATE TABLE octollm_dead_events (
    seq BIGINT PRIMARY KEY,
    id TEXT COLLATE \"C\" NOT NULL,
    format BIGINT NOT NULL,
    body TEXT NOT NULL,
    at BIGINT NOT NULL
);
",
};
