//! Several brains over one Postgres: healthy ones, killed ones, and ones that are stopped in order.

use std::time::{Duration, Instant};

use tokio::time::sleep;

use super::{Database, Options, brain::Process, postgres, random, report::Report, system::System};
use crate::Result;

/// Tasks that run at the same time, for each brain.
const SLOTS: usize = 4;
/// A task that has lost its process ends within its lease and this.
const BEYOND_LEASE: Duration = Duration::from_secs(5);

/// How long, and how often.
struct Size {
    healthy: Duration,
    killing: Duration,
    every: Duration,
    lease: Duration,
    stops: usize,
    /// A task of a process that is stopped in order is started by another one within this.
    handover: Duration,
}

const FULL: Size = Size {
    healthy: Duration::from_secs(60),
    killing: Duration::from_secs(300),
    every: Duration::from_secs(5),
    lease: Duration::from_secs(3),
    stops: 20,
    handover: Duration::from_secs(1),
};
const SHORT: Size = Size {
    healthy: Duration::from_secs(3),
    killing: Duration::from_secs(6),
    every: Duration::from_secs(1),
    lease: Duration::from_secs(1),
    stops: 3,
    // Beside other builds and tests.
    handover: Duration::from_secs(5),
};

pub(super) async fn storm(options: &Options) -> Result<()> {
    let size = if options.short { SHORT } else { FULL };
    let size = Size { lease: options.lease.unwrap_or(size.lease), ..size };
    let numbers = match options.brains {
        Some(brains) => vec![brains],
        None if options.short => vec![2],
        None => vec![2, 4],
    };
    let Database { server, .. } = &postgres()?;
    for brains in numbers {
        healthy(brains, &server.database(), &size).await?;
        killed(brains, &server.database(), &size).await?;
        stopped(brains, &server.database(), &size).await?;
    }
    Ok(())
}

fn start(system: &mut System, brains: usize) -> Result<Vec<Process>> {
    (0..brains).map(|_| system.brain(SLOTS * brains)).collect()
}

/// Ends the submissions, and waits for the tasks.
async fn finish(system: &System, brains: &mut [Process]) -> Result<()> {
    brains.iter_mut().try_for_each(Process::drain)?;
    system.finished().await
}

/// Brains with default settings run each step once.
async fn healthy(brains: usize, url: &str, size: &Size) -> Result<()> {
    let mut system = System::start(url, None).await?;
    let mut running = start(&mut system, brains)?;
    sleep(size.healthy).await;
    finish(&system, &mut running).await?;
    let mut report = Report::of(&system, &[]).await?;
    println!("storm brains={brains} mode=healthy time_s={} {report}", size.healthy.as_secs());
    if report.repeated > 0 || report.unknown != [0, 0] || report.runs != report.tasks {
        report.problems.push("a step was made twice, or a task was started twice".into());
    }
    report.verdict()
}

/// One after the other is killed, and started again.
async fn killed(brains: usize, url: &str, size: &Size) -> Result<()> {
    let mut system = System::start(url, Some(size.lease)).await?;
    let mut running = start(&mut system, brains)?;
    let (begun, mut killed) = (Instant::now(), Vec::new());
    while begun.elapsed() < size.killing {
        sleep(size.every).await;
        let victim = running.swap_remove(random() as usize % brains);
        killed.push(victim.kill()?);
        running.push(system.brain(SLOTS * brains)?);
    }
    finish(&system, &mut running).await?;
    let mut report = Report::of(&system, &killed).await?;
    let (kills, lease) = (killed.len(), size.lease.as_secs());
    println!("storm brains={brains} mode=killed lease_s={lease} kills={kills} {report}");
    if report.longest > (size.lease + BEYOND_LEASE).as_secs_f64() {
        report.problems.push(format!("a task has ended {:.1} s after its process", report.longest));
    }
    if report.takeovers.is_empty() {
        report.problems.push("no process was killed while it had a task".into());
    }
    report.verdict()
}

/// One after the other is stopped in order, with default settings: its tasks do not wait for their leases.
async fn stopped(brains: usize, url: &str, size: &Size) -> Result<()> {
    let mut system = System::start(url, None).await?;
    let mut running = start(&mut system, brains)?;
    let mut stopped = Vec::new();
    for _ in 0..size.stops {
        sleep(Duration::from_secs(1)).await;
        let victim = running.swap_remove(random() as usize % brains);
        stopped.push(victim.stop()?);
        running.push(system.brain(SLOTS * brains)?);
    }
    finish(&system, &mut running).await?;
    let mut report = Report::of(&system, &stopped).await?;
    println!("storm brains={brains} mode=stopped stops={} {report}", stopped.len());
    if report.takeovers.last().is_none_or(|longest| *longest > size.handover.as_secs_f64()) {
        report.problems.push(format!("tasks were handed over after {:?} s", report.takeovers.last()));
    }
    report.verdict()
}
