//! Which endpoints of a resolver are in force while it fails or has none.

use std::{
    collections::{HashMap, HashSet},
    error::Error,
    fmt::Write as _,
    future::pending,
    mem,
    sync::LazyLock,
    time::Duration,
};

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
/// and those of an arm for `grace` after it has none of that arm, unless it knows that the arm has left. An error is returned once, with its causes in its text, and after an error the set that is
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
        let inner = &self.inner;
        let Change { is_other, left } =
            self.source.found(endpoints, now, self.grace, |arm| inner.has_left(arm));
        if let Some(arm) = left.first() {
            let (count, grace) = (left.len(), self.grace);
            tracing::warn!(
                arm,
                count,
                ?grace,
                "a resolver has no endpoints of an arm any more: the last ones stay in use for a while"
            );
        }
        if is_other {
            self.due = None;
        }
        (is_other || had_failed).then(|| Ok(self.source.endpoints().to_vec()))
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
    /// Endpoints that are in force. `None` before the first answer.
    known: Option<Vec<Endpoint>>,
    /// The arms among them that the last answer has not, whose endpoints are in force until a time.
    leaving: HashMap<String, Instant>,
    /// Text of the error, if the last answer was one.
    trouble: Option<String>,
    has_panicked: bool,
}

/// What an answer changed.
#[derive(Debug, PartialEq, Eq)]
struct Change {
    /// Whether other endpoints are in force.
    is_other: bool,
    /// The arms whose last endpoints are in force only for a while from now on.
    left: Vec<String>,
}

impl Source {
    /// Endpoints that are in force.
    fn endpoints(&self) -> &[Endpoint] {
        self.known.as_deref().unwrap_or_default()
    }

    /// Time at which the next endpoints are in force no more.
    fn ends(&self) -> Option<Instant> {
        self.leaving.values().min().copied()
    }

    /// Accepts an answer. `has_left` returns whether an arm that it has not is known to be gone.
    fn found(
        &mut self,
        mut endpoints: Vec<Endpoint>,
        now: Instant,
        grace: Duration,
        has_left: impl Fn(&str) -> bool,
    ) -> Change {
        self.trouble = None;
        let before = mem::take(&mut self.leaving);
        let mut left = Vec::new();
        if !grace.is_zero() {
            let listed: HashSet<_> = endpoints.iter().map(|endpoint| endpoint.arm.clone()).collect();
            let mut has_gone = HashMap::new();
            let room = MOST.saturating_sub(endpoints.len());
            let missing = self.endpoints().iter().filter(|endpoint| !listed.contains(&endpoint.arm));
            let missing = missing.filter(|endpoint| {
                let arm = &*endpoint.arm;
                !*has_gone.entry(arm).or_insert_with(|| has_left(arm))
            });
            let missing: Vec<_> = missing.take(room).cloned().collect();
            for Endpoint { arm, .. } in &missing {
                if !self.leaving.contains_key(arm) {
                    let until = before.get(arm).copied();
                    left.extend(until.is_none().then(|| arm.clone()));
                    self.leaving.insert(arm.clone(), until.unwrap_or(now + grace));
                }
            }
            endpoints.extend(missing);
        }
        let is_other = self.known.as_ref() != Some(&endpoints);
        self.known = Some(endpoints);
        Change { is_other, left }
    }

    /// Accepts an error. Returns whether it is another one than the last.
    fn failed(&mut self, error: &str) -> bool {
        let is_new = self.trouble.as_deref() != Some(error);
        self.trouble = Some(error.to_owned());
        is_new
    }

    fn expire(&mut self, now: Instant) {
        let leaving = mem::take(&mut self.leaving);
        let (gone, leaving): (HashMap<_, _>, _) = leaving.into_iter().partition(|(_, ends)| *ends <= now);
        self.leaving = leaving;
        if let Some(known) = &mut self.known {
            known.retain(|endpoint| !gone.contains_key(&endpoint.arm));
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
