//! A server that answers as an attack says, byte by byte where need be.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::{net::TcpListener, task::JoinHandle};

use crate::{
    frame::{Broken, ensure},
    lines::{Line, find},
};

/// A server; it ends on drop.
pub(super) struct Liar {
    pub(super) url: String,
    pub(super) address: SocketAddr,
    accepted: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Liar {
    /// Gives each connection to `serve`, with its number from 0.
    pub(super) async fn start<F>(
        serve: impl Fn(Line, usize) -> F + Send + Sync + 'static,
    ) -> Result<Self, Broken>
    where
        F: Future<Output = Result<(), Broken>> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let accepted = Arc::new(AtomicUsize::new(0));
        let count = accepted.clone();
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let served = serve(Line::of(stream), count.fetch_add(1, Ordering::Relaxed));
                tokio::spawn(async move {
                    // A client that leaves is none of its business.
                    let _ = served.await;
                });
            }
        });
        Ok(Self { url: format!("http://{address}"), address, accepted, task })
    }

    /// Answers requests whose text is `lie` as it says, and all others as they should be.
    pub(super) async fn lying(lie: Lie) -> Result<Self, Broken> {
        Self::start(move |line, _| serve(line, lie.clone())).await
    }

    pub(super) fn accepted(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }
}

impl Drop for Liar {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The text of calls that are lied to.
pub(super) const LIE: &str = "lie";
/// What an honest answer says, and what no call must be answered.
pub(super) const TRUE: &str = "\"true\"";
pub(super) const FORGED: &str =
    "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 8\r\n\r\n\"forged\"";

pub(super) fn honest() -> Vec<u8> {
    answer(200, "content-type: application/json\r\n", TRUE)
}

pub(super) fn answer(status: u16, fields: &str, body: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status} X\r\n{fields}content-length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

/// Bytes, and what comes after them.
#[derive(Debug, Clone)]
pub(super) struct Lie {
    pub(super) bytes: Arc<Vec<u8>>,
    pub(super) then: Then,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Then {
    /// The connection stays open, and the next request is answered.
    Serve,
    Close,
    Reset,
    /// Nothing comes any more.
    Silence,
    /// The same bytes again, for as long as the client reads.
    Repeat,
}

impl Lie {
    pub(super) fn new(bytes: impl Into<Vec<u8>>, then: Then) -> Self {
        Self { bytes: Arc::new(bytes.into()), then }
    }
}

async fn serve(mut line: Line, lie: Lie) -> Result<(), Broken> {
    loop {
        let body = request(&mut line).await?;
        if find(&body, LIE.as_bytes()).is_none() {
            line.send(honest()).await?;
            continue;
        }
        line.send(&*lie.bytes).await?;
        match lie.then {
            Then::Serve => {}
            Then::Close => return Ok(()),
            Then::Reset => return Ok(line.reset()?),
            Then::Silence => return line.rest().await.map(drop),
            Then::Repeat => loop {
                line.send(&*lie.bytes).await?;
            },
        }
    }
}

/// The body of the next request.
///
/// # Errors
/// The client closes the connection before.
pub(super) async fn request(line: &mut Line) -> Result<Vec<u8>, Broken> {
    loop {
        if let Some(end) = find(line.bytes(), b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&line.bytes()[..end]).to_ascii_lowercase();
            let length = head.lines().find_map(|field| field.strip_prefix("content-length: ")?.parse().ok());
            let whole = end + 4 + length.unwrap_or(0);
            if line.bytes().len() >= whole {
                let request: Vec<_> = line.bytes().drain(..whole).collect();
                return Ok(request[end + 4..].to_vec());
            }
        }
        ensure!(line.more().await? > 0, "the client has left");
    }
}
