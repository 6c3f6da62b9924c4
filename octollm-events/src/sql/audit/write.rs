//! The tables of the audit log, and what writes to them.

use jiff::Timestamp;
use octollm_core::{audit::AuditEntry, event::Event};
use serde_json::{Value as Json, json};

use super::{AuditAnchor, AuditRecord, chain::Chain};
use crate::sql::{
    migration::{Part, Version},
    outbox,
    statement::{Rows, Sql},
    writer::{Operation, Tx},
};

pub(super) static TABLES: Part = Part { name: "audit", versions: &[FIRST] };

const FIRST: Version = Version {
    sqlite: "
        CREATE TABLE octollm_audit (seq INTEGER PRIMARY KEY, line TEXT NOT NULL, hash TEXT NOT NULL);
        CREATE TABLE octollm_audit_head (
            id INTEGER PRIMARY KEY CHECK (id = 1),
            seq INTEGER NOT NULL,
            hash TEXT NOT NULL,
            cut INTEGER NOT NULL,
            cut_hash TEXT NOT NULL
        );
        INSERT INTO octollm_audit_head (id, seq, hash, cut, cut_hash) VALUES (1, 0, '', 0, '');
        CREATE TRIGGER octollm_audit_insert BEFORE INSERT ON octollm_audit
            WHEN NEW.seq <= (SELECT max(seq) FROM octollm_audit)
            BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END;
        CREATE TRIGGER octollm_audit_update BEFORE UPDATE ON octollm_audit
            BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END;
        CREATE TRIGGER octollm_audit_delete BEFORE DELETE ON octollm_audit
            WHEN OLD.seq > (SELECT cut FROM octollm_audit_head)
            BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END;
    ",
    postgres: "
        CREATE TABLE octollm_audit (seq BIGINT PRIMARY KEY, line TEXT NOT NULL, hash TEXT NOT NULL);
        CREATE TABLE octollm_audit_head (
            id BIGINT PRIMARY KEY CHECK (id = 1),
            seq BIGINT NOT NULL,
            hash TEXT NOT NULL,
            cut BIGINT NOT NULL,
            cut_hash TEXT NOT NULL
        );
        INSERT INTO octollm_audit_head (id, seq, hash, cut, cut_hash) VALUES (1, 0, '', 0, '');
        CREATE FUNCTION octollm_audit_guard() RETURNS trigger LANGUAGE plpgsql AS $guard$
            BEGIN
                IF TG_OP = 'DELETE' THEN
                    IF OLD.seq <= (SELECT cut FROM octollm_audit_head) THEN
                        RETURN OLD;
                    END IF;
                END IF;
                RAISE EXCEPTION 'the audit log is append-only';
            END
        $guard$;
        CREATE TRIGGER octollm_audit_rows BEFORE UPDATE OR DELETE ON octollm_audit
            FOR EACH ROW EXECUTE FUNCTION octollm_audit_guard();
        CREATE TRIGGER octollm_audit_truncate BEFORE TRUNCATE ON octollm_audit
            FOR EACH STATEMENT EXECUTE FUNCTION octollm_audit_guard();
    ",
};

/// Appends an entry.
pub(super) struct Append {
    pub(super) entry: AuditEntry,
    /// Whether it is published.
    pub(super) outbox: bool,
}

impl Operation for Append {
    type Output = ();
    const ORDER: u8 = 110;

    async fn run(batch: &[Self], tx: &mut Tx<'_>) -> Result<Vec<()>, sqlx::Error> {
        append(batch.iter().map(|append| (append.entry.clone(), append.outbox)), tx).await?;
        Ok(vec![(); batch.len()])
    }
}

async fn append(
    entries: impl Iterator<Item = (AuditEntry, bool)> + Send,
    tx: &mut Tx<'_>,
) -> Result<(), sqlx::Error> {
    // The lock of all processes, until the transaction ends.
    static LOCK: Sql = Sql::new("SELECT seq, hash FROM octollm_audit_head {pg:FOR UPDATE}");
    static NOW: Sql = Sql::new("SELECT {now}");
    static INSERT: Sql = Sql::new(
        "INSERT INTO octollm_audit (seq, line, hash) SELECT rows.seq, rows.line, rows.hash FROM \
         {rows:seq int, line text, hash text} WHERE true ORDER BY rows.seq",
    );
    static PUBLISH: Sql = Sql::new(
        "INSERT INTO octollm_outbox (part, size, event) SELECT rows.part, rows.size, rows.event FROM \
         {rows:part int, size int, event bytes} WHERE true",
    );
    static HEAD: Sql = Sql::new("UPDATE octollm_audit_head SET seq = $1, hash = $2");
    let Some(last) = tx.conn.fetch(&LOCK, []).await?.pop() else { return Err(sqlx::Error::RowNotFound) };
    let mut chain = Chain::new(AuditAnchor { seq: last.count(0)?, hash: last.text(1)? });
    let now = tx.conn.fetch(&NOW, []).await?.first().map(|row| row.int(0)).transpose()?.unwrap_or(0);
    let now = Timestamp::from_microsecond(now).unwrap_or_default();
    let (mut rows, mut events) = (Rows::new(), Rows::new());
    for (entry, outbox) in entries {
        let (record, line) = chain.append(entry, now).map_err(|error| sqlx::Error::Encode(error.into()))?;
        rows.push([record.seq.into(), line.into(), chain.last.hash.as_str().into()]);
        if outbox {
            let event = recorded(&record, &chain.last.hash).map_err(sqlx::Error::Encode)?;
            events
                .push(outbox::row(&event, event.size()).map_err(|error| sqlx::Error::Encode(error.into()))?);
        }
    }
    tx.conn.execute_rows(&INSERT, [], rows).await?;
    tx.conn.execute(&HEAD, [chain.last.seq.into(), chain.last.hash.into()]).await?;
    if !events.is_empty() {
        tx.conn.execute_rows(&PUBLISH, [], events).await?;
        tx.changed(outbox::topic());
    }
    Ok(())
}

/// The event of an entry.
fn recorded(record: &AuditRecord, hash: &str) -> Result<Event, Box<dyn std::error::Error + Send + Sync>> {
    let mut data = serde_json::to_value(record)?;
    if let Json::Object(members) = &mut data {
        members.insert("hash".to_owned(), json!(hash));
    }
    let event = Event::new("audit.recorded", record.entry.source.clone(), data)?;
    let subject = record.entry.task.as_ref().map(ToString::to_string).unwrap_or_default();
    Ok(event.with_partition_key("audit").with_subject(subject))
}

/// Deletes the oldest entries. `None` where there is no entry of this number.
pub(super) struct Cut {
    pub(super) until: u64,
    pub(super) entry: AuditEntry,
    pub(super) outbox: bool,
}

impl Operation for Cut {
    type Output = Option<AuditAnchor>;
    const ORDER: u8 = 111;

    async fn run(batch: &[Self], tx: &mut Tx<'_>) -> Result<Vec<Option<AuditAnchor>>, sqlx::Error> {
        static READ: Sql = Sql::new("SELECT hash FROM octollm_audit WHERE seq = $1");
        static CUT: Sql = Sql::new("UPDATE octollm_audit_head SET cut = $1, cut_hash = $2");
        static DELETE: Sql = Sql::new("DELETE FROM octollm_audit WHERE seq <= $1");
        let mut cuts = Vec::with_capacity(batch.len());
        for Self { until, entry, outbox } in batch {
            let rows = tx.conn.fetch(&READ, [(*until).into()]).await?;
            let Some(row) = rows.first() else {
                cuts.push(None);
                continue;
            };
            let anchor = AuditAnchor { seq: *until, hash: row.text(0)? };
            let entry = entry.clone().target(format!("{}:{}", anchor.seq, anchor.hash));
            append(std::iter::once((entry, *outbox)), tx).await?;
            tx.conn.execute(&CUT, [anchor.seq.into(), anchor.hash.as_str().into()]).await?;
            tx.conn.execute(&DELETE, [anchor.seq.into()]).await?;
            cuts.push(Some(anchor));
        }
        Ok(cuts)
    }
}
