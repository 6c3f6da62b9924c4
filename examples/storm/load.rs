//! An even load of calls.

use std::{fmt, time::Duration};

use octollm::prelude::*;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep_until},
};

use crate::target::Check;

/// The calls that were made, and how long each took.
#[derive(Default)]
pub(crate) struct Load {
    times: Vec<Duration>,
    failures: Vec<CallError>,
}

/// Makes so many calls in each second of this time, whether earlier ones are answered or not. The time of a call begins when it is due.
pub(crate) async fn run(arms: &Arms, per_second: u32, time: Duration) -> Load {
    let (began, interval) = (Instant::now(), Duration::from_secs(1) / per_second.max(1));
    let mut running = JoinSet::new();
    let mut load = Load::default();
    let calls = (time.as_secs_f64() * f64::from(per_second)) as u32;
    for number in 0..calls {
        let due = began + interval * number;
        if due > Instant::now() {
            sleep_until(due).await;
        }
        let arms = arms.clone();
        running.spawn(async move {
            let text = "the words of a text that is checked ".repeat(24);
            arms.call(Check { text }).await.map(|_| due.elapsed())
        });
        while let Some(ended) = running.try_join_next() {
            load.add(ended);
        }
    }
    while let Some(ended) = running.join_next().await {
        load.add(ended);
    }
    load.times.sort_unstable();
    load
}

impl Load {
    fn add(&mut self, ended: Result<Result<Duration, CallError>, tokio::task::JoinError>) {
        match ended {
            Ok(Ok(time)) => self.times.push(time),
            Ok(Err(error)) => {
                if self.failures.is_empty() {
                    eprintln!("the first call that failed: {error}");
                }
                self.failures.push(error);
            }
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }

    pub(crate) fn failed(&self) -> usize {
        self.failures.len()
    }

    /// The time within which this share of the calls was answered, in milliseconds.
    fn within(&self, share: f64) -> f64 {
        let place = (self.times.len() as f64 * share) as usize;
        let time = self.times.get(place.min(self.times.len().saturating_sub(1)));
        time.copied().unwrap_or_default().as_secs_f64() * 1e3
    }
}

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [p50, p99, p999, longest] = [0.5, 0.99, 0.999, 1.0].map(|share| self.within(share));
        let (calls, failed) = (self.times.len() + self.failures.len(), self.failures.len());
        write!(
            f,
            "calls={calls} failed={failed} p50_ms={p50:.2} p99_ms={p99:.2} p99.9_ms={p999:.2} longest_ms={longest:.1}"
        )
    }
}
