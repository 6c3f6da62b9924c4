//! Measures one call: about 1 KiB of JSON in, 150 bytes out, over a loopback connection that stays open.
//!
//! ```text
//! cargo run --release --example bench_call -- CONCURRENCY CALLS [endpoints=N] [http1|http2] [tokens]
//! ```
//!
//! With `endpoints` the arm has so many endpoints, all served by the one thread, among which the client chooses for each call.
//!
//! With `http1` or `http2` the client speaks that version only. Without, it chooses.
//!
//! With `tokens` the client is an arm that calls on: its token has the link by which a root delegated to it, and the server
//! verifies both. Nothing else differs. Each call has a context of its own with the caller, as in a server that was called with
//! one token many times, and an authorization of about 1 KiB. The server looks the token up, checks its times, its key, its audience
//! and the scope of the contract, and gives the arm the grant. What is signed and verified is so once, in the calls that warm up, as
//! it is every 2.5 minutes in a system.
//!
//! One server thread and one client thread, each with a runtime of its own. Prints one line. `cpu_us` is the CPU time of
//! both ends for each call.

use std::{
    thread,
    time::{Duration, Instant},
};

use nix::sys::{
    resource::{UsageWho, getrusage},
    time::TimeValLike,
};
use octollm::{
    card::ArmCard,
    context::{Caller, ContextParts, Grant},
    http::client::Protocol,
    http::token::{ExposeSecret, KeySet, SigningKey, TokenIssuer, TokenVerifier},
    prelude::*,
};
use tokio::{runtime, sync::oneshot, task::JoinSet};

/// Checks a piece of code.
#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "code.validate", output = Verdict, idempotent, timeout = "10s")]
struct ValidateCode {
    task_id: String,
    code: String,
    language: String,
}

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
struct Verdict {
    task_id: String,
    is_valid: bool,
    score: f64,
    issues: Vec<String>,
}

fn input() -> ValidateCode {
    let line = "def parse(path):\n    with open(path) as f:\n        return json.load(f)\n";
    ValidateCode {
        task_id: "task-550e8400-e29b-41d4-a716-446655440000".into(),
        code: line.repeat(13),
        language: "python".into(),
    }
}

struct Judge;

#[async_trait]
impl Arm<ValidateCode> for Judge {
    async fn execute(&self, input: ValidateCode, _: &Context) -> Result<Verdict, ArmError> {
        let is_valid = input.code.len() > 10;
        let issues = vec!["missing docstring".to_owned()];
        Ok(Verdict { task_id: input.task_id, is_valid, score: 0.97, issues })
    }
}

/// User and system time of this process.
fn cpu() -> Result<(Duration, Duration), octollm::Error> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    let time = |value: nix::sys::time::TimeVal| {
        Duration::from_micros(u64::try_from(value.num_microseconds()).unwrap_or_default())
    };
    Ok((time(usage.user_time()), time(usage.system_time())))
}

/// Makes the calls, `concurrency` at a time, and returns the duration of each.
async fn run(
    arms: &Arms,
    caller: &Caller,
    concurrency: usize,
    calls: usize,
) -> Result<Vec<Duration>, octollm::Error> {
    let mut callers = JoinSet::new();
    for _ in 0..concurrency {
        let (arms, caller) = (arms.clone(), caller.clone());
        callers.spawn(async move {
            let mut times = Vec::with_capacity(calls / concurrency);
            for _ in 0..calls / concurrency {
                let began = Instant::now();
                let mut parts = ContextParts::new();
                parts.caller = caller.clone();
                let verdict = arms.context_of(parts).call(input()).await?;
                assert!(verdict.is_valid);
                times.push(began.elapsed());
            }
            Ok::<_, CallError>(times)
        });
    }
    let mut times = Vec::with_capacity(calls);
    while let Some(one) = callers.join_next().await {
        times.extend(one??);
    }
    Ok(times)
}

async fn measure(
    url: String,
    protocol: Protocol,
    authority: Option<(TokenIssuer, Caller)>,
    (concurrency, calls): (usize, usize),
) -> Result<(), octollm::Error> {
    let mut arms = Arms::builder().endpoint("judge", url).protocol(protocol);
    let mut caller = Caller::Unchecked;
    if let Some((issuer, delegated)) = authority {
        arms = arms.tokens(issuer);
        caller = delegated;
    }
    let arms = arms.build()?;
    // Connections, caches and the branch predictor warm up.
    run(&arms, &caller, concurrency, (calls / 10).max(concurrency)).await?;
    let (user_before, system_before) = cpu()?;
    let began = Instant::now();
    let mut times = run(&arms, &caller, concurrency, calls).await?;
    let elapsed = began.elapsed();
    let (user, system) = cpu()?;
    times.sort_unstable();
    let count = times.len();
    let micros = |time: Duration| time.as_secs_f64() * 1e6;
    let each = |time: Duration| micros(time) / count as f64;
    let (user, system) = (each(user - user_before), each(system - system_before));
    println!(
        "octollm conc={concurrency} calls={count} rps={:.0} p50_us={:.1} p99_us={:.1} cpu_us={:.2} user_us={user:.2} sys_us={system:.2}",
        count as f64 / elapsed.as_secs_f64(),
        micros(times[count / 2]),
        micros(times[count * 99 / 100]),
        user + system,
    );
    Ok(())
}

/// A root delegates to the arm `coder`: the keys that the server knows, and what the coder calls with.
fn delegation() -> Result<(KeySet, TokenIssuer, Caller), octollm::Error> {
    let (root, coder) = (SigningKey::generate()?, SigningKey::generate()?);
    let keys = KeySet::new("brain").with_key(&root)?;
    let mut card = ArmCard::new("coder");
    card.key = coder.public_jwk();
    card.needs = vec!["code:validate".into()];
    let granted = Grant::new("ali", ["code:*"]);
    let token = TokenIssuer::root("brain", root).build()?.issue(&granted, &["code:write"], &card)?;
    let verifier = TokenVerifier::builder().audience("coder").root(keys.clone()).build()?;
    let grant = verifier.verify(token.expose_secret())?;
    Ok((keys, TokenIssuer::arm("coder", coder).build()?, Caller::Known(grant)))
}

/// Serves so many endpoints on a thread of its own, and returns their addresses.
fn serve(roots: Option<KeySet>, endpoints: usize) -> oneshot::Receiver<String> {
    let (sender, url) = oneshot::channel();
    thread::spawn(move || {
        let serving = async {
            let (mut urls, mut running) = (Vec::new(), JoinSet::new());
            for _ in 0..endpoints {
                let mut server = Server::new("judge").arm(Judge);
                if let Some(roots) = &roots {
                    server = server.tokens(TokenVerifier::builder().root(roots.clone()));
                }
                let server = server.bind("127.0.0.1:0").await?;
                urls.push(server.url());
                running.spawn(server.run());
            }
            let _ = sender.send(urls.join(","));
            running.join_all().await;
            Ok::<_, octollm::Error>(())
        };
        runtime::Builder::new_current_thread().enable_all().build()?.block_on(serving)
    });
    url
}

fn main() -> Result<(), octollm::Error> {
    let mut arguments: Vec<_> = std::env::args().skip(1).collect();
    let tokens = arguments.pop_if(|last| last == "tokens").is_some();
    let protocol = if arguments.pop_if(|last| last == "http1").is_some() {
        Protocol::Http1
    } else if arguments.pop_if(|last| last == "http2").is_some() {
        Protocol::Http2
    } else {
        Protocol::Auto
    };
    let endpoints = arguments.pop_if(|last| last.starts_with("endpoints="));
    let endpoints = endpoints.map_or(Ok(1), |word| word["endpoints=".len()..].parse())?;
    let mut numbers = arguments.iter().map(|argument| argument.parse::<usize>());
    let concurrency = numbers.next().transpose()?.unwrap_or(64).max(1);
    let calls = numbers.next().transpose()?.unwrap_or(60_000).max(concurrency);
    let (roots, authority) = match tokens.then(delegation).transpose()? {
        Some((roots, issuer, caller)) => (Some(roots), Some((issuer, caller))),
        None => (None, None),
    };
    let url = serve(roots, endpoints.max(1));
    let client = runtime::Builder::new_current_thread().enable_all().build()?;
    client.block_on(async { measure(url.await?, protocol, authority, (concurrency, calls)).await })
}
