//! Learning which arm offers what.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::future::join_all;
use octollm_core::{
    card::{ArmCard, ArmStatus},
    contract::{ContractCard, ContractSpec, TaskContract},
    error::ErrorKind,
};
use octollm_http::client::Arms;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::time::Instant;

use crate::peer::{Answer, Peer, Verdict, arms, card, check, judge, silent, unused_host, usual};

/// [`crate::peer::Check`], as it is to become.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
struct CheckTwo {}

impl TaskContract for CheckTwo {
    type Output = Verdict;
    type Chunk = ();
    const SPEC: ContractSpec = ContractSpec::new("code.validate", "/v2/validate", "code:validate").version(2);
}

/// A host that nobody listens on.
fn nobody() -> String {
    format!("http://{}", unused_host())
}

#[tokio::test(start_paused = true)]
async fn many_first_calls_ask_once() {
    let peer = Peer::arm(|_| async { Answer::verdict() }).await;
    let arms = judge(&peer.url);
    arms.context().call_all((0..50).map(|_| check())).await.unwrap();
    assert_eq!(peer.asked_for_card(), 1);
    assert_eq!(peer.calls().len(), 50);
}

#[tokio::test(start_paused = true)]
async fn what_is_not_offered_is_told_with_what_is() {
    let mut other = card("judge");
    let mut first = other.contracts[0].clone();
    first.name = "a.first".into();
    other.contracts.push(first);
    let peer = Peer::with_card(other, |_| async { Answer::verdict() }).await;
    let arms = judge(&peer.url);
    for _ in 0..2 {
        let error = arms.call(CheckTwo {}).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ContractNotOffered);
        assert!(!error.may_have_executed() && !error.retryable());
        let expected = "code.validate@2 is not offered by any arm; offered: code.validate, a.first";
        assert_eq!(error.failure().message, expected);
        assert_eq!(
            error.failure().details.as_ref().unwrap(),
            &json!({ "offered": ["code.validate", "a.first"] })
        );
    }
    assert_eq!(peer.asked_for_card(), 1);
    assert!(peer.calls().is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_arm_out_of_reach_may_be_the_one() {
    let peer = Peer::arm(|_| async { Answer::verdict() }).await;
    let arms = arms().endpoint("judge", &peer.url).endpoint("coder", nobody()).build().unwrap();
    arms.call(check()).await.unwrap();
    let error = arms.call(CheckTwo {}).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unreachable);
    assert!(error.retryable() && !error.may_have_executed());
    assert!(error.failure().message.contains("coder (no connection: connection refused)"), "{error}");
    assert_eq!(error.failure().details.as_ref().unwrap()["unreachable"][0]["arm"], "coder");
    let cards: Vec<_> = arms.cards().await.into_iter().map(|card| card.arm_id).collect();
    assert_eq!(cards, ["judge"]);
}

#[tokio::test(start_paused = true)]
async fn a_silent_arm_does_not_hold_up_the_others() {
    let silent = Peer::start(|_| async { Answer::Silence }).await;
    let peer = Peer::arm(|_| async { Answer::verdict() }).await;
    let arms = arms().endpoint("coder", &silent.url).endpoint("judge", &peer.url).build().unwrap();
    let began = Instant::now();
    arms.call(check()).await.unwrap();
    assert!(began.elapsed() < Duration::from_millis(400), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn an_arm_that_offers_more_later_is_asked_again() {
    let later = Arc::new(AtomicBool::new(false));
    let now = Arc::clone(&later);
    let peer = Peer::start(move |request| {
        let mut card = card("judge");
        if now.load(Ordering::SeqCst) {
            card.contracts.push(ContractCard::of::<CheckTwo>());
        }
        async move {
            if request.path == "/capabilities" {
                return Answer::Json(200, serde_json::to_value(card).unwrap());
            }
            Answer::verdict()
        }
    })
    .await;
    let arms = judge(&peer.url);
    arms.call(check()).await.unwrap();
    later.store(true, Ordering::SeqCst);
    tokio::time::sleep(Duration::from_millis(1050)).await;
    arms.call(CheckTwo {}).await.unwrap();
    assert_eq!(peer.calls()[1].path, "/v2/validate");
}

#[tokio::test(start_paused = true)]
async fn a_route_that_moved_is_followed_once_its_card_says_where() {
    let moved = Arc::new(AtomicBool::new(false));
    let now = Arc::clone(&moved);
    let peer = Peer::start(move |request| {
        let mut card: ArmCard = card("judge");
        let there = if now.load(Ordering::SeqCst) { "/new" } else { "/validate" };
        card.contracts[0].path = there.into();
        async move {
            match &*request.path {
                "/capabilities" => Answer::Json(200, serde_json::to_value(card).unwrap()),
                path if path == there => Answer::verdict(),
                _ => Answer::Json(404, json!({ "detail": "Not Found" })),
            }
        }
    })
    .await;
    let arms = judge(&peer.url);
    arms.call(check()).await.unwrap();
    moved.store(true, Ordering::SeqCst);
    let error = arms.call(check()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "within a second of the last round none is begun");
    tokio::time::sleep(Duration::from_millis(1050)).await;
    arms.call(check()).await.unwrap();
    arms.call(check()).await.unwrap();
    let paths: Vec<_> = peer.calls().iter().map(|call| call.path.clone()).collect();
    assert_eq!(paths, ["/validate", "/validate", "/validate", "/new", "/new"]);
}

#[tokio::test(start_paused = true)]
async fn an_arms_own_404_does_not_wait_for_the_other_arms() {
    let silent = Peer::start(|_| async { Answer::Silence }).await;
    let peer = Peer::arm(|_| async { Answer::Json(404, json!({ "detail": "no such document" })) }).await;
    let arms = arms().endpoint("coder", &silent.url).endpoint("judge", &peer.url).build().unwrap();
    let began = Instant::now();
    let error = arms.call(check()).await.unwrap_err();
    assert_eq!((error.kind(), &*error.failure().message), (ErrorKind::NotFound, "no such document"));
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn where_one_url_refuses_the_next_is_tried() {
    let peer = Peer::arm(|_| async { Answer::verdict() }).await;
    let arms = judge(&format!("{},{}", nobody(), peer.url));
    for _ in 0..4 {
        arms.call(check()).await.unwrap();
    }
    assert_eq!(peer.calls().len(), 4);
    let error = judge(&format!("{},{}", nobody(), nobody())).call(check()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unreachable);
}

#[tokio::test(start_paused = true)]
async fn calls_are_spread_over_the_urls_of_an_arm() {
    let one = Peer::arm(|_| async { Answer::verdict() }).await;
    let two = Peer::arm(|_| async { Answer::verdict() }).await;
    let arms = judge(&format!("{},{}", one.url, two.url));
    for _ in 0..20 {
        join_all((0..10).map(|_| arms.call(check()))).await;
    }
    let shares = (one.calls().len(), two.calls().len());
    assert!(shares.0.min(shares.1) >= 60, "{shares:?}");
}

#[tokio::test(start_paused = true)]
async fn a_url_that_is_silent_does_not_hide_the_next() {
    // Connections come about, and nobody ever answers.
    let (silent, _listening) = silent();
    let peer = Peer::arm(|_| async { Answer::verdict() }).await;
    let urls = format!("{silent},{}", peer.url);
    let arms = arms().endpoint("judge", urls).read_idle(Duration::from_secs(30)).build().unwrap();
    assert_eq!(arms.cards().await.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_card_leads_nowhere_above_its_url() {
    for path in
        ["/../admin", "/%2e%2e/admin", "/a/..%2fadmin", "//elsewhere/x", "http://elsewhere/x", "/a\r\nb: c"]
    {
        let mut lying = card("judge");
        lying.contracts[0].path = path.into();
        let peer = Peer::with_card(lying, |_| async { Answer::verdict() }).await;
        let error = judge(&peer.url).call(check()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ContractNotOffered, "{path}");
        assert_eq!(peer.calls().len(), 0, "{path}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_arm_that_finds_nothing_does_not_wait_for_a_silent_one() {
    let (silent, _listening) = silent();
    let peer = Peer::arm(|_| async { Answer::Json(404, json!({ "detail": "no such file" })) }).await;
    let arms = arms().endpoint("judge", &peer.url).endpoint("silent", &silent).build().unwrap();
    for round in 1..3 {
        let begun = Instant::now();
        assert_eq!(arms.call(check()).await.unwrap_err().kind(), ErrorKind::NotFound);
        assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
        assert_eq!(peer.calls().len(), round);
    }
}

#[tokio::test(start_paused = true)]
async fn many_silent_arms_do_not_hide_one_that_answers() {
    let (silent, _listening) = silent();
    let peer = Peer::arm(|_| async { Answer::verdict() }).await;
    let mut builder = arms();
    for n in 0..120 {
        builder = builder.endpoint(format!("silent{n}"), &silent);
    }
    let builder = builder.read_idle(Duration::from_secs(30)).pool_wait(Duration::from_secs(5));
    let arms = builder.endpoint("judge", &peer.url).build().unwrap();
    arms.call(check()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_card_without_an_endpoint_is_listed_with_the_one_it_is_reached_by() {
    let mut named = card("coder");
    named.endpoint = Some("http://coder.example".into());
    let mut unnamed = card("blank");
    unnamed.endpoint = Some(String::new());
    let blank = Peer::with_card(unnamed, |_| async { Answer::verdict() }).await;
    let (one, two) = (
        Peer::arm(|_| async { Answer::verdict() }).await,
        Peer::with_card(named, |_| async { Answer::verdict() }).await,
    );
    let arms = arms()
        .endpoint("judge", format!("{},{}", nobody(), one.url))
        .endpoint("coder", &two.url)
        .endpoint("blank", &blank.url)
        .endpoint_serving::<CheckTwo>("foreign", "http://foreign.example/api/")
        .build()
        .unwrap();
    let endpoints: Vec<_> = arms.cards().await.into_iter().map(|card| card.endpoint.unwrap()).collect();
    assert_eq!(endpoints, [&*one.url, "http://coder.example", &*blank.url, "http://foreign.example/api"]);
}

#[tokio::test(start_paused = true)]
async fn a_card_of_another_make_offers_what_can_be_read_of_it() {
    let mut odd = serde_json::to_value(card("judge")).unwrap();
    odd["status"] = json!("warming_up");
    odd["contracts"].as_array_mut().unwrap().insert(0, json!({ "name": "code.write", "version": "two" }));
    let peer = Peer::start(move |request| {
        let odd = odd.clone();
        async move {
            if request.path == "/capabilities" { Answer::Json(200, odd) } else { Answer::verdict() }
        }
    })
    .await;
    let arms = judge(&peer.url);
    arms.call(check()).await.unwrap();
    let cards = arms.cards().await;
    assert_eq!((cards[0].status, cards[0].contracts.len()), (ArmStatus::Degraded, 1));
}

#[tokio::test(start_paused = true)]
async fn an_arm_that_refuses_its_card_is_no_arm_out_of_reach() {
    let refusing = |status: u16| Peer::start(move |_| async move { Answer::Json(status, json!({})) });
    for (status, kind) in [(401, ErrorKind::Unauthenticated), (403, ErrorKind::InsufficientScope)] {
        let peer = refusing(status).await;
        let error = judge(&peer.url).call(check()).await.unwrap_err();
        assert_eq!((error.kind(), error.retryable(), error.may_have_executed()), (kind, false, false));
        assert!(error.to_string().contains(&format!("judge (answered {status})")), "{error}");
        // Another arm that is down may be the one.
        let arms = arms().endpoint("judge", &peer.url).endpoint("coder", nobody()).build().unwrap();
        let error = arms.call(check()).await.unwrap_err();
        assert_eq!((error.kind(), error.retryable()), (ErrorKind::Unreachable, true));
    }
    let error = judge(&refusing(500).await.url).call(check()).await.unwrap_err();
    assert_eq!((error.kind(), error.retryable()), (ErrorKind::Unreachable, true));
}

#[tokio::test(start_paused = true)]
async fn an_arm_that_asks_to_wait_for_its_card_is_asked_again_after_that() {
    let asked = AtomicUsize::new(0);
    let peer = Peer::start(move |request| {
        let is_busy = asked.fetch_add(1, Ordering::SeqCst) == 0;
        std::future::ready(match (&*request.path, is_busy) {
            (_, true) => {
                Answer::Raw(b"HTTP/1.1 429 X\r\nretry-after: 7\r\ncontent-length: 0\r\n\r\n".to_vec())
            }
            ("/capabilities", false) => Answer::Json(200, serde_json::to_value(card("judge")).unwrap()),
            (_, false) => Answer::verdict(),
        })
    })
    .await;
    let (arms, begun) = (judge(&peer.url), Instant::now());
    arms.call(check()).retry(1).await.unwrap();
    assert_eq!((begun.elapsed().as_secs(), peer.asked_for_card()), (7, 2));
}

#[test]
fn a_round_of_questions_in_a_runtime_that_stands_still_holds_up_no_other() {
    let server = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (judge, coder) = server.block_on(async {
        let shown = |card: ArmCard| Answer::Json(200, serde_json::to_value(card).unwrap());
        let judge = Peer::tcp(move |request| {
            let answer =
                if request.path == "/capabilities" { shown(card("judge")) } else { Answer::verdict() };
            std::future::ready(answer)
        });
        // The first question to it is never answered.
        let coder = Peer::tcp(move |request| {
            std::future::ready(match (&*request.path, request.connection) {
                ("/capabilities", 0) => Answer::Silence,
                ("/capabilities", _) => {
                    let mut card = ArmCard::new("coder");
                    card.contracts.push(ContractCard::of::<Other>());
                    shown(card)
                }
                _ => Answer::verdict(),
            })
        });
        (judge.await, coder.await)
    });
    let arms = Arms::builder().endpoint("judge", &judge.url).endpoint("coder", &coder.url).build().unwrap();
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (first, second) = (runtime(), runtime());
    first.block_on(arms.call(check())).unwrap();
    // From here on nobody drives the first one, which still waits for the other card.
    second.block_on(arms.within(Duration::from_secs(8)).call(Other {})).unwrap();
    drop(first);
    second.block_on(arms.call(Other {})).unwrap();
}

#[test]
fn callers_on_two_runtimes_wait_for_the_same_round_of_questions() {
    let server = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let silent = server.block_on(Peer::tcp(|_| std::future::ready(Answer::Silence)));
    let limit = Duration::from_secs(3);
    let arms = Arms::builder().endpoint("slow", &silent.url).capabilities_timeout(limit).build().unwrap();
    let caller = |arms: Arms| {
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let begun = std::time::Instant::now();
            let error = runtime.block_on(arms.within(limit * 4).call(check()).retry(0)).unwrap_err();
            (error.kind(), begun.elapsed() < limit * 2)
        })
    };
    let callers = [caller(arms.clone()), caller(arms)];
    for caller in callers {
        assert_eq!(caller.join().unwrap(), (ErrorKind::Unreachable, true));
    }
    assert_eq!(silent.asked_for_card(), 1);
}

/// A contract of another arm.
#[derive(Debug, Serialize, Deserialize, JsonSchema, octollm_macros::TaskContract)]
#[task(name = "code.other", output = Verdict)]
struct Other {}

/// The card of the judge after a change of its contract.
async fn judge_with(change: impl FnOnce(&mut serde_json::Value)) -> (Peer, Arms) {
    let mut odd = serde_json::to_value(card("judge")).unwrap();
    change(&mut odd);
    let peer = Peer::start(move |request| {
        let odd = odd.clone();
        async move {
            if request.path == "/capabilities" { Answer::Json(200, odd) } else { Answer::verdict() }
        }
    })
    .await;
    let arms = judge(&peer.url);
    (peer, arms)
}

#[tokio::test(start_paused = true)]
async fn an_odd_member_of_a_card_does_not_hide_the_arm() {
    let odd = [
        ("cost_tier", json!(900)),
        ("status", json!(7)),
        ("needs", json!("all")),
        ("key", json!(1)),
        ("instance", json!({})),
    ];
    for (member, value) in odd {
        let (_peer, arms) = judge_with(|card| card[member] = value).await;
        arms.call(check()).await.unwrap();
        let card = arms.cards().await.remove(0);
        assert_eq!((card.cost_tier, card.status), (3, ArmStatus::Healthy), "{member}");
    }
    for (member, value) in [
        ("timeout_ms", json!(-1)),
        ("timeout_ms", json!(1e300)),
        ("timeout_ms", json!(0)),
        ("timeout_ms", json!(null)),
        ("path", json!(null)),
        ("keys", json!(3)),
        ("tags", json!({})),
        ("idempotent", json!("yes")),
    ] {
        let (peer, arms) = judge_with(|card| card["contracts"][0][member] = value).await;
        arms.call(check()).await.unwrap();
        assert_eq!(peer.calls()[0].path, "/validate", "{member}");
        let contract = arms.cards().await.remove(0).contracts.remove(0);
        if member == "timeout_ms" {
            assert_eq!(contract.timeout_ms, 30_000);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_contract_that_cannot_be_called_is_named_with_the_reason() {
    for (member, value, reason) in [
        ("path", json!("validate"), "its path is not the path of a route, which begins with `/`"),
        ("version", json!(0), "its version is not a number from 1"),
        ("version", json!("two"), "its version is not a number from 1"),
    ] {
        let (_peer, arms) = judge_with(|card| card["contracts"][0][member] = value).await;
        let error = arms.call(check()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ContractNotOffered);
        let expected = format!(
            "code.validate is not offered by any arm; offered: nothing; it is on the card of judge, but cannot be called: {reason}"
        );
        assert_eq!(error.to_string(), expected);
    }
}

#[tokio::test(start_paused = true)]
async fn of_a_contract_that_is_on_a_card_twice_the_first_is_called() {
    let (peer, arms) = judge_with(|card| {
        let mut again = card["contracts"][0].clone();
        again["path"] = json!("/again");
        card["contracts"].as_array_mut().unwrap().push(again);
    })
    .await;
    for _ in 0..4 {
        arms.call(check()).await.unwrap();
    }
    assert!(peer.calls().iter().all(|call| call.path != "/again"));
}

#[tokio::test(start_paused = true)]
async fn without_arms_the_error_says_how_to_set_one() {
    let error = arms().build().unwrap().call(check()).await.unwrap_err();
    let expected = "code.validate is not offered: no arm is set; set OCTOLLM_ARM_<ID>=http://host:port for \
                    `Arms::from_env()`, or call `.endpoint(id, url)` of `Arms::builder()`";
    assert_eq!(error.to_string(), expected);
}

/// An instance of an arm that serves the contract at a path of its own, or not at all: then it refuses it with this answer.
async fn instance(path: Option<&'static str>, refusal: Answer) -> Peer {
    let mut shown = card("judge");
    match path {
        Some(path) => shown.contracts[0].path = path.into(),
        None => shown.contracts.clear(),
    }
    Peer::with_card(shown, move |request| {
        let served = path == Some(&*request.path);
        std::future::ready(if served { Answer::verdict() } else { refusal.clone() })
    })
    .await
}

fn refusals() -> [Answer; 2] {
    let problem = json!({ "status": 404, "code": "contract_not_offered", "detail": "not here" });
    [Answer::Json(404, json!({ "detail": "Not Found" })), Answer::Json(404, problem)]
}

#[tokio::test(start_paused = true)]
async fn a_contract_that_one_instance_of_an_arm_does_not_serve_yet_is_served_by_the_others() {
    for refusal in refusals() {
        for other in [None, Some("/new")] {
            for old_comes_first in [true, false] {
                let (old, new) = (
                    instance(other, refusal.clone()).await,
                    instance(Some("/validate"), refusal.clone()).await,
                );
                let (first, second) = if old_comes_first { (&old, &new) } else { (&new, &old) };
                let arms = judge(&format!("{},{}", first.url, second.url));
                for round in 0..10 {
                    let retries = 2 * (round % 2);
                    arms.call(check()).retry(retries).await.unwrap();
                }
                // An instance at another path is called there, once its card is known.
                tokio::time::sleep(Duration::from_millis(1050)).await;
                for _ in 0..10 {
                    let calls = join_all((0..10).map(|_| arms.call(check()))).await;
                    assert!(calls.iter().all(Result::is_ok));
                    tokio::time::advance(Duration::from_secs(30)).await;
                }
                if other.is_some() {
                    assert!(old.calls().iter().any(|call| call.path == "/new"), "{:?}", old.calls());
                }
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_contract_that_one_arm_refuses_is_served_by_another_arm() {
    for refusal in refusals() {
        let withdrawn = Peer::arm(move |_| std::future::ready(refusal.clone())).await;
        let serving = Peer::arm(|_| async { Answer::verdict() }).await;
        let arms = arms().endpoint("coder", &withdrawn.url).endpoint("judge", &serving.url).build().unwrap();
        arms.cards().await;
        for _ in 0..4 {
            arms.call(check()).await.unwrap();
        }
        assert_eq!(serving.calls().len(), 4);
        // The card of the one that refuses is asked for again, and not with every call.
        let asked = withdrawn.asked_for_card();
        tokio::time::sleep(Duration::from_secs(60)).await;
        arms.context().call_all((0..20).map(|_| check())).await.unwrap();
        tokio::time::sleep(Duration::from_millis(10)).await;
        assert!(withdrawn.asked_for_card() <= asked + 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_contract_that_every_instance_refuses_is_an_error() {
    for (refusal, kind) in refusals().into_iter().zip([ErrorKind::NotFound, ErrorKind::ContractNotOffered]) {
        let answer = refusal.clone();
        let one = Peer::arm(move |_| std::future::ready(answer.clone())).await;
        let two = Peer::arm(move |_| std::future::ready(refusal.clone())).await;
        let error = judge(&format!("{},{}", one.url, two.url)).call(check()).retry(2).await.unwrap_err();
        assert_eq!((error.kind(), error.may_have_executed(), error.attempts()), (kind, false, 2));
        assert_eq!((one.calls().len(), two.calls().len()), (1, 1));
        // One that is down may be the one that serves it.
        let error = judge(&format!("{},{}", one.url, nobody())).call(check()).await.unwrap_err();
        assert_eq!((error.kind(), error.retryable()), (ErrorKind::Unreachable, true));
    }
}

#[tokio::test(start_paused = true)]
async fn a_work_that_may_have_run_is_not_passed_on_to_another_instance() {
    let problem =
        json!({ "status": 404, "code": "not_found", "detail": "no such file", "may_have_executed": true });
    let one = Peer::arm(move |_| std::future::ready(Answer::Json(404, problem.clone()))).await;
    let two = Peer::arm(|_| async { Answer::verdict() }).await;
    let arms = judge(&format!("{},{}", one.url, two.url));
    let calls = join_all((0..10).map(|_| arms.call(check()))).await;
    let failed =
        calls.iter().filter(|call| call.as_ref().is_err_and(|error| error.kind() == ErrorKind::NotFound));
    assert_eq!(failed.count(), one.calls().len());
    assert_eq!((one.calls().len() + two.calls().len(), one.calls().is_empty()), (10, false));
}

#[tokio::test(start_paused = true)]
async fn each_retry_of_a_call_without_a_card_asks_for_the_card() {
    let (arms, begun) = (judge(&nobody()), Instant::now());
    let error = arms.call(check()).retry(3).await.unwrap_err();
    assert_eq!((error.kind(), error.attempts()), (ErrorKind::Unreachable, 4));
    assert!((3..5).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
    // Nothing is tried beyond the deadline.
    let begun = Instant::now();
    let error = arms.within(Duration::from_millis(500)).call(check()).retry(3).await.unwrap_err();
    assert_eq!((error.kind(), error.attempts()), (ErrorKind::Unreachable, 1));
    assert!(begun.elapsed() < Duration::from_millis(500));
}

#[tokio::test(start_paused = true)]
async fn many_retries_of_calls_without_a_card_ask_for_it_together() {
    let down = Arc::new(AtomicBool::new(true));
    let is_down = Arc::clone(&down);
    let peer = Peer::start(move |request| {
        std::future::ready(match &*request.path {
            _ if is_down.load(Ordering::SeqCst) => Answer::Json(503, json!({ "error": "starting" })),
            "/capabilities" => Answer::Json(200, serde_json::to_value(card("judge")).unwrap()),
            _ => Answer::verdict(),
        })
    })
    .await;
    let arms = judge(&peer.url);
    let calls: Vec<_> = (0..1_000)
        .map(|_| {
            let arms = arms.clone();
            tokio::spawn(async move { arms.call(check()).retry(4).within(Duration::from_secs(60)).await })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    assert_eq!(peer.asked_for_card(), 3, "one round, and one for each second after it");
    down.store(false, Ordering::SeqCst);
    for call in calls {
        call.await.unwrap().unwrap();
    }
    assert_eq!((peer.asked_for_card(), peer.calls().len()), (4, 1_000));
}

/// An arm that is reached at a host, and shows this card while it is there.
fn at_host(host: &str, card: impl Fn() -> ArmCard + Send + Sync + 'static) -> Peer {
    let acceptor = crate::peer::network().listen(host).unwrap();
    Peer::listen(acceptor, format!("http://{host}"), move |request| {
        let answer = match &*request.path {
            "/capabilities" => Answer::Json(200, serde_json::to_value(card()).unwrap()),
            _ => Answer::verdict(),
        };
        async move { answer }
    })
}

#[tokio::test(start_paused = true)]
async fn an_arm_that_was_away_is_found_while_another_one_serves_its_contract() {
    let of_tier = |arm: &str, cost_tier: u8| {
        let mut card = card(arm);
        card.cost_tier = cost_tier;
        card
    };
    let dear = Peer::with_card(of_tier("dear", 5), |_| async { Answer::verdict() }).await;
    let host = unused_host();
    let arms =
        usual().endpoint("dear", &dear.url).endpoint("cheap", format!("http://{host}")).build().unwrap();
    arms.call(check()).await.unwrap();
    let cheap = at_host(&host, move || of_tier("cheap", 1));
    for _ in 0..40 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        arms.call(check()).await.unwrap();
    }
    assert!(cheap.calls().len() >= 5, "{} calls", cheap.calls().len());
    assert!(cheap.asked_for_card() <= 2, "{} times", cheap.asked_for_card());
}

#[tokio::test(start_paused = true)]
async fn what_a_card_says_of_the_status_of_its_arm_is_read_again() {
    let is_draining = Arc::new(AtomicBool::new(true));
    let seen = is_draining.clone();
    let one = at_host(&unused_host(), move || {
        let mut card = card("judge");
        if seen.load(Ordering::SeqCst) {
            card.status = ArmStatus::Unavailable;
        }
        card
    });
    let other = Peer::arm(|_| async { Answer::verdict() }).await;
    let arms = usual().endpoint("judge", format!("{},{}", one.url, other.url)).build().unwrap();
    arms.call(check()).await.unwrap();
    is_draining.store(false, Ordering::SeqCst);
    for _ in 0..60 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        arms.call(check()).await.unwrap();
    }
    assert!(one.calls().len() >= 5, "{} of 60 calls", one.calls().len());
}
