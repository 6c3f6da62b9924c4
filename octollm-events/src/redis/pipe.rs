//! One connection for the commands of many callers.
//!
//! Callers append their commands to one buffer. One task writes what has come together in one write, and hands out the replies in their order.

use std::{
    collections::VecDeque,
    mem,
    pin::{Pin, pin},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use bytes::BytesMut;
use tokio::{
    io::{AsyncReadExt, AsyncWrite},
    sync::oneshot,
    task::AbortHandle,
    time::{Instant, Sleep, sleep},
};

use super::{connection::Io, error::RedisError, listener::reserve, reply::Reply};

/// A buffer that has become larger than this is given back.
const MAX_BUFFER: usize = 1 << 20;

/// A connection. It is closed when it is dropped.
pub(super) struct Pipe {
    shared: Arc<Shared>,
    driver: AbortHandle,
}

struct Shared {
    queue: Mutex<Queue>,
    is_lost: AtomicBool,
}

struct Queue {
    unsent: Vec<u8>,
    /// Those who wait for the replies to `unsent`.
    waiting: Vec<Waiting>,
    /// The driver, where it has nothing to write.
    driver: Option<Waker>,
    /// Why nothing is sent any more.
    ended: Option<RedisError>,
}

/// A request that was not answered yet.
struct Waiting {
    since: Instant,
    answer: Answer,
}

enum Answer {
    One(oneshot::Sender<Reply>),
    Each { count: usize, replies: Vec<Reply>, sender: oneshot::Sender<Vec<Reply>> },
}

impl Pipe {
    /// Sends commands over a stream. A connection without an answer for `timeout` is lost.
    pub(super) fn new(stream: Box<dyn Io>, received: BytesMut, timeout: Duration) -> Self {
        let queue = Queue { unsent: Vec::new(), waiting: Vec::new(), driver: None, ended: None };
        let shared = Arc::new(Shared { queue: Mutex::new(queue), is_lost: AtomicBool::new(false) });
        let driver = Driver {
            stream,
            shared: shared.clone(),
            sending: Vec::new(),
            sent: 0,
            is_flushed: true,
            received,
            waiting: VecDeque::new(),
            timeout,
            timer: Box::pin(sleep(timeout)),
            is_timed: false,
        };
        Self { shared, driver: tokio::spawn(driver.run()).abort_handle() }
    }

    /// Whether further commands need another connection.
    pub(super) fn is_lost(&self) -> bool {
        self.shared.is_lost.load(Ordering::Acquire)
    }

    /// Has further commands sent over another connection.
    pub(super) fn retire(&self) {
        self.shared.is_lost.store(true, Ordering::Release);
    }

    /// Sends what `write` appends, and waits for the reply.
    ///
    /// # Cancel safety
    /// If the future is dropped, the command may be executed.
    pub(super) async fn request(&self, write: impl FnOnce(&mut Vec<u8>)) -> Result<Reply, RedisError> {
        let (sender, reply) = oneshot::channel();
        self.send(Answer::One(sender), write)?;
        reply.await.map_err(|_| self.shared.ended())
    }

    /// Sends so many commands together, which `write` appends. Returns their replies in order.
    ///
    /// # Cancel safety
    /// If the future is dropped, the commands may be executed.
    pub(super) async fn request_each(
        &self,
        count: usize,
        write: impl FnOnce(&mut Vec<u8>),
    ) -> Result<Vec<Reply>, RedisError> {
        let (sender, replies) = oneshot::channel();
        self.send(Answer::Each { count, replies: Vec::with_capacity(count), sender }, write)?;
        replies.await.map_err(|_| self.shared.ended())
    }

    fn send(&self, answer: Answer, write: impl FnOnce(&mut Vec<u8>)) -> Result<(), RedisError> {
        let since = Instant::now();
        let mut queue = self.shared.queue();
        if let Some(error) = &queue.ended {
            return Err(error.clone());
        }
        write(&mut queue.unsent);
        queue.waiting.push(Waiting { since, answer });
        let driver = queue.driver.take();
        drop(queue);
        if let Some(driver) = driver {
            driver.wake();
        }
        Ok(())
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fails those who wait, and all who come. Only the first reason counts.
    fn end(&self, error: RedisError) {
        self.is_lost.store(true, Ordering::Release);
        let mut queue = self.queue();
        queue.ended.get_or_insert(error);
        let unsent = mem::take(&mut queue.waiting);
        drop(queue);
        drop(unsent);
    }

    fn ended(&self) -> RedisError {
        self.queue().ended.clone().unwrap_or_else(closed)
    }
}

fn closed() -> RedisError {
    RedisError::unreachable("the connection was closed")
}

/// What writes and reads.
struct Driver {
    stream: Box<dyn Io>,
    shared: Arc<Shared>,
    sending: Vec<u8>,
    /// How many bytes of `sending` were written.
    sent: usize,
    is_flushed: bool,
    received: BytesMut,
    waiting: VecDeque<Waiting>,
    timeout: Duration,
    timer: Pin<Box<Sleep>>,
    /// Whether the timer runs for a request.
    is_timed: bool,
}

/// The runtime may end before the connection does.
impl Drop for Driver {
    fn drop(&mut self) {
        self.shared.end(closed());
    }
}

impl Driver {
    async fn run(mut self) {
        let error = std::future::poll_fn(|cx| self.poll(cx)).await;
        self.shared.end(error);
    }

    /// Ends with the reason why the connection is lost.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<RedisError> {
        if let Poll::Ready(Err(error)) = self.poll_write(cx) {
            return Poll::Ready(error);
        }
        if let Poll::Ready(error) = self.poll_read(cx) {
            return Poll::Ready(error);
        }
        self.poll_timeout(cx)
    }

    /// Writes what there is. Is ready with `Ok` once all is written.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), RedisError>> {
        loop {
            while self.sent < self.sending.len() {
                let written = Pin::new(&mut self.stream).poll_write(cx, &self.sending[self.sent..]);
                match ready!(written) {
                    Ok(0) => return Poll::Ready(Err(RedisError::unreachable("nothing can be written"))),
                    Ok(bytes) => (self.sent, self.is_flushed) = (self.sent + bytes, false),
                    Err(error) => return Poll::Ready(Err(RedisError::unreachable(error))),
                }
            }
            if !self.is_flushed {
                ready!(Pin::new(&mut self.stream).poll_flush(cx)).map_err(RedisError::unreachable)?;
                self.is_flushed = true;
            }
            self.sending.clear();
            self.sent = 0;
            if self.sending.capacity() > MAX_BUFFER {
                self.sending = Vec::new();
            }
            let mut queue = self.shared.queue();
            if queue.unsent.is_empty() {
                queue.driver = Some(cx.waker().clone());
                return Poll::Ready(Ok(()));
            }
            mem::swap(&mut queue.unsent, &mut self.sending);
            self.waiting.extend(queue.waiting.drain(..));
        }
    }

    /// Reads what there is, until the connection is lost.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<RedisError> {
        loop {
            loop {
                match Reply::take(&mut self.received) {
                    Ok(Some(Reply::Push(_))) => {}
                    Ok(Some(reply)) => self.answer(reply),
                    Ok(None) => break,
                    Err(error) => return Poll::Ready(RedisError::failed(error)),
                }
            }
            reserve(&mut self.received);
            let read = pin!(self.stream.read_buf(&mut self.received)).poll(cx);
            match ready!(read) {
                Ok(0) => {
                    return Poll::Ready(RedisError::unreachable("the server closed the connection"));
                }
                Ok(_) => {}
                Err(error) => return Poll::Ready(RedisError::unreachable(error)),
            }
        }
    }

    /// Hands a reply to the first one who waits.
    fn answer(&mut self, reply: Reply) {
        let Some(first) = self.waiting.front_mut() else { return };
        if let Answer::Each { count, replies, .. } = &mut first.answer {
            replies.push(reply);
            if replies.len() < *count {
                return;
            }
            if let Some(Waiting { answer: Answer::Each { replies, sender, .. }, .. }) =
                self.waiting.pop_front()
            {
                // The caller may have given up.
                let _ = sender.send(replies);
            }
        } else if let Some(Waiting { answer: Answer::One(sender), .. }) = self.waiting.pop_front() {
            let _ = sender.send(reply);
        }
    }

    /// Ends where the oldest request has no answer in time. One timer serves all: it is set again when it expires.
    fn poll_timeout(&mut self, cx: &mut Context<'_>) -> Poll<RedisError> {
        loop {
            let Some(oldest) = self.waiting.front() else {
                self.is_timed = false;
                return Poll::Pending;
            };
            let until = oldest.since + self.timeout;
            if !self.is_timed {
                self.timer.as_mut().reset(until);
                self.is_timed = true;
            }
            ready!(self.timer.as_mut().poll(cx));
            if until <= Instant::now() {
                return Poll::Ready(RedisError::TimedOut(self.timeout));
            }
            self.is_timed = false;
        }
    }
}
