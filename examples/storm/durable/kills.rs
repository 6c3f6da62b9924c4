//! One brain at a time, killed at random moments.

use std::time::{Duration, Instant};

use tokio::time::sleep;

use super::{part_of, postgres, report::Report, system::System};
use crate::Result;

/// A killed brain is followed by the next one at once, which continues the tasks after this.
const LEASE: Duration = Duration::from_millis(400);
/// A process lives for a random part of this.
const LIFE: Duration = Duration::from_millis(1_000);
/// Tasks that run at the same time.
const SLOTS: usize = 8;

/// Kills a brain on each of these databases, or on a file of SQLite and a server of Postgres.
pub(super) async fn storm(databases: &[&str], short: bool) -> Result<()> {
    let kills = if short { 20 } else { 1_000 };
    for url in databases {
        run(url.split(':').next().unwrap_or_default(), url, kills).await?;
    }
    if databases.is_empty() {
        let folder = tempfile::tempdir()?;
        run("sqlite", &format!("sqlite:{}", folder.path().join("tasks.db").display()), kills).await?;
        let database = postgres()?;
        run("postgres", &database.server.database(), kills).await?;
    }
    Ok(())
}

async fn run(database: &str, url: &str, kills: usize) -> Result<()> {
    let mut system = System::start(url, Some(LEASE)).await?;
    let (begun, mut killed) = (Instant::now(), Vec::new());
    for _ in 0..kills {
        let brain = system.brain(SLOTS)?;
        sleep(part_of(LIFE)).await;
        killed.push(brain.kill()?);
    }
    let time = begun.elapsed();
    // The last one submits nothing, and ends what is left.
    let last = system.brain(0)?;
    system.finished().await?;
    drop(last);
    let report = Report::of(&system, &killed).await?;
    println!("storm kills database={database} kills={kills} time_s={:.0} {report}", time.as_secs_f64());
    report.verdict()
}
