//! The streams of an HTTP/2 connection: their number, and the time limit on each.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use hyper::rt::Executor;
use tokio::{
    sync::{Notify, mpsc},
    time::{Instant, Sleep, sleep, sleep_until},
};

/// The streams of one connection: the executor on which hyper spawns each of them.
#[derive(Debug, Clone)]
pub(crate) struct Streams(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    write_timeout: Duration,
    running: AtomicUsize,
    /// Notified when the first stream opens and when the last one ends.
    changed: Notify,
    /// Dropped with the last stream.
    _open: mpsc::Sender<()>,
}

/// The state of a stream, which the body of its answer reports.
#[derive(Debug, Default)]
pub(crate) struct Stream {
    /// Whether the caller has yet to read what was written.
    writing: AtomicBool,
    /// Pieces written so far.
    pieces: AtomicUsize,
}

tokio::task_local! {
    static CURRENT: Arc<Stream>;
}

impl Stream {
    /// The stream that is being polled.
    pub(crate) fn current() -> Option<Arc<Self>> {
        CURRENT.try_with(Arc::clone).ok()
    }

    /// Records that one more piece was written.
    pub(crate) fn writes(&self) {
        self.pieces.fetch_add(1, Ordering::Relaxed);
        self.writing.store(true, Ordering::Relaxed);
    }

    /// Records that there is nothing to write.
    pub(crate) fn rests(&self) {
        self.writing.store(false, Ordering::Relaxed);
    }
}

impl Streams {
    /// The streams of a connection, the last of which drops `open`.
    pub(crate) fn new(write_timeout: Duration, open: mpsc::Sender<()>) -> Self {
        let (running, changed) = (AtomicUsize::new(0), Notify::new());
        Self(Arc::new(Shared { write_timeout, running, changed, _open: open }))
    }

    /// Waits until no stream has been open for this time.
    pub(crate) async fn idle(&self, limit: Duration) {
        loop {
            let changed = self.0.changed.notified();
            if self.0.running.load(Ordering::Acquire) > 0 {
                changed.await;
                continue;
            }
            tokio::select! {
                () = changed => {}
                () = sleep(limit) => return,
            }
        }
    }
}

impl<F> Executor<F> for Streams
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, work: F) {
        if self.0.running.fetch_add(1, Ordering::AcqRel) == 0 {
            self.0.changed.notify_waiters();
        }
        let guard = StreamTask {
            work: Box::pin(work),
            stream: Arc::default(),
            seen: 0,
            since: None,
            timer: None,
            open: Open(self.0.clone()),
        };
        tokio::spawn(guard);
    }
}

/// The task of one stream. It ends, which resets the stream, when the caller reads nothing within the limit on writes.
struct StreamTask<F> {
    work: Pin<Box<F>>,
    stream: Arc<Stream>,
    seen: usize,
    /// Time of the last piece.
    since: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
    open: Open,
}

struct Open(Arc<Shared>);

impl Drop for Open {
    fn drop(&mut self) {
        if self.0.running.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.changed.notify_waiters();
        }
    }
}

impl<F: Future<Output = ()>> Future for StreamTask<F> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        let work = this.work.as_mut();
        if CURRENT.sync_scope(this.stream.clone(), || work.poll(cx)).is_ready() {
            return Poll::Ready(());
        }
        if !this.stream.writing.load(Ordering::Relaxed) {
            this.since = None;
            return Poll::Pending;
        }
        let pieces = this.stream.pieces.load(Ordering::Relaxed);
        if this.since.is_none() || pieces != this.seen {
            (this.seen, this.since) = (pieces, Some(Instant::now()));
        }
        let end = this.since.unwrap_or_else(Instant::now) + this.open.0.write_timeout;
        let timer = this.timer.get_or_insert_with(|| Box::pin(sleep_until(end)));
        if timer.deadline() != end {
            timer.as_mut().reset(end);
        }
        let late = timer.as_mut().poll(cx);
        if late.is_ready() {
            tracing::debug!("stream reset: its caller does not read");
        }
        late
    }
}
