//! The answer of any peer: its status, its head and its body, as a call and its retries read them.
#![no_main]

use std::{
    cell::OnceCell,
    convert::Infallible,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use libfuzzer_sys::fuzz_target;
use octollm_core::{
    budget::Usage,
    error::{CallError, ErrorKind, Failure},
};
use octollm_fuzz::{Free, Safe, headers};
use octollm_http::{Arms, wire::Problem};
use serde_json::Value;
use tokio::{
    runtime::{Builder, Runtime},
    time::Instant,
};
use tower::{layer::layer_fn, service_fn};

/// The answer of the peer, and how often it was asked.
type Peer = Arc<Mutex<(Response<Bytes>, u32)>>;

thread_local!(static SYSTEM: OnceCell<(Runtime, Arms, Peer)> = const { OnceCell::new() });

fn system() -> (Runtime, Arms, Peer) {
    let peer: Peer = Arc::default();
    let answers = peer.clone();
    let layer = layer_fn(move |_| {
        let answers = answers.clone();
        service_fn(move |_: Request<Bytes>| {
            let mut answers = answers.lock().expect("no panic");
            answers.1 += 1;
            let answer = answers.0.clone();
            async { Ok::<_, Infallible>(answer) }
        })
    });
    let arms = Arms::builder().endpoint_serving::<Free>("free", "http://peer");
    let arms = arms.endpoint_serving::<Safe>("safe", "http://peer").request_layer(layer);
    let runtime = Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime");
    (runtime, arms.build().expect("a client"), peer)
}

fuzz_target!(|data: &[u8]| {
    let Some(answer) = read(data) else { return };
    SYSTEM.with(|cell| {
        let (runtime, arms, peer) = cell.get_or_init(system);
        runtime.block_on(check(arms, peer, &answer));
    });
});

/// A status, header fields up to an empty line, and a body.
fn read(data: &[u8]) -> Option<Response<Bytes>> {
    let end = data.windows(2).position(|pair| pair == b"\n\n")?;
    let (head, body) = (&data[..end], &data[end + 2..]);
    let mut lines = head.split(|byte| *byte == b'\n');
    let status: u16 =
        std::str::from_utf8(lines.next()?).ok()?.parse().ok().filter(|status| *status >= 200)?;
    let mut answer = Response::builder().status(status);
    *answer.headers_mut()? = headers(lines);
    answer.body(Bytes::copy_from_slice(body)).ok()
}

async fn check(arms: &Arms, peer: &Peer, answer: &Response<Bytes>) {
    let put = || *peer.lock().expect("no panic") = (answer.clone(), 0);
    let asked = || peer.lock().expect("no panic").1;

    put();
    let first = arms.call(Free {}).await;
    assert_eq!(asked(), 1, "without retries one request is sent");
    let error = match first {
        Ok(output) => return check_output(answer, &output),
        Err(error) => error,
    };
    check_failure(error.failure());
    check_status(answer, &error);
    check_next_hop(error.failure());

    // A peer decides how long a call waits, but not beyond the limits of the caller, and not what may run twice.
    for (safe, retries) in [(false, 2), (true, 2)] {
        put();
        let began = Instant::now();
        let result = if safe {
            arms.call(Safe {}).retry(retries).await
        } else {
            arms.call(Free {}).retry(retries).await
        };
        let last = result.expect_err("the same answer");
        assert_eq!((last.attempts(), last.kind()), (asked(), error.kind()));
        assert!(
            asked() <= retries + 1 && began.elapsed() <= Duration::from_secs(30),
            "{:?}",
            began.elapsed()
        );
        if asked() > 1 {
            assert!(error.retryable() && (safe || !error.may_have_executed()), "{error:?}");
            assert!(error.retry_after().is_none_or(|wait| wait <= Duration::from_secs(60)));
        }
    }
}

fn check_output(answer: &Response<Bytes>, output: &Value) {
    assert!(answer.status().is_success());
    match serde_json::from_slice::<Value>(answer.body()) {
        Ok(body) => assert_eq!(body, *output),
        Err(_) => assert!(answer.body().is_empty() && output.is_null(), "{output}"),
    }
}

/// The bounds of what is stored and printed.
fn check_failure(failure: &Failure) {
    assert!(failure.message.len() <= 1300 && !failure.message.contains(char::is_control), "{failure:?}");
    assert!(!failure.message.trim().is_empty());
    assert!(failure.violations.len() <= 100);
    for violation in &failure.violations {
        let is_line = |text: &str| text.len() <= 1027 && !text.contains(char::is_control);
        assert!(is_line(&violation.path) && is_line(&violation.message), "{violation:?}");
    }
    assert!(failure.retryable || failure.retry_after.is_none(), "{failure:?}");
}

/// What follows from the status, unless the body states otherwise.
fn check_status(answer: &Response<Bytes>, error: &CallError) {
    let (status, usage) = (answer.status(), error.usage());
    let reported = answer.headers().contains_key("octollm-usage");
    if !reported {
        let expected = if error.may_have_executed() { Usage::UNMETERED } else { Usage::ZERO };
        assert_eq!(usage, expected);
    }
    if status.is_success() {
        assert_eq!((error.kind(), error.may_have_executed()), (ErrorKind::BadResponse, true));
    } else if !reported && serde_json::from_slice::<Problem>(answer.body()).is_err() {
        let key_is_running = status == 409 && error.retry_after().is_some();
        let before = (status.is_client_error() && !key_is_running) || status == 503;
        assert_eq!(error.may_have_executed(), !before, "{status}");
        assert!(!status.is_client_error() || error.kind().status() < 500, "{status}");
    }
}

/// An arm that passes the failure on states the same.
fn check_next_hop(failure: &Failure) {
    let written = serde_json::to_vec(&Problem::new(failure, None, None)).expect("JSON");
    let mut read = serde_json::from_slice::<Problem>(&written).expect("a problem").into_failure();
    // The wait is written in whole seconds, and is never shorter. A number of JSON is exact up to 2^53.
    if let Some((passed, wait)) = read.retry_after.zip(failure.retry_after) {
        assert!(passed >= wait && passed - wait < Duration::from_secs(1) || wait.as_secs() > 1 << 53);
        read.retry_after = failure.retry_after;
    }
    assert_eq!(read, *failure);
}
