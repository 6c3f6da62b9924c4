//! The connection for commands, which is replaced when it is lost.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use octollm_core::event::Event;
use tokio::time::Instant;

use super::{
    command::{Call, Command},
    connection::{Address, Connector, in_time, pause},
    error::RedisError,
    listener::Listener,
    pipe::Pipe,
    reply::Reply,
    values::text,
};

/// Commands for a server. Those of many callers share one connection, without waiting for one another.
///
/// A connection that is lost is replaced by the next command. A command that was sent is never repeated.
pub(super) struct Commands {
    connector: Arc<Connector>,
    active: Mutex<Option<Arc<Pipe>>>,
    /// Held while a connection is opened.
    attempts: tokio::sync::Mutex<Attempts>,
}

#[derive(Default)]
struct Attempts {
    failures: u32,
    /// The last failure, which is returned until then.
    failed: Option<(Instant, RedisError)>,
    /// The node of a cluster that has the keys.
    node: Option<Address>,
    /// The node to which they are being moved.
    asked: Option<(Address, Arc<Pipe>)>,
}

/// Where a command is to be sent that was not executed.
enum Redirection {
    /// To the node that has the keys, which has the next connection.
    Moved,
    /// To the node to which the keys are being moved.
    Ask(Address),
}

/// Times that a command follows its keys to another node of a cluster.
const REDIRECTIONS: usize = 3;
/// A command tries again to connect at the latest after so many doublings of the pause.
const MAX_FAILURES: u32 = 4;

impl Commands {
    /// Connects.
    pub(super) async fn connect(connector: Arc<Connector>) -> Result<Self, RedisError> {
        let commands = Self { connector, active: Mutex::default(), attempts: tokio::sync::Mutex::default() };
        commands.active().await?;
        Ok(commands)
    }

    /// Executes a command.
    pub(super) async fn execute(&self, command: &Command) -> Result<Reply, RedisError> {
        self.send(|out| command.write(out)).await
    }

    /// Executes the command that `write` appends. It is called again where the keys are at another node.
    pub(super) async fn send(&self, write: impl Fn(&mut Vec<u8>)) -> Result<Reply, RedisError> {
        refused(self.reply(write).await?)
    }

    /// Executes a script.
    pub(super) async fn invoke(&self, call: &Call<'_>) -> Result<Reply, RedisError> {
        let hash = match call.hash() {
            Some(hash) => hash,
            None => call.loaded(text(self.execute(&call.load()).await?)),
        };
        let reply = self.reply(|out| call.write(hash, out)).await?;
        match &reply {
            // A server that was restarted, or another node.
            Reply::Error(text) if text.starts_with("NOSCRIPT") => {
                self.send(|out| call.write_whole(out)).await
            }
            _ => refused(reply),
        }
    }

    /// Sends a command, and follows its keys to other nodes of a cluster.
    async fn reply(&self, write: impl Fn(&mut Vec<u8>)) -> Result<Reply, RedisError> {
        let pipe = self.active().await?;
        match pipe.request(&write).await? {
            // Futures of the rare paths are not part of that of each command.
            Reply::Error(text) => Box::pin(self.follow(pipe, text, write)).await,
            reply => Ok(reply),
        }
    }

    /// Sends a command again, where an error says that its keys are at another node.
    async fn follow(
        &self,
        mut pipe: Arc<Pipe>,
        mut error: String,
        write: impl Fn(&mut Vec<u8>),
    ) -> Result<Reply, RedisError> {
        for _ in 0..REDIRECTIONS {
            let reply = match self.redirected(&pipe, &error).await {
                None => return Ok(Reply::Error(error)),
                Some(Redirection::Moved) => {
                    pipe = self.active().await?;
                    pipe.request(&write).await?
                }
                Some(Redirection::Ask(node)) => {
                    pipe = self.asked(node).await?;
                    asking(&pipe, &write).await?
                }
            };
            match reply {
                Reply::Error(text) => error = text,
                reply => return Ok(reply),
            }
        }
        match self.redirected(&pipe, &error).await {
            None => Ok(Reply::Error(error)),
            Some(_) => Err(moved()),
        }
    }

    /// Executes commands in order, and returns a result for each.
    pub(super) async fn execute_each(&self, commands: &[Command]) -> Vec<Result<(), RedisError>> {
        if commands.is_empty() {
            return Vec::new();
        }
        let sent = async {
            let pipe = self.active().await?;
            let write = |out: &mut Vec<u8>| commands.iter().for_each(|command| command.write(out));
            let replies = pipe.request_each(commands.len(), write).await?;
            Ok::<_, RedisError>((pipe, replies))
        };
        let (pipe, replies) = match sent.await {
            Ok(sent) => sent,
            Err(error) => return vec![Err(error); commands.len()],
        };
        let mut results = Vec::with_capacity(commands.len());
        for (reply, command) in replies.into_iter().zip(commands) {
            let is_redirected = match &reply {
                Reply::Error(text) => self.redirected(&pipe, text).await.is_some(),
                _ => false,
            };
            // It was not executed: the keys are at another node.
            let result = if is_redirected { self.execute(command).await } else { refused(reply) };
            results.push(result.map(drop));
        }
        results
    }

    /// Whether another node has the keys, and what an error says of its connection.
    async fn redirected(&self, pipe: &Pipe, text: &str) -> Option<Redirection> {
        let mut words = text.split(' ');
        let code = words.next();
        let mut node = || words.nth(1).and_then(address);
        match code {
            Some("MOVED") => {
                let node = node()?;
                pipe.retire();
                self.attempts.lock().await.node = Some(node);
                Some(Redirection::Moved)
            }
            Some("ASK") => node().map(Redirection::Ask),
            // It is a master no more: the next connection may reach the new one.
            Some("READONLY") => {
                pipe.retire();
                None
            }
            _ => None,
        }
    }

    /// A connection to the node to which a slot is being moved. It serves until the slot is there.
    async fn asked(&self, node: Address) -> Result<Arc<Pipe>, RedisError> {
        let mut attempts = self.attempts.lock().await;
        if let Some((address, pipe)) = &attempts.asked
            && *address == node
            && !pipe.is_lost()
        {
            return Ok(pipe.clone());
        }
        let pipe = self.open(&node).await?;
        attempts.asked = Some((node, pipe.clone()));
        Ok(pipe)
    }

    fn current(&self) -> MutexGuard<'_, Option<Arc<Pipe>>> {
        self.active.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn usable(&self) -> Option<Arc<Pipe>> {
        self.current().as_ref().filter(|pipe| !pipe.is_lost()).cloned()
    }

    /// The connection, or a new one where it is lost.
    async fn active(&self) -> Result<Arc<Pipe>, RedisError> {
        match self.usable() {
            Some(pipe) => Ok(pipe),
            None => Box::pin(self.reconnect()).await,
        }
    }

    async fn reconnect(&self) -> Result<Arc<Pipe>, RedisError> {
        let mut attempts = self.attempts.lock().await;
        if let Some(pipe) = self.usable() {
            return Ok(pipe);
        }
        if let Some((until, error)) = &attempts.failed
            && Instant::now() < *until
        {
            return Err(error.clone());
        }
        let address = attempts.node.clone().unwrap_or_else(|| self.connector.settings.address.clone());
        match self.open(&address).await {
            Ok(pipe) => {
                (attempts.failures, attempts.failed) = (0, None);
                *self.current() = Some(pipe.clone());
                Ok(pipe)
            }
            Err(error) => {
                attempts.failures = (attempts.failures + 1).min(MAX_FAILURES);
                attempts.failed = Some((Instant::now() + pause(attempts.failures), error.clone()));
                attempts.node = None;
                Err(error)
            }
        }
    }

    async fn open(&self, address: &Address) -> Result<Arc<Pipe>, RedisError> {
        let settings = &self.connector.settings;
        let (stream, received) = Listener::open(&self.connector, address).await?.into_parts();
        let pipe = Pipe::new(stream, received, settings.timeout);
        in_time(async {
            let mut select = Command::new("SELECT");
            select.arg(settings.login.database.to_string());
            let mut name = Command::new("CLIENT");
            name.arg("SETINFO").arg("LIB-NAME").arg("octollm");
            let commands = [name, select];
            let needed = if settings.login.database == 0 { &commands[..1] } else { &commands[..] };
            let write = |out: &mut Vec<u8>| needed.iter().for_each(|command| command.write(out));
            let replies = pipe.request_each(needed.len(), write).await?;
            // Servers before 7.2 have no name of the library.
            replies.into_iter().skip(1).try_for_each(|reply| refused(reply).map(drop))
        })
        .await?;
        Ok(Arc::new(pipe))
    }
}

/// Sends ASKING before a command, so that a node takes it for a slot that it does not have yet.
async fn asking(pipe: &Pipe, write: impl Fn(&mut Vec<u8>)) -> Result<Reply, RedisError> {
    let both = |out: &mut Vec<u8>| {
        Command::new("ASKING").write(out);
        write(out);
    };
    let replies = pipe.request_each(2, both).await?;
    replies.into_iter().nth(1).ok_or_else(|| RedisError::failed("a reply is missing"))
}

/// A reply that is an error as one.
fn refused(reply: Reply) -> Result<Reply, RedisError> {
    match reply {
        Reply::Error(text) => Err(RedisError::answered(&text)),
        reply => Ok(reply),
    }
}

/// Most events, and most bytes of them after the first one, that are sent in one write.
const BATCH: usize = 512;
const BATCH_BYTES: usize = 1 << 20;

/// Parts of events, each for one write.
pub(super) fn batches(events: &[Event]) -> impl Iterator<Item = &[Event]> {
    let mut rest = events;
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let fits = |event: &&Event| {
            let fits = bytes < BATCH_BYTES;
            bytes += event.size();
            fits
        };
        let count = rest.iter().take(BATCH).take_while(fits).count();
        let (batch, further) = rest.split_at(count);
        rest = further;
        (!batch.is_empty()).then_some(batch)
    })
}

/// The address in a redirection, such as `10.0.0.7:6379`.
fn address(node: &str) -> Option<Address> {
    let (host, port) = node.rsplit_once(':')?;
    let host = host.trim_matches(['[', ']']);
    if host.is_empty() {
        return None;
    }
    Some(Address::Tcp { host: host.to_owned(), port: port.parse().ok()? })
}

fn moved() -> RedisError {
    RedisError::answered("TRYAGAIN the keys are at another node")
}
