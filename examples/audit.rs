//! Who did what: a brain that writes to an audit log, and somebody who changes an entry.
//!
//! ```text
//! cargo run --example audit --features sql
//! ```

use octollm::{
    audit::{AuditEntry, AuditLog},
    context::{Caller, ContextParts},
    prelude::*,
    sql::{SqlAuditLog, SqlDatabase, sqlx},
    task::{Submission, TaskRequest},
};
use sqlx::sqlite::SqlitePoolOptions;

#[tokio::main]
async fn main() -> Result<(), octollm::Error> {
    let folder = tempfile::tempdir()?;
    let url = format!("sqlite:{}", folder.path().join("audit.db").display());
    let log = SqlAuditLog::open(&SqlDatabase::open(&url).await?).await?;

    let brain = Brain::builder()
        .arm(arm_fn(|request: TaskRequest, _| async move { Ok(TaskResult::new(request.goal)) }))
        .audit(log.clone())
        .build()?;
    let ann = caller("ann", ["task:run"]);
    let task = brain.submit(Submission::of(&TaskRequest::new("paint the fence"))?, &ann).await?;
    brain.cancel(&task.task_id, &ann).await?;
    let refused = brain.submit(Submission::of(&TaskRequest::new("open the gate"))?, &caller("bob", [])).await;
    println!("bob: {}", refused.err().map(|failure| failure.message).unwrap_or_default());
    // A program writes entries of its own.
    log.record(AuditEntry::new("report.exported", "desk").target("report 7")).await?;

    for line in log.export(0, 100).await? {
        println!("{line}");
    }
    let last = log.verify(None).await?;
    println!("{} entries verify", last.seq);

    // The tables refuse changes. Somebody with the rights to change them removes that first.
    let pool = SqlitePoolOptions::new().connect(&url).await?;
    let change = "UPDATE octollm_audit SET line = replace(line, 'bob', 'eve') WHERE seq = 3";
    println!(
        "{}",
        sqlx::query(change).execute(&pool).await.err().map(|error| error.to_string()).unwrap_or_default()
    );
    sqlx::query("DROP TRIGGER octollm_audit_update").execute(&pool).await?;
    sqlx::query(change).execute(&pool).await?;
    match log.verify(None).await {
        Err(octollm::sql::SqlError::Audit(fault)) => println!("{fault}"),
        other => panic!("the change is found, and not {other:?}"),
    }
    Ok(())
}

fn caller<const N: usize>(name: &str, scopes: [&str; N]) -> Context {
    let mut parts = ContextParts::new();
    parts.caller = Caller::known(name, scopes);
    Context::from_parts(parts, std::sync::Arc::new(()))
}
