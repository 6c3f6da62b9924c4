//! The usage of calls whose futures are dropped before they have ended.
//!
//! Whoever drops the future of a call counts what is reported meanwhile, on the same thread, by those below it that know the
//! usage: an arm in this process, the retry, the journal. Where nothing is reported the usage is unknown.

use std::{cell::Cell, pin::Pin, task};

use crate::budget::Usage;

thread_local! {
    /// `None` while no call is being dropped.
    static REPORTED: Cell<Option<Option<Usage>>> = const { Cell::new(None) };
}

/// Restores the report of the call around, also by a panic.
struct Around(Option<Option<Usage>>);

impl Drop for Around {
    fn drop(&mut self) {
        REPORTED.set(self.0);
    }
}

/// Drops a call, and returns its usage: [`Usage::UNMETERED`] where nothing reports it.
pub(crate) fn drop_call(drop: impl FnOnce()) -> Usage {
    let _around = Around(REPORTED.replace(Some(None)));
    drop();
    REPORTED.get().flatten().unwrap_or(Usage::UNMETERED)
}

/// Reports the usage of the call that is being dropped, or of a part of it. Elsewhere it has no effect.
pub fn report(usage: Usage) {
    if let Some(reported) = REPORTED.get() {
        REPORTED.set(Some(Some(reported.unwrap_or(Usage::ZERO).plus(usage))));
    }
}

/// Reports this usage when it is dropped.
pub(crate) struct Reports(pub(crate) Option<Usage>);

impl Drop for Reports {
    fn drop(&mut self) {
        if let Some(usage) = self.0 {
            report(usage);
        }
    }
}

/// A call that was sent. If it is dropped before it has ended, `dropped` receives its usage.
pub(crate) struct Sent<'a, F, D: FnMut(Usage)> {
    work: Pin<&'a mut Option<F>>,
    dropped: D,
}

impl<'a, F: Future, D: FnMut(Usage)> Sent<'a, F, D> {
    pub(crate) fn new(work: Pin<&'a mut Option<F>>, dropped: D) -> Self {
        Self { work, dropped }
    }

    /// Polls the call. Once it has ended it stays pending.
    pub(crate) fn poll(&mut self, cx: &mut task::Context<'_>) -> task::Poll<F::Output> {
        let Some(work) = self.work.as_mut().as_pin_mut() else { return task::Poll::Pending };
        let output = task::ready!(work.poll(cx));
        self.work.set(None);
        task::Poll::Ready(output)
    }
}

impl<F, D: FnMut(Usage)> Sent<'_, F, D> {
    /// Drops the call, unless it has ended, and returns its usage.
    pub(crate) fn abandon(&mut self) -> Usage {
        if self.work.is_none() {
            return Usage::ZERO;
        }
        let usage = drop_call(|| self.work.set(None));
        (self.dropped)(usage);
        usage
    }
}

impl<F, D: FnMut(Usage)> Drop for Sent<'_, F, D> {
    fn drop(&mut self) {
        self.abandon();
    }
}
