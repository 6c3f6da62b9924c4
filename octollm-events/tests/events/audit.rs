//! Case 49: the audit log.

use std::collections::HashSet;

use octollm_core::audit::{AuditEntry, AuditLog};
use octollm_events::sql::{AuditFault, AuditRecord, SqlAuditLog};

use crate::*;

on_both! {
    case_49_each_entry_is_there_once_and_the_chain_holds
    case_49_a_changed_missing_or_moved_entry_is_found
    case_49_each_entry_is_published_once_it_is_stored
    the_tables_refuse_to_change_entries
    a_log_is_cut_at_a_stated_entry
    an_anchor_shows_that_the_end_was_removed_or_replaced
}

fn entry(number: usize) -> AuditEntry {
    AuditEntry::new(AuditEntry::SUBMITTED, "brain")
        .target(format!("number {number}\0\u{1F419}"))
        .scope("tasks:submit")
}

async fn log(fixture: &Fixture) -> SqlAuditLog {
    SqlAuditLog::open(&fixture.database().await).await.unwrap()
}

async fn filled(fixture: &Fixture, entries: usize) -> SqlAuditLog {
    let log = log(fixture).await;
    for number in 1..=entries {
        log.record(entry(number)).await.unwrap();
    }
    log
}

fn fault(verified: Result<octollm_events::sql::AuditAnchor, SqlError>) -> AuditFault {
    match verified {
        Err(SqlError::Audit(fault)) => fault,
        other => panic!("no fault but {other:?}"),
    }
}

async fn case_49_each_entry_is_there_once_and_the_chain_holds(fixture: Fixture) {
    const WRITERS: usize = 4;
    const ENTRIES: usize = 100;
    // Each writer is a process of its own.
    let mut writers = Vec::new();
    for writer in 0..WRITERS {
        let log = log(&fixture).await;
        writers.push(tokio::spawn(async move {
            let records = (0..ENTRIES).map(|step| log.record(entry(writer * ENTRIES + step)));
            futures_util::future::try_join_all(records).await.unwrap();
        }));
    }
    for writer in writers {
        writer.await.unwrap();
    }
    let log = log(&fixture).await;
    let anchor = log.verify(None).await.unwrap();
    assert_eq!(anchor.seq, (WRITERS * ENTRIES) as u64);
    assert_eq!(log.anchor().await.unwrap(), anchor);
    let (mut seen, mut after) = (HashSet::new(), 0);
    loop {
        let page = log.records(after, 37).await.unwrap();
        let Some(last) = page.last() else { break };
        assert_eq!(last.seq, after + page.len() as u64);
        after = last.seq;
        for record in page {
            assert!(seen.insert(record.entry.target.clone()), "{record:?}");
            assert_eq!(record.entry.scope.as_deref(), Some("tasks:submit"));
        }
    }
    assert_eq!(seen, (0..WRITERS * ENTRIES).map(|number| entry(number).target).collect());
    // The exported lines are verified without the database.
    let lines = log.export(0, usize::MAX).await.unwrap();
    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    assert_eq!(SqlAuditLog::verify_lines(lines.iter().copied(), None).unwrap(), anchor);
    let middle = SqlAuditLog::verify_lines(lines[..50].iter().copied(), None).unwrap();
    assert_eq!(log.verify(Some(&middle)).await.unwrap(), anchor);
    let forged = lines[9].replace("tasks:submit", "tasks:admin!");
    let forged = [&lines[..9], &[&*forged], &lines[10..]].concat();
    assert_eq!(SqlAuditLog::verify_lines(forged, None), Err(AuditFault::Changed { seq: 10 }));
    let missing = [&lines[..9], &lines[10..]].concat();
    assert_eq!(SqlAuditLog::verify_lines(missing, None), Err(AuditFault::Missing { seq: 10 }));
}

/// Ends the guards of the tables, as somebody does who may change them.
async fn unguarded(fixture: &Fixture) {
    let mut tx = fixture.begin().await;
    if fixture.is_postgres() {
        tx.execute("DROP TRIGGER octollm_audit_rows ON octollm_audit").await;
    } else {
        tx.execute("DROP TRIGGER octollm_audit_update").await;
        tx.execute("DROP TRIGGER octollm_audit_delete").await;
        tx.execute("DROP TRIGGER octollm_audit_insert").await;
    }
    tx.commit().await;
}

async fn change(fixture: &Fixture, statements: &[&'static str]) {
    let mut tx = fixture.begin().await;
    for statement in statements {
        tx.execute(statement).await;
    }
    tx.commit().await;
}

async fn case_49_a_changed_missing_or_moved_entry_is_found(fixture: Fixture) {
    let log = filled(&fixture, 6).await;
    let anchor = log.verify(None).await.unwrap();
    unguarded(&fixture).await;
    change(&fixture, &["CREATE TABLE copy AS SELECT * FROM octollm_audit"]).await;
    let restore = ["DELETE FROM octollm_audit", "INSERT INTO octollm_audit SELECT * FROM copy"];
    let cases: [(&[&'static str], AuditFault); 7] = [
        (
            &["UPDATE octollm_audit SET line = replace(line, 'number 3', 'number 8') WHERE seq = 3"],
            AuditFault::Changed { seq: 3 },
        ),
        (&["UPDATE octollm_audit SET hash = 'x' WHERE seq = 4"], AuditFault::Changed { seq: 4 }),
        (&["DELETE FROM octollm_audit WHERE seq IN (2, 3)"], AuditFault::Missing { seq: 2 }),
        (&["DELETE FROM octollm_audit WHERE seq = 1"], AuditFault::Missing { seq: 1 }),
        (&["DELETE FROM octollm_audit WHERE seq >= 5"], AuditFault::Missing { seq: 5 }),
        (
            &[
                "UPDATE octollm_audit SET seq = 100 WHERE seq = 3",
                "UPDATE octollm_audit SET seq = 3 WHERE seq = 4",
                "UPDATE octollm_audit SET seq = 4 WHERE seq = 100",
            ],
            AuditFault::Moved { seq: 3, found: 4 },
        ),
        // An entry with a hash of its own, that is not of this log.
        (
            &[
                "UPDATE octollm_audit SET (line, hash) = (SELECT line, hash FROM other WHERE seq = 4) WHERE seq = 4",
            ],
            AuditFault::Unlinked { seq: 4 },
        ),
    ];
    // Another log, in a database of its own.
    let elsewhere = if fixture.is_postgres() { Fixture::postgres().await } else { Fixture::sqlite().await };
    let other = filled(&elsewhere, 6).await;
    let foreign = other.export(3, 1).await.unwrap().remove(0);
    let (line, hash) = foreign.strip_suffix("\"}").unwrap().rsplit_once(",\"hash\":\"").unwrap();
    change(&fixture, &["CREATE TABLE other (seq BIGINT, line TEXT, hash TEXT)"]).await;
    insert(&fixture, format!("{line}}}"), hash.to_owned()).await;
    for (statements, expected) in cases {
        change(&fixture, statements).await;
        assert_eq!(fault(log.verify(None).await), expected, "{statements:?}");
        change(&fixture, &restore).await;
        assert_eq!(log.verify(None).await.unwrap(), anchor);
    }
    // All entries are replaced by those of another log: only an anchor that is stored elsewhere shows it.
    let replaced = other.verify(None).await.unwrap();
    assert_ne!(replaced, anchor);
    assert_eq!(fault(other.verify(Some(&log_anchor(&log, 3).await)).await), AuditFault::Unlinked { seq: 4 });
}

async fn log_anchor(log: &SqlAuditLog, seq: u64) -> octollm_events::sql::AuditAnchor {
    let lines = log.export(0, seq as usize).await.unwrap();
    SqlAuditLog::verify_lines(lines.iter().map(String::as_str), None).unwrap()
}

async fn insert(fixture: &Fixture, line: String, hash: String) {
    let statement = "INSERT INTO other (seq, line, hash) VALUES (4, $1, $2)";
    match &fixture.pool {
        Pool::Sqlite(pool) => {
            sqlx::query(statement).bind(line).bind(hash).execute(pool).await.unwrap();
        }
        Pool::Postgres(pool) => {
            sqlx::query(statement).bind(line).bind(hash).execute(pool).await.unwrap();
        }
    }
}

async fn case_49_each_entry_is_published_once_it_is_stored(fixture: Fixture) {
    let database = fixture.database().await;
    let outbox = Outbox::open(&database).await.unwrap();
    let log = SqlAuditLog::open(&database).await.unwrap().outbox(&outbox);
    let bus = MemoryBus::new();
    let mut events = subscribed(&bus).await;
    tokio::spawn(outbox.relay(bus));
    for number in 1..=20 {
        log.record(entry(number)).await.unwrap();
    }
    for number in 1..=20 {
        let event = received(&mut events).await;
        assert_eq!((event.event_type(), event.source()), ("audit.recorded", "brain"));
        let record: AuditRecord = event.data_as().unwrap();
        assert_eq!((record.seq, record.entry), (number as u64, entry(number)));
    }
}

async fn the_tables_refuse_to_change_entries(fixture: Fixture) {
    let log = filled(&fixture, 3).await;
    for statement in [
        "UPDATE octollm_audit SET line = 'x' WHERE seq = 2",
        "DELETE FROM octollm_audit WHERE seq = 2",
        "DELETE FROM octollm_audit",
        if fixture.is_postgres() {
            "TRUNCATE octollm_audit"
        } else {
            "INSERT OR REPLACE INTO octollm_audit (seq, line, hash) VALUES (2, 'x', 'x')"
        },
    ] {
        let refused = match &fixture.pool {
            Pool::Sqlite(pool) => sqlx::query(statement).execute(pool).await.err(),
            Pool::Postgres(pool) => sqlx::query(statement).execute(pool).await.err(),
        };
        let refused = refused.unwrap_or_else(|| panic!("{statement}")).to_string();
        assert!(refused.contains("append-only"), "{refused}");
    }
    assert_eq!(log.verify(None).await.unwrap().seq, 3);
}

async fn a_log_is_cut_at_a_stated_entry(fixture: Fixture) {
    let log = filled(&fixture, 10).await;
    let exported = log.export(0, 7).await.unwrap();
    let cutter = AuditEntry::new("audit.cut", "operator");
    let cut = log.cut(7, cutter.clone()).await.unwrap();
    assert_eq!(SqlAuditLog::verify_lines(exported.iter().map(String::as_str), None).unwrap(), cut);
    assert_eq!(log.verify(None).await.unwrap().seq, 11);
    assert_eq!(log.verify(Some(&cut)).await.unwrap().seq, 11);
    let left = log.records(0, 100).await.unwrap();
    assert_eq!(left.iter().map(|record| record.seq).collect::<Vec<_>>(), [8, 9, 10, 11]);
    assert_eq!(left[3].entry, cutter.clone().target(format!("7:{}", cut.hash)));
    assert_eq!(fault(log.cut(5, cutter).await), AuditFault::Missing { seq: 5 });
    log.record(entry(12)).await.unwrap();
    assert_eq!(log.verify(None).await.unwrap().seq, 12);
}

/// Whoever may change the tables changes their end as well.
async fn an_anchor_shows_that_the_end_was_removed_or_replaced(fixture: Fixture) {
    let log = filled(&fixture, 6).await;
    let anchor = log.verify(None).await.unwrap();
    assert_eq!(log.verify(Some(&anchor)).await.unwrap(), anchor);
    unguarded(&fixture).await;
    let to_four =
        "UPDATE octollm_audit_head SET seq = 4, hash = (SELECT hash FROM octollm_audit WHERE seq = 4)";
    change(&fixture, &["DELETE FROM octollm_audit WHERE seq > 4", to_four]).await;
    assert_eq!(log.verify(None).await.unwrap().seq, 4, "without an anchor it is a log of four entries");
    assert_eq!(fault(log.verify(Some(&anchor)).await), AuditFault::Missing { seq: 5 });
    for number in 5..=6 {
        log.record(entry(number)).await.unwrap();
    }
    assert_eq!(fault(log.verify(Some(&anchor)).await), AuditFault::Changed { seq: 6 });
    log.record(entry(7)).await.unwrap();
    assert_eq!(fault(log.verify(Some(&anchor)).await), AuditFault::Unlinked { seq: 7 });
}
