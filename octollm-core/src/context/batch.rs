//! Batches of calls, and the budget that they share.

use std::{
    collections::{HashSet, VecDeque},
    fmt,
    future::{Future, poll_fn},
    mem,
    pin::Pin,
    sync::atomic::{AtomicBool, Ordering},
    task::{Context as Poll_, Poll},
    time::Duration,
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio::task::coop::consume_budget;

use super::{
    Context,
    call::{Read, UnsentCall, Work, poll_work},
};
use crate::{
    budget::{Budget, Cost, Usage, narrower},
    deadline::Deadline,
    error::CallError,
    transport::StepKey,
};

/// How many calls of one batch run at once by default.
pub const CALLS_AT_ONCE: usize = 16;

/// One call for each of many inputs, which are sent when it is first polled: see [`Context::call_all`].
///
/// The outputs are in the order of the inputs. [`each`](Self::each) has a result for every input in place of one for all.
/// A limit that is set after the first poll has no effect.
///
/// Calls that run at once share the budget: each starts with an equal part of what is left, and what it does not use
/// returns. A call waits while less is free than what is left, divided by the calls that have not ended.
///
/// # Errors
/// The failure that comes first in time, a [`CallError`]. No call is sent after it. Calls in flight are dropped if their
/// contract is idempotent, and awaited if not, because their outcome would be unknown. The deadline and a cancellation of the
/// work end them as well.
///
/// # Cancel safety
/// Dropping the future cancels all calls.
#[must_use = "calls are sent when they are awaited"]
pub struct BatchFuture<T, O = Result<Vec<T>, CallError>> {
    /// Until the first poll.
    batch: Option<Batch<T>>,
    run: fn(Batch<T>) -> Work<O>,
    running: Option<Work<O>>,
}

impl<T: Send + 'static> BatchFuture<T> {
    pub(super) fn new(cx: Context, requests: Vec<UnsentCall>, read: Read<T>) -> Self {
        let (at_once, within, budget) = (CALLS_AT_ONCE, None, Budget::UNLIMITED);
        let batch = Batch { cx, requests, read, at_once, within, budget };
        Self { batch: Some(batch), run: |batch| Box::pin(batch.all()), running: None }
    }

    /// Goes on when calls fail: the output is the result of each call, in the order of the inputs.
    pub fn each(self) -> BatchFuture<T, Vec<Result<T, CallError>>> {
        BatchFuture { batch: self.batch, run: |batch| Box::pin(batch.each()), running: None }
    }
}

impl<T, O> BatchFuture<T, O> {
    /// Runs at most `calls` at once (default [`CALLS_AT_ONCE`], at least 1).
    pub fn at_once(self, calls: usize) -> Self {
        self.with(|batch| batch.at_once = calls.max(1))
    }

    /// Limits the time of the whole batch, counted from the first poll. A call that could not be sent by then is refused.
    pub fn within(self, time: Duration) -> Self {
        self.with(|batch| batch.within = narrower(batch.within, Some(time)))
    }

    /// Limits the budget of all calls together.
    pub fn budget(self, budget: Budget) -> Self {
        self.with(|batch| batch.budget = batch.budget.within(budget))
    }

    /// Allows each call up to `retries` further attempts: see [`CallFuture::retry`](super::CallFuture::retry).
    pub fn retry(self, retries: u32) -> Self {
        self.with(|batch| batch.requests.iter_mut().for_each(|request| request.retry = Some(retries)))
    }

    /// Sets an idempotency key for each call, in the order of the inputs: see [`CallFuture::key`](super::CallFuture::key). If there are
    /// fewer or more keys than calls, all calls fail with [`ErrorKind::BadRequest`](crate::error::ErrorKind::BadRequest) and none is sent.
    pub fn keys(self, keys: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.with(|batch| {
            let keys: Vec<String> = keys.into_iter().map(Into::into).collect();
            let is_each = keys.len() == batch.requests.len();
            if is_each {
                batch.requests.iter_mut().zip(keys).for_each(|(request, key)| request.set_key(key));
            } else {
                let words = "there is not one idempotency key for each call of the batch";
                batch.requests.iter_mut().for_each(|request| request.refuse(words));
            }
        })
    }

    /// Names the calls `name[0]`, `name[1]`, … in the journal, in place of their order.
    pub fn named(self, name: impl Into<String>) -> Self {
        let name = name.into();
        self.with(|batch| batch.name(&name))
    }

    fn with(mut self, change: impl FnOnce(&mut Batch<T>)) -> Self {
        if let Some(batch) = &mut self.batch {
            change(batch);
        }
        self
    }
}

impl<T, O> Future for BatchFuture<T, O> {
    type Output = O;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Poll_<'_>) -> Poll<O> {
        if let Some(batch) = self.batch.take() {
            self.running = Some((self.run)(batch));
        }
        poll_work(&mut self.running, cx)
    }
}

/// A batch that was not started yet.
struct Batch<T> {
    cx: Context,
    requests: Vec<UnsentCall>,
    read: Read<T>,
    at_once: usize,
    within: Option<Duration>,
    budget: Budget,
}

impl<T> Batch<T> {
    fn name(&mut self, name: &str) {
        if let Some(StepKey::Order(first)) = self.requests.first().map(|request| request.step.clone()) {
            self.cx.order().give_back(first, self.requests.len());
        }
        for (position, request) in self.requests.iter_mut().enumerate() {
            request.step = StepKey::Name(format!("{name}[{position}]"));
        }
    }

    async fn all(self) -> Result<Vec<T>, CallError> {
        let mut outputs: Vec<Option<T>> = self.requests.iter().map(|_| None).collect();
        self.run(true, |place, answer| {
            outputs[place] = Some(answer?);
            Ok(())
        })
        .await?;
        Ok(outputs.into_iter().flatten().collect())
    }

    async fn each(self) -> Vec<Result<T, CallError>> {
        let mut results: Vec<Option<Result<T, CallError>>> = self.requests.iter().map(|_| None).collect();
        let ended = self.run(false, |place, answer| {
            results[place] = Some(answer);
            Ok(())
        });
        // Nothing ends it early.
        let _: Result<(), CallError> = ended.await;
        results.into_iter().flatten().collect()
    }

    /// Runs the calls, and hands each answer to `answered` until that returns an error.
    async fn run(
        self,
        fails_fast: bool,
        answered: impl FnMut(usize, Result<T, CallError>) -> Result<(), CallError>,
    ) -> Result<(), CallError> {
        let cx = self.cx.narrowed(self.within.map(Deadline::after), self.budget);
        let Some(first) = self.requests.first().map(|request| request.step.clone()) else { return Ok(()) };
        let resumed = if fails_fast { cx.resumed(&first) } else { HashSet::new() };
        let waiting = self.requests.into_iter().enumerate();
        // Those that an earlier run has recorded come first.
        let (mut recorded, mut waiting): (VecDeque<_>, VecDeque<_>) =
            waiting.partition(|(_, request)| resumed.contains(&request.step));
        if recorded.is_empty() {
            mem::swap(&mut recorded, &mut waiting);
        }
        let mut calls = BatchCalls { cx: &cx, first, now: recorded, waiting, answered };
        loop {
            run_calls(&mut calls, &cx, self.at_once, self.read).await?;
            if calls.waiting.is_empty() {
                return Ok(());
            }
            mem::swap(&mut calls.now, &mut calls.waiting);
        }
    }
}

/// The calls of a batch, and what receives their answers.
struct BatchCalls<'a, A> {
    cx: &'a Context,
    first: StepKey,
    /// Calls to make now.
    now: VecDeque<(usize, UnsentCall)>,
    /// Calls to make when those have ended.
    waiting: VecDeque<(usize, UnsentCall)>,
    answered: A,
}

impl<T, A: FnMut(usize, Result<T, CallError>) -> Result<(), CallError>> Calls<T> for BatchCalls<'_, A> {
    type Place = usize;
    type Error = CallError;

    fn waiting(&self) -> usize {
        self.now.len()
    }

    fn next(&mut self, share: Budget) -> Option<Result<(usize, UnsentCall), CallError>> {
        let (place, mut request) = self.now.pop_front()?;
        request.cx = self.cx.clone();
        Some(Ok((place, request.of_batch(self.first.clone(), share))))
    }

    fn answered(&mut self, place: usize, answer: Result<T, CallError>) -> Result<(), CallError> {
        (self.answered)(place, answer)
    }
}

/// A call to start and its place, or why it cannot be made.
pub(crate) type Next<P, E> = Result<(P, UnsentCall), E>;

/// The calls of a batch or a plan.
pub(crate) trait Calls<T> {
    type Place: Copy;
    type Error;

    /// How many calls can start now.
    fn waiting(&self) -> usize;
    /// The next call to start, with this share of the budget.
    fn next(&mut self, share: Budget) -> Option<Next<Self::Place, Self::Error>>;
    /// Takes an answer. An error ends all calls.
    fn answered(&mut self, place: Self::Place, answer: Result<T, CallError>) -> Result<(), Self::Error>;
}

/// Runs calls until none is left, or to the first failure. After that no call is sent, and those in flight that are not
/// idempotent are awaited.
pub(crate) async fn run_calls<T, C: Calls<T>>(
    calls: &mut C,
    cx: &Context,
    at_once: usize,
    read: Read<T>,
) -> Result<(), C::Error> {
    let (stopped, mut shares) = (AtomicBool::new(false), Shares::default());
    // Those that are not idempotent, and those that are.
    let (mut awaited, mut dropped) = (FuturesUnordered::new(), FuturesUnordered::new());
    let failure = 'calls: loop {
        loop {
            let running = awaited.len() + dropped.len();
            if running >= at_once || calls.waiting() == 0 {
                break;
            }
            let (waiting, places) = (calls.waiting(), calls.waiting().min(at_once - running));
            let Some(share) = shares.take(cx.budget(), places, waiting + running) else { break };
            let (place, call) = match calls.next(share) {
                Some(Ok(next)) => next,
                Some(Err(error)) => break 'calls error,
                None => break,
            };
            let list = if call.is_idempotent() { &mut dropped } else { &mut awaited };
            list.push(unless(&stopped, (place, share), call, read));
        }
        let next = poll_fn(|task| match awaited.poll_next_unpin(task) {
            Poll::Ready(Some(answer)) => Poll::Ready(Some(answer)),
            awaited => match dropped.poll_next_unpin(task) {
                Poll::Ready(None) => awaited,
                answer => answer,
            },
        });
        let Some(answer) = next.await else { return Ok(()) };
        let Some(((place, share), answer)) = answer else { continue };
        shares.give_back(share);
        if let Err(error) = calls.answered(place, answer) {
            break error;
        }
        // Calls that never wait must not hold the thread for as long as all of them last.
        consume_budget().await;
    };
    stopped.store(true, Ordering::Relaxed);
    drop(dropped);
    while awaited.next().await.is_some() {}
    Err(failure)
}

/// Sends a call when it is first polled, unless `stopped` by then.
async fn unless<P, T>(
    stopped: &AtomicBool,
    place: P,
    call: UnsentCall,
    read: Read<T>,
) -> Option<(P, Result<T, CallError>)> {
    if stopped.load(Ordering::Relaxed) { None } else { Some((place, call.answer(read).await)) }
}

impl<T> fmt::Debug for Batch<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batch")
            .field("calls", &self.requests.len())
            .field("at_once", &self.at_once)
            .finish_non_exhaustive()
    }
}

impl<T, O> fmt::Debug for BatchFuture<T, O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("BatchFuture").field(&self.batch).finish()
    }
}

/// The part of a budget that is reserved by the calls of one batch that run now.
///
/// It only counts: the caller passes what is left, and waits where there is no share.
#[derive(Debug, Default)]
struct Shares {
    reserved: Usage,
}

impl Shares {
    /// Reserves the share of one more call: (what is left − what is reserved) ÷ `places`, rounded up, but not less than what is left
    /// ÷ `unfinished`. `places` is how many calls can start now, this one included, and `unfinished` how many run or wait.
    ///
    /// `left` has to include what the running calls have reserved. `None` where less than that is free: the call waits until
    /// running ones return their shares. So calls of equal cost all succeed under a budget that suffices for them. Where nothing is
    /// left at all the share is 0, which no call can run with.
    fn take(&mut self, left: Budget, places: usize, unfinished: usize) -> Option<Budget> {
        let many = |calls| u64::try_from(calls).unwrap_or(u64::MAX).max(1);
        let (places, unfinished) = (many(places), many(unfinished));
        let tokens = part(left.tokens, self.reserved.tokens, places, unfinished)?;
        let (cost, reserved) = (left.cost.map(Cost::nano_dollars), self.reserved.cost.nano_dollars());
        let cost = part(cost, reserved, places, unfinished)?;
        let share = Budget { tokens, cost: cost.map(Cost::from_nano_dollars) };
        self.reserved = self.reserved.plus(usage(share));
        Some(share)
    }

    /// Returns the share of a call that has ended. What the call used has to be subtracted from what is left before the
    /// next share is taken.
    fn give_back(&mut self, share: Budget) {
        let share = usage(share);
        let cost = self.reserved.cost.nano_dollars().saturating_sub(share.cost.nano_dollars());
        let tokens = self.reserved.tokens.saturating_sub(share.tokens);
        self.reserved = Usage::tokens(tokens).with_cost(Cost::from_nano_dollars(cost));
    }
}

/// The share in one dimension; `Some(None)` where it has no limit.
fn part(left: Option<u64>, reserved: u64, places: u64, unfinished: u64) -> Option<Option<u64>> {
    let Some(left) = left else { return Some(None) };
    let (free, least) = (left.saturating_sub(reserved), left / unfinished);
    let waits = free < least || (free == 0 && left > 0);
    (!waits).then(|| Some(free.div_ceil(places).max(least)))
}

fn usage(share: Budget) -> Usage {
    Usage::tokens(share.tokens.unwrap_or(0)).with_cost(share.cost.unwrap_or(Cost::ZERO))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ten_calls_share_a_thousand_tokens_evenly() {
        let mut shares = Shares::default();
        let left = Budget::tokens(1_000);
        for places in (1..=10).rev() {
            assert_eq!(shares.take(left, places, 11), Some(Budget::tokens(100)));
        }
        assert_eq!(shares.take(left, 1, 11), None);
        // One ends having used 10: what it did not use is free again.
        shares.give_back(Budget::tokens(100));
        assert_eq!(shares.take(left.after(Usage::tokens(10)), 1, 10), None, "99 are the least");
        shares.give_back(Budget::tokens(100));
        assert_eq!(shares.take(left.after(Usage::tokens(20)), 1, 9), Some(Budget::tokens(180)));
    }

    #[test]
    fn a_spent_budget_is_a_share_of_nothing_and_no_limit_is_none() {
        let mut shares = Shares::default();
        assert_eq!(shares.take(Budget::tokens(0), 4, 4), Some(Budget::tokens(0)));
        assert_eq!(shares.take(Budget::UNLIMITED, 4, 4), Some(Budget::UNLIMITED));
        let cents = |cents: u64| Some(Cost::from_nano_dollars(cents * 10_000_000));
        let share = shares.take(Budget { tokens: None, cost: cents(100) }, 4, 4);
        assert_eq!(share, Some(Budget { tokens: None, cost: cents(25) }));
    }

    /// Runs calls that each use what `used` says of their share, and returns the shares in the order in which they were taken, and
    /// the sum of what was used.
    fn run(
        limit: u64,
        at_once: usize,
        calls: &[prop::sample::Index],
        used: impl Fn(usize, u64) -> u64,
    ) -> Result<(Vec<u64>, u64), TestCaseError> {
        let (mut shares, mut spent, mut taken) = (Shares::default(), 0, Vec::new());
        let (mut running, mut waiting): (Vec<(usize, Budget)>, usize) = (Vec::new(), calls.len());
        for which in calls {
            let left = Budget::tokens(limit - spent);
            while running.len() < at_once && waiting > 0 {
                let places = (at_once - running.len()).min(waiting);
                let Some(share) = shares.take(left, places, waiting + running.len()) else { break };
                running.push((taken.len(), share));
                taken.push(share.tokens.unwrap_or(0));
                waiting -= 1;
            }
            prop_assert!(!running.is_empty());
            let reserved: u64 = running.iter().filter_map(|(_, share)| share.tokens).sum();
            prop_assert!(reserved <= limit - spent);
            let (number, ended) = running.swap_remove(which.index(running.len()));
            spent += used(number, ended.tokens.unwrap_or(0));
            shares.give_back(ended);
        }
        prop_assert!(spent <= limit && running.is_empty() && waiting == 0);
        Ok((taken, spent))
    }

    proptest! {
        /// Calls that stay within their shares stay within the budget together, each starts with more than nothing for as
        /// long as something is left, and all of them get their turn.
        #[test]
        fn calls_within_their_shares_are_within_the_budget(
            limit in 0_u64..2_000,
            at_once in 1_usize..12,
            ends in prop::collection::vec(any::<prop::sample::Index>(), 1..40),
            percents in prop::collection::vec(0_u64..=100, 40),
        ) {
            let (taken, spent) = run(limit, at_once, &ends, |call, share| share * percents[call] / 100)?;
            prop_assert!(spent == limit || taken.iter().all(|share| *share > 0));
        }

        /// Calls of equal cost all succeed where the budget suffices for them, in whatever order they end.
        #[test]
        fn calls_of_equal_cost_have_their_share(
            cost in 1_u64..200,
            extra in 0_u64..400,
            at_once in 1_usize..20,
            ends in prop::collection::vec(any::<prop::sample::Index>(), 1..60),
        ) {
            let limit = cost * ends.len() as u64 + extra;
            let (taken, _) = run(limit, at_once, &ends, |_, _| cost)?;
            prop_assert!(taken.iter().all(|share| *share >= cost), "{taken:?}");
        }
    }
}
