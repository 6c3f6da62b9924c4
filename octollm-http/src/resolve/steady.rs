//! Which endpoints of a resolver are in force while it fails or has none.

use std::{error::Error, fmt::Write as _, future::pending, mem, sync::LazyLock, time::Duration};

use async_trait::async_trait;
use octollm_core::__private::{Counters, caught};
use tokio::{
    select,
    time::{Instant, sleep_until},
};
use tower::BoxError;

use super::{Endpoint, Resolver};

static ANSWERS: LazyLock<Counters> = LazyLock::new(|| {
    let help = "Answers of the resolvers of clients, by their outcome: found, empty or failed.";
    Counters::new("octollm_client_resolutions_total", help, &["outcome"])
});

/// Shortest time from an answer that changed nothing to the next question, for a resolver that does not wait by itself.
const PAUSE: Duration = Duration::from_millis(100);

/// Most endpoints of a resolver. Further ones are left out.
const MOST: usize = 4096;

/// A resolver whose answers can be used as they are.
///
/// It returns the set that is in force, whenever that has changed. The last endpoints stay in force while the inner resolver fails,
/// and for `grace` after it has none. An error is returned once, with its causes in its text, and after an error the set that is
/// in force as soon as the resolver answers again. The inner resolver may answer at once, again and again, and may panic.
pub(crate) struct Steady {
    inner: Box<dyn Resolver>,
    source: Source,
    grace: Duration,
    /// Time of the next question, if the last answer changed nothing.
    due: Option<Instant>,
}

impl Steady {
    pub(crate) fn new(inner: Box<dyn Resolver>, grace: Duration) -> Self {
        Self { inner, source: Source::default(), grace, due: None }
    }

    /// Accepts an answer. Returns what is new in it.
    fn take(&mut self, answer: Result<Vec<Endpoint>, BoxError>) -> Option<Result<Vec<Endpoint>, BoxError>> {
        let now = Instant::now();
        self.due = Some(now + PAUSE);
        let mut endpoints = match answer {
            Ok(endpoints) => endpoints,
            Err(error) => {
                ANSWERS.with(&["failed"]).count();
                let text = with_causes(&*error);
                return self.source.failed(&text).then(|| Err(text.into()));
            }
        };
        ANSWERS.with(&[if endpoints.is_empty() { "empty" } else { "found" }]).count();
        if endpoints.len() > MOST {
            let count = endpoints.len();
            tracing::warn!(count, most = MOST, "a resolver has too many endpoints: some are left out");
            endpoints.truncate(MOST);
        }
        let had_failed = self.source.trouble.is_some();
        if had_failed {
            tracing::info!(count = endpoints.len(), "a resolver that had failed answers again");
        }
        match self.source.found(endpoints, now, self.grace) {
            Change::None => {}
            Change::Set => {
                self.due = None;
                return Some(Ok(self.source.endpoints().to_vec()));
            }
            Change::Emptied => {
                let arm = self.source.endpoints().first().map(|endpoint| &*endpoint.arm);
                let grace = self.grace;
                tracing::warn!(
                    arm,
                    ?grace,
                    "a resolver has no endpoints: its last ones stay in use for a while"
                );
            }
        }
        had_failed.then(|| Ok(self.source.endpoints().to_vec()))
    }
}

#[async_trait]
impl Resolver for Steady {
    async fn next(&mut self) -> Result<Vec<Endpoint>, BoxError> {
        loop {
            let answer = select! {
                answer = ask(&mut self.inner, self.due, self.source.has_panicked) => answer,
                () = until(self.source.ends()) => {
                    self.source.expire(Instant::now());
                    return Ok(self.source.endpoints().to_vec());
                }
            };
            let answer = answer.unwrap_or_else(|| {
                self.source.has_panicked = true;
                Err("the resolver has panicked, and is not asked again".into())
            });
            if let Some(new) = self.take(answer) {
                return new;
            }
        }
    }
}

/// Asks a resolver. `None` if it panics.
async fn ask(
    resolver: &mut Box<dyn Resolver>,
    due: Option<Instant>,
    has_panicked: bool,
) -> Option<Result<Vec<Endpoint>, BoxError>> {
    if has_panicked {
        return pending().await;
    }
    if due.is_some() {
        until(due).await;
    }
    caught(resolver.next()).await.ok()
}

async fn until(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => pending().await,
    }
}

/// What is known of one resolver's endpoints.
#[derive(Debug, Default)]
struct Source {
    known: Known,
    /// Text of the error, if the last answer was one.
    trouble: Option<String>,
    has_panicked: bool,
}

#[derive(Debug, Default)]
enum Known {
    #[default]
    Nothing,
    Set(Vec<Endpoint>),
    /// There are none any more. The last ones stay in force until a time.
    Emptied(Vec<Endpoint>, Instant),
}

/// What an answer changed.
#[derive(Debug, PartialEq, Eq)]
enum Change {
    None,
    Set,
    /// The last endpoints are in force only for a while.
    Emptied,
}

impl Source {
    /// Endpoints that are in force.
    fn endpoints(&self) -> &[Endpoint] {
        match &self.known {
            Known::Nothing => &[],
            Known::Set(endpoints) | Known::Emptied(endpoints, _) => endpoints,
        }
    }

    /// Time at which the last endpoints are in force no more.
    fn ends(&self) -> Option<Instant> {
        match self.known {
            Known::Emptied(_, ends) => Some(ends),
            _ => None,
        }
    }

    /// Accepts an answer.
    fn found(&mut self, endpoints: Vec<Endpoint>, now: Instant, grace: Duration) -> Change {
        self.trouble = None;
        match &mut self.known {
            Known::Emptied(..) if endpoints.is_empty() => Change::None,
            Known::Set(known) if *known == endpoints => Change::None,
            Known::Set(known) if endpoints.is_empty() && !grace.is_zero() => {
                self.known = Known::Emptied(mem::take(known), now + grace);
                Change::Emptied
            }
            _ => {
                self.known = Known::Set(endpoints);
                Change::Set
            }
        }
    }

    /// Accepts an error. Returns whether it is another one than the last.
    fn failed(&mut self, error: &str) -> bool {
        let is_new = self.trouble.as_deref() != Some(error);
        self.trouble = Some(error.to_owned());
        is_new
    }

    fn expire(&mut self, now: Instant) {
        if self.ends().is_some_and(|ends| ends <= now) {
            self.known = Known::Set(Vec::new());
        }
    }
}

/// The text of an error and of its sources.
fn with_causes(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let _ = write!(text, ": {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests;
