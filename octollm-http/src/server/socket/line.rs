//! One WebSocket: what is read, what is written, and when it ends.

use std::{
    collections::VecDeque,
    future::{pending, poll_fn},
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{Sink, Stream, StreamExt};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    time::{Instant, sleep_until, timeout},
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Error, Message,
        error::ProtocolError,
        protocol::{
            CloseFrame, Role,
            frame::{
                Frame,
                coding::{CloseCode, Data, OpCode},
            },
        },
    },
};
use tokio_util::sync::CancellationToken;

use super::{
    Limits,
    counted::Counted,
    meter::Open,
    tasks::{Outgoing, Tasks},
};
use crate::wire::socket::{CLOSE, FRAGMENT, MAX_FRAME, MAX_MESSAGE, config};

/// The codes by which a server closes.
pub(super) mod code {
    pub(in super::super) const NORMAL: u16 = 1000;
    pub(super) const GOING_AWAY: u16 = 1001;
    pub(super) const PROTOCOL: u16 = 1002;
    pub(super) const BINARY: u16 = 1003;
    pub(super) const NOT_UTF_8: u16 = 1007;
    pub(in super::super) const POLICY: u16 = 1008;
    pub(super) const TOO_BIG: u16 = 1009;
    pub(in super::super) const INTERNAL: u16 = 1011;
    pub(in super::super) const TRY_AGAIN: u16 = 1013;
}

/// Bytes that the other end has to read within the limit on writes, or the rest.
const PIECE: u64 = 16 * 1024;
/// Updates that are written before the next message is read.
const BATCH: usize = 64;
/// Time over which the rate of messages counts.
const RATE_TIME: u32 = 10;

/// Why a connection is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Close {
    code: u16,
    reason: &'static str,
    /// The other end breaks the protocol, so that nothing it sends is read any more.
    is_broken: bool,
}

impl Close {
    pub(super) fn new(code: u16, reason: &'static str) -> Self {
        Self { code, reason, is_broken: false }
    }

    /// What follows from an error of the connection; `None` where it is lost.
    fn of(error: &Error) -> Option<Self> {
        let (code, reason) = match error {
            Error::Utf8(_) => (code::NOT_UTF_8, "not UTF-8"),
            Error::Capacity(_) => (code::TOO_BIG, "the frame or message is too large"),
            Error::Protocol(
                ProtocolError::ResetWithoutClosingHandshake | ProtocolError::SendAfterClosing,
            ) => return None,
            Error::Protocol(_) => (code::PROTOCOL, "protocol violation"),
            _ => return None,
        };
        Some(Self { code, reason, is_broken: true })
    }
}

/// How a connection ends.
enum End {
    Close(Close),
    /// The other end has closed.
    Closed,
    /// The connection is lost.
    Lost,
}

impl End {
    /// The value of the label in the metrics.
    fn label(&self) -> String {
        match self {
            Self::Close(close) => close.code.to_string(),
            Self::Closed => "client".to_owned(),
            Self::Lost => "lost".to_owned(),
        }
    }
}

/// One connection.
pub(super) struct Line<T> {
    ws: WebSocketStream<Counted<T>>,
    tasks: Tasks,
    limits: Limits,
    /// Frames that are not written yet: those of one message, or a ping.
    outgoing: VecDeque<Message>,
    is_unflushed: bool,
    /// Since when the other end has not read all that was written, and the bytes that were written then.
    blocked: Option<(Instant, u64)>,
    next_ping: Instant,
    /// When the ping was sent that is not answered yet.
    pinged: Option<Instant>,
    /// When the messages that have arrived would be within the rate.
    paid: Instant,
    close: Option<Close>,
}

impl<T: AsyncRead + AsyncWrite + Unpin> Line<T> {
    pub(super) async fn new(io: T, tasks: Tasks, limits: Limits) -> Self {
        let ws = WebSocketStream::from_raw_socket(
            Counted::new(io),
            Role::Server,
            Some(config(MAX_MESSAGE, MAX_FRAME)),
        )
        .await;
        let now = Instant::now();
        Self {
            ws,
            tasks,
            limits,
            outgoing: VecDeque::new(),
            is_unflushed: false,
            blocked: None,
            next_ping: now + limits.ping,
            pinged: None,
            paid: now,
            close: None,
        }
    }

    /// Serves until the connection ends, the server drains, or the authority of the caller ends.
    pub(super) async fn run(mut self, open: Open, drain: CancellationToken, authority: Option<Instant>) {
        let end = {
            let authority = async {
                match authority {
                    Some(end) => sleep_until(end).await,
                    None => pending().await,
                }
            };
            tokio::select! {
                biased;
                () = drain.cancelled() => End::Close(Close::new(code::GOING_AWAY, "the server ends")),
                () = authority => End::Close(Close::new(code::POLICY, "the token or the deadline has expired")),
                end = self.serve() => end,
            }
        };
        open.ended(&end.label());
        match end {
            End::Close(close) => {
                tracing::debug!(code = close.code, reason = close.reason, "WebSocket closed");
                let _ = timeout(CLOSE, self.closed(close)).await;
            }
            End::Closed => {
                let _ = timeout(CLOSE, async { while let Some(Ok(_)) = self.ws.next().await {} }).await;
            }
            End::Lost => tracing::debug!("WebSocket lost"),
        }
    }

    async fn serve(&mut self) -> End {
        let mut timer = Box::pin(sleep_until(self.due()));
        loop {
            let due = self.due();
            // A timer that fires too early is set again.
            if timer.deadline() > due {
                timer.as_mut().reset(due);
            }
            let received = tokio::select! {
                biased;
                () = timer.as_mut() => {
                    if let Some(end) = self.late(Instant::now()) {
                        return end;
                    }
                    timer.as_mut().reset(self.due());
                    continue;
                }
                received = poll_fn(|cx| self.poll(cx)) => received,
            };
            match received {
                Ok(Some(message)) => {
                    if let Some(end) = self.received(&message) {
                        return end;
                    }
                }
                Ok(None) => {}
                Err(end) => return end,
            }
        }
    }

    /// When the next limit ends.
    fn due(&self) -> Instant {
        let blocked = self.blocked.map(|(since, _)| since + self.limits.write);
        let pinged = self.pinged.map(|at| at + self.limits.pong);
        [blocked, pinged].into_iter().flatten().fold(self.next_ping, Instant::min)
    }

    /// Pings, or ends a connection whose other end does not read or answer.
    fn late(&mut self, now: Instant) -> Option<End> {
        match self.blocked {
            Some((since, before)) if now >= since + self.limits.write => {
                let written = self.ws.get_ref().written();
                if written - before >= PIECE {
                    self.blocked = Some((now, written));
                    return None;
                }
                return Some(End::Close(Close::new(code::TRY_AGAIN, "the updates are read too slowly")));
            }
            // A ping would arrive after what is not read yet.
            Some(_) => self.pinged = None,
            None if self.pinged.is_some_and(|at| now >= at + self.limits.pong) => return Some(End::Lost),
            None => {}
        }
        if now >= self.next_ping {
            self.next_ping = now + self.limits.ping;
            if self.blocked.is_none() && self.pinged.is_none() {
                self.outgoing.push_back(Message::Ping(Bytes::new()));
                self.pinged = Some(now);
            }
        }
        None
    }

    /// Writes what is there, and then reads a message. Ends with `None` where a limit has changed.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Message>, End>> {
        loop {
            self.poll_updates(cx)?;
            if self.poll_flush(cx)?.is_pending() {
                if self.blocked.is_none() {
                    self.blocked = Some((Instant::now(), self.ws.get_ref().written()));
                    return Poll::Ready(Ok(None));
                }
                break;
            }
            // Where there was no room for a frame, there may be some now.
            if self.outgoing.is_empty() {
                self.blocked = None;
                break;
            }
        }
        if !self.tasks.has_room() {
            return Poll::Pending;
        }
        match Pin::new(&mut self.ws).poll_next(cx) {
            Poll::Ready(Some(Ok(message))) => Poll::Ready(Ok(Some(message))),
            Poll::Ready(Some(Err(error))) => Poll::Ready(Err(ended(&error))),
            Poll::Ready(None) => Poll::Ready(Err(End::Lost)),
            Poll::Pending => Poll::Pending,
        }
    }

    /// Passes updates on, as far as there is room for them.
    fn poll_updates(&mut self, cx: &mut Context<'_>) -> Result<(), End> {
        let mut written = 0;
        while self.poll_write(cx)?.is_ready() {
            if let Some(close) = self.close {
                return Err(End::Close(close));
            }
            if written >= BATCH {
                // What arrives meanwhile, and timers, are seen in between.
                cx.waker().wake_by_ref();
                break;
            }
            let Poll::Ready(outgoing) = self.tasks.poll_next(cx) else { break };
            written += 1;
            match outgoing {
                Outgoing::Text(text) => self.push(text),
                Outgoing::Close(close) => self.close = Some(close),
            }
        }
        Ok(())
    }

    /// Passes frames on, as far as there is room for them.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), End>> {
        while !self.outgoing.is_empty() {
            match Pin::new(&mut self.ws).poll_ready(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Err(ended(&error))),
                Poll::Pending => return Poll::Pending,
            }
            let Some(frame) = self.outgoing.pop_front() else { break };
            if let Err(error) = Pin::new(&mut self.ws).start_send(frame) {
                return Poll::Ready(Err(ended(&error)));
            }
            self.is_unflushed = true;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), End>> {
        if self.is_unflushed {
            match Pin::new(&mut self.ws).poll_flush(cx) {
                Poll::Ready(Ok(())) => self.is_unflushed = false,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(ended(&error))),
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Ready(Ok(()))
    }

    fn push(&mut self, mut text: Bytes) {
        let mut code = Data::Text;
        while !text.is_empty() {
            let part = text.split_to(text.len().min(FRAGMENT));
            let frame = Frame::message(part, OpCode::Data(code), text.is_empty());
            self.outgoing.push_back(Message::Frame(frame));
            code = Data::Continue;
        }
    }

    fn received(&mut self, message: &Message) -> Option<End> {
        let now = Instant::now();
        self.pinged = None;
        let interval = Duration::from_secs(1) / self.limits.messages;
        self.paid = self.paid.max(now) + interval;
        if self.paid > now + Duration::from_secs(RATE_TIME.into()) {
            return Some(End::Close(Close::new(code::POLICY, "too many messages")));
        }
        match message {
            Message::Text(text) => self.tasks.asked(text.as_bytes()).err().map(End::Close),
            Message::Binary(_) => Some(End::Close(Close::new(code::BINARY, "messages are text"))),
            Message::Close(_) => Some(End::Closed),
            Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => None,
        }
    }

    /// Closes, and waits until the other end has closed as well.
    async fn closed(&mut self, close: Close) -> Result<(), Error> {
        let frame = CloseFrame { code: CloseCode::from(close.code), reason: close.reason.into() };
        self.ws.close(Some(frame)).await?;
        if !close.is_broken {
            while let Some(received) = self.ws.next().await {
                received?;
            }
            return Ok(());
        }
        // The close frame would be lost with the connection if what has arrived were not read.
        let io = self.ws.get_mut();
        io.shutdown().await?;
        let mut space = [0; 4096];
        while io.read(&mut space).await? > 0 {}
        Ok(())
    }
}

fn ended(error: &Error) -> End {
    match (Close::of(error), error) {
        (Some(close), _) => End::Close(close),
        (None, Error::ConnectionClosed) => End::Closed,
        (None, error) => {
            tracing::debug!(%error, "WebSocket failed");
            End::Lost
        }
    }
}
