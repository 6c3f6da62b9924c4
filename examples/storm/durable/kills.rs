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

/// Kills a brain on each of these databases: `sqlite` is a file in a temporary folder, and `postgres` a server of this process.
pub(super) async fn storm(databases: &[&str], short: bool) -> Result<()> {
    let kills = if short { 20 } else { 1_000 };
    for database in if databases.is_empty() { &["sqlite", "postgres"] } else { databases } {
        match *database {
            "sqlite" => {
                let folder = tempfile::tempdir()?;
                let url = format!("sqlite:{}", folder.path().join("tasks.db").display());
                run(database, &url, kills).await?;
            }
            "postgres" => {
                let own = postgres()?;
                run(database, &own.server.database(), kills).await?;
            }
            url => run(url.split(':').next().unwrap_or_default(), url, kills).await?,
        }
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
