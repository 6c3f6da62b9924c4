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

/// The next set as URLs, or the text of the error.
async fn next(resolver: &mut Steady) -> Result<Vec<String>, String> {
    let answer = resolver.next().await.map_err(|error| error.to_string());
    answer.map(|endpoints| endpoints.into_iter().map(|endpoint| endpoint.url).collect())
}

async fn is_silent(resolver: &mut Steady, time: Duration) -> bool {
    tokio::time::timeout(time, resolver.next()).await.is_err()
}

#[tokio::test(start_paused = true)]
async fn a_set_is_returned_when_it_changes() {
    let (script, resolver) = scripted();
    let mut steady = Steady::new(resolver, GRACE);
    assert!(is_silent(&mut steady, GRACE).await, "nothing is known yet");
    for urls in [&["http://a"][..], &["http://a", "http://b"], &["http://b"]] {
        script.send(Ok(set(urls))).unwrap();
        assert_eq!(next(&mut steady).await.unwrap(), urls);
        script.send(Ok(set(urls))).unwrap();
        assert!(is_silent(&mut steady, GRACE).await);
    }
    let mut empty = Steady::new(Box::new(fixed([])), GRACE);
    assert_eq!(next(&mut empty).await.unwrap(), [""; 0], "without a set before there is nothing to wait for");
}

#[tokio::test(start_paused = true)]
async fn fault_41_the_last_endpoints_stay_in_force_while_a_resolver_fails() {
    let (script, resolver) = scripted();
    let mut steady = Steady::new(resolver, GRACE);
    script.send(Ok(set(&["http://a"]))).unwrap();
    next(&mut steady).await.unwrap();
    for _ in 0..3 {
        script.send(Err(std::io::Error::other(BoxError::from("SERVFAIL")).into())).unwrap();
    }
    assert_eq!(next(&mut steady).await.unwrap_err(), "SERVFAIL");
    assert!(is_silent(&mut steady, 1000 * GRACE).await, "an error is returned once, and no set");
    script.send(Err("timeout".into())).unwrap();
    assert_eq!(next(&mut steady).await.unwrap_err(), "timeout");
    script.send(Ok(set(&["http://a"]))).unwrap();
    assert_eq!(next(&mut steady).await.unwrap(), ["http://a"], "the trouble has ended");
    script.send(Err("timeout".into())).unwrap();
    assert_eq!(next(&mut steady).await.unwrap_err(), "timeout");
}

#[tokio::test(start_paused = true)]
async fn fault_41_a_resolver_that_has_no_endpoints_any_more_empties_after_the_limit() {
    let (script, resolver) = scripted();
    let mut steady = Steady::new(resolver, GRACE);
    script.send(Ok(set(&["http://a"]))).unwrap();
    next(&mut steady).await.unwrap();
    script.send(Ok(Vec::new())).unwrap();
    let emptied = Instant::now();
    assert!(is_silent(&mut steady, GRACE / 2).await);
    // Neither another empty answer nor an error lengthens the time.
    script.send(Ok(Vec::new())).unwrap();
    script.send(Err("SERVFAIL".into())).unwrap();
    assert_eq!(next(&mut steady).await.unwrap_err(), "SERVFAIL");
    assert_eq!(next(&mut steady).await.unwrap(), [""; 0]);
    assert_eq!(emptied.elapsed().as_secs(), GRACE.as_secs());
    script.send(Ok(set(&["http://a"]))).unwrap();
    assert_eq!(next(&mut steady).await.unwrap(), ["http://a"]);
    let mut at_once = Steady { grace: Duration::ZERO, ..steady };
    script.send(Ok(Vec::new())).unwrap();
    assert_eq!(next(&mut at_once).await.unwrap(), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn what_is_found_again_within_the_limit_was_never_gone() {
    let (script, resolver) = scripted();
    let mut steady = Steady::new(resolver, GRACE);
    script.send(Ok(set(&["http://a"]))).unwrap();
    next(&mut steady).await.unwrap();
    script.send(Ok(Vec::new())).unwrap();
    assert!(is_silent(&mut steady, GRACE / 2).await);
    script.send(Ok(set(&["http://a"]))).unwrap();
    assert!(is_silent(&mut steady, 100 * GRACE).await);
    assert_eq!(steady.source.endpoints(), set(&["http://a"]));
}

#[tokio::test(start_paused = true)]
async fn each_arm_that_a_source_has_no_more_stays_until_the_limit() {
    let (script, resolver) = scripted();
    let mut steady = Steady::new(resolver, GRACE);
    let of = |arm: &str| Endpoint::new(arm, format!("http://{arm}"));
    let set = |arms: &[&str]| Ok(arms.iter().map(|arm| of(arm)).collect());
    script.send(set(&["judge", "coder"])).unwrap();
    next(&mut steady).await.unwrap();
    // The source is restarted, and learns of its arms one after the other.
    script.send(set(&[])).unwrap();
    assert!(is_silent(&mut steady, GRACE / 3).await);
    script.send(set(&["coder"])).unwrap();
    assert_eq!(next(&mut steady).await.unwrap(), ["http://coder", "http://judge"]);
    let since = Instant::now();
    script.send(set(&["coder", "planner"])).unwrap();
    assert_eq!(next(&mut steady).await.unwrap(), ["http://coder", "http://planner", "http://judge"]);
    // The judge does not come back. Its time is counted from when it was gone.
    assert_eq!(next(&mut steady).await.unwrap(), ["http://coder", "http://planner"]);
    assert_eq!(since.elapsed(), GRACE - GRACE / 3);
    // Of an arm that is there, others are in force at once.
    script.send(Ok(vec![Endpoint::new("coder", "http://new"), of("planner")])).unwrap();
    assert_eq!(next(&mut steady).await.unwrap(), ["http://new", "http://planner"]);
}

/// A resolver that knows what has left.
struct Knowing(mpsc::UnboundedReceiver<Vec<Endpoint>>, &'static str);

#[async_trait]
impl Resolver for Knowing {
    async fn next(&mut self) -> Result<Vec<Endpoint>, BoxError> {
        Ok(self.0.recv().await.unwrap())
    }

    fn has_left(&self, arm: &str) -> bool {
        arm == self.1
    }
}

#[tokio::test(start_paused = true)]
async fn an_arm_that_is_known_to_have_left_is_gone_at_once() {
    let (script, answers) = mpsc::unbounded_channel();
    let mut steady = Steady::new(Box::new(Knowing(answers, "judge")), GRACE);
    let both = vec![Endpoint::new("judge", "http://a"), Endpoint::new("coder", "http://b")];
    script.send(both).unwrap();
    next(&mut steady).await.unwrap();
    script.send(Vec::new()).unwrap();
    assert_eq!(next(&mut steady).await.unwrap(), ["http://b"]);
    assert_eq!(next(&mut steady).await.unwrap(), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn arms_that_leave_do_not_add_up() {
    let (script, resolver) = scripted();
    let mut steady = Steady::new(resolver, GRACE);
    for turn in 0..5 {
        let all = (0..1000).map(|n| Endpoint::new(format!("arm-{turn}-{n}"), "http://a")).collect();
        script.send(Ok(all)).unwrap();
        assert_eq!(steady.next().await.unwrap().len(), MOST.min(1000 * (turn + 1)));
    }
}

/// A resolver that never waits.
struct Hasty(VecDeque<Result<Vec<Endpoint>, BoxError>>, mpsc::UnboundedSender<()>);

#[async_trait]
impl Resolver for Hasty {
    async fn next(&mut self) -> Result<Vec<Endpoint>, BoxError> {
        let _ = self.1.send(());
        self.0.pop_front().unwrap_or_else(|| Err("again".into()))
    }
}

#[tokio::test(start_paused = true)]
async fn a_resolver_that_does_not_wait_is_not_asked_all_the_time() {
    let (asked, mut questions) = mpsc::unbounded_channel();
    let hasty = Hasty([Ok(set(&["http://a"])), Ok(set(&["http://a"]))].into(), asked);
    let mut steady = Steady::new(Box::new(hasty), GRACE);
    next(&mut steady).await.unwrap();
    next(&mut steady).await.unwrap_err();
    assert!(is_silent(&mut steady, Duration::from_secs(10)).await);
    let mut count = 0;
    while questions.try_recv().is_ok() {
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
async fn a_resolver_that_panics_has_failed() {
    let mut steady = Steady::new(Box::new(Broken), GRACE);
    assert!(next(&mut steady).await.unwrap_err().contains("panicked"));
    assert!(is_silent(&mut steady, 100 * GRACE).await);
}

#[test]
fn a_resolver_survives_the_runtime_that_asked_it() {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (script, resolver) = scripted();
    let mut steady = Steady::new(resolver, GRACE);
    script.send(Ok(set(&["http://a"]))).unwrap();
    assert_eq!(runtime().block_on(next(&mut steady)).unwrap(), ["http://a"]);
    script.send(Err("SERVFAIL".into())).unwrap();
    runtime().block_on(next(&mut steady)).unwrap_err();
    script.send(Ok(set(&["http://b"]))).unwrap();
    assert_eq!(runtime().block_on(next(&mut steady)).unwrap(), ["http://b"]);
}

#[derive(Debug, Clone)]
enum Event {
    /// So many endpoints of each arm.
    Found([u8; 2], Option<usize>),
    Failed,
    Wait(u8),
}

fn event() -> impl Strategy<Value = Event> {
    let found = (0..3_u8, 0..3_u8, prop::option::weighted(0.2, 0..2_usize));
    prop_oneof![
        3 => found.prop_map(|(one, other, left)| Event::Found([one, other], left)),
        1 => Just(Event::Failed),
        3 => (0..40_u8).prop_map(Event::Wait),
    ]
}

/// How many endpoints of an arm are in force by the whole history of it: the last ones, or those before if these have ended within
/// the grace. Where it has ended for good there is no time.
fn by_history(history: &[(Option<Instant>, u8)], now: Instant) -> u8 {
    let Some((_, last)) = history.last() else { return 0 };
    if *last != 0 {
        return *last;
    }
    let Some(full) = history.iter().rposition(|(_, set)| *set != 0) else { return 0 };
    let ended = &history[full + 1..];
    let (Some(first), true) = (ended[0].0, ended.iter().all(|(at, _)| at.is_some())) else { return 0 };
    if now < first + GRACE { history[full].1 } else { 0 }
}

const ARMS: [&str; 2] = ["judge", "coder"];

proptest! {
    #[test]
    fn endpoints_in_force_are_those_of_the_whole_history(events in prop::collection::vec(event(), 0..40)) {
        let mut source = Source::default();
        let (mut now, mut histories, mut has_failed) = (Instant::now(), [Vec::new(), Vec::new()], false);
        for event in events {
            match event {
                Event::Wait(seconds) => now += Duration::from_secs(seconds.into()),
                Event::Found(counts, left) => {
                    let of = |(arm, count): (&&str, &u8)| {
                        (0..*count).map(|n| Endpoint::new(*arm, format!("http://{n}"))).collect::<Vec<_>>()
                    };
                    let all = ARMS.iter().zip(&counts).flat_map(of).collect();
                    source.expire(now);
                    source.found(all, now, GRACE, |arm| left.is_some_and(|left| ARMS[left] == arm));
                    for (number, (history, count)) in histories.iter_mut().zip(counts).enumerate() {
                        let is_over = count == 0 && left == Some(number);
                        history.push((Some(now).filter(|_| !is_over), count));
                    }
                    has_failed = false;
                }
                Event::Failed => {
                    source.failed("failed");
                    has_failed = true;
                }
            }
            source.expire(now);
            for (arm, history) in ARMS.iter().zip(&histories) {
                let count = source.endpoints().iter().filter(|endpoint| endpoint.arm == *arm).count();
                prop_assert_eq!(count, usize::from(by_history(history, now)));
            }
            prop_assert_eq!(source.trouble.is_some(), has_failed);
            prop_assert!(source.ends().is_none_or(|ends| now < ends));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn too_many_endpoints_are_left_out() {
    let all: Vec<_> = (0..MOST + 10).map(|port| Endpoint::new("judge", format!("http://a:{port}"))).collect();
    let mut steady = Steady::new(Box::new(fixed(all.clone())), GRACE);
    assert_eq!(steady.next().await.unwrap(), all[..MOST]);
}
