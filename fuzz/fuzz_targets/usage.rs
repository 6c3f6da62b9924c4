//! The limits in the head of a request and the usage in that of an answer: what is read, what is passed on, and what is reported. An
//! arm spends, and calls on once.
#![no_main]

use std::{
    cell::OnceCell,
    convert::Infallible,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::Full;
use libfuzzer_sys::fuzz_target;
use octollm_core::{
    Arm, Context,
    budget::{Budget, Cost, Usage},
    error::ArmError,
};
use octollm_fuzz::{Free, Safe, headers};
use octollm_http::{Arms, Server, server::HttpService};
use serde_json::Value;
use tokio::runtime::{Builder, Runtime};
use tower::{ServiceExt, layer::layer_fn, service_fn};

/// What the arm does, and what was seen of it.
#[derive(Default)]
struct Play {
    /// What the arm spends before it calls.
    spends: Usage,
    /// The head of the answer to its call.
    answer: HeaderMap,
    /// What the arm was given, and what is left after it has spent.
    given: Option<[(Budget, Option<Duration>); 2]>,
    /// The head of its call.
    called: Option<HeaderMap>,
    /// What it has used in the end.
    used: Usage,
}

type Shared = Arc<Mutex<Play>>;

struct Spender(Shared);

#[async_trait]
impl Arm<Safe> for Spender {
    async fn execute(&self, _: Safe, cx: &Context) -> Result<Value, ArmError> {
        let spends = self.0.lock().expect("no panic").spends;
        let given = (cx.budget(), cx.remaining());
        // An arm that has spent too much may call all the same.
        let _ = cx.spend(spends);
        self.0.lock().expect("no panic").given = Some([given, (cx.budget(), cx.remaining())]);
        let answer = cx.call(Free {}).await;
        self.0.lock().expect("no panic").used = cx.used();
        Ok(answer?)
    }
}

thread_local!(static SYSTEM: OnceCell<(Runtime, HttpService, Shared)> = const { OnceCell::new() });

fn system() -> (Runtime, HttpService, Shared) {
    let play = Shared::default();
    let peer = play.clone();
    let layer = layer_fn(move |_| {
        let peer = peer.clone();
        service_fn(move |request: Request<Bytes>| {
            let mut play = peer.lock().expect("no panic");
            play.called = Some(request.headers().clone());
            let mut answer = Response::new(Bytes::from_static(b"1"));
            *answer.headers_mut() = play.answer.clone();
            async { Ok::<_, Infallible>(answer) }
        })
    });
    let arms = Arms::builder().endpoint_serving::<Free>("free", "http://peer").request_layer(layer);
    let server =
        Server::new("spender").arm::<Safe>(Spender(play.clone())).arms(arms.build().expect("a client"));
    let runtime = Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime");
    (runtime, server.open_to_all().into_service().expect("a server"), play)
}

// Header fields of a request, an empty line, what the arm spends, and header fields of the answer to its call.
fuzz_target!(|data: &[u8]| {
    let mut lines = data.split(|byte| *byte == b'\n');
    let fields = headers(lines.by_ref().take_while(|line| !line.is_empty()));
    let spends =
        lines.next().and_then(|line| std::str::from_utf8(line).ok()?.parse().ok()).unwrap_or_default();
    let answer = headers(lines);
    check_forms(&fields, &answer, spends);
    let mut request = Request::post("/safe").header("content-type", "application/json");
    for name in ["octollm-timeout", "octollm-budget", "octollm-attempt", "octollm-usage"] {
        for value in fields.get_all(name) {
            request = request.header(name, value);
        }
    }
    let request = request.body(Full::new(Bytes::from_static(b"{}"))).expect("a request");
    SYSTEM.with(|cell| {
        let (runtime, service, play) = cell.get_or_init(system);
        *play.lock().expect("no panic") = Play { spends, answer: answer.clone(), ..Play::default() };
        let response = match runtime.block_on(service.clone().oneshot(request)) {
            Ok(response) => response,
            Err(never) => match never {},
        };
        let play = play.lock().expect("no panic");
        check_request(&fields, &play, response.status().as_u16());
        if play.given.is_some() {
            check_call(&play);
            let reported = text(response.headers(), "octollm-usage").expect("a report");
            assert_eq!(reported.parse(), Ok(play.used));
        }
    });
});

fn text<'h>(head: &'h HeaderMap, name: &str) -> Option<&'h str> {
    head.get(name)?.to_str().ok()
}

/// The arm has what the head grants, and does not run where the head cannot be read or grants nothing.
fn check_request(head: &HeaderMap, play: &Play, status: u16) {
    let count = |name: &str| head.get_all(name).iter().count();
    let digits = |text: &&str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let number = |name| text(head, name).filter(digits).and_then(|text| text.parse::<u64>().ok());
    let budget = text(head, "octollm-budget").map(str::parse::<Budget>);
    let timeout = number("octollm-timeout");
    let is_readable = count("octollm-budget") <= 1
        && count("octollm-timeout") <= 1
        && count("octollm-attempt") <= 1
        && (count("octollm-budget") == 0 || matches!(budget, Some(Ok(_))))
        && (count("octollm-timeout") == 0 || timeout.is_some())
        && (count("octollm-attempt") == 0
            || number("octollm-attempt").is_some_and(|attempt| (1..=u64::from(u32::MAX)).contains(&attempt)));
    if !is_readable {
        return assert!(status == 400 && play.given.is_none(), "{status}: {head:?}");
    }
    let budget = budget.and_then(Result::ok).unwrap_or(Budget::UNLIMITED);
    let Some([(given, time), (left, _)]) = play.given else {
        let nothing = timeout == Some(0) || budget.is_exhausted();
        return assert!(nothing && [429, 504].contains(&status), "{status}: {head:?}");
    };
    assert_eq!(given, budget);
    assert_eq!(left, budget.after(play.spends));
    let longest = Duration::from_millis(timeout.unwrap_or(u64::MAX)).min(Duration::from_secs(30));
    assert!(time.is_some_and(|time| !time.is_zero() && time <= longest), "{time:?} of {longest:?}");
}

/// The call has what is left of time and budget, and its usage is added.
fn check_call(play: &Play) {
    let [_, (left, time)] = play.given.expect("the arm ran");
    let Some(called) = &play.called else {
        assert!(left.is_exhausted());
        return assert_eq!(play.used, play.spends);
    };
    assert!(!left.is_exhausted());
    match text(called, "octollm-budget") {
        Some(passed) => assert_eq!(passed.parse(), Ok(left)),
        None => assert!(left.is_unlimited()),
    }
    let passed: u64 = text(called, "octollm-timeout").expect("a time limit").parse().expect("milliseconds");
    assert!(time.is_some_and(|time| Duration::from_millis(passed) <= time), "{passed} ms of {time:?}");
    let reported: Vec<_> =
        play.answer.get_all("octollm-usage").iter().map(|value| value.to_str().ok()).collect();
    match &*reported {
        [] => assert_eq!(play.used, play.spends.plus(Usage::UNMETERED)),
        [Some(one)] if one.parse::<Usage>().is_ok() => {
            assert_eq!(Ok(play.used), one.parse().map(|used| play.spends.plus(used)));
        }
        // What can be read is counted, and the rest is unmetered.
        _ => {
            assert!(play.used.unmetered > play.spends.unmetered || play.used.unmetered == u64::MAX);
            assert!(play.used.tokens >= play.spends.tokens && play.used.cost >= play.spends.cost);
        }
    }
}

/// Texts that are read are amounts that they say, and are written as a text that is read as the same.
fn check_forms(request: &HeaderMap, answer: &HeaderMap, spends: Usage) {
    for (head, name) in [(request, "octollm-budget"), (request, "octollm-usage"), (answer, "octollm-usage")] {
        for text in head.get_all(name).iter().filter_map(|value| value.to_str().ok()) {
            if let Ok(budget) = text.parse::<Budget>() {
                assert!(!budget.is_unlimited());
                assert_eq!(budget.to_string().parse(), Ok(budget));
                check_amounts(text, budget.tokens, budget.cost);
                check_arithmetic(budget, spends);
            }
            if let Ok(usage) = text.parse::<Usage>() {
                assert_eq!(usage.to_string().parse(), Ok(usage));
                let has = |name| text.split(';').any(|part| part.trim().starts_with(name));
                check_amounts(
                    text,
                    has("tokens=").then_some(usage.tokens),
                    has("cost_usd=").then_some(usage.cost),
                );
                assert_eq!(usage.plus(spends), spends.plus(usage));
                check_arithmetic(Budget { tokens: Some(usage.tokens), cost: Some(usage.cost) }, spends);
            }
        }
    }
}

fn check_amounts(text: &str, tokens: Option<u64>, cost: Option<Cost>) {
    let number = |name: &str| {
        let value = text.split(';').find_map(|part| part.trim().strip_prefix(name))?;
        value.parse::<f64>().ok()
    };
    let near = |read: f64, written: f64| (read - written).abs() <= 1e-9 + written * 1e-12;
    assert_eq!(tokens.is_some(), number("tokens=").is_some(), "{text}");
    assert_eq!(cost.is_some(), number("cost_usd=").is_some(), "{text}");
    if let (Some(read), Some(written)) = (tokens, number("tokens=")) {
        assert!(near(read as f64, written), "{text}: {read}");
    }
    if let (Some(read), Some(written)) = (cost, number("cost_usd=")) {
        assert!(near(read.dollars(), written), "{text}: {read}");
    }
}

/// A budget only shrinks, and does so by what was used.
fn check_arithmetic(budget: Budget, used: Usage) {
    let after = budget.after(used);
    let is_within = |left: Option<u64>, had: Option<u64>| match (left, had) {
        (Some(left), Some(had)) => left <= had,
        (_, had) => had.is_none(),
    };
    let nanos = |budget: Budget| budget.cost.map(Cost::nano_dollars);
    assert!(is_within(after.tokens, budget.tokens) && is_within(nanos(after), nanos(budget)));
    assert_eq!(after.within(budget), after);
    assert_eq!(after.after(used), budget.after(used.plus(used)));
    if let Some((left, had)) = after.tokens.zip(budget.tokens) {
        assert_eq!(left, had.saturating_sub(used.tokens));
    }
}
