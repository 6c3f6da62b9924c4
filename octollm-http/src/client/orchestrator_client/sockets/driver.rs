//! The task of one WebSocket of a client.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use octollm_core::{
    error::{ErrorKind, Failure},
    json::read_output,
    task::TaskUpdate,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::mpsc,
    task::yield_now,
    time::{Instant, sleep_until, timeout},
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Error, Message,
        protocol::{CloseFrame, frame::coding::CloseCode},
    },
};

use super::{Followers, Item};
use crate::{
    client::pool::PingLimits,
    wire::socket::{CLOSE, Notice, Request},
};

/// One open connection.
pub(super) struct Driver<T> {
    ws: WebSocketStream<T>,
    followed: Arc<Followers>,
    limits: PingLimits,
    /// When something has arrived last.
    heard: Instant,
    /// Whether a ping was sent since then.
    has_pinged: bool,
    /// Since when nobody follows a task.
    idle: Option<Instant>,
}

impl<T: AsyncRead + AsyncWrite + Unpin> Driver<T> {
    pub(super) fn new(ws: WebSocketStream<T>, followed: Arc<Followers>, limits: PingLimits) -> Self {
        Self { ws, followed, limits, heard: Instant::now(), has_pinged: false, idle: None }
    }

    /// Serves until the connection ends or nobody needs it. Returns what its followers receive.
    pub(super) async fn run(mut self, requests: &mut mpsc::Receiver<Request>) -> Item {
        let lost = match self.serve(requests).await {
            Ok(()) => {
                let frame = CloseFrame { code: CloseCode::Normal, reason: "".into() };
                let _ = timeout(CLOSE, async {
                    self.ws.close(Some(frame)).await?;
                    while let Some(received) = self.ws.next().await {
                        received?;
                    }
                    Ok::<_, Error>(())
                })
                .await;
                Failure::new(ErrorKind::ConnectionLost, "the WebSocket was closed")
            }
            Err(failure) => failure,
        };
        tracing::debug!(failure = %lost, "WebSocket ended");
        Item::Failed(lost.before_execution())
    }

    async fn serve(&mut self, requests: &mut mpsc::Receiver<Request>) -> Result<(), Failure> {
        loop {
            let is_idle = self.followed.tasks().is_empty();
            self.idle = is_idle.then(|| self.idle.unwrap_or_else(Instant::now));
            let due = self.heard
                + self.limits.interval
                + if self.has_pinged { self.limits.timeout } else { Duration::ZERO };
            let due = self.idle.map_or(due, |since| due.min(since + self.limits.idle));
            tokio::select! {
                biased;
                request = requests.recv() => match request {
                    Some(request) => self.send(&request).await?,
                    None => return Ok(()),
                },
                message = self.ws.next() => match message {
                    Some(Ok(message)) => self.received(message).await?,
                    Some(Err(error)) => return Err(lost(&error)),
                    None => return Err(lost(&Error::ConnectionClosed)),
                },
                () = sleep_until(due) => {
                    let now = Instant::now();
                    if self.idle.is_some_and(|since| now >= since + self.limits.idle) {
                        return Ok(());
                    }
                    if self.has_pinged && now >= due {
                        let words = "the orchestrator does not answer a ping";
                        return Err(Failure::new(ErrorKind::ConnectionLost, words));
                    }
                    self.has_pinged = true;
                    self.write(Message::Ping(Bytes::new())).await?;
                }
            }
        }
    }

    async fn send(&mut self, request: &Request) -> Result<(), Failure> {
        let unwritten = |error: serde_json::Error| Failure::new(ErrorKind::Internal, error.to_string());
        let text = serde_json::to_string(request).map_err(unwritten)?;
        self.write(Message::text(text)).await
    }

    async fn write(&mut self, message: Message) -> Result<(), Failure> {
        match timeout(self.limits.write, self.ws.send(message)).await {
            Ok(sent) => sent.map_err(|error| lost(&error)),
            Err(_) => Err(Failure::new(ErrorKind::Timeout, "the orchestrator does not read the WebSocket")),
        }
    }

    async fn received(&mut self, message: Message) -> Result<(), Failure> {
        (self.heard, self.has_pinged) = (Instant::now(), false);
        let text = match message {
            Message::Text(text) => text,
            Message::Close(frame) => {
                let code = frame.map_or(1005, |frame| u16::from(frame.code));
                // What waits is the answer to the close frame.
                let _ = timeout(CLOSE, self.ws.next()).await;
                return Err(Failure::new(
                    ErrorKind::ConnectionLost,
                    format!("the WebSocket was closed with {code}"),
                ));
            }
            _ => return Ok(()),
        };
        if let Ok(update) = read_output::<TaskUpdate>(text.as_bytes()) {
            return self.updated(update).await;
        }
        match read_output::<Notice>(text.as_bytes()) {
            Ok(Notice::Subscribed { task_id, .. }) => {
                if let Some(follower) = self.followed.tasks().get_mut(&task_id) {
                    follower.is_confirmed = true;
                    let _ = follower.items.try_send(Item::Subscribed);
                }
            }
            // As a stream that ends.
            Ok(Notice::Ended { task_id }) => drop(self.followed.tasks().remove(&task_id)),
            Ok(Notice::Error { code, message, task_id, retryable }) => {
                let mut failure = Failure::new(code, message).before_execution();
                failure.retryable = retryable;
                match task_id.and_then(|id| self.followed.tasks().remove(&id)) {
                    Some(follower) => drop(follower.items.try_send(Item::Failed(failure))),
                    None => tracing::debug!(%failure, "the orchestrator has refused a message"),
                }
            }
            // Of a later version.
            Err(error) => tracing::debug!(%error, "a message of the orchestrator was not understood"),
        }
        Ok(())
    }

    async fn updated(&mut self, update: TaskUpdate) -> Result<(), Failure> {
        let (id, is_last) = (update.task_id().clone(), update.is_last());
        let is_behind = {
            let mut tasks = self.followed.tasks();
            let Some(follower) = tasks.get(&id).filter(|follower| follower.is_confirmed) else {
                return Ok(());
            };
            let sent = follower.items.try_send(Item::Update(update));
            let is_behind = follower.items.capacity() < follower.items.max_capacity() / 2;
            // Whoever is too slow receives what waits, and subscribes again.
            if is_last || sent.is_err() {
                tasks.remove(&id);
            }
            sent.map(|()| is_behind)
        };
        match is_behind {
            // What has arrived at once is no reason to call a follower slow.
            Ok(true) => yield_now().await,
            Ok(false) => {}
            Err(_) => return self.send(&Request::Unsubscribe { task_id: id }).await,
        }
        Ok(())
    }
}

fn lost(error: &Error) -> Failure {
    Failure::new(ErrorKind::ConnectionLost, format!("the WebSocket was lost: {error}"))
}
