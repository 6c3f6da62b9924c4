//! Layers of a user, above the choice of an endpoint and below it.

use std::{
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::join_all;
use http::Request;
use octollm_core::{
    contract::{Keys, Spec, TaskContract as _},
    deadline::Deadline,
    error::{CallError, ErrorKind},
    parts::ContextParts,
    transport::{Call, IdempotencyKey, Reply, StepKey, Transport},
};
use octollm_http::client::{Arms, Target};
use serde_json::json;
use tokio::time::Instant;
use tower::{
    BoxError,
    layer::layer_fn,
    limit::ConcurrencyLimitLayer,
    load_shed::LoadShedLayer,
    retry::{Policy, RetryLayer},
    service_fn,
    util::{MapErrLayer, MapRequestLayer},
};

use crate::peer::{Answer, Check, Peer, again, arms, card, cause, check, judge, usual};

/// What a layer of calls wraps.
type Calls = tower::util::BoxCloneSyncService<Call, Reply, CallError>;

/// Retries what may be done twice, at another endpoint.
#[derive(Clone)]
struct Elsewhere(u32);

impl Policy<Call, Reply, CallError> for Elsewhere {
    type Future = std::future::Ready<()>;

    fn retry(&mut self, call: &mut Call, result: &mut Result<Reply, CallError>) -> Option<Self::Future> {
        let error = result.as_ref().err()?;
        let safe = call.is_idempotent() || !error.may_have_executed();
        self.0 = self.0.checked_sub(1).filter(|_| safe && error.retryable())?;
        call.avoid.extend(error.endpoint().map(Arc::from));
        call.parts.attempt += 1;
        Some(std::future::ready(()))
    }

    fn clone_request(&mut self, call: &Call) -> Option<Call> {
        Some(call.clone())
    }
}

/// An idempotent call of [`Check`], as its caller knows it.
fn idempotent() -> Call {
    static SPEC: octollm_core::contract::ContractSpec = Check::SPEC.idempotent();
    let mut call = plain();
    call.spec = Some(Spec::from(&SPEC));
    call
}

/// A call that the client makes once: what is above repeats it.
fn plain() -> Call {
    let mut parts = ContextParts::new();
    parts.deadline = Some(Deadline::after(Duration::from_secs(30)));
    let input = Bytes::from_static(br#"{"code":"fn main() {}"}"#);
    let mut call = Call::new(Check::SPEC.reference(), StepKey::Order(0), input, parts);
    (call.spec, call.retry) = (Some(Spec::of::<Check>()), Some(0));
    call
}

async fn busy() -> Peer {
    Peer::arm(|_| std::future::ready(Answer::unavailable())).await
}

async fn good() -> Peer {
    Peer::arm(|_| std::future::ready(Answer::verdict())).await
}

#[tokio::test(start_paused = true)]
async fn a_retry_above_the_choice_reaches_another_endpoint() {
    let (busy, good) = (busy().await, good().await);
    let urls = format!("{},{}", busy.url, good.url);
    let arms = arms().endpoint("judge", urls).layer(RetryLayer::new(Elsewhere(1))).build().unwrap();
    let calls = join_all((0..40).map(|_| Transport::call(&arms, idempotent()))).await;
    assert!(calls.into_iter().all(|reply| *reply.unwrap().endpoint == *good.url));
    assert_eq!(good.calls().len(), 40);
    assert!(!busy.calls().is_empty(), "both have calls before one has failed");
    let retried = good.calls().iter().filter(|call| call.header("octollm-attempt") == Some("2")).count();
    assert_eq!(retried, busy.calls().len());
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_was_tried_is_avoided_where_there_is_another() {
    let (one, two) = (good().await, good().await);
    let arms = arms().endpoint("judge", format!("{},{}", one.url, two.url)).build().unwrap();
    let avoiding = |urls: &[&str]| {
        let mut call = idempotent();
        call.avoid = urls.iter().map(|url| Arc::from(*url)).collect();
        call
    };
    for _ in 0..5 {
        Transport::call(&arms, avoiding(&[&one.url])).await.unwrap();
    }
    assert_eq!((one.calls().len(), two.calls().len()), (0, 5));
    for _ in 0..2 {
        Transport::call(&arms, avoiding(&[&one.url, &two.url])).await.unwrap();
    }
    assert_eq!(one.calls().len() + two.calls().len(), 7, "where all were tried one is tried again");
}

#[tokio::test(start_paused = true)]
async fn the_caller_decides_whether_a_call_may_be_made_twice_and_no_card_does() {
    let mut stale = card("judge");
    stale.contracts[0].idempotent = true;
    let peer = Peer::with_card(stale, |_| std::future::ready(Answer::Last(vec![]))).await;
    let seen = Arc::new(Mutex::new(Vec::new()));
    let targets = Arc::clone(&seen);
    let note = MapRequestLayer::new(move |request: Request<Bytes>| {
        let target = request.extensions().get::<Target>().unwrap();
        targets.lock().unwrap().extend(target.contract.is_some().then_some(target.idempotent));
        request
    });
    let arms = arms()
        .endpoint("judge", &peer.url)
        .layer(RetryLayer::new(Elsewhere(3)))
        .request_layer(note)
        .breaker_failures(0)
        .build()
        .unwrap();
    let mut unknown = plain();
    unknown.spec = None;
    for call in [plain(), unknown] {
        let error = Transport::call(&arms, call).await.unwrap_err();
        assert!(error.retryable() && error.may_have_executed());
    }
    assert_eq!(peer.calls().len(), 2, "each once");
    Transport::call(&arms, idempotent()).await.unwrap_err();
    assert_eq!(peer.calls().len(), 2 + 4);
    assert_eq!(*seen.lock().unwrap(), [false, false, true, true, true, true]);
}

#[tokio::test(start_paused = true)]
async fn a_key_travels_with_each_attempt() {
    let peer = busy().await;
    let arms = arms().endpoint("judge", &peer.url).layer(RetryLayer::new(Elsewhere(1))).build().unwrap();
    let mut call = idempotent();
    call.parts.key = IdempotencyKey::new("task-7/step \"a\"");
    Transport::call(&arms, call).await.unwrap_err();
    let keys: Vec<_> =
        peer.calls().iter().map(|call| call.header("idempotency-key").map(str::to_owned)).collect();
    assert_eq!(keys, vec![Some(r#""task-7/step \"a\"""#.to_owned()); 2]);
    Transport::call(&arms, plain()).await.unwrap_err();
    assert_eq!(peer.calls()[2].header("idempotency-key"), None);
}

#[tokio::test(start_paused = true)]
async fn each_endpoint_has_one_service_below_the_choice() {
    let slow = || {
        Peer::arm(|_| async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            Answer::verdict()
        })
    };
    let (one, two) = (slow().await, slow().await);
    let made = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&made);
    let counting = layer_fn(move |inner: Calls| {
        count.fetch_add(1, Ordering::SeqCst);
        inner
    });
    let arms = usual()
        .endpoint("judge", format!("{},{}", one.url, two.url))
        .endpoint_layer(ConcurrencyLimitLayer::new(1))
        .endpoint_layer(counting)
        .build()
        .unwrap();
    let begun = Instant::now();
    arms.context().call_all((0..10).map(|_| check())).await.unwrap();
    assert_eq!((begun.elapsed(), made.load(Ordering::SeqCst)), (Duration::from_secs(5), 2));
    assert_eq!((one.calls().len(), two.calls().len()), (5, 5));
    // The card was asked for over a connection of its own.
    assert_eq!((one.most_open(), two.most_open()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn layers_stack_and_one_that_is_not_ready_holds_up_the_one_around_it() {
    let peer = Peer::arm(|_| async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        Answer::verdict()
    })
    .await;
    let arms = usual()
        .endpoint("judge", &peer.url)
        .layer(ConcurrencyLimitLayer::new(1))
        .layer(LoadShedLayer::new())
        .build()
        .unwrap();
    let results = arms.context().call_all((0..3).map(|_| check())).each().await;
    let errors: Vec<_> = results.into_iter().filter_map(Result::err).collect();
    assert_eq!((errors.len(), peer.calls().len()), (2, 1));
    for error in errors {
        assert_eq!((error.kind(), error.contract()), (ErrorKind::Internal, &Check::SPEC.reference()));
        assert_eq!(cause(&error), "service overloaded");
    }
}

#[tokio::test(start_paused = true)]
async fn a_layer_that_does_not_answer_is_ended_at_the_deadline() {
    let peer = good().await;
    let stuck =
        || layer_fn(|_: Calls| service_fn(|_: Call| std::future::pending::<Result<Reply, CallError>>()));
    for arms in [
        arms().endpoint("judge", &peer.url).layer(stuck()).build().unwrap(),
        arms().endpoint("judge", &peer.url).endpoint_layer(stuck()).build().unwrap(),
    ] {
        let begun = Instant::now();
        let error = arms.within(Duration::from_secs(3)).call(check()).await.unwrap_err();
        assert_eq!((error.kind(), begun.elapsed()), (ErrorKind::DeadlineExceeded, Duration::from_secs(3)));
    }
    assert!(peer.calls().is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_error_of_ours_passes_through_the_layers_as_it_is() {
    let peer = busy().await;
    let arms = arms()
        .endpoint("judge", &peer.url)
        .layer(MapErrLayer::new(|error: CallError| BoxError::from(error)))
        .endpoint_layer(LoadShedLayer::new())
        .build()
        .unwrap();
    let error = arms.call(check()).await.unwrap_err();
    assert_eq!(
        (error.kind(), error.arm(), error.endpoint()),
        (ErrorKind::Unavailable, Some("judge"), Some(&*peer.url))
    );
}

/// Fails the first calls in its way, then works.
async fn recovering(failures: usize, failure: Answer) -> Peer {
    let calls = AtomicUsize::new(0);
    Peer::arm(move |_| {
        let fails = calls.fetch_add(1, Ordering::SeqCst) < failures;
        std::future::ready(if fails { failure.clone() } else { Answer::verdict() })
    })
    .await
}

#[tokio::test(start_paused = true)]
async fn a_call_is_tried_again_as_often_as_it_asks_where_that_is_safe() {
    let peer = recovering(2, Answer::Last(vec![])).await;
    let arms = arms().endpoint("judge", &peer.url).build().unwrap();
    let error = arms.call(again()).retry(1).await.unwrap_err();
    assert_eq!((error.kind(), error.attempts(), peer.calls().len()), (ErrorKind::ConnectionLost, 2, 2));
    arms.call(again()).retry(1).await.unwrap();
    // What is not idempotent is sent once.
    let peer = recovering(1, Answer::Last(vec![])).await;
    let error = judge(&peer.url).call(check()).retry(5).await.unwrap_err();
    assert_eq!((error.kind(), peer.calls().len()), (ErrorKind::ConnectionLost, 1));
    assert!(error.may_have_executed());
    // What was refused before it began is sent again, whatever it is.
    let peer = recovering(2, Answer::unavailable()).await;
    judge(&peer.url).call(check()).retry(2).await.unwrap();
    let attempts: Vec<_> =
        peer.calls().iter().map(|call| call.header("octollm-attempt").map(str::to_owned)).collect();
    assert_eq!(attempts, [None, Some("2"), Some("3")].map(|n| n.map(str::to_owned)));
}

#[tokio::test(start_paused = true)]
async fn a_retry_waits_as_long_as_it_is_asked_to_and_not_beyond_the_deadline() {
    let head = b"HTTP/1.1 503 X\r\nretry-after: 2\r\ncontent-length: 0\r\n\r\n";
    let peer = recovering(1, Answer::Raw(head.to_vec())).await;
    let arms = judge(&peer.url);
    arms.cards().await;
    let begun = Instant::now();
    let error = arms.call(check()).retry(1).within(Duration::from_secs(1)).await.unwrap_err();
    assert_eq!(
        (error.kind(), begun.elapsed()),
        (ErrorKind::Unavailable, Duration::ZERO),
        "it would come too late"
    );
    let peer = recovering(1, Answer::Raw(head.to_vec())).await;
    let arms = judge(&peer.url);
    arms.cards().await;
    arms.call(check()).retry(1).await.unwrap();
    assert!(begun.elapsed() >= Duration::from_secs(2), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_call_that_asks_for_a_retry_gets_it_at_another_endpoint() {
    let (busy, good) = (busy().await, good().await);
    let arms = arms().endpoint("judge", format!("{},{}", busy.url, good.url)).build().unwrap();
    let calls = join_all((0..40).map(|_| arms.call(check()).retry(1))).await;
    assert!(calls.into_iter().all(|verdict| verdict.is_ok()));
    assert_eq!(good.calls().len(), 40);
    assert!(!busy.calls().is_empty(), "both have calls before one has failed");
}

#[tokio::test(start_paused = true)]
async fn a_key_makes_a_retry_safe_where_the_card_says_that_keys_are_honoured() {
    for (keys, sent) in [(Keys::None, 1), (Keys::Instance, 2), (Keys::Shared, 2)] {
        let mut card = card("judge");
        card.contracts[0].keys = keys;
        card.instance = Some("i-1".into());
        let calls = AtomicUsize::new(0);
        let peer = Peer::with_card(card, move |_| {
            let lost = calls.fetch_add(1, Ordering::SeqCst) == 0;
            std::future::ready(if lost { Answer::Last(vec![]) } else { Answer::verdict() })
        })
        .await;
        let arms = arms().endpoint("judge", &peer.url).build().unwrap();
        let mut call = plain();
        (call.parts.key, call.retry) = (IdempotencyKey::new("k"), Some(3));
        assert_eq!(Transport::call(&arms, call).await.is_ok(), sent == 2);
        let calls = peer.calls();
        assert_eq!(calls.len(), sent, "{keys:?}");
        assert!(calls.iter().all(|call| call.header("idempotency-key") == Some("\"k\"")));
        // The server that has no record of it may refuse it.
        let instances: Vec<_> = calls.iter().map(|call| call.header("octollm-instance")).collect();
        assert_eq!(instances, [None, Some("i-1")][..sent]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_that_may_have_run_is_repeated_where_its_record_is() {
    for (keys, again) in [(Keys::Instance, "lost"), (Keys::Shared, "good")] {
        let mut card = card("judge");
        card.contracts[0].keys = keys;
        let calls = Arc::new(AtomicUsize::new(0));
        let count = calls.clone();
        let lost = Peer::with_card(card.clone(), move |_| {
            let lost = count.fetch_add(1, Ordering::SeqCst) == 0;
            std::future::ready(if lost { Answer::Last(vec![]) } else { Answer::verdict() })
        })
        .await;
        let good = Peer::with_card(card, |_| std::future::ready(Answer::verdict())).await;
        let arms = arms().endpoint("judge", format!("{},{}", lost.url, good.url)).build().unwrap();
        // Each endpoint gets one of them at some time.
        let retried = loop {
            let mut call = plain();
            (call.parts.key, call.retry) = (IdempotencyKey::new("a"), Some(2));
            let reply = Transport::call(&arms, call).await.unwrap();
            if reply.attempts == 2 {
                break reply;
            }
            tokio::time::advance(Duration::from_secs(20)).await;
        };
        let expected = if again == "lost" { &lost.url } else { &good.url };
        assert_eq!(&*retried.endpoint, expected, "{keys:?}");
    }
}

/// An arm that is another instance with other `keys` after so many milliseconds. It answers after two seconds.
async fn restarted(after: u64, keys: Keys, first: Answer, then: Answer) -> (Peer, Arms) {
    let restart = Instant::now() + Duration::from_millis(after);
    let calls = AtomicUsize::new(0);
    let peer = Peer::start(move |request| -> Pin<Box<dyn Future<Output = Answer> + Send>> {
        if request.path == "/capabilities" {
            let mut card = card("judge");
            let (id, keys) = if Instant::now() > restart { ("i-2", keys) } else { ("i-1", Keys::Instance) };
            (card.instance, card.contracts[0].keys) = (Some(id.into()), keys);
            let card = serde_json::to_value(card).unwrap();
            return Box::pin(std::future::ready(Answer::Json(200, card)));
        }
        let answer = if calls.fetch_add(1, Ordering::SeqCst) == 0 { first.clone() } else { then.clone() };
        Box::pin(async move {
            tokio::time::sleep(Duration::from_secs(2)).await;
            answer
        })
    })
    .await;
    let arms = usual().endpoint("judge", &peer.url).build().unwrap();
    arms.cards().await;
    (peer, arms)
}

/// Makes a call with a key, while the cards are requested again and again.
async fn keyed_beside_cards(arms: &Arms) -> Result<Reply, CallError> {
    let mut call = plain();
    (call.parts.key, call.retry) = (IdempotencyKey::new("k"), Some(3));
    let refreshing = async {
        loop {
            tokio::time::sleep(Duration::from_millis(300)).await;
            arms.cards().await;
        }
    };
    tokio::select! {
        answer = Transport::call(arms, call) => answer,
        () = refreshing => unreachable!(),
    }
}

#[tokio::test(start_paused = true)]
async fn a_503_that_does_not_state_that_nothing_ran_is_repeated_for_idempotent_calls_only() {
    let waits = Answer::Raw(b"HTTP/1.1 503 X\r\nretry-after: 1\r\ncontent-length: 0\r\n\r\n".to_vec());
    for (answer, sent) in [
        (Answer::Json(503, json!({})), 1),
        (Answer::Raw(b"HTTP/1.1 503 X\r\ncontent-length: 2\r\n\r\nno".to_vec()), 1),
        (waits, 3),
        (Answer::unavailable(), 3),
    ] {
        let peer = recovering(9, answer).await;
        let arms = arms().breaker_failures(0).endpoint("judge", &peer.url).build().unwrap();
        let error = arms.call(check()).within(Duration::from_secs(9)).await.unwrap_err();
        assert_eq!((error.attempts(), error.may_have_executed()), (sent, sent == 1));
        let error = arms.call(again()).within(Duration::from_secs(9)).await.unwrap_err();
        assert_eq!(error.attempts(), 3);
    }
}

#[tokio::test(start_paused = true)]
async fn a_repeated_call_names_the_instance_that_may_have_run_it() {
    for keys in [Keys::Instance, Keys::Shared] {
        let (peer, arms) = restarted(1_000, keys, Answer::Last(vec![]), Answer::verdict()).await;
        assert_eq!(keyed_beside_cards(&arms).await.unwrap().attempts, 2);
        let calls = peer.calls();
        let instances: Vec<_> = calls.iter().map(|call| call.header("octollm-instance")).collect();
        assert_eq!(instances, [None, Some("i-1")], "{keys:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_that_may_have_run_is_not_repeated_at_an_arm_that_has_stopped_to_honour_keys() {
    let running = Answer::Raw(b"HTTP/1.1 409 X\r\nretry-after: 3\r\ncontent-length: 0\r\n\r\n".to_vec());
    // The card changes while the first attempt, which is lost, runs; while a second one runs, which is refused; while the call waits.
    for (after, first, sent, kind) in [
        (1_000, Answer::Last(vec![]), 1, ErrorKind::ConnectionLost),
        (2_500, Answer::Last(vec![]), 2, ErrorKind::Unavailable),
        (2_500, running, 1, ErrorKind::OutcomeUnknown),
    ] {
        let (peer, arms) = restarted(after, Keys::None, first, Answer::unavailable()).await;
        let error = keyed_beside_cards(&arms).await.unwrap_err();
        assert_eq!((error.kind(), error.may_have_executed(), peer.calls().len()), (kind, true, sent));
    }
}

#[tokio::test(start_paused = true)]
async fn a_key_that_is_still_running_is_waited_for() {
    for (keys, served) in [(Keys::None, false), (Keys::Shared, true)] {
        let mut card = card("judge");
        card.contracts[0].keys = keys;
        let running = b"HTTP/1.1 409 X\r\nretry-after: 2\r\ncontent-length: 0\r\n\r\n".to_vec();
        let calls = AtomicUsize::new(0);
        let peer = Peer::with_card(card, move |_| {
            let is_running = calls.fetch_add(1, Ordering::SeqCst) < 2;
            std::future::ready(if is_running { Answer::Raw(running.clone()) } else { Answer::verdict() })
        })
        .await;
        let arms = arms().endpoint("judge", &peer.url).build().unwrap();
        let (mut call, begun) = (plain(), Instant::now());
        (call.parts.key, call.retry) = (IdempotencyKey::new("k"), Some(3));
        match Transport::call(&arms, call).await {
            Ok(_) => assert!(served && begun.elapsed() >= Duration::from_secs(4)),
            Err(error) => {
                assert_eq!((error.kind(), peer.calls().len()), (ErrorKind::Conflict, 1));
                assert!(!served && error.may_have_executed(), "the one that runs");
            }
        }
    }
}
