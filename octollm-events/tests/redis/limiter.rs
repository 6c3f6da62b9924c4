//! Rates that instances count together.

use octollm_core::{
    limit::{RateCount, RateLimit, RateLimiter, RateState},
    metrics,
};
use octollm_events::redis::{RedisError, RedisRateLimiter};
use tokio::time::{Instant, sleep};

use crate::*;

/// Two instances.
async fn pair(server: &Redis) -> [RedisRateLimiter; 2] {
    let url = server.url();
    let open = || RedisRateLimiter::connect(&url);
    [open().await.unwrap(), open().await.unwrap()]
}

async fn take(limiter: &RedisRateLimiter, key: &str, limit: &RateLimit, requests: u32) -> RateState {
    limiter.take(key, limit, requests).await.unwrap()
}

#[tokio::test]
async fn a_limit_holds_over_all_instances() {
    let server = Redis::start(&[]);
    let limiters = pair(&server).await;
    let limit = RateLimit::new(6, Duration::from_secs(60));
    for count in 0..6 {
        let state = take(&limiters[count % 2], "ali", &limit, 1).await;
        assert_eq!((state.retry_after, state.remaining), (None, 5 - u32::try_from(count).unwrap()));
        assert!(state.reset <= Duration::from_secs(10) * u32::try_from(count + 1).unwrap());
    }
    for limiter in &limiters {
        for requests in [0, 1] {
            let state = take(limiter, "ali", &limit, requests).await;
            let wait = state.retry_after.unwrap();
            assert!(wait > Duration::from_secs(5) && wait <= Duration::from_secs(10), "{wait:?}");
            assert_eq!(state.remaining, 0);
        }
        assert_eq!(take(limiter, "bob", &limit, 0).await.remaining, 6, "nothing is counted");
    }
    let ttl = server.execute("PTTL {octollm}:rate:ali");
    let ttl: u64 = ttl.trim().trim_start_matches(':').parse().unwrap();
    assert!((40_000..=60_000).contains(&ttl), "the key expires with its requests: {ttl}");
    assert!(server.execute("EXISTS {octollm}:rate:bob").starts_with(":0"));
}

#[tokio::test]
async fn requests_come_back_by_the_clock_of_the_server() {
    let server = Redis::start(&[]);
    let [limiter, other] = pair(&server).await;
    let limit = RateLimit::new(10, Duration::from_secs(2)).burst(2);
    let (mut allowed, since) = (0_u32, Instant::now());
    while since.elapsed() < Duration::from_secs(2) {
        let state = take(if allowed % 2 == 0 { &limiter } else { &other }, "k", &limit, 1).await;
        match state.retry_after {
            None => allowed += 1,
            Some(wait) => sleep(wait).await,
        }
    }
    let most = 2 + u32::try_from(since.elapsed().as_millis() / 200).unwrap() + 1;
    assert!((8..=most).contains(&allowed), "{allowed} of {most}");
}

#[tokio::test]
async fn all_limits_of_a_request_are_one_command() {
    let server = Redis::start(&[]);
    let [limiter, _] = pair(&server).await;
    let (wide, narrow) =
        (RateLimit::new(100, Duration::from_secs(60)), RateLimit::new(1, Duration::from_secs(60)));
    let counts = [("a", &wide), ("b", &narrow), ("c", &wide)].map(|(key, limit)| RateCount {
        key,
        limit,
        requests: 1,
    });
    let commands = || {
        let stats = server.execute("INFO commandstats");
        let line = stats.lines().find(|line| line.starts_with("cmdstat_evalsha:calls=")).unwrap().to_owned();
        line.split(['=', ',']).nth(1).unwrap().parse::<u32>().unwrap()
    };
    let before = commands();
    let first = limiter.take_each(&counts).await.unwrap();
    assert_eq!(commands(), before + 1);
    let remaining: Vec<_> = first.iter().map(|state| (state.remaining, state.retry_after)).collect();
    assert_eq!(remaining, [(99, None), (0, None), (99, None)]);
    let second = limiter.take_each(&counts).await.unwrap();
    assert!(matches!(
        second[..],
        [RateState { retry_after: None, .. }, RateState { retry_after: Some(_), .. }]
    ));
    assert_eq!(take(&limiter, "c", &wide, 0).await.remaining, 99, "what follows a refusal is not counted");
}

/// The number of requests that were counted without the server.
fn fallbacks() -> u64 {
    let page = metrics::page();
    let line = page.lines().find(|line| line.starts_with("octollm_rate_limiter_fallbacks_total{"));
    line.map_or(0, |line| line.rsplit(' ').next().unwrap().parse().unwrap())
}

#[tokio::test]
async fn while_the_server_is_away_each_instance_counts_by_itself() {
    let server = Redis::start(&[]);
    let [limiter, other] = pair(&server).await;
    let limit = RateLimit::new(2, Duration::from_secs(600));
    take(&limiter, "ali", &limit, 2).await;
    assert!(take(&other, "ali", &limit, 1).await.retry_after.is_some());
    server.stop();
    for limiter in [&limiter, &other] {
        let since = Instant::now();
        assert!(take(limiter, "ali", &limit, 1).await.retry_after.is_none(), "it has its own count");
        assert!(since.elapsed() < Duration::from_secs(2), "{:?}", since.elapsed());
        let (since, before) = (Instant::now(), fallbacks());
        assert!(take(limiter, "ali", &limit, 1).await.retry_after.is_none());
        assert!(take(limiter, "ali", &limit, 1).await.retry_after.is_some(), "and the same limit");
        assert!(since.elapsed() < Duration::from_millis(500), "neither waits 250 ms: {:?}", since.elapsed());
        assert!(fallbacks() >= before + 2);
    }
    server.resume();
    let end = Instant::now() + LIMIT;
    // The shared count had been used up before.
    let fresh = RateLimit::new(5, Duration::from_secs(600));
    while take(&limiter, "bob", &fresh, 1).await.remaining != take(&other, "bob", &fresh, 0).await.remaining {
        assert!(Instant::now() < end, "they count together again");
        sleep(Duration::from_millis(20)).await;
    }
    let is_shared = || async { server.execute("EXISTS {octollm}:rate:bob").starts_with(":1") };
    while !is_shared().await {
        assert!(Instant::now() < end, "they count in the server again");
        take(&limiter, "bob", &fresh, 1).await;
        sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_user_without_the_right_to_count_is_refused_at_the_start() {
    let server = Redis::start(&[]);
    server.execute(
        "ACL SETUSER ann on >geheim ~{octollm}:* -@all +@connection +@read +@write +@scripting +time",
    );
    let url = format!("redis://ann:geheim@127.0.0.1:{}", server.port());
    RedisRateLimiter::connect(&url).await.unwrap();
    let error = RedisRateLimiter::builder(&url).prefix("other").connect().await.unwrap_err();
    assert!(matches!(error, RedisError::NotPermitted(_)), "{error:?}");
    let error = RedisRateLimiter::builder(&url).prefix("{").connect().await.unwrap_err();
    assert!(matches!(error, RedisError::Setting(_)), "{error:?}");
}
