//! Waiting with a limit, dropped futures, and many operations at once.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    task::Poll,
    time::Duration,
};

use tokio::{
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

/// The limit for what happens sooner or later. It is no measure of speed.
pub(super) const WAIT: Duration = Duration::from_secs(60);

/// The limit of a whole case. The longest ones take some minutes on a slow machine.
const CASE: Duration = Duration::from_secs(900);

/// Runs a case, which fails where it does not end.
pub(super) async fn case(name: &str, work: impl Future<Output = ()>) {
    let ended = timeout(CASE, Box::pin(work)).await;
    assert!(ended.is_ok(), "{name} does not end within {CASE:?}");
}

/// Repeats an attempt until it succeeds.
pub(super) async fn eventually<T>(what: &str, mut attempt: impl AsyncFnMut() -> Option<T>) -> T {
    let end = Instant::now() + WAIT;
    loop {
        if let Some(done) = attempt().await {
            return done;
        }
        assert!(Instant::now() < end, "within {WAIT:?} it does not happen that {what}");
        sleep(Duration::from_millis(10)).await;
    }
}

/// The output of a future that ends in time.
pub(super) async fn in_time<T>(what: &str, future: impl Future<Output = T>) -> T {
    timeout(WAIT, future).await.unwrap_or_else(|_| panic!("{what} takes longer than {WAIT:?}"))
}

/// Polls a future at most `polls` times, and drops it if it has not ended by then.
pub(super) async fn dropped_after<T>(polls: usize, future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    let mut left = polls;
    let polled = poll_fn(|cx| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        match future.as_mut().poll(cx) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending if left == 0 => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    });
    in_time("an operation", polled).await
}

/// Runs futures at once, each as a task of its own, and returns their outputs in any order.
pub(super) async fn at_once<T: Send + 'static>(
    futures: impl IntoIterator<Item = impl Future<Output = T> + Send + 'static>,
) -> Vec<T> {
    let mut running: JoinSet<T> = futures.into_iter().collect();
    let mut outputs = Vec::with_capacity(running.len());
    while let Some(output) = in_time("an operation", running.join_next()).await {
        outputs.push(output.expect("no operation panics"));
    }
    outputs
}
