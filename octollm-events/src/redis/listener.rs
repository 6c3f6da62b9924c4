//! A connection that receives what is published.

use bytes::BytesMut;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};

use super::{
    command::Command,
    connection::{Address, Connector, Io, check_server, in_time},
    error::{LEAST_VERSION, RedisError},
    reply::Reply,
};

pub(super) struct Listener {
    stream: Box<dyn Io>,
    buffer: BytesMut,
    time: std::time::Duration,
}

/// Bytes that are read at once at most, apart from those of one large event.
const CHUNK: usize = 64 * 1024;
const LEAST_CHUNK: usize = 4 * 1024;

impl Listener {
    /// Opens a connection that speaks RESP3.
    pub(super) async fn open(connector: &Connector, address: &Address) -> Result<Self, RedisError> {
        in_time(async {
            let settings = &connector.settings;
            let stream = connector.stream(address).await?;
            let mut listener = Self { stream, buffer: BytesMut::new(), time: settings.heartbeat };
            let mut hello = vec!["HELLO", "3"];
            if let Some(password) = &settings.login.password {
                hello.extend(["AUTH", settings.login.user.as_deref().unwrap_or("default"), password]);
            }
            listener.send(&hello).await?;
            let server = match listener.next().await? {
                Reply::Error(text)
                    if text.starts_with("ERR unknown command") || text.starts_with("NOPROTO") =>
                {
                    return Err(RedisError::OldServer { found: "before 6".to_owned(), least: LEAST_VERSION });
                }
                Reply::Error(text) => return Err(RedisError::answered(&text)),
                server => server,
            };
            let text = |name| {
                let text = server.get(name).and_then(Reply::as_text).unwrap_or_default();
                String::from_utf8_lossy(text).into_owned()
            };
            check_server(&text("version"), &text("role"), &text("mode"))?;
            Ok(listener)
        })
        .await
    }

    /// Time between two PINGs.
    pub(super) fn heartbeat(&self) -> std::time::Duration {
        self.time
    }

    /// Sends a command.
    pub(super) async fn send(&mut self, words: &[&str]) -> Result<(), RedisError> {
        let [name, args @ ..] = words else { return Ok(()) };
        let (mut command, mut bytes) = (Command::new(name), Vec::new());
        for arg in args {
            command.arg(arg);
        }
        command.write(&mut bytes);
        match timeout(self.time, self.stream.write_all(&bytes)).await {
            Ok(Ok(())) => self.stream.flush().await.map_err(RedisError::unreachable),
            Ok(Err(error)) => Err(RedisError::unreachable(error)),
            Err(_) => Err(RedisError::TimedOut(self.time)),
        }
    }

    /// The stream, and what was received and not taken.
    pub(super) fn into_parts(self) -> (Box<dyn Io>, BytesMut) {
        (self.stream, self.buffer)
    }

    /// The next reply, where it was received before.
    pub(super) fn received(&mut self) -> Result<Option<Reply>, RedisError> {
        Reply::take(&mut self.buffer).map_err(RedisError::failed)
    }

    /// Waits for the next reply.
    ///
    /// # Cancel safety
    /// If the future is dropped, nothing is lost.
    pub(super) async fn next(&mut self) -> Result<Reply, RedisError> {
        loop {
            if let Some(reply) = self.received()? {
                return Ok(reply);
            }
            reserve(&mut self.buffer);
            match self.stream.read_buf(&mut self.buffer).await {
                Ok(0) => return Err(RedisError::unreachable("the server closed the connection")),
                Ok(_) => {}
                Err(error) => return Err(RedisError::unreachable(error)),
            }
        }
    }
}

/// Makes room for what is read next.
pub(super) fn reserve(buffer: &mut BytesMut) {
    if buffer.capacity() - buffer.len() < LEAST_CHUNK {
        buffer.reserve(CHUNK);
    }
}
