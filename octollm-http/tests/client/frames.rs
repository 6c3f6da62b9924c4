//! A server of HTTP/2 that does as a test says, frame by frame.

use std::{
    collections::HashMap,
    future::Future,
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use octollm_http::{
    client::{ArmsBuilder, Protocol},
    io::{Acceptor, Io},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    task::AbortHandle,
};

use crate::peer::{network, unused_host};

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;
pub(crate) const REFUSED_STREAM: u32 = 7;
pub(crate) const MAX_CONCURRENT_STREAMS: u16 = 3;
pub(crate) const INITIAL_WINDOW_SIZE: u16 = 4;
pub(crate) const VALID: &[u8] = br#"{"is_valid":true}"#;

/// `:status 200` and a content type of JSON in HPACK, without compression.
const HEAD: &[u8] = b"\x88\x5f\x10application/json";

/// A frame as it came.
#[derive(Debug, Clone)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    flags: u8,
    pub(crate) stream: u32,
    pub(crate) payload: Vec<u8>,
}

/// One connection of such a server.
pub(crate) struct Link {
    socket: Box<dyn Io>,
    buffer: Vec<u8>,
    /// Bodies of requests that are not complete, by stream.
    arriving: HashMap<u32, Vec<u8>>,
    /// Streams that the client has reset.
    pub(crate) reset: Vec<u32>,
    /// Whether PINGs are answered.
    pub(crate) answers_pings: bool,
    pub(crate) pings: usize,
}

/// A server, which ends when this is dropped.
pub(crate) struct FramePeer {
    pub(crate) url: String,
    accepted: Arc<AtomicUsize>,
    open: Arc<AtomicUsize>,
    task: AbortHandle,
}

/// A client that speaks HTTP/2 only.
pub(crate) fn http2(builder: ArmsBuilder) -> ArmsBuilder {
    builder.protocol(Protocol::Http2)
}

impl FramePeer {
    /// On the network in memory; `serve` has each connection, with its number.
    pub(crate) fn start<F>(serve: impl Fn(usize, Link) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = io::Result<()>> + Send + 'static,
    {
        let host = unused_host();
        let acceptor = network().listen(&host).unwrap();
        Self::listen(acceptor, format!("http://{host}"), serve)
    }

    /// On a port of the system.
    pub(crate) async fn tcp<F>(serve: impl Fn(usize, Link) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = io::Result<()>> + Send + 'static,
    {
        let acceptor = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", acceptor.local_addr().unwrap());
        Self::listen(acceptor, url, serve)
    }

    fn listen<A: Acceptor, F>(
        mut acceptor: A,
        url: String,
        serve: impl Fn(usize, Link) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = io::Result<()>> + Send + 'static,
    {
        let (accepted, open) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let counts = (accepted.clone(), open.clone());
        let task = tokio::spawn(async move {
            while let Ok(opening) = acceptor.accept().await {
                let Ok((socket, _)) = opening.await else { continue };
                let number = counts.0.fetch_add(1, Ordering::SeqCst);
                counts.1.fetch_add(1, Ordering::SeqCst);
                let (serving, open) = (serve(number, Link::new(Box::new(socket))), counts.1.clone());
                tokio::spawn(async move {
                    let _ = serving.await;
                    open.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        Self { url, accepted, open, task: task.abort_handle() }
    }

    pub(crate) fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }

    pub(crate) fn open(&self) -> usize {
        self.open.load(Ordering::SeqCst)
    }
}

impl Drop for FramePeer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Link {
    fn new(socket: Box<dyn Io>) -> Self {
        let (buffer, arriving, reset) = (Vec::new(), HashMap::new(), Vec::new());
        Self { socket, buffer, arriving, reset, answers_pings: true, pings: 0 }
    }

    /// Reads the preface, and sends these settings.
    pub(crate) async fn greet(&mut self, settings: &[(u16, u32)]) -> io::Result<()> {
        let mut preface = [0; 24];
        self.socket.read_exact(&mut preface).await?;
        assert_eq!(&preface, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        self.settings(settings).await
    }

    pub(crate) async fn settings(&mut self, settings: &[(u16, u32)]) -> io::Result<()> {
        let payload: Vec<u8> = settings
            .iter()
            .flat_map(|(id, value)| [&id.to_be_bytes()[..], &value.to_be_bytes()[..]].concat())
            .collect();
        self.send(SETTINGS, 0, 0, &payload).await
    }

    pub(crate) async fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> io::Result<()> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let mut frame = vec![length[1], length[2], length[3], kind, flags];
        frame.extend(stream.to_be_bytes());
        frame.extend(payload);
        self.socket.write_all(&frame).await
    }

    /// The next frame; `None` at the end of the connection.
    pub(crate) async fn frame(&mut self) -> io::Result<Option<Frame>> {
        loop {
            if let [a, b, c, kind, flags, s0, s1, s2, s3, ..] = self.buffer[..] {
                let length = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
                if self.buffer.len() >= 9 + length {
                    let payload = self.buffer[9..9 + length].to_vec();
                    self.buffer.drain(..9 + length);
                    let stream = u32::from_be_bytes([s0, s1, s2, s3]);
                    return Ok(Some(Frame { kind, flags, stream, payload }));
                }
            }
            if self.socket.read_buf(&mut self.buffer).await? == 0 {
                return Ok(None);
            }
        }
    }

    /// The next whole request: its stream and its body. Answers SETTINGS and PINGs meanwhile.
    pub(crate) async fn request(&mut self) -> io::Result<Option<(u32, Vec<u8>)>> {
        while let Some(frame) = self.frame().await? {
            let is_end = frame.flags & END_STREAM != 0;
            match frame.kind {
                SETTINGS if frame.flags & ACK == 0 => self.send(SETTINGS, ACK, 0, &[]).await?,
                PING if frame.flags & ACK == 0 => {
                    self.pings += 1;
                    if self.answers_pings {
                        self.send(PING, ACK, 0, &frame.payload).await?;
                    }
                }
                RST_STREAM => {
                    self.arriving.remove(&frame.stream);
                    self.reset.push(frame.stream);
                }
                HEADERS if is_end => return Ok(Some((frame.stream, Vec::new()))),
                HEADERS => drop(self.arriving.insert(frame.stream, Vec::new())),
                DATA => {
                    let body = self.arriving.entry(frame.stream).or_default();
                    body.extend(&frame.payload);
                    if is_end {
                        return Ok(self.arriving.remove(&frame.stream).map(|body| (frame.stream, body)));
                    }
                }
                _ => {}
            }
        }
        Ok(None)
    }

    pub(crate) async fn head(&mut self, stream: u32) -> io::Result<()> {
        self.send(HEADERS, END_HEADERS, stream, HEAD).await
    }

    pub(crate) async fn data(&mut self, stream: u32, bytes: &[u8], is_end: bool) -> io::Result<()> {
        self.send(DATA, u8::from(is_end), stream, bytes).await
    }

    /// The answer of an arm that finds everything valid.
    pub(crate) async fn verdict(&mut self, stream: u32) -> io::Result<()> {
        self.head(stream).await?;
        self.data(stream, VALID, true).await
    }

    pub(crate) async fn reset(&mut self, stream: u32, code: u32) -> io::Result<()> {
        self.send(RST_STREAM, 0, stream, &code.to_be_bytes()).await
    }

    pub(crate) async fn go_away(&mut self, last: u32) -> io::Result<()> {
        self.send(GOAWAY, 0, 0, &[last.to_be_bytes(), [0; 4]].concat()).await
    }

    /// Makes room for more bytes on a stream, or with 0 on the connection.
    pub(crate) async fn window(&mut self, stream: u32, bytes: u32) -> io::Result<()> {
        self.send(WINDOW_UPDATE, 0, stream, &bytes.to_be_bytes()).await
    }

    /// Answers each request at once, until the client leaves.
    pub(crate) async fn verdicts(mut self) -> io::Result<()> {
        while let Some((stream, _)) = self.request().await? {
            self.verdict(stream).await?;
        }
        Ok(())
    }
}
