//! A call whose output arrives in chunks.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context as Poll_, Poll},
    time::Duration,
};

use async_trait::async_trait;
use futures_core::Stream;
use futures_util::StreamExt;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::CallFuture;
use crate::{
    budget::Budget,
    contract::TaskContract,
    error::{CallError, ErrorKind, Failure},
    update::{Update, UpdateSink},
};

/// Chunks that have arrived and that the reader has not taken. The arm waits while there are so many.
const AHEAD: usize = 16;

/// One call to an arm, as a stream of the chunks of its output: see [`Context::stream`](super::Context::stream).
///
/// The stream ends when the call has. [`output`](Self::output) returns the output then, or the error. The call is sent when the stream
/// is first polled, and is polled by the stream: an arm that is ahead of the reader by 16 chunks, and by what the connection between them
/// holds, waits in [`Context::chunk`](super::Context::chunk).
///
/// Until the first chunk has arrived, the call is tried again as any call is. After it, an error is not retryable: the reader has a
/// part of an output that another attempt would begin anew. The details of the error have the number of chunks that have arrived as
/// `chunks`.
///
/// Under a brain, a call that was answered before a crash or a rerun has its output from the journal, and no chunks. The same holds for
/// an answer that an arm repeats: from a cache, or by an idempotency key.
///
/// # Cancel safety
/// Dropping the stream cancels the call, as dropping a [`CallFuture`] does.
#[must_use = "a call is sent when its stream is polled"]
pub struct CallStream<C: TaskContract> {
    /// `None` once it has ended.
    call: Option<CallFuture<C::Output>>,
    chunks: mpsc::Receiver<Value>,
    arrived: u64,
    result: Option<Result<C::Output, CallError>>,
}

impl<C: TaskContract> CallStream<C> {
    pub(super) fn new(call: CallFuture<C::Output>) -> Self {
        let (sender, chunks) = mpsc::channel(AHEAD);
        Self { call: Some(call.updates(Arc::new(ChunkSink(sender)))), chunks, arrived: 0, result: None }
    }

    /// Limits the time until the output, counted from the first poll: see [`CallFuture::within`]. The time in which the reader takes no
    /// chunk counts.
    pub fn within(self, time: Duration) -> Self {
        self.with(|call| call.within(time))
    }

    /// Limits the budget: see [`CallFuture::budget`].
    pub fn budget(self, budget: Budget) -> Self {
        self.with(|call| call.budget(budget))
    }

    /// Allows up to `retries` further attempts until the first chunk has arrived: see [`CallFuture::retry`].
    pub fn retry(self, retries: u32) -> Self {
        self.with(|call| call.retry(retries))
    }

    /// Names the call in the journal: see [`CallFuture::named`].
    pub fn named(self, name: impl Into<String>) -> Self {
        self.with(|call| call.named(name))
    }

    /// Sets the idempotency key: see [`CallFuture::key`].
    pub fn key(self, key: impl Into<String>) -> Self {
        self.with(|call| call.key(key))
    }

    fn with(mut self, change: impl FnOnce(CallFuture<C::Output>) -> CallFuture<C::Output>) -> Self {
        self.call = self.call.map(change);
        self
    }

    /// Returns the next chunk, or `None` once the call has ended.
    ///
    /// # Cancel safety
    /// Dropping the future loses no chunk.
    pub async fn next(&mut self) -> Option<C::Chunk> {
        StreamExt::next(self).await
    }

    /// Returns the output. Chunks that have not been taken are dropped.
    ///
    /// # Errors
    /// Those of a [`CallFuture`], and [`ErrorKind::BadResponse`] for a chunk that is none of the contract.
    ///
    /// # Cancel safety
    /// Dropping the future cancels the call.
    pub async fn output(mut self) -> Result<C::Output, CallError> {
        while self.next().await.is_some() {}
        // It has ended, and so it has a result.
        let lost = || Err(CallError::new(C::SPEC.reference(), Failure::of(ErrorKind::Internal)));
        let arrived = self.arrived;
        self.result.unwrap_or_else(lost).map_err(|error| match arrived {
            0 => error,
            chunks => error.map_failure(|failure| failure.add_detail("chunks", json!(chunks))),
        })
    }

    fn read(&mut self, chunk: Value) -> Option<C::Chunk> {
        match serde_json::from_value(chunk) {
            Ok(chunk) => {
                self.arrived += 1;
                Some(chunk)
            }
            Err(error) => {
                let failure =
                    Failure::new(ErrorKind::BadResponse, format!("a chunk has another shape: {error}"));
                self.result = Some(Err(CallError::new(C::SPEC.reference(), failure).with_source(error)));
                self.call = None;
                self.chunks.close();
                while self.chunks.try_recv().is_ok() {}
                None
            }
        }
    }
}

impl<C: TaskContract> Stream for CallStream<C> {
    type Item = C::Chunk;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Poll_<'_>) -> Poll<Option<C::Chunk>> {
        let this = &mut *self;
        if let Poll::Ready(Some(chunk)) = this.chunks.poll_recv(cx) {
            return Poll::Ready(this.read(chunk));
        }
        if let Some(call) = &mut this.call
            && let Poll::Ready(result) = Pin::new(call).poll(cx)
        {
            (this.call, this.result) = (None, Some(result));
            // Work that the arm has left running may hold the other end.
            this.chunks.close();
        }
        // Without a loop: where tokio's cooperative budget is spent, there is a chunk that cannot be taken yet.
        match this.chunks.poll_recv(cx) {
            Poll::Ready(Some(chunk)) => Poll::Ready(this.read(chunk)),
            Poll::Ready(None) if this.call.is_none() => Poll::Ready(None),
            _ => Poll::Pending,
        }
    }
}

/// The future of the call is boxed, and chunks are not pinned.
impl<C: TaskContract> Unpin for CallStream<C> {}

impl<C: TaskContract> fmt::Debug for CallStream<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CallStream")
            .field("call", &self.call)
            .field("arrived", &self.arrived)
            .finish_non_exhaustive()
    }
}

struct ChunkSink(mpsc::Sender<Value>);

#[async_trait]
impl UpdateSink for ChunkSink {
    fn update(&self, _: Update) {}

    async fn chunk(&self, chunk: Value) {
        // The reader of a call that runs is there.
        let _ = self.0.send(chunk).await;
    }
}
