//! Panics of code that users wrote.

use std::{
    any::Any,
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind},
};

use futures_util::{FutureExt, TryFutureExt};

/// Code panicked. What it panicked with was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Panicked;

/// Runs a future to its end, or to its panic.
// Not an `async fn`, whose future stores the work twice.
pub fn caught<F: Future>(work: F) -> impl Future<Output = Result<F::Output, Panicked>> {
    AssertUnwindSafe(work).catch_unwind().map_err(discard)
}

/// Drops the value that code panicked with, which may panic as well.
pub(crate) fn discard(panic: Box<dyn Any + Send>) -> Panicked {
    if let Err(another) = catch_unwind(AssertUnwindSafe(|| drop(panic))) {
        std::mem::forget(another);
    }
    Panicked
}
