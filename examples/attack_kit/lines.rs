//! Connections that send bytes as they are, and read answers of HTTP/1.1.

use std::{io, net::SocketAddr, time::Duration};

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{sleep, timeout},
};

use crate::frame::{Broken, ensure};

pub(crate) struct Line {
    stream: TcpStream,
    read: Vec<u8>,
}

/// An answer, taken apart.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn json(&self) -> Result<Value, Broken> {
        Ok(serde_json::from_slice(&self.body)?)
    }

    fn field(&self, name: &str) -> Option<&str> {
        let mut fields = self.head.lines().filter_map(|line| line.split_once(':'));
        fields.find(|(field, _)| field.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
    }
}

/// Longer than any limit of a server.
const PATIENCE: Duration = Duration::from_secs(100);

impl Line {
    pub(crate) async fn connect(address: SocketAddr) -> Result<Self, Broken> {
        let stream = timeout(PATIENCE, TcpStream::connect(address)).await??;
        stream.set_nodelay(true)?;
        Ok(Self { stream, read: Vec::new() })
    }

    pub(crate) fn of(stream: TcpStream) -> Self {
        Self { stream, read: Vec::new() }
    }

    /// Sends bytes.
    ///
    /// # Errors
    /// The server has closed the connection, or reads nothing.
    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        timeout(PATIENCE, self.stream.write_all(bytes.as_ref())).await?
    }

    /// Sends a byte after each pause until the server closes the connection or there are no more.
    pub(crate) async fn trickle(&mut self, bytes: impl Iterator<Item = u8>, pause: Duration) {
        for byte in bytes {
            if self.send([byte]).await.is_err() || self.is_closed() {
                return;
            }
            sleep(pause).await;
        }
    }

    fn is_closed(&mut self) -> bool {
        let mut bytes = [0; 4096];
        match self.stream.try_read(&mut bytes) {
            Ok(0) => true,
            Ok(count) => {
                self.read.extend_from_slice(&bytes[..count]);
                false
            }
            Err(error) => error.kind() != io::ErrorKind::WouldBlock,
        }
    }

    /// Says that nothing more is sent.
    pub(crate) async fn half_close(&mut self) -> io::Result<()> {
        self.stream.shutdown().await
    }

    /// Resets the connection.
    pub(crate) fn reset(self) -> io::Result<()> {
        self.stream.set_zero_linger()
    }

    /// More bytes; none once the server has closed the connection.
    pub(crate) async fn more(&mut self) -> Result<usize, Broken> {
        let count = timeout(PATIENCE, self.stream.read_buf(&mut self.read)).await;
        match count.map_err(|_| "the server neither answers nor closes the connection")? {
            Ok(count) => Ok(count),
            // What a reset took with it is gone.
            Err(_) => Ok(0),
        }
    }

    /// All that was read and not taken yet.
    pub(crate) fn bytes(&mut self) -> &mut Vec<u8> {
        &mut self.read
    }

    /// The next answer; `None` where the connection is closed before one begins.
    pub(crate) async fn next(&mut self) -> Result<Option<Answer>, Broken> {
        loop {
            if let Some(answer) = self.take(false)? {
                return Ok(Some(answer));
            }
            if self.more().await? == 0 {
                let answer = self.take(true)?;
                ensure!(answer.is_some() || self.read.is_empty(), "an answer is cut: {}", shown(&self.read));
                return Ok(answer);
            }
        }
    }

    /// The next answer that is no interim one.
    pub(crate) async fn answer(&mut self) -> Result<Answer, Broken> {
        loop {
            let answer = self.next().await?.ok_or("the connection is closed without an answer")?;
            if answer.status >= 200 {
                return Ok(answer);
            }
        }
    }

    /// All answers until the server closes the connection.
    pub(crate) async fn answers(mut self) -> Result<Vec<Answer>, Broken> {
        let mut answers = Vec::new();
        while let Some(answer) = self.next().await? {
            answers.push(answer);
        }
        Ok(answers)
    }

    /// All bytes until the server closes the connection.
    pub(crate) async fn rest(mut self) -> Result<Vec<u8>, Broken> {
        while self.more().await? > 0 {}
        Ok(self.read)
    }

    fn take(&mut self, at_end: bool) -> Result<Option<Answer>, Broken> {
        let Some(end) = find(&self.read, b"\r\n\r\n") else { return Ok(None) };
        let head = String::from_utf8_lossy(&self.read[..end]).into_owned();
        let status = head.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)?.parse().ok());
        let status = status.ok_or_else(|| format!("not an answer: {}", shown(&self.read)))?;
        let mut answer = Answer { status, head, body: Vec::new() };
        let (rest, is_empty) = (end + 4, status < 200 || status == 204 || status == 304);
        let length = answer.field("content-length").map(str::parse::<usize>).transpose()?;
        let (body, taken) = match length {
            _ if is_empty => (Vec::new(), rest),
            Some(length) if self.read.len() < rest + length => return Ok(None),
            Some(length) => (self.read[rest..rest + length].to_vec(), rest + length),
            None if answer.field("transfer-encoding").is_some() => match unchunked(&self.read[rest..]) {
                Some((body, used)) => (body, rest + used),
                None => return Ok(None),
            },
            None if at_end => (self.read[rest..].to_vec(), self.read.len()),
            None => return Ok(None),
        };
        answer.body = body;
        self.read.drain(..taken);
        Ok(Some(answer))
    }
}

fn unchunked(bytes: &[u8]) -> Option<(Vec<u8>, usize)> {
    let (mut body, mut at) = (Vec::new(), 0);
    loop {
        let line = find(bytes.get(at..)?, b"\r\n")?;
        let size = usize::from_str_radix(std::str::from_utf8(&bytes[at..at + line]).ok()?.trim(), 16).ok()?;
        at += line + 2;
        body.extend_from_slice(bytes.get(at..at + size)?);
        bytes.get(at + size..at + size + 2)?;
        at += size + 2;
        if size == 0 {
            return Some((body, at));
        }
    }
}

pub(crate) fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}

/// The first bytes, for an error.
pub(crate) fn shown(bytes: &[u8]) -> String {
    bytes[..bytes.len().min(120)].escape_ascii().to_string()
}
