//! A socket that tells what moves through it.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::io::BoxIo;

/// What moved through a socket. Read by whoever drives it, so that relaxed counting does.
#[derive(Debug, Default)]
pub(super) struct Meter {
    read: AtomicU64,
    written: AtomicU64,
    blocked: AtomicBool,
    /// How much may be read before the head of an answer has come; 0 for any amount.
    before_head: AtomicU64,
}

impl Meter {
    /// Bytes that the kernel took for sending.
    pub(super) fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// Changes whenever a byte moves, either way.
    pub(super) fn moved(&self) -> u64 {
        self.written().wrapping_add(self.read.load(Ordering::Relaxed))
    }

    /// Whether the last write found no room.
    pub(super) fn is_write_blocked(&self) -> bool {
        self.blocked.load(Ordering::Relaxed)
    }

    /// Allows this many bytes until the [head](Self::has_head) of an answer has come.
    pub(super) fn awaits_head(&self, allowed: u64) {
        self.before_head.store(self.read.load(Ordering::Relaxed).wrapping_add(allowed), Ordering::Relaxed);
    }

    pub(super) fn has_head(&self) {
        self.before_head.store(0, Ordering::Relaxed);
    }

    /// Whether more was read than any head is long.
    pub(super) fn is_flooded(&self) -> bool {
        let limit = self.before_head.load(Ordering::Relaxed);
        limit > 0 && self.read.load(Ordering::Relaxed) >= limit
    }

    /// Only one task at a time moves bytes: no read-modify-write is needed.
    fn add(counter: &AtomicU64, bytes: usize) {
        counter.store(counter.load(Ordering::Relaxed).wrapping_add(bytes as u64), Ordering::Relaxed);
    }

    fn count_write(&self, result: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        self.blocked.store(result.is_pending(), Ordering::Relaxed);
        let bytes = ready!(result)?;
        Self::add(&self.written, bytes);
        Poll::Ready(Ok(bytes))
    }
}

/// A socket and its meter.
pub(super) struct Metered {
    socket: BoxIo,
    meter: Arc<Meter>,
}

impl Metered {
    pub(super) fn new(socket: BoxIo) -> (Self, Arc<Meter>) {
        let meter = Arc::<Meter>::default();
        (Self { socket, meter: Arc::clone(&meter) }, meter)
    }
}

impl AsyncRead for Metered {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.meter.is_flooded() {
            return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.socket).poll_read(cx, buffer))?;
        Meter::add(&self.meter.read, buffer.filled().len() - before);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Metered {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.socket).poll_write(cx, bytes);
        self.meter.count_write(result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.socket).poll_write_vectored(cx, slices);
        self.meter.count_write(result)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}
