//! Breakers, retry budget, ejection, balancing and discovery together, as a user of `Arms` meets them.

use std::{
    collections::{BTreeSet, HashSet},
    future::pending,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use futures_util::future::join_all;
use octollm_core::{
    arm::arm_fn,
    error::{ArmError, CallError, ErrorKind},
    explain::CallEvent,
    parts::{Caller, Grant},
    resilience::HedgeLayer,
};
use octollm_http::{
    Server,
    client::{Arms, ArmsBuilder, Protocol},
    resolve::{Endpoint, Resolver},
};
use serde_json::json;
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use tower::BoxError;

use crate::peer::{Answer, Check, CheckAgain, Peer, Verdict, again, check, network, unused_host, usual};

const SECOND: Duration = Duration::from_secs(1);
const MS: Duration = Duration::from_millis(1);
const BOTH: [Protocol; 2] = [Protocol::Http1, Protocol::Http2];

/// An arm whose answers a test changes, each after a time.
struct Switched {
    peer: Peer,
    answer: Arc<Mutex<(Answer, Duration)>>,
}

impl Switched {
    async fn start(answer: Answer, after: Duration) -> Self {
        let answer = Arc::new(Mutex::new((answer, after)));
        let current = answer.clone();
        let peer = Peer::arm(move |_| {
            let (answer, after) = current.lock().unwrap().clone();
            async move {
                sleep(after).await;
                answer
            }
        });
        Self { peer: peer.await, answer }
    }

    fn set(&self, answer: Answer, after: Duration) {
        *self.answer.lock().unwrap() = (answer, after);
    }

    fn calls(&self) -> usize {
        self.peer.calls().len()
    }
}

fn busy() -> Answer {
    Answer::unavailable()
}

fn judge(peers: &[&Switched], builder: ArmsBuilder) -> Arms {
    let urls: Vec<_> = peers.iter().map(|switched| &*switched.peer.url).collect();
    builder.endpoint_serving::<Check>("judge", urls.join(",")).build().unwrap()
}

fn kinds(results: &[Result<Verdict, CallError>]) -> HashSet<ErrorKind> {
    results.iter().filter_map(|result| result.as_ref().err()).map(CallError::kind).collect()
}

/// Makes so many calls at once, each with one attempt.
async fn once(arms: &Arms, calls: usize) -> Vec<Result<Verdict, CallError>> {
    join_all((0..calls).map(|_| arms.call(check()).retry(0))).await
}

/// Opens the breaker of the only endpoint.
async fn open(arms: &Arms, switched: &Switched) {
    switched.set(busy(), Duration::ZERO);
    for _ in 0..5 {
        assert_eq!(kinds(&once(arms, 1).await), [ErrorKind::Unavailable].into());
    }
    assert_eq!(kinds(&once(arms, 1).await), [ErrorKind::CircuitOpen].into());
}

#[tokio::test(start_paused = true)]
async fn fault_03_an_arm_that_is_lost_half_way_counts_once_at_its_breaker() {
    let lost = Switched::start(Answer::Last(vec![]), Duration::ZERO).await;
    let arms = judge(&[&lost], usual());
    for sent in 1..=5 {
        // Three attempts are allowed, and none but the first is safe.
        let error = arms.call(check()).await.unwrap_err();
        assert_eq!((error.kind(), error.may_have_executed()), (ErrorKind::ConnectionLost, true));
        assert_eq!((error.attempts(), lost.calls()), (1, sent));
    }
    assert_eq!(kinds(&once(&arms, 3).await), [ErrorKind::CircuitOpen].into());
    assert_eq!(lost.calls(), 5);
}

#[tokio::test(start_paused = true)]
async fn fault_15_answers_of_429_leave_the_breaker_of_an_endpoint_closed() {
    let limited = Switched::start(Answer::Json(429, json!({})), Duration::ZERO).await;
    let arms = judge(&[&limited], usual());
    for _ in 0..7 {
        assert_eq!(kinds(&once(&arms, 1).await), [ErrorKind::RateLimited].into());
    }
    limited.set(Answer::verdict(), Duration::ZERO);
    once(&arms, 1).await.remove(0).unwrap();
    assert_eq!(limited.calls(), 8);
}

/// Makes calls at an even rate for 60 s, and returns how many.
async fn calls_for_a_minute(arms: &Arms, per_second: u32) -> u32 {
    let (began, calls) = (Instant::now(), per_second * 60);
    let mut running = JoinSet::new();
    for number in 0..calls {
        tokio::time::sleep_until(began + SECOND * number / per_second).await;
        let arms = arms.clone();
        running.spawn(async move { arms.call(again()).within(Duration::from_secs(20)).await.unwrap_err() });
        while running.try_join_next().is_some() {}
    }
    running.join_all().await;
    calls
}

#[tokio::test(start_paused = true)]
async fn fault_16_an_arm_that_fails_for_a_minute_gets_a_fifth_more_and_ten_a_second() {
    let internal = json!({ "status": 500, "code": "internal", "detail": "no", "retryable": true });
    for failure in [Answer::Json(500, internal), busy()] {
        for rate in [1, 10, 100] {
            for breaker in [0, 5] {
                let failing = Switched::start(failure.clone(), Duration::ZERO).await;
                let arms = judge(&[&failing], usual().breaker_failures(breaker));
                let calls = calls_for_a_minute(&arms, rate).await as usize;
                let sent = failing.calls();
                // The bucket is full at the begin.
                let most = calls * 12 / 10 + 10 * 60 + 100;
                assert!(sent <= most, "{failure:?} at {rate}/s: {sent} of at most {most}");
                // Without a breaker the budget is used.
                let least = if breaker == 0 { calls + (calls / 10).min(300) } else { 5 };
                assert!(sent >= least, "{failure:?} at {rate}/s: {sent} of at least {least}");
                assert!(breaker == 0 || sent < 150, "{failure:?} at {rate}/s: {sent} with a breaker");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn fault_20_of_a_thousand_calls_to_an_open_breaker_one_is_sent() {
    let arm = Switched::start(busy(), Duration::ZERO).await;
    let arms = judge(&[&arm], usual());
    open(&arms, &arm).await;
    let begun = Instant::now();
    for error in once(&arms, 1_000).await.into_iter().map(Result::unwrap_err) {
        let wait = error.retry_after().unwrap();
        assert!(error.kind() == ErrorKind::CircuitOpen && wait > Duration::ZERO && wait <= SECOND);
        assert_eq!((error.arm(), error.endpoint()), (Some("judge"), Some(&*arm.peer.url)));
        assert!(error.retryable() && !error.may_have_executed() && error.attempts() == 0);
    }
    assert_eq!((begun.elapsed(), arm.calls()), (Duration::ZERO, 5));

    sleep(SECOND).await;
    arm.set(Answer::verdict(), 10 * MS);
    let results = once(&arms, 1_000).await;
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1);
    for error in results.into_iter().filter_map(Result::err) {
        assert_eq!(error.kind(), ErrorKind::CircuitOpen);
        assert!(error.retry_after().is_some_and(|wait| wait > Duration::ZERO));
    }
    assert_eq!(arm.calls(), 6);
    assert!(once(&arms, 1_000).await.iter().all(Result::is_ok));
}

#[tokio::test(start_paused = true)]
async fn fault_20_a_call_that_a_breaker_rejects_is_tried_again_after_the_wait_and_not_at_once() {
    let arm = Switched::start(busy(), Duration::ZERO).await;
    let arms = judge(&[&arm], usual());
    open(&arms, &arm).await;
    arm.set(Answer::verdict(), Duration::ZERO);
    let begun = Instant::now();
    let error = arms.call(check()).within(100 * MS).await.unwrap_err();
    assert_eq!((error.kind(), begun.elapsed()), (ErrorKind::CircuitOpen, Duration::ZERO));
    arms.call(check()).await.unwrap();
    assert!(begun.elapsed() >= 700 * MS && begun.elapsed() <= SECOND, "{:?}", begun.elapsed());
    assert_eq!(arm.calls(), 6);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_gets_no_token_says_nothing_of_the_endpoint() {
    let arm = Switched::start(busy(), Duration::ZERO).await;
    let arms = judge(&[&arm], usual());
    open(&arms, &arm).await;
    sleep(SECOND).await;
    // This program has no key to pass on the authority of the caller.
    let caller = Caller::Known(std::sync::Arc::new(Grant::new("ada", ["code:validate"]).links(Vec::new())));
    for _ in 0..3 {
        let error = arms.on_behalf_of(caller.clone()).call(check()).await.unwrap_err();
        assert_eq!((error.kind(), error.attempts()), (ErrorKind::Unauthenticated, 0));
    }
    // Each was the probe, and has not closed the breaker.
    assert_eq!(kinds(&once(&arms, 2).await), [ErrorKind::Unavailable, ErrorKind::CircuitOpen].into());
    assert_eq!(arm.calls(), 6);
}

#[tokio::test(start_paused = true)]
async fn fault_21_a_probe_that_hangs_or_is_cancelled_gives_its_place_back() {
    let arm = Switched::start(busy(), Duration::ZERO).await;
    let arms = judge(&[&arm], usual());
    open(&arms, &arm).await;
    sleep(SECOND).await;
    arm.set(Answer::Silence, Duration::ZERO);
    let hanging = tokio::spawn(arms.call(check()).retry(0).within(30 * SECOND));
    sleep(MS).await;
    arm.set(Answer::verdict(), Duration::ZERO);
    assert_eq!(kinds(&once(&arms, 10).await), [ErrorKind::CircuitOpen].into());
    sleep(2 * SECOND).await;
    assert!(once(&arms, 1).await[0].is_ok(), "the next probe");
    assert!(once(&arms, 10).await.iter().all(Result::is_ok));
    // It is late, and decides nothing.
    assert!(hanging.await.unwrap().is_err());
    assert!(once(&arms, 10).await.iter().all(Result::is_ok));

    open(&arms, &arm).await;
    for _ in 0..10 {
        sleep(SECOND).await;
        arm.set(Answer::Silence, Duration::ZERO);
        assert!(timeout(MS, arms.call(check()).retry(0)).await.is_err(), "a probe");
    }
    arm.set(Answer::Json(404, json!({ "detail": "no such file" })), Duration::ZERO);
    assert_eq!(kinds(&once(&arms, 1).await), [ErrorKind::NotFound].into(), "a probe that is answered");
    assert_eq!(kinds(&once(&arms, 10).await), [ErrorKind::NotFound].into(), "the breaker is closed");
}

/// Makes 1 000 calls, ten at a time. Returns how many failed.
async fn thousand(arms: &Arms, retry: u32) -> usize {
    let mut callers = JoinSet::new();
    for _ in 0..10 {
        let arms = arms.clone();
        callers.spawn(async move {
            let mut failed = 0;
            for _ in 0..100 {
                failed += usize::from(arms.call(again()).retry(retry).await.is_err());
            }
            failed
        });
    }
    callers.join_all().await.into_iter().sum()
}

#[tokio::test(start_paused = true)]
async fn fault_22_an_endpoint_that_fails_in_a_millisecond_gets_less_than_a_fifth() {
    for breaker in [0, 5] {
        for (retry, hedges) in [(0, false), (2, false), (2, true)] {
            let bad = Switched::start(busy(), MS).await;
            let one = Switched::start(Answer::verdict(), 10 * MS).await;
            let two = Switched::start(Answer::verdict(), 10 * MS).await;
            let mut builder = usual().breaker_failures(breaker);
            if hedges {
                builder = builder.layer(HedgeLayer::new());
            }
            let failed = thousand(&judge(&[&one, &bad, &two], builder), retry).await;
            let calls = [bad.calls(), one.calls(), two.calls()];
            assert!(calls[0] < 200 && calls[0] > 0, "{calls:?} {breaker} {retry} {hedges}");
            assert!(calls[1].min(calls[2]) > 300, "{calls:?} {breaker} {retry} {hedges}");
            // A retry goes elsewhere.
            assert_eq!(failed, if retry == 0 { calls[0] } else { 0 }, "{calls:?} {breaker} {hedges}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn fault_22_a_hedge_of_a_late_call_goes_to_another_endpoint() {
    let (one, two) = (Switched::start(Answer::verdict(), 10 * MS).await, usual());
    let other = Switched::start(Answer::verdict(), 10 * MS).await;
    let arms = judge(&[&one, &other], two.layer(HedgeLayer::new()));
    assert_eq!(thousand(&arms, 0).await, 0);
    one.set(Answer::Silence, Duration::ZERO);
    let begun = Instant::now();
    for _ in 0..10 {
        arms.call(again()).retry(0).await.unwrap();
    }
    assert!(begun.elapsed() < SECOND, "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn fault_22_an_endpoint_whose_calls_are_all_given_up_for_their_hedges_gets_few() {
    let one = Switched::start(Answer::verdict(), 10 * MS).await;
    let other = Switched::start(Answer::verdict(), 10 * MS).await;
    let arms = judge(&[&one, &other], usual().layer(HedgeLayer::new()));
    assert_eq!(thousand(&arms, 0).await, 0);
    one.set(Answer::Silence, Duration::ZERO);
    let (before, mut longest) = (one.calls(), Duration::ZERO);
    for _ in 0..300 {
        let begun = Instant::now();
        arms.call(again()).retry(0).await.unwrap();
        longest = longest.max(begun.elapsed());
        sleep(100 * MS).await;
    }
    let hung = one.calls() - before;
    assert!(hung <= 30 && longest < 50 * MS, "{hung} of 300, {longest:?}");
    one.set(Answer::verdict(), 10 * MS);
    sleep(3 * SECOND).await;
    let before = one.calls();
    for _ in 0..100 {
        arms.call(again()).retry(0).await.unwrap();
    }
    assert!(one.calls() - before >= 20, "it has recovered, and gets {}", one.calls() - before);
}

#[tokio::test(start_paused = true)]
async fn fault_23_where_all_endpoints_are_tripped_one_is_still_tried_and_recovers() {
    let peers = [
        Switched::start(busy(), MS).await,
        Switched::start(busy(), MS).await,
        Switched::start(busy(), MS).await,
    ];
    let arms = judge(&[&peers[0], &peers[1], &peers[2]], usual());
    let sent = || peers.iter().map(Switched::calls).sum::<usize>();
    let begun = Instant::now();
    while begun.elapsed() < 30 * SECOND {
        let error = once(&arms, 1).await.remove(0).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::CircuitOpen), "{error}");
        assert!(error.endpoint().is_some_and(|url| peers.iter().any(|peer| *peer.peer.url == *url)));
        assert_eq!(error.kind() == ErrorKind::CircuitOpen, error.attempts() == 0, "{error}");
        sleep(9 * MS).await;
    }
    assert!(
        peers.iter().all(|peer| (10..=40).contains(&peer.calls())),
        "5 calls, and the probes: {}",
        sent()
    );
    peers[2].set(Answer::verdict(), MS);
    let recovered = Instant::now();
    while once(&arms, 1).await[0].is_err() {
        sleep(10 * MS).await;
    }
    assert!(recovered.elapsed() <= 5 * SECOND, "{:?}", recovered.elapsed());
    // The others are probed, and fail no further calls but these.
    let before = peers[0].calls() + peers[1].calls();
    let failed = once(&arms, 90).await.iter().filter(|result| result.is_err()).count();
    assert_eq!(failed, peers[0].calls() + peers[1].calls() - before);
    assert!(failed <= 2, "{failed}");
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_has_recovered_gets_its_share_at_once() {
    let (one, two) =
        (Switched::start(Answer::verdict(), 2 * MS).await, Switched::start(Answer::verdict(), 2 * MS).await);
    let arms = judge(&[&one, &two], usual());
    assert_eq!(thousand(&arms, 0).await, 0);
    two.set(busy(), Duration::ZERO);
    let begun = Instant::now();
    while begun.elapsed() < 60 * SECOND {
        arms.call(again()).await.unwrap();
        sleep(20 * MS).await;
    }
    two.set(Answer::verdict(), 2 * MS);
    let until = Instant::now() + 5 * SECOND;
    while Instant::now() < until {
        arms.call(again()).await.unwrap();
        sleep(20 * MS).await;
    }
    let before = two.calls();
    assert_eq!(thousand(&arms, 0).await, 0);
    assert!(two.calls() - before > 300, "{}", two.calls() - before);
}

/// Endpoints that a test changes.
struct Listed(watch::Receiver<Vec<String>>);

impl Listed {
    fn new(urls: &[String]) -> (watch::Sender<Vec<String>>, Self) {
        let (sender, mut receiver) = watch::channel(urls.to_vec());
        receiver.mark_changed();
        (sender, Self(receiver))
    }
}

#[async_trait]
impl Resolver for Listed {
    async fn next(&mut self) -> Result<Vec<Endpoint>, BoxError> {
        if self.0.changed().await.is_err() {
            pending::<()>().await;
        }
        Ok(self.0.borrow_and_update().iter().map(|url| Endpoint::new("judge", url)).collect())
    }
}

/// A server of this library, the calls that it began, and its answer to each by its number.
struct Instance {
    url: String,
    began: Arc<AtomicUsize>,
}

impl Instance {
    fn start(work: Duration, fails: impl Fn(usize) -> bool + Send + Sync + 'static) -> Self {
        let (host, began) = (unused_host(), Arc::new(AtomicUsize::new(0)));
        let counted = began.clone();
        let arm = arm_fn(move |_: Check, _| {
            let fails = fails(counted.fetch_add(1, Ordering::SeqCst));
            async move {
                sleep(work).await;
                if fails { Err(ArmError::unavailable("not now")) } else { Ok(Verdict { is_valid: true }) }
            }
        });
        let acceptor = network().listen(&host).unwrap();
        tokio::spawn(Server::new("judge").arm(arm).open_to_all().listen(acceptor).unwrap().run());
        Self { url: format!("http://{host}"), began }
    }

    fn began(&self) -> usize {
        self.began.load(Ordering::SeqCst)
    }
}

fn instances(count: usize, work: Duration) -> (Vec<Instance>, Vec<String>) {
    let instances: Vec<_> = (0..count).map(|_| Instance::start(work, |_| false)).collect();
    let urls = instances.iter().map(|instance| instance.url.clone()).collect();
    (instances, urls)
}

/// What each instance got while this ran.
async fn shares(instances: &[Instance], during: impl Future<Output = ()>) -> Vec<usize> {
    let before: Vec<_> = instances.iter().map(Instance::began).collect();
    during.await;
    instances.iter().zip(before).map(|(instance, before)| instance.began() - before).collect()
}

/// Makes calls at an even rate.
async fn load(arms: &Arms, pause: Duration, calls: u32) {
    let mut running = JoinSet::new();
    for _ in 0..calls {
        let arms = arms.clone();
        running.spawn(async move { arms.call(check()).await.unwrap() });
        sleep(pause).await;
    }
    running.join_all().await;
}

#[tokio::test(start_paused = true)]
async fn fault_42_endpoints_that_are_added_get_even_shares_within_the_age_of_a_connection() {
    for protocol in BOTH {
        let (instances, urls) = instances(10, 50 * MS);
        let (list, resolver) = Listed::new(&urls[..1]);
        let arms = usual().protocol(protocol).resolver(resolver).build().unwrap();
        load(&arms, 5 * MS, 1_000).await;
        assert_eq!(instances[0].began(), 1_000);
        list.send(urls).unwrap();
        let first = shares(&instances, load(&arms, 5 * MS, 2_000)).await;
        let then = shares(&instances, load(&arms, 5 * MS, 2_000)).await;
        assert!(first.iter().all(|share| *share > 0), "{protocol:?} {first:?}");
        assert!(then.iter().all(|share| (100..=400).contains(share)), "{protocol:?} {then:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn fault_42_endpoints_that_are_added_get_calls_where_there_are_few() {
    for protocol in BOTH {
        let (instances, urls) = instances(10, 3 * MS);
        let (list, resolver) = Listed::new(&urls[..1]);
        let arms = usual().protocol(protocol).resolver(resolver).build().unwrap();
        load(&arms, SECOND, 10).await;
        list.send(urls).unwrap();
        // One at a time, for as long as a connection may be used.
        let shares = shares(&instances, load(&arms, SECOND, 300)).await;
        assert!(shares.iter().all(|share| (10..=90).contains(share)), "{protocol:?} {shares:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn fault_42_an_endpoint_that_is_removed_ends_what_runs_and_gets_nothing_more() {
    for protocol in BOTH {
        let (instances, urls) = instances(2, 2 * SECOND);
        let (list, resolver) = Listed::new(&urls);
        let arms = usual().protocol(protocol).resolver(resolver).build().unwrap();
        let running = tokio::spawn({
            let arms = arms.clone();
            async move { once(&arms, 20).await }
        });
        sleep(SECOND).await;
        assert!(instances.iter().all(|instance| instance.began() > 0), "{protocol:?}");
        list.send(urls[1..].to_vec()).unwrap();
        sleep(100 * MS).await;
        let shares = shares(&instances, async { assert!(once(&arms, 40).await.iter().all(Result::is_ok)) });
        assert_eq!(shares.await, [0, 40], "{protocol:?}");
        assert!(running.await.unwrap().iter().all(Result::is_ok), "{protocol:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn fault_11_calls_dropped_at_random_between_retries_and_breakers_leave_nothing() {
    // One is busy every third time, the other for half of each hundred calls.
    let healed = Arc::new(AtomicBool::new(false));
    let (is_one_well, is_two_well) = (healed.clone(), healed.clone());
    let one = Instance::start(10 * MS, move |call| call % 3 == 0 && !is_one_well.load(Ordering::SeqCst));
    let two = Instance::start(10 * MS, move |call| call % 100 < 50 && !is_two_well.load(Ordering::SeqCst));
    let urls = format!("{},{}", one.url, two.url);
    let builder = usual().protocol(Protocol::Http2).max_connections(4).max_idle(4).max_streams(6);
    let arms = builder.breaker_open(20 * MS).endpoint("judge", urls).build().unwrap();
    let (mut dropped, mut failed) = (0, 0);
    for round in 0..2_500_u64 {
        let calls = (0..4).map(|_| arms.call(again()));
        match timeout(MS * (round.wrapping_mul(7919) % 60) as u32, join_all(calls)).await {
            Ok(answers) => failed += answers.iter().filter(|answer| answer.is_err()).count(),
            Err(_) => dropped += 4,
        }
    }
    assert!(dropped > 2_000 && failed < 2_000, "{dropped} {failed}");
    let (ones, twos) = (one.began(), two.began());
    assert!(ones > 500 && twos > 100, "{ones} {twos}");
    healed.store(true, Ordering::SeqCst);
    sleep(300 * SECOND).await;
    // The breakers are closed by probes.
    for _ in 0..20 {
        once(&arms, 2).await;
        sleep(100 * MS).await;
    }
    let instances = [one, two];
    let shares = shares(&instances, async {
        for _ in 0..40 {
            let begun = Instant::now();
            assert!(once(&arms, 16).await.iter().all(Result::is_ok));
            assert!(begun.elapsed() < 25 * MS, "a place is missing: {:?}", begun.elapsed());
        }
    });
    let shares = shares.await;
    assert!(shares.iter().all(|share| *share > 200), "calls are counted that do not run: {shares:?}");
    let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
    drop(arms);
    sleep(60 * SECOND).await;
    // Those of the two servers.
    assert!(tasks() <= 4, "{}", tasks());
}

#[tokio::test(start_paused = true)]
async fn an_attempt_tries_a_bounded_number_of_endpoints_and_each_once() {
    let good = Switched::start(Answer::verdict(), Duration::ZERO).await;
    let gone = || (0..40).map(|_| format!("http://{}", unused_host())).collect::<Vec<_>>();
    for (most, expected) in [(3, 3), (8, 8), (100, 40)] {
        let builder = usual().max_endpoints(most).breaker_failures(0);
        let arms = builder.endpoint_serving::<CheckAgain>("judge", gone().join(",")).build().unwrap();
        let (answer, steps) = arms.call(again()).retry(0).explained().await;
        let error = answer.unwrap_err();
        assert_eq!((error.kind(), error.may_have_executed()), (ErrorKind::Unreachable, false));
        let sent = steps.iter().filter_map(|(_, what)| match what {
            CallEvent::Sent { endpoint, .. } => Some(endpoint.clone()),
            _ => None,
        });
        let sent: Vec<_> = sent.collect();
        assert_eq!((sent.len(), sent.iter().collect::<BTreeSet<_>>().len()), (expected, expected));
    }
    // Further attempts find one that works.
    let urls = [&gone()[..10], std::slice::from_ref(&good.peer.url)].concat().join(",");
    let arms = usual().endpoint_serving::<CheckAgain>("judge", urls).build().unwrap();
    arms.call(again()).retry(20).await.unwrap();
}
