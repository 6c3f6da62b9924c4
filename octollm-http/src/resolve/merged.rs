//! The endpoints of several resolvers together, and which of them are in force while a resolver fails.

use std::{
    collections::HashSet,
    error::Error,
    fmt::Write as _,
    future::pending,
    mem,
    sync::{Arc, LazyLock},
    time::Duration,
};

use futures_util::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use octollm_core::__private::{Counters, caught};
use tokio::{
    runtime::{self, Handle},
    select,
    sync::Mutex,
    time::{Instant, sleep, sleep_until},
};
use tower::BoxError;

use super::{Endpoint, Resolver};

static ANSWERS: LazyLock<Counters> = LazyLock::new(|| {
    let help = "Answers of the resolvers of clients, by their outcome: found, empty or failed.";
    Counters::new("octollm_client_resolutions_total", help, &["outcome"])
});

/// Shortest time from an answer that changed nothing to the next question, for a resolver that does not wait by itself.
const PAUSE: Duration = Duration::from_millis(100);

/// Most endpoints of all resolvers together. Further ones are left out.
const MOST: usize = 4096;

/// Asks several resolvers at once. An endpoint that two of them have counts once, as the first has it.
///
/// The last endpoints of a resolver stay in force while it fails, and for `grace` after it has none.
pub(crate) struct Resolvers {
    resolvers: Vec<Arc<Mutex<Box<dyn Resolver>>>>,
    sources: Vec<Source>,
    grace: Duration,
    asked: FuturesUnordered<BoxFuture<'static, (usize, Answer)>>,
    /// Runtime of `asked`. The timers of another one may have stopped with it.
    runtime: Option<runtime::Id>,
    last: Option<Found>,
}

/// The endpoints that are in force, of all resolvers.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Found {
    pub(crate) endpoints: Vec<Endpoint>,
    /// Whether each resolver has answered at least once, be it with an error.
    pub(crate) is_complete: bool,
    /// Number of resolvers whose last answer was an error.
    pub(crate) failing: usize,
}

enum Answer {
    Found(Vec<Endpoint>),
    Failed(BoxError),
    Panicked,
}

impl Resolvers {
    pub(crate) fn new(resolvers: impl IntoIterator<Item = Box<dyn Resolver>>, grace: Duration) -> Self {
        let resolvers: Vec<_> =
            resolvers.into_iter().map(|resolver| Arc::new(Mutex::new(resolver))).collect();
        let sources = resolvers.iter().map(|_| Source::default()).collect();
        Self { resolvers, sources, grace, asked: FuturesUnordered::new(), runtime: None, last: None }
    }

    /// Waits until what is found differs from the last time. At first it waits for the first answer of any resolver.
    ///
    /// # Cancel safety
    /// The future may be dropped at any time, and the next one may run on another runtime.
    pub(crate) async fn next(&mut self) -> Found {
        self.ask_all_here();
        loop {
            if let Some(found) = self.changed(Instant::now()) {
                self.last = Some(found.clone());
                return found;
            }
            let ends = self.sources.iter().filter_map(Source::ends).min();
            let ended = async {
                match ends {
                    Some(ends) => sleep_until(ends).await,
                    None => pending().await,
                }
            };
            select! {
                Some((position, answer)) = self.asked.next() => self.take(position, answer),
                () = ended => {}
            }
        }
    }

    fn ask_all_here(&mut self) {
        let runtime = Some(Handle::current().id());
        if self.runtime == runtime {
            return;
        }
        self.runtime = runtime;
        self.asked.clear();
        for position in 0..self.resolvers.len() {
            self.ask(position, Duration::ZERO);
        }
    }

    fn ask(&mut self, position: usize, pause: Duration) {
        if self.sources[position].has_panicked {
            return;
        }
        let resolver = Arc::clone(&self.resolvers[position]);
        let answer = async move {
            if !pause.is_zero() {
                sleep(pause).await;
            }
            let mut resolver = resolver.lock().await;
            let answer = match caught(resolver.next()).await {
                Ok(Ok(endpoints)) => Answer::Found(endpoints),
                Ok(Err(error)) => Answer::Failed(error),
                Err(_) => Answer::Panicked,
            };
            (position, answer)
        };
        self.asked.push(answer.boxed());
    }

    fn take(&mut self, position: usize, answer: Answer) {
        let source = &mut self.sources[position];
        let mut pause = PAUSE;
        match answer {
            Answer::Found(endpoints) => {
                ANSWERS.with(&[if endpoints.is_empty() { "empty" } else { "found" }]).count();
                if source.trouble.take().is_some() {
                    tracing::info!(count = endpoints.len(), "endpoints are found again");
                }
                if endpoints.len() > MOST {
                    let count = endpoints.len();
                    tracing::warn!(
                        count,
                        most = MOST,
                        "a resolver has too many endpoints: some are left out"
                    );
                }
                match source.found(endpoints, Instant::now(), self.grace) {
                    Change::None => {}
                    Change::Set => pause = Duration::ZERO,
                    Change::Emptied => {
                        let arm = source.endpoints().first().map(|endpoint| &*endpoint.arm);
                        let grace = self.grace;
                        tracing::warn!(
                            arm,
                            ?grace,
                            "no endpoints are left: the last ones stay in force for a while"
                        );
                    }
                }
            }
            Answer::Failed(error) => {
                ANSWERS.with(&["failed"]).count();
                source.failed(with_causes(&*error));
            }
            Answer::Panicked => {
                source.has_panicked = true;
                source.failed("the resolver panicked, and is not asked again".to_owned());
            }
        }
        self.ask(position, pause);
    }

    /// What is found now, if it differs from the last time.
    fn changed(&mut self, now: Instant) -> Option<Found> {
        for source in &mut self.sources {
            source.expire(now);
        }
        if !self.sources.is_empty() && !self.sources.iter().any(Source::has_answered) {
            return None;
        }
        let mut places = HashSet::new();
        let all = self.sources.iter().flat_map(Source::endpoints);
        let different = all.filter(|Endpoint { arm, url, address, .. }| places.insert((arm, url, address)));
        let found = Found {
            endpoints: different.take(MOST).cloned().collect(),
            is_complete: self.sources.iter().all(Source::has_answered),
            failing: self.sources.iter().filter(|source| source.trouble.is_some()).count(),
        };
        (self.last.as_ref() != Some(&found)).then_some(found)
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

    fn has_answered(&self) -> bool {
        self.trouble.is_some() || !matches!(self.known, Known::Nothing)
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

    /// Accepts an error. It is logged if it is another one than the last.
    fn failed(&mut self, error: String) {
        if self.trouble.as_ref() != Some(&error) {
            tracing::warn!(error, "endpoints cannot be found: the last ones stay in force");
        }
        self.trouble = Some(error);
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
