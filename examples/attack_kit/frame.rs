//! One attack: the process that it attacks, the healthy caller beside it, the figures, and the line.

use std::{
    collections::BTreeMap, error::Error, fmt, future::Future, net::SocketAddr, pin::Pin, time::Duration,
};

use tokio::time::{Instant, sleep, timeout};

use crate::{
    child::Child,
    healthy::{Calls, Healthy},
    process::{Figures, Watch},
    target,
};

pub(crate) type Broken = Box<dyn Error + Send + Sync>;

/// What was sent and what was seen, where all that was asserted holds.
pub(crate) type Outcome = Result<String, Broken>;

/// Returns an error unless a condition holds.
macro_rules! ensure {
    ($holds:expr, $($words:tt)+) => {
        if !$holds {
            return Err(format!($($words)+).into());
        }
    };
}
pub(crate) use ensure;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Size {
    Short,
    Full,
}

impl Size {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Short => "short",
            Self::Full => "full",
        }
    }

    pub(crate) fn pick<T>(self, short: T, full: T) -> T {
        match self {
            Self::Short => short,
            Self::Full => full,
        }
    }
}

type Run = for<'a> fn(&'a Arena) -> Pin<Box<dyn Future<Output = Outcome> + Send + 'a>>;

#[derive(Clone)]
pub(crate) struct Attack {
    pub(crate) group: &'static str,
    pub(crate) name: &'static str,
    run: Run,
    /// Limits of the attacked server, in place of the usual ones.
    settings: &'static [(&'static str, usize)],
    /// The most descriptors of the attacked process.
    descriptors: Option<usize>,
    /// How many MiB of memory it may hold at its peak beyond what it held before, and afterwards.
    memory: (u64, u64),
}

impl Attack {
    pub(crate) const fn new(group: &'static str, name: &'static str, run: Run) -> Self {
        Self { group, name, run, settings: &[], descriptors: None, memory: (64, 48) }
    }

    /// Sets how many MiB the attacked process may hold at its peak beyond what it held before, and afterwards.
    pub(crate) const fn memory(mut self, peak: u64, after: u64) -> Self {
        self.memory = (peak, after);
        self
    }

    pub(crate) const fn settings(mut self, settings: &'static [(&'static str, usize)]) -> Self {
        self.settings = settings;
        self
    }

    pub(crate) const fn descriptors(mut self, most: usize) -> Self {
        self.descriptors = Some(most);
        self
    }

    pub(crate) fn is_named(&self, names: &[&String]) -> bool {
        let words = [self.group, self.name];
        names.iter().all(|name| words.contains(&name.as_str()))
    }
}

/// What an attack has at hand.
pub(crate) struct Arena {
    pub(crate) size: Size,
    pub(crate) child: Child,
    /// The limits of the attacked server.
    pub(crate) config: target::Limits,
}

impl Arena {
    pub(crate) fn pick<T>(&self, short: T, full: T) -> T {
        self.size.pick(short, full)
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.child.address
    }
}

/// The longest that an attack may take.
const LONGEST: Duration = Duration::from_secs(300);
/// How long the attacked process has for its descriptors and memory to come back. A connection of a client is closed 15 s
/// after its last use.
const RECOVERY: Duration = Duration::from_secs(20);
/// Descriptors that may be open beyond those before: connections that the healthy caller reopens.
const SLACK: usize = 4;

/// What an attack did, in one line.
pub(crate) struct Line {
    name: String,
    outcome: Outcome,
    time: Duration,
    figures: Option<(Figures, Figures, Figures)>,
    healthy: Calls,
}

impl Line {
    pub(crate) fn has_failed(&self) -> bool {
        self.outcome.is_err()
    }
}

pub(crate) async fn run(attack: &Attack, size: Size) -> Line {
    let begun = Instant::now();
    let name = format!("{} {}", attack.group, attack.name);
    let mut line = Line {
        name,
        outcome: Ok(String::new()),
        time: Duration::ZERO,
        figures: None,
        healthy: Calls::default(),
    };
    line.outcome = match timeout(LONGEST, attacked(attack, size, &mut line)).await {
        Ok(outcome) => outcome,
        Err(_) => Err(format!("does not end within {} s", LONGEST.as_secs()).into()),
    };
    line.time = begun.elapsed();
    line
}

async fn attacked(attack: &Attack, size: Size, line: &mut Line) -> Outcome {
    let child = Child::start(attack.group, size, attack.settings, attack.descriptors).await?;
    let arena = Arena { size, child, config: target::limits(size, attack.settings)? };
    let healthy = Healthy::start(attack.group, &arena).await?;
    let before = Figures::of(arena.child.id());
    let watch = Watch::start(arena.child.id());
    let outcome = (attack.run)(&arena).await;
    let calls = healthy.stop(&arena).await?;
    let after = recovered(&arena.child, before, attack.memory.1).await;
    let peak = watch.stop();
    (line.figures, line.healthy) = (Some((before, peak, after)), calls);
    let words = outcome?;
    ensure!(arena.child.is_alive(), "the attacked process has ended");
    line.healthy.check()?;
    let (most, left) = attack.memory;
    let grown = |figures: Figures| figures.kib.saturating_sub(before.kib) / 1024;
    ensure!(grown(peak) <= most, "memory grew by {} MiB, more than {most}; {words}", grown(peak));
    ensure!(grown(after) <= left, "{} MiB more than before are held; {words}", grown(after));
    let open = after.descriptors.saturating_sub(before.descriptors);
    ensure!(open <= SLACK, "{open} descriptors more than before are open; {words}");
    Ok(words)
}

/// The figures once the process holds no more than before, or after the time for that.
async fn recovered(child: &Child, before: Figures, left: u64) -> Figures {
    let begun = Instant::now();
    loop {
        let now = Figures::of(child.id());
        let is_back = now.descriptors <= before.descriptors + SLACK && now.kib <= before.kib + left * 1024;
        if is_back || begun.elapsed() > RECOVERY {
            return now;
        }
        sleep(Duration::from_millis(20)).await;
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.name)?;
        if let Ok(words) = &self.outcome {
            write!(f, "{words} | ")?;
        }
        write!(f, "{:.2} s", self.time.as_secs_f64())?;
        if let Some((before, peak, after)) = self.figures {
            let mib = |figures: Figures| figures.kib as f64 / 1024.0;
            write!(f, ", rss {:.1}/{:.1}/{:.1} MiB", mib(before), mib(peak), mib(after))?;
            write!(f, ", fds {}/{}/{}", before.descriptors, peak.descriptors, after.descriptors)?;
        }
        write!(f, ", healthy {}", self.healthy)?;
        match &self.outcome {
            Ok(_) => write!(f, " | ok"),
            Err(error) => write!(f, " | FAILED: {error}"),
        }
    }
}

/// How often each value is among these, such as `200 x 3, 503 x 1`.
pub(crate) fn counted<T: fmt::Display>(values: impl IntoIterator<Item = T>) -> String {
    let mut counts = BTreeMap::new();
    for value in values {
        *counts.entry(value.to_string()).or_insert(0_usize) += 1;
    }
    let counts: Vec<_> = counts.into_iter().map(|(value, count)| format!("{value} x {count}")).collect();
    if counts.is_empty() { "none".to_owned() } else { counts.join(", ") }
}
