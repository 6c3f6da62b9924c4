//! A caller that sends bytes as they are.

use std::{net::SocketAddr, time::Duration};

use octollm_http::io::{Connector, Io, Pipes};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

/// Where a server listens.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Peer {
    /// In a network in memory, of which it is the only host. It is there for as long as the test is.
    Pipe(&'static Pipes),
    Tcp(SocketAddr),
}

/// A connection to it.
pub(crate) struct Line {
    stream: Box<dyn Io>,
    read: Vec<u8>,
    wait_limit: Duration,
}

/// An answer, taken apart.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Peer {
    pub(crate) async fn connect(self) -> Line {
        let (stream, wait_limit): (Box<dyn Io>, _) = match self {
            // On a clock that is paused this much passes at once, and only when nothing else would happen before.
            Self::Pipe(pipes) => (self.pipe(pipes).await, Duration::from_secs(3600)),
            Self::Tcp(address) => {
                (Box::new(TcpStream::connect(address).await.unwrap()), Duration::from_secs(10))
            }
        };
        Line { stream, read: Vec::new(), wait_limit }
    }

    async fn pipe(self, pipes: &Pipes) -> Box<dyn Io> {
        pipes.connect(&"http://x".parse().unwrap()).await.unwrap()
    }

    /// A connection without the help of a [`Line`].
    pub(crate) async fn stream(self) -> Box<dyn Io> {
        self.connect().await.stream
    }

    /// Sends bytes over a connection of their own, and reads one answer.
    pub(crate) async fn send(self, bytes: impl AsRef<[u8]>) -> Answer {
        let mut line = self.connect().await;
        line.write(bytes).await;
        line.answer().await
    }

    pub(crate) async fn get(self, path: &str) -> Answer {
        self.send(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n")).await
    }

    pub(crate) async fn post(self, path: &str, fields: &str, body: &str) -> Answer {
        self.send(post(path, fields, body)).await
    }
}

/// A request with JSON; `fields` are more lines of its head.
pub(crate) fn post(path: &str, fields: &str, body: impl AsRef<[u8]>) -> Vec<u8> {
    let body = body.as_ref();
    let mut bytes = format!(
        "POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {}\r\n{fields}\r\n",
        body.len()
    )
    .into_bytes();
    bytes.extend_from_slice(body);
    bytes
}

impl Line {
    pub(crate) async fn write(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).await.unwrap();
    }

    /// As far as the other side reads.
    pub(crate) async fn try_write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.stream.write_all(bytes).await
    }

    /// The next answer; the whole of it.
    pub(crate) async fn answer(&mut self) -> Answer {
        timeout(self.wait_limit, self.read_answer()).await.expect("no answer")
    }

    async fn read_answer(&mut self) -> Answer {
        let end = loop {
            match find(&self.read, b"\r\n\r\n") {
                Some(end) => break end + 4,
                None => assert!(
                    self.more().await,
                    "closed before the head: {:?}",
                    String::from_utf8_lossy(&self.read)
                ),
            }
        };
        let head = String::from_utf8(self.read.drain(..end).collect()).unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let mut answer = Answer { status, head, body: String::new() };
        let length: usize = answer.field("content-length").map_or(0, |length| length.parse().unwrap());
        if matches!(status, 100 | 101) {
            return answer;
        }
        while self.read.len() < length {
            assert!(self.more().await, "closed before the end of the body");
        }
        answer.body = String::from_utf8(self.read.drain(..length).collect()).unwrap();
        answer
    }

    /// A head alone, as HEAD is answered.
    pub(crate) async fn head(&mut self) -> String {
        loop {
            if let Some(end) = find(&self.read, b"\r\n\r\n") {
                return String::from_utf8(self.read.drain(..end + 4).collect()).unwrap();
            }
            assert!(self.more().await);
        }
    }

    /// So many bytes, whatever they are.
    pub(crate) async fn read(&mut self, length: usize) -> Vec<u8> {
        while self.read.len() < length {
            assert!(self.more().await, "closed");
        }
        self.read.drain(..length).collect()
    }

    /// Everything up to the first occurrence of these bytes.
    pub(crate) async fn read_to(mut self, end: &[u8]) -> Vec<u8> {
        while find(&self.read, end).is_none() {
            assert!(self.more().await, "closed");
        }
        self.read
    }

    async fn more(&mut self) -> bool {
        let mut space = [0; 4096];
        match self.stream.read(&mut space).await {
            Ok(0) => false,
            Ok(n) => {
                self.read.extend_from_slice(&space[..n]);
                true
            }
            Err(error) => panic!("{error} after {:?}", String::from_utf8_lossy(&self.read)),
        }
    }

    /// What the server sent before it closed the connection, in whatever way.
    pub(crate) async fn rest(mut self) -> Vec<u8> {
        let mut rest = std::mem::take(&mut self.read);
        let _ = timeout(self.wait_limit, self.stream.read_to_end(&mut rest)).await.expect("stays open");
        rest
    }

    /// Returns when the server has closed the connection, with what it sent before.
    pub(crate) async fn closed(mut self) -> Vec<u8> {
        let mut rest = std::mem::take(&mut self.read);
        timeout(self.wait_limit, self.stream.read_to_end(&mut rest)).await.expect("stays open").unwrap();
        rest
    }
}

fn find(bytes: &[u8], needle: &[u8]) -> Option<usize> {
    bytes.windows(needle.len()).position(|window| window == needle)
}

impl Answer {
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (key, value) = line.split_once(": ")?;
            key.eq_ignore_ascii_case(name).then_some(value)
        })
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Checks that it is a problem of this status and code, with all that every problem has.
    #[track_caller]
    pub(crate) fn is_problem(&self, status: u16, code: &str) -> Value {
        assert_eq!(self.status, status, "{self:?}");
        assert_eq!(self.field("content-type"), Some("application/problem+json"), "{self:?}");
        let problem = self.json();
        assert_eq!(problem["status"], status, "{self:?}");
        assert_eq!(problem["code"], code, "{self:?}");
        assert_eq!(problem["request_id"].as_str(), self.field("x-request-id"), "{self:?}");
        assert!(self.field("x-correlation-id").is_some(), "{self:?}");
        problem
    }
}
