//! The tables of the bus.

use crate::sql::migration::{Part, Version};

pub(super) static TABLES: Part = Part { name: "bus", versions: &[FIRST, SECOND] };

// A delivery is an event on its way through a group. `due` is the time from which it can be claimed: 0 at once, and null while
// an earlier one of its key is not settled. While it is leased, `due` is the end of the lease. `token` counts what fences. A
// replayed event is in its delivery, all others are in the log. Events without a key have the key 0, those that never expire the
// time 0.
const FIRST: Version = Version {
    sqlite: "
        CREATE TABLE octollm_bus (
            id INTEGER PRIMARY KEY CHECK (id = 1),
            last INTEGER NOT NULL, events INTEGER NOT NULL, bytes INTEGER NOT NULL, trimmed INTEGER NOT NULL
        );
        INSERT INTO octollm_bus (id, last, events, bytes, trimmed) VALUES (1, 0, 0, 0, 0);
        CREATE TABLE octollm_bus_log (
            seq INTEGER PRIMARY KEY,
            channel TEXT NOT NULL, key INTEGER NOT NULL, size INTEGER NOT NULL, expires INTEGER NOT NULL, event BLOB NOT NULL
        );
        CREATE TABLE octollm_bus_group (
            id INTEGER PRIMARY KEY,
            name TEXT NOT NULL UNIQUE, pattern TEXT NOT NULL,
            events INTEGER NOT NULL, bytes INTEGER NOT NULL, dead INTEGER NOT NULL, dead_bytes INTEGER NOT NULL,
            expired INTEGER NOT NULL, discarded INTEGER NOT NULL
        );
        CREATE TABLE octollm_bus_member (id INTEGER PRIMARY KEY, group_id INTEGER NOT NULL, until INTEGER NOT NULL);
        CREATE INDEX octollm_bus_member_group ON octollm_bus_member (group_id);
        CREATE TABLE octollm_bus_delivery (
            group_id INTEGER NOT NULL, seq INTEGER NOT NULL,
            key INTEGER NOT NULL, size INTEGER NOT NULL, expires INTEGER NOT NULL,
            due INTEGER, leased INTEGER NOT NULL DEFAULT 0, token INTEGER NOT NULL DEFAULT 0, member INTEGER NOT NULL DEFAULT 0,
            attempts INTEGER NOT NULL DEFAULT 0, max_attempts INTEGER NOT NULL DEFAULT 1, event BLOB,
            PRIMARY KEY (group_id, seq)
        ) WITHOUT ROWID;
        CREATE INDEX octollm_bus_delivery_due ON octollm_bus_delivery (group_id, due, seq);
        CREATE INDEX octollm_bus_delivery_key ON octollm_bus_delivery (group_id, key, seq) WHERE key <> 0;
        CREATE INDEX octollm_bus_delivery_seq ON octollm_bus_delivery (seq);
        CREATE INDEX octollm_bus_delivery_expires ON octollm_bus_delivery (group_id, expires) WHERE expires > 0;
        CREATE INDEX octollm_bus_delivery_leased ON octollm_bus_delivery (group_id, member) WHERE leased = 1;
        CREATE TABLE octollm_bus_dead (
            group_id INTEGER NOT NULL, seq INTEGER NOT NULL,
            token INTEGER NOT NULL, size INTEGER NOT NULL, attempts INTEGER NOT NULL, reason TEXT NOT NULL, event BLOB NOT NULL,
            PRIMARY KEY (group_id, seq)
        );
        CREATE TABLE octollm_bus_delayed (
            id INTEGER PRIMARY KEY,
            event_id BLOB NOT NULL, due INTEGER NOT NULL,
            channel TEXT NOT NULL, key INTEGER NOT NULL, size INTEGER NOT NULL, expires INTEGER NOT NULL, event BLOB NOT NULL
        );
        CREATE INDEX octollm_bus_delayed_due ON octollm_bus_delayed (due);
        CREATE INDEX octollm_bus_delayed_event ON octollm_bus_delayed (event_id);
    ",
    postgres: "
        CREATE TABLE octollm_bus (
            id BIGINT PRIMARY KEY CHECK (id = 1),
            last BIGINT NOT NULL, events BIGINT NOT NULL, bytes BIGINT NOT NULL, trimmed BIGINT NOT NULL
        ) WITH (fillfactor = 50);
        INSERT INTO octollm_bus (id, last, events, bytes, trimmed) VALUES (1, 0, 0, 0, 0);
        CREATE TABLE octollm_bus_log (
            seq BIGINT PRIMARY KEY,
            channel TEXT NOT NULL, key BIGINT NOT NULL, size BIGINT NOT NULL, expires BIGINT NOT NULL, event BYTEA NOT NULL
        );
        CREATE TABLE octollm_bus_group (
            id BIGINT PRIMARY KEY,
            name TEXT NOT NULL UNIQUE, pattern TEXT NOT NULL,
            events BIGINT NOT NULL, bytes BIGINT NOT NULL, dead BIGINT NOT NULL, dead_bytes BIGINT NOT NULL,
            expired BIGINT NOT NULL, discarded BIGINT NOT NULL
        ) WITH (fillfactor = 50);
        CREATE TABLE octollm_bus_member (id BIGINT PRIMARY KEY, group_id BIGINT NOT NULL, until BIGINT NOT NULL);
        CREATE INDEX octollm_bus_member_group ON octollm_bus_member (group_id);
        CREATE TABLE octollm_bus_delivery (
            group_id BIGINT NOT NULL, seq BIGINT NOT NULL,
            key BIGINT NOT NULL, size BIGINT NOT NULL, expires BIGINT NOT NULL,
            due BIGINT, leased BIGINT NOT NULL DEFAULT 0, token BIGINT NOT NULL DEFAULT 0, member BIGINT NOT NULL DEFAULT 0,
            attempts BIGINT NOT NULL DEFAULT 0, max_attempts BIGINT NOT NULL DEFAULT 1, event BYTEA,
            PRIMARY KEY (group_id, seq)
        );
        CREATE INDEX octollm_bus_delivery_due ON octollm_bus_delivery (group_id, due, seq);
        CREATE INDEX octollm_bus_delivery_key ON octollm_bus_delivery (group_id, key, seq) WHERE key <> 0;
        CREATE INDEX octollm_bus_delivery_seq ON octollm_bus_delivery (seq);
        CREATE INDEX octollm_bus_delivery_expires ON octollm_bus_delivery (group_id, expires) WHERE expires > 0;
        CREATE INDEX octollm_bus_delivery_leased ON octollm_bus_delivery (group_id, member) WHERE leased = 1;
        CREATE TABLE octollm_bus_dead (
            group_id BIGINT NOT NULL, seq BIGINT NOT NULL,
            token BIGINT NOT NULL, size BIGINT NOT NULL, attempts BIGINT NOT NULL, reason TEXT NOT NULL, event BYTEA NOT NULL,
            PRIMARY KEY (group_id, seq)
        );
        CREATE TABLE octollm_bus_delayed (
            id BIGINT PRIMARY KEY,
            event_id BYTEA NOT NULL, due BIGINT NOT NULL,
            channel TEXT NOT NULL, key BIGINT NOT NULL, size BIGINT NOT NULL, expires BIGINT NOT NULL, event BYTEA NOT NULL
        );
        CREATE INDEX octollm_bus_delayed_due ON octollm_bus_delayed (due);
        CREATE INDEX octollm_bus_delayed_event ON octollm_bus_delayed (event_id);
    ",
};

// `epoch` is another number in each database that was set up, so that a consumer notices that its group is gone. `since` is the
// time of the last delivery, and `history` the deliveries that failed, as JSON.
const SECOND: Version = Version {
    sqlite: "
        ALTER TABLE octollm_bus ADD COLUMN epoch INTEGER NOT NULL DEFAULT 0;
        UPDATE octollm_bus SET epoch = random();
        ALTER TABLE octollm_bus_delivery ADD COLUMN since INTEGER NOT NULL DEFAULT 0;
        ALTER TABLE octollm_bus_delivery ADD COLUMN history TEXT;
        ALTER TABLE octollm_bus_dead ADD COLUMN history TEXT;
    ",
    // A statement of a function sees what was committed while the one before it waited for its lock: both in one round trip.
    postgres: "
        ALTER TABLE octollm_bus ADD COLUMN epoch BIGINT NOT NULL DEFAULT 0;
        UPDATE octollm_bus SET epoch = floor(random() * 9007199254740992)::bigint;
        ALTER TABLE octollm_bus_delivery ADD COLUMN since BIGINT NOT NULL DEFAULT 0, ADD COLUMN history TEXT;
        ALTER TABLE octollm_bus_dead ADD COLUMN history TEXT;
        CREATE OR REPLACE FUNCTION octollm_bus_publish() RETURNS TABLE (
            last BIGINT, events BIGINT, bytes BIGINT, trimmed BIGINT, epoch BIGINT,
            group_id BIGINT, group_pattern TEXT, group_events BIGINT, group_bytes BIGINT
        ) LANGUAGE plpgsql AS $$
        BEGIN
            PERFORM 1 FROM octollm_bus FOR UPDATE;
            RETURN QUERY SELECT b.last, b.events, b.bytes, b.trimmed, b.epoch, g.id, g.pattern, g.events, g.bytes
                FROM octollm_bus AS b LEFT JOIN octollm_bus_group AS g ON true;
        END $$;
    ",
};
