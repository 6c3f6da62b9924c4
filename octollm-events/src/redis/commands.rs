//! The connection for commands, which is replaced when it is lost.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicBool, Ordering},
};

use octollm_core::event::Event;
use redis::{
    AsyncConnectionConfig, Cmd, ErrorKind, FromRedisValue, Pipeline, PushInfo, PushKind, RedisFuture,
    RedisResult, ScriptInvocation, ServerErrorKind, Value,
    aio::{ConnectionLike, MultiplexedConnection},
};
use tokio::{task::AbortHandle, time::Instant};

use super::{
    connection::{Address, CONNECT_TIMEOUT, Connector, check_server, in_time, pause},
    error::RedisError,
};

/// Commands for a server. Those of many callers share one connection, without waiting for one another.
///
/// A connection that is lost is replaced by the next command. A command that was sent is never repeated.
pub(super) struct Commands {
    connector: Arc<Connector>,
    active: Mutex<Option<Active>>,
    /// Held while a connection is opened.
    attempts: tokio::sync::Mutex<Attempts>,
}

#[derive(Clone)]
struct Active {
    connection: MultiplexedConnection,
    link: Arc<Link>,
}

/// Ends its connection when it is dropped.
struct Link {
    is_lost: Arc<AtomicBool>,
    driver: AbortHandle,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

#[derive(Default)]
struct Attempts {
    failures: u32,
    /// The last failure, which is returned until then.
    failed: Option<(Instant, RedisError)>,
    /// The node of a cluster that has the keys.
    node: Option<Address>,
    /// The node to which they are being moved.
    asked: Option<(Address, Active)>,
}

/// What is sent.
enum Request<'a> {
    Command(&'a Cmd),
    Script(&'a ScriptInvocation<'a>),
}

impl Request<'_> {
    async fn send<T: FromRedisValue>(&self, connection: &mut impl ConnectionLike) -> RedisResult<T> {
        match self {
            Self::Command(command) => command.query_async(connection).await,
            Self::Script(script) => script.invoke_async(connection).await,
        }
    }
}

/// Sends ASKING before each command, so that a node takes it for a slot that it does not have yet.
struct Asking(MultiplexedConnection);

impl ConnectionLike for Asking {
    fn req_packed_command<'a>(&'a mut self, command: &'a Cmd) -> RedisFuture<'a, Value> {
        Box::pin(async move {
            let mut both = redis::pipe();
            both.cmd("ASKING").ignore().add_command(command.clone());
            let (answer,) = both.query_async(&mut self.0).await?;
            Ok(answer)
        })
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        commands: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        self.0.req_packed_commands(commands, offset, count)
    }

    fn get_db(&self) -> i64 {
        self.0.get_db()
    }
}

/// How a request failed.
enum Failed {
    With(RedisError),
    /// It was not executed. The next connection is to the node that has the keys.
    Moved,
    /// It was not executed. The keys are being moved to this node.
    Ask(Address),
}

impl Failed {
    fn into_error(self) -> RedisError {
        match self {
            Self::With(error) => error,
            Self::Moved | Self::Ask(_) => moved(),
        }
    }
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
    pub(super) async fn execute<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, RedisError> {
        self.request(Request::Command(command)).await
    }

    /// Executes a script.
    pub(super) async fn invoke<T: FromRedisValue>(
        &self,
        script: &ScriptInvocation<'_>,
    ) -> Result<T, RedisError> {
        self.request(Request::Script(script)).await
    }

    /// Sends a request, and follows its keys to other nodes of a cluster.
    async fn request<T: FromRedisValue>(&self, request: Request<'_>) -> Result<T, RedisError> {
        let mut asked = None;
        for _ in 0..=REDIRECTIONS {
            let (active, answer) = match asked.take() {
                None => {
                    let mut active = self.active().await?;
                    let answer = request.send(&mut active.connection).await;
                    (active, answer)
                }
                Some(node) => {
                    let active = self.asked(node).await?;
                    let answer = request.send(&mut Asking(active.connection.clone())).await;
                    (active, answer)
                }
            };
            match answer {
                Ok(answer) => return Ok(answer),
                Err(error) => match self.failed(&active, error).await {
                    Failed::With(error) => return Err(error),
                    Failed::Moved => {}
                    Failed::Ask(node) => asked = Some(node),
                },
            }
        }
        Err(moved())
    }

    /// Executes commands in order, and returns a result for each.
    pub(super) async fn execute_each(&self, commands: &mut Pipeline) -> Vec<Result<(), RedisError>> {
        let count = commands.len();
        if count == 0 {
            return Vec::new();
        }
        let active = match self.active().await {
            Ok(active) => active,
            Err(error) => return vec![Err(error); count],
        };
        let mut connection = active.connection.clone();
        let answers: Result<Vec<RedisResult<Value>>, _> =
            commands.ignore_errors().query_async(&mut connection).await;
        let answers = match answers {
            Ok(answers) => answers,
            Err(error) => {
                let failed = self.failed(&active, error).await;
                return vec![Err(failed.into_error()); count];
            }
        };
        let mut results = Vec::with_capacity(count);
        for (answer, command) in answers.into_iter().zip(commands.cmd_iter()) {
            results.push(match answer {
                Ok(_) => Ok(()),
                Err(error) => match self.failed(&active, error).await {
                    Failed::With(error) => Err(error),
                    // It was not executed: the keys are at another node.
                    Failed::Moved | Failed::Ask(_) => self.execute::<Value>(command).await.map(drop),
                },
            });
        }
        results
    }

    /// What a failure says of its connection, and whether another node has the keys.
    async fn failed(&self, active: &Active, error: redis::RedisError) -> Failed {
        let node = || error.redirect_node().and_then(|(node, _)| address(node));
        match error.kind() {
            ErrorKind::Server(ServerErrorKind::Moved) => {
                if let Some(node) = node() {
                    active.link.is_lost.store(true, Ordering::Relaxed);
                    self.attempts.lock().await.node = Some(node);
                    return Failed::Moved;
                }
            }
            ErrorKind::Server(ServerErrorKind::Ask) => {
                if let Some(node) = node() {
                    return Failed::Ask(node);
                }
            }
            _ => {}
        }
        // What is read-only is a master no more: the next connection may reach the new one.
        let is_lost = error.is_io_error()
            || error.is_unrecoverable_error()
            || matches!(error.kind(), ErrorKind::Server(ServerErrorKind::ReadOnly));
        if is_lost {
            active.link.is_lost.store(true, Ordering::Relaxed);
        }
        Failed::With(match error.is_timeout() {
            true => RedisError::TimedOut(self.connector.settings.timeout),
            false => error.into(),
        })
    }

    /// A connection to the node to which a slot is being moved. It serves until the slot is there.
    async fn asked(&self, node: Address) -> Result<Active, RedisError> {
        let mut attempts = self.attempts.lock().await;
        if let Some((address, active)) = &attempts.asked
            && *address == node
            && !active.link.is_lost.load(Ordering::Relaxed)
        {
            return Ok(active.clone());
        }
        let active = self.open(&node).await?;
        attempts.asked = Some((node, active.clone()));
        Ok(active)
    }

    fn current(&self) -> MutexGuard<'_, Option<Active>> {
        self.active.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn usable(&self) -> Option<Active> {
        self.current().as_ref().filter(|active| !active.link.is_lost.load(Ordering::Relaxed)).cloned()
    }

    /// The connection, or a new one where it is lost.
    async fn active(&self) -> Result<Active, RedisError> {
        if let Some(active) = self.usable() {
            return Ok(active);
        }
        let mut attempts = self.attempts.lock().await;
        if let Some(active) = self.usable() {
            return Ok(active);
        }
        if let Some((until, error)) = &attempts.failed
            && Instant::now() < *until
        {
            return Err(error.clone());
        }
        let address = attempts.node.clone().unwrap_or_else(|| self.connector.settings.address.clone());
        match self.open(&address).await {
            Ok(active) => {
                (attempts.failures, attempts.failed) = (0, None);
                *self.current() = Some(active.clone());
                Ok(active)
            }
            Err(error) => {
                attempts.failures = (attempts.failures + 1).min(MAX_FAILURES);
                attempts.failed = Some((Instant::now() + pause(attempts.failures), error.clone()));
                attempts.node = None;
                Err(error)
            }
        }
    }

    async fn open(&self, address: &Address) -> Result<Active, RedisError> {
        let settings = &self.connector.settings;
        let is_lost = Arc::new(AtomicBool::new(false));
        let lost = is_lost.clone();
        let noticed = move |push: PushInfo| {
            if push.kind == PushKind::Disconnection {
                lost.store(true, Ordering::Relaxed);
            }
            Ok::<_, std::convert::Infallible>(())
        };
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_response_timeout(Some(settings.timeout))
            .set_push_sender(noticed);
        in_time(async {
            let stream = self.connector.stream(address).await?;
            let opened = MultiplexedConnection::new_with_config(&settings.login, stream, config).await;
            let (mut connection, driver) = opened.map_err(RedisError::from)?;
            let link = Arc::new(Link { is_lost, driver: tokio::spawn(driver).abort_handle() });
            let server: Value = redis::cmd("HELLO").query_async(&mut connection).await?;
            let text = |name| field(&server, name).unwrap_or_default();
            check_server(&text("version"), &text("role"), &text("mode"))?;
            Ok(Active { connection, link })
        })
        .await
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

/// The value of a name in a map.
fn field(map: &Value, name: &str) -> Option<String> {
    let pairs = map.as_map_iter()?;
    let text = |value: &Value| String::from_redis_value_ref(value).ok();
    pairs.into_iter().find(|(key, _)| text(key).as_deref() == Some(name)).and_then(|(_, value)| text(value))
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
