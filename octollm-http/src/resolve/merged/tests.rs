use std::collections::VecDeque;

use async_trait::async_trait;
use proptest::prelude::*;
use tokio::sync::mpsc;

use super::*;
use crate::resolve::fixed;

const GRACE: Duration = Duration::from_secs(30);

/// A resolver that a test answers for.
struct Scripted(mpsc::UnboundedReceiver<Result<Vec<Endpoint>, BoxError>>);

#[async_trait]
impl Resolver for Scripted {
    async fn next(&mut self) -> Result<Vec<Endpoint>, BoxError> {
        match self.0.recv().await {
            Some(answer) => answer,
            None => pending().await,
        }
    }
}

type Script = mpsc::UnboundedSender<Result<Vec<Endpoint>, BoxError>>;

fn scripted() -> (Script, Box<dyn Resolver>) {
    let (script, answers) = mpsc::unbounded_channel();
    (script, Box::new(Scripted(answers)))
}

fn set(urls: &[&str]) -> Vec<Endpoint> {
    urls.iter().map(|url| Endpoint::new("judge", *url)).collect()
}

fn urls(found: &Found) -> Vec<&str> {
    found.endpoints.iter().map(|endpoint| &*endpoint.url).collect()
}

async fn is_silent(resolvers: &mut Resolvers, time: Duration) -> bool {
    tokio::time::timeout(time, resolvers.next()).await.is_err()
}

#[tokio::test(start_paused = true)]
async fn without_resolvers_nothing_is_found_once() {
    let mut none = Resolvers::new([], GRACE);
    assert_eq!(none.next().await, Found { endpoints: Vec::new(), is_complete: true, failing: 0 });
    assert!(is_silent(&mut none, 100 * GRACE).await);
}

#[tokio::test(start_paused = true)]
async fn an_answer_does_not_wait_for_those_of_the_others() {
    let (script, slow) = scripted();
    let mut both = Resolvers::new([slow, Box::new(fixed(set(&["http://a", "http://b"])))], GRACE);
    let first = both.next().await;
    assert_eq!((urls(&first), first.is_complete), (vec!["http://a", "http://b"], false));
    assert!(is_silent(&mut both, GRACE).await);
    // The order is that of the resolvers, and what both have counts once.
    script.send(Ok(set(&["http://c", "http://b"]))).unwrap();
    let second = both.next().await;
    assert_eq!((urls(&second), second.is_complete), (vec!["http://c", "http://b", "http://a"], true));
}

#[tokio::test(start_paused = true)]
async fn fault_41_the_last_endpoints_stay_in_force_while_a_resolver_fails() {
    let (script, resolver) = scripted();
    let mut resolvers = Resolvers::new([resolver], GRACE);
    script.send(Ok(set(&["http://a"]))).unwrap();
    assert_eq!(urls(&resolvers.next().await), ["http://a"]);
    for _ in 0..3 {
        script.send(Err("SERVFAIL".into())).unwrap();
    }
    let failing = resolvers.next().await;
    assert_eq!((urls(&failing), failing.failing), (vec!["http://a"], 1));
    assert!(is_silent(&mut resolvers, 1000 * GRACE).await, "for as long as it fails");
    script.send(Ok(set(&["http://b"]))).unwrap();
    let again = resolvers.next().await;
    assert_eq!((urls(&again), again.failing), (vec!["http://b"], 0));
}

#[tokio::test(start_paused = true)]
async fn fault_41_a_resolver_that_has_no_endpoints_any_more_empties_after_the_limit() {
    let (script, resolver) = scripted();
    let mut resolvers = Resolvers::new([resolver], GRACE);
    script.send(Ok(set(&["http://a"]))).unwrap();
    assert_eq!(urls(&resolvers.next().await), ["http://a"]);
    script.send(Ok(Vec::new())).unwrap();
    let emptied = Instant::now();
    assert!(is_silent(&mut resolvers, GRACE / 2).await);
    // Neither another empty answer nor an error lengthens the time.
    script.send(Ok(Vec::new())).unwrap();
    script.send(Err("SERVFAIL".into())).unwrap();
    assert_eq!(urls(&resolvers.next().await), ["http://a"]);
    assert_eq!(urls(&resolvers.next().await), [""; 0]);
    assert_eq!(emptied.elapsed().as_secs(), GRACE.as_secs());
    script.send(Ok(set(&["http://a"]))).unwrap();
    assert_eq!(urls(&resolvers.next().await), ["http://a"]);
}

#[tokio::test(start_paused = true)]
async fn what_is_found_again_within_the_limit_is_no_change() {
    let (script, resolver) = scripted();
    let mut resolvers = Resolvers::new([resolver], GRACE);
    script.send(Ok(set(&["http://a"]))).unwrap();
    resolvers.next().await;
    script.send(Ok(Vec::new())).unwrap();
    assert!(is_silent(&mut resolvers, GRACE / 2).await);
    script.send(Ok(set(&["http://a"]))).unwrap();
    assert!(is_silent(&mut resolvers, 100 * GRACE).await);
}

/// A resolver that never waits.
struct Hasty(VecDeque<Result<Vec<Endpoint>, BoxError>>, mpsc::UnboundedSender<Instant>);

#[async_trait]
impl Resolver for Hasty {
    async fn next(&mut self) -> Result<Vec<Endpoint>, BoxError> {
        let _ = self.1.send(Instant::now());
        self.0.pop_front().unwrap_or_else(|| Err("again".into()))
    }
}

#[tokio::test(start_paused = true)]
async fn a_resolver_that_does_not_wait_is_not_asked_all_the_time() {
    let (asked, mut times) = mpsc::unbounded_channel();
    let hasty = Hasty([Ok(set(&["http://a"])), Ok(set(&["http://a"]))].into(), asked);
    let mut resolvers = Resolvers::new([Box::new(hasty) as Box<dyn Resolver>], GRACE);
    resolvers.next().await;
    assert_eq!(resolvers.next().await.failing, 1);
    assert!(is_silent(&mut resolvers, Duration::from_secs(10)).await);
    let mut count = 0;
    while times.try_recv().is_ok() {
        count += 1;
    }
    assert!((90..=110).contains(&count), "asked {count} times in 10 s");
}

/// A resolver with a bug.
struct Broken;

#[async_trait]
impl Resolver for Broken {
    async fn next(&mut self) -> Result<Vec<Endpoint>, BoxError> {
        panic!("a bug of the user");
    }
}

#[tokio::test(start_paused = true)]
async fn a_resolver_that_panics_fails_and_stops_no_other() {
    let (script, resolver) = scripted();
    let mut resolvers = Resolvers::new([Box::new(Broken), resolver], GRACE);
    assert_eq!(resolvers.next().await, Found { endpoints: Vec::new(), is_complete: false, failing: 1 });
    script.send(Ok(set(&["http://a"]))).unwrap();
    let found = resolvers.next().await;
    assert_eq!((urls(&found), found.is_complete, found.failing), (vec!["http://a"], true, 1));
}

#[test]
fn resolvers_survive_the_runtime_that_asked_them() {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (script, resolver) = scripted();
    let mut resolvers = Resolvers::new([resolver], GRACE);
    script.send(Ok(set(&["http://a"]))).unwrap();
    assert_eq!(urls(&runtime().block_on(resolvers.next())), ["http://a"]);
    script.send(Err("SERVFAIL".into())).unwrap();
    assert_eq!(runtime().block_on(resolvers.next()).failing, 1);
    script.send(Ok(set(&["http://b"]))).unwrap();
    assert_eq!(urls(&runtime().block_on(resolvers.next())), ["http://b"]);
}

#[derive(Debug, Clone)]
enum Event {
    Found(u8),
    Failed,
    Wait(u8),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        3 => (0..3_u8).prop_map(Event::Found),
        1 => Just(Event::Failed),
        3 => (0..40_u8).prop_map(Event::Wait),
    ]
}

/// What is in force by the whole history of sets: the last one, or the one before it if that has ended within the grace.
fn by_history(history: &[(Instant, u8)], now: Instant) -> u8 {
    let Some((_, last)) = history.last() else { return 0 };
    if *last != 0 {
        return *last;
    }
    let Some(full) = history.iter().rposition(|(_, set)| *set != 0) else { return 0 };
    if now < history[full + 1].0 + GRACE { history[full].1 } else { 0 }
}

proptest! {
    #[test]
    fn endpoints_in_force_are_those_of_the_whole_history(events in prop::collection::vec(event(), 0..40)) {
        let mut source = Source::default();
        let (mut now, mut history, mut has_failed) = (Instant::now(), Vec::new(), false);
        for event in events {
            match event {
                Event::Wait(seconds) => now += Duration::from_secs(seconds.into()),
                Event::Found(count) => {
                    let all = set(&["http://a", "http://b"]);
                    source.expire(now);
                    source.found(all[..usize::from(count)].to_vec(), now, GRACE);
                    history.push((now, count));
                    has_failed = false;
                }
                Event::Failed => {
                    source.failed("failed".to_owned());
                    has_failed = true;
                }
            }
            source.expire(now);
            prop_assert_eq!(source.endpoints().len(), usize::from(by_history(&history, now)));
            prop_assert_eq!(source.trouble.is_some(), has_failed);
            prop_assert_eq!(source.has_answered(), has_failed || !history.is_empty());
            prop_assert!(source.ends().is_none_or(|ends| now < ends));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn too_many_endpoints_are_left_out() {
    let all: Vec<_> = (0..MOST + 10).map(|port| Endpoint::new("judge", format!("http://a:{port}"))).collect();
    let mut resolvers = Resolvers::new([Box::new(fixed(all.clone())) as Box<dyn Resolver>], GRACE);
    assert_eq!(resolvers.next().await.endpoints, all[..MOST]);
}
