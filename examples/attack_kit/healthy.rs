//! The healthy caller beside an attack.

use std::{
    fmt,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use octollm::prelude::*;
use tokio::{
    runtime,
    time::{Instant, sleep},
};

use crate::{
    frame::{Arena, Broken, ensure},
    target::Echo,
};

/// How its calls went.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Calls {
    micros: Vec<u64>,
    failures: Vec<String>,
}

/// The median may be as long as this: far beyond any usual latency, and far below any limit of a call.
const SLOW: Duration = Duration::from_secs(2);

impl Calls {
    /// Every call was answered, and most of them soon.
    pub(crate) fn check(&self) -> Result<(), Broken> {
        let (count, first) = (self.failures.len(), self.failures.first());
        ensure!(first.is_none(), "{count} healthy calls failed: {}", first.map_or("", |words| words));
        ensure!(!self.micros.is_empty(), "no healthy call was made");
        ensure!(self.part(50) <= SLOW, "healthy calls took {:?}", self.part(50));
        Ok(())
    }

    fn part(&self, percent: usize) -> Duration {
        let mut micros = self.micros.clone();
        micros.sort_unstable();
        let at = micros.len() * percent / 100;
        Duration::from_micros(micros.get(at).or(micros.last()).copied().unwrap_or_default())
    }
}

impl fmt::Display for Calls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |part| self.part(part).as_secs_f64() * 1e3;
        write!(f, "{} calls p50 {:.1} p99 {:.1} max {:.1} ms", self.micros.len(), ms(50), ms(99), ms(100))
    }
}

/// Calls until it is stopped, one call after the other, with short pauses.
pub(crate) async fn call_until(arms: &Arms, stopped: &AtomicBool, made: &AtomicU64) -> Calls {
    let mut calls = Calls::default();
    while !stopped.load(Ordering::Relaxed) {
        let text = format!("healthy {}", made.load(Ordering::Relaxed));
        let begun = Instant::now();
        match arms.call(Echo { text: text.clone() }).await {
            Ok(answer) if answer == text => {
                calls.micros.push(u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX));
            }
            Ok(answer) => calls.failures.push(format!("answered {answer:?}")),
            Err(error) => calls.failures.push(error.to_string()),
        }
        made.fetch_add(1, Ordering::Relaxed);
        sleep(Duration::from_millis(5)).await;
    }
    calls
}

/// The arms of a healthy caller.
pub(crate) fn arms(address: SocketAddr) -> Result<Arms, Broken> {
    Ok(Arms::builder().endpoint_serving::<Echo>("healthy", format!("http://{address}")).build()?)
}

/// Calls the attacked server from a thread of its own; where a client is attacked, that client calls by itself.
pub(crate) enum Healthy {
    Caller { stopped: Arc<AtomicBool>, thread: JoinHandle<Calls> },
    InChild,
}

impl Healthy {
    /// Returns once the first call was made.
    pub(crate) async fn start(group: &str, arena: &Arena) -> Result<Self, Broken> {
        if group == "client" {
            arena.child.ask("start").await?;
            return Ok(Self::InChild);
        }
        let (stopped, made) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (arms, stop, count) = (arms(arena.address())?, stopped.clone(), made.clone());
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        let thread = thread::spawn(move || runtime.block_on(call_until(&arms, &stop, &count)));
        while made.load(Ordering::Relaxed) == 0 {
            sleep(Duration::from_millis(1)).await;
        }
        Ok(Self::Caller { stopped, thread })
    }

    pub(crate) async fn stop(self, arena: &Arena) -> Result<Calls, Broken> {
        match self {
            Self::Caller { stopped, thread } => {
                stopped.store(true, Ordering::Relaxed);
                let joined = tokio::task::spawn_blocking(move || thread.join()).await?;
                joined.map_err(|_| "the healthy caller panicked".into())
            }
            Self::InChild => Ok(serde_json::from_str(&arena.child.ask("stop").await?)?),
        }
    }
}
