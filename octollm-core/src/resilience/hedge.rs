//! The layer that sends a request a second time where its answer is late.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::{Arc, LazyLock},
    task::{Context, Poll},
    time::Duration,
};

use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep, sleep};
use tower::{Layer, Service, ServiceExt, util::Oneshot};

use super::{
    Outcome, RetryBudget,
    protocol::{Calls, Protocol},
    sync::{Mutex, PoisonError},
    take_ready,
};
use crate::meters::Counters;

static HEDGES: LazyLock<Counters> = LazyLock::new(|| {
    Counters::new(
        "octollm_call_hedges_total",
        "Calls that were sent a second time, since their answer was late.",
        &[],
    )
});

/// Sends an idempotent call to another endpoint as well, if its answer takes longer than that of 95 % of the recent calls. The
/// first answer counts, and the other call is cancelled.
///
/// There is one further call at most, and it takes a token of the [`RetryBudget`], so that hedges cannot multiply the load of a
/// target that is slow. Until 20 calls have been answered there is none. A call whose chunks are read has none, since its reader would
/// get the chunks of both. A call that fails is not hedged: that is for a [`RetryLayer`](super::RetryLayer), which belongs above this
/// one. As a `layer` of `Arms` it is above the retries of the client: the first call and the hedge then each have further attempts of
/// their own. Every value of a limit is valid.
///
/// ```
/// use std::time::Duration;
/// use octollm_core::resilience::{HedgeLayer, RetryBudget, RetryLayer};
/// use tower::ServiceBuilder;
///
/// let budget = RetryBudget::default(); // shared by both
/// let layers = ServiceBuilder::new()
///     .layer(RetryLayer::new().budget(budget.clone()))
///     .layer(HedgeLayer::new().budget(budget).min_wait(Duration::from_millis(50)));
/// ```
#[derive(Clone)]
pub struct HedgeLayer<P = Calls> {
    min_wait: Duration,
    budget: RetryBudget,
    protocol: P,
}

impl HedgeLayer {
    /// A layer with the default limits.
    pub fn new() -> Self {
        Self::of(Calls)
    }
}

impl<P> HedgeLayer<P> {
    /// A layer with the default limits, for requests of another protocol.
    pub fn of(protocol: P) -> Self {
        Self { min_wait: Duration::from_millis(10), budget: RetryBudget::default(), protocol }
    }

    /// Sets the shortest wait before the second call (default 10 ms).
    #[must_use]
    pub fn min_wait(mut self, wait: Duration) -> Self {
        self.min_wait = wait;
        self
    }

    /// Sets the budget of the second calls (default: one of this layer's own, with 20 % and 10/s). Of one that it shares with a
    /// [`RetryLayer`](super::RetryLayer), the calls that pass that layer count, and those that pass this one do not.
    #[must_use]
    pub fn budget(mut self, budget: RetryBudget) -> Self {
        self.budget = budget;
        self
    }
}

impl Default for HedgeLayer {
    fn default() -> Self {
        Self::new()
    }
}

impl<P> fmt::Debug for HedgeLayer<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HedgeLayer")
            .field("min_wait", &self.min_wait)
            .field("budget", &self.budget)
            .finish_non_exhaustive()
    }
}

impl<S, P: Clone> Layer<S> for HedgeLayer<P> {
    type Service = Hedge<S, P>;

    fn layer(&self, service: S) -> Self::Service {
        let rules = Rules { layer: self.clone(), latencies: Mutex::new(Latencies::new()) };
        Hedge { rules: Arc::new(rules), service }
    }
}

/// The service of a [`HedgeLayer`].
pub struct Hedge<S, P> {
    rules: Arc<Rules<P>>,
    service: S,
}

/// What the clones of a service share.
#[derive(Debug)]
struct Rules<P> {
    layer: HedgeLayer<P>,
    latencies: Mutex<Latencies>,
}

impl<S, P> Service<P::Request> for Hedge<S, P>
where
    P: Protocol,
    S: Service<P::Request, Response = P::Response, Error = P::Error> + Clone,
{
    type Response = P::Response;
    type Error = P::Error;
    type Future = Hedging<S, P>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), P::Error>> {
        self.service.poll_ready(cx)
    }

    fn call(&mut self, mut request: P::Request) -> Self::Future {
        let mut first = take_ready(&mut self.service);
        let Rules { layer, latencies } = &*self.rules;
        layer.budget.deposit_unless_retried();
        let wait = latencies.lock().unwrap_or_else(PoisonError::into_inner).late();
        let mut spare = None;
        if let Some(wait) = wait {
            layer.protocol.watch(&mut request);
            spare = layer.protocol.copy(&request).map(|request| Spare {
                service: self.service.clone(),
                request,
                wait,
            });
        }
        Hedging {
            rules: self.rules.clone(),
            begun: Instant::now(),
            timer: spare.as_ref().map(|spare| sleep(spare.wait.max(layer.min_wait))),
            spare,
            first: Some(first.call(request)),
            second: None,
            failed: None,
        }
    }
}

/// What the second call takes.
struct Spare<S, R> {
    service: S,
    request: R,
    wait: Duration,
}

pin_project! {
    /// The future of a [`Hedge`].
    pub struct Hedging<S, P>
    where
        P: Protocol,
        S: Service<P::Request>,
    {
        rules: Arc<Rules<P>>,
        begun: Instant,
        #[pin]
        timer: Option<Sleep>,
        spare: Option<Spare<S, P::Request>>,
        #[pin]
        first: Option<S::Future>,
        #[pin]
        second: Option<Oneshot<S, P::Request>>,
        // The error of the one that has failed, while the other is running.
        failed: Option<P::Error>,
    }
}

impl<S, P> Future for Hedging<S, P>
where
    P: Protocol,
    S: Service<P::Request, Response = P::Response, Error = P::Error>,
{
    type Output = Result<P::Response, P::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let protocol = &this.rules.layer.protocol;
        loop {
            let first = this.first.as_mut().as_pin_mut().map(|first| first.poll(cx));
            let ended = match first {
                Some(Poll::Ready(result)) => {
                    this.first.set(None);
                    Some(result)
                }
                _ => None,
            };
            let ended = match (ended, this.second.as_mut().as_pin_mut()) {
                (None, Some(second)) => match second.poll(cx) {
                    Poll::Ready(result) => {
                        this.second.set(None);
                        Some(result)
                    }
                    Poll::Pending => None,
                },
                (ended, _) => ended,
            };
            if let Some(mut result) = ended {
                let other_runs = this.first.is_some() || this.second.is_some();
                result = match (result, other_runs) {
                    // The other one may succeed.
                    (Err(error), true) => {
                        *this.failed = Some(error);
                        continue;
                    }
                    (result, _) => result,
                };
                if let Some(error) = this.failed.take() {
                    protocol.add_failed(&mut result, error);
                }
                if other_runs {
                    protocol.add_dropped(&mut result, 1, &mut || {
                        this.first.set(None);
                        this.second.set(None);
                    });
                }
                this.rules.count(&result, this.begun.elapsed());
                return Poll::Ready(result);
            }
            match this.timer.as_mut().as_pin_mut().map(|timer| timer.poll(cx)) {
                Some(Poll::Ready(())) => this.timer.set(None),
                _ => return Poll::Pending,
            }
            // A first one that has ended while the timer ran out is not polled again.
            let Some(spare) = this.spare.take().filter(|_| this.first.is_some()) else {
                return Poll::Pending;
            };
            if !this.rules.layer.budget.withdraw(Instant::now()) {
                return Poll::Pending;
            }
            HEDGES.with(&[]).count();
            let Spare { service, mut request, .. } = spare;
            protocol.elsewhere(&mut request);
            this.second.set(Some(service.oneshot(request)));
        }
    }
}

impl<P: Protocol> Rules<P> {
    fn count(&self, result: &Result<P::Response, P::Error>, latency: Duration) {
        if self.layer.protocol.outcome(result.as_ref()) == Outcome::Success {
            self.latencies.lock().unwrap_or_else(PoisonError::into_inner).add(latency);
        }
    }
}

impl<S: Clone, P> Clone for Hedge<S, P> {
    fn clone(&self) -> Self {
        Self { rules: self.rules.clone(), service: self.service.clone() }
    }
}

impl<S, P> fmt::Debug for Hedge<S, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hedge").field("layer", &self.rules.layer).finish_non_exhaustive()
    }
}

/// Recent latencies, in buckets of which each is a quarter wider than the one before at most.
#[derive(Debug)]
struct Latencies {
    buckets: [u32; Self::BUCKETS],
    total: u32,
    late: Option<Duration>,
}

impl Latencies {
    /// Four for each doubling, from a microsecond up to more than an hour.
    const BUCKETS: usize = 132;
    /// Latencies before the first estimate, and after which old ones lose half of their weight.
    const LEAST: u32 = 20;
    const MOST: u32 = 1_000;

    fn new() -> Self {
        Self { buckets: [0; Self::BUCKETS], total: 0, late: None }
    }

    fn add(&mut self, latency: Duration) {
        self.buckets[Self::position(latency)] += 1;
        self.total += 1;
        if self.total >= Self::MOST {
            self.buckets.iter_mut().for_each(|count| *count /= 2);
            self.total = self.buckets.iter().sum();
        }
        if self.total.is_multiple_of(Self::LEAST) || self.late.is_none() {
            self.late = self.estimate();
        }
    }

    /// At least as long as 95 % of them; `None` while they are too few.
    fn late(&self) -> Option<Duration> {
        self.late
    }

    fn estimate(&self) -> Option<Duration> {
        let above = self.total / 20;
        let mut seen = 0;
        let position = (0..Self::BUCKETS).rev().find(|&position| {
            seen += self.buckets[position];
            seen > above
        });
        position.filter(|_| self.total >= Self::LEAST).map(Self::end)
    }

    fn position(latency: Duration) -> usize {
        let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX).max(1);
        let doublings = micros.ilog2();
        // The two bits below the highest one.
        let quarter = (u128::from(micros) << 2 >> doublings) as usize & 0b11;
        (doublings as usize * 4 + quarter).min(Self::BUCKETS - 1)
    }

    /// The end of a bucket.
    fn end(position: usize) -> Duration {
        let (doublings, quarter) = (position / 4, position as u64 % 4);
        Duration::from_micros((((5 + quarter) << doublings) / 4).max(1))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_estimate_is_the_95th_percentile_to_a_quarter(micros in prop::collection::vec(1_u64..10_000_000, 20..900)) {
            let mut latencies = Latencies::new();
            micros.iter().for_each(|&micros| latencies.add(Duration::from_micros(micros)));
            let mut sorted = micros.clone();
            sorted.sort_unstable();
            let exact = Duration::from_micros(sorted[sorted.len() - 1 - sorted.len() / 20]);
            let estimate = latencies.estimate().unwrap();
            prop_assert!(estimate >= exact && estimate <= exact.mul_f64(1.26) + Duration::from_micros(2), "{:?} {:?}", exact, estimate);
        }
    }

    #[test]
    fn old_latencies_lose_their_weight_and_extremes_have_a_bucket() {
        let mut latencies = Latencies::new();
        (0..20_000).for_each(|_| latencies.add(Duration::from_secs(1)));
        (0..4_000).for_each(|_| latencies.add(Duration::from_millis(1)));
        assert!(latencies.late().unwrap() < Duration::from_millis(2));
        latencies.add(Duration::ZERO);
        latencies.add(Duration::MAX);
    }
}
