//! The server that is attacked: a few arms and an orchestrator.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use octollm::{http::server::BoundServer, prelude::*, store::MemoryStore};
use tokio::time::sleep;

use crate::frame::{Broken, Size};

/// Returns its text.
#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "attack.echo", output = String, idempotent, timeout = "10s")]
pub(crate) struct Echo {
    pub(crate) text: String,
}

/// Takes its time: so many milliseconds, or for ever.
#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "attack.wait", output = bool, timeout = "5m")]
struct Wait {
    ms: Option<u64>,
}

/// Returns a text of so many bytes.
#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "attack.large", output = String, idempotent)]
struct Large {
    #[garde(range(max = 4_000_000))]
    bytes: usize,
}

/// Takes any JSON.
#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "attack.store", output = u64, idempotent)]
struct Store {
    value: octollm::json::RawJson,
}

/// Returns what the server has seen.
#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "attack.look", output = Seen, idempotent)]
struct Look {}

/// What the arms have done so far.
#[derive(Debug, Default, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Seen {
    /// Texts that were returned which say `hidden`.
    pub(crate) hidden: u64,
    /// Calls that wait now.
    pub(crate) waiting: u64,
}

#[derive(Clone, Default)]
struct Worker(Arc<Counts>);

#[derive(Default)]
struct Counts {
    hidden: AtomicU64,
    waiting: AtomicU64,
}

#[async_trait]
impl Arm<Echo> for Worker {
    async fn execute(&self, task: Echo, _: &Context) -> Result<String, ArmError> {
        self.0.hidden.fetch_add(u64::from(task.text == "hidden"), Ordering::Relaxed);
        Ok(task.text)
    }
}

#[async_trait]
impl Arm<Wait> for Worker {
    async fn execute(&self, task: Wait, _: &Context) -> Result<bool, ArmError> {
        struct Waiting<'a>(&'a Counts);
        impl Drop for Waiting<'_> {
            fn drop(&mut self) {
                self.0.waiting.fetch_sub(1, Ordering::Relaxed);
            }
        }
        self.0.waiting.fetch_add(1, Ordering::Relaxed);
        let _waiting = Waiting(&self.0);
        match task.ms {
            Some(ms) => sleep(Duration::from_millis(ms)).await,
            None => std::future::pending().await,
        }
        Ok(true)
    }
}

#[async_trait]
impl Arm<Large> for Worker {
    async fn execute(&self, task: Large, _: &Context) -> Result<String, ArmError> {
        Ok("x".repeat(task.bytes))
    }
}

#[async_trait]
impl Arm<Store> for Worker {
    async fn execute(&self, task: Store, _: &Context) -> Result<u64, ArmError> {
        Ok(task.value.as_str().len() as u64)
    }
}

#[async_trait]
impl Arm<Look> for Worker {
    async fn execute(&self, _: Look, _: &Context) -> Result<Seen, ArmError> {
        let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Ok(Seen { hidden: count(&self.0.hidden), waiting: count(&self.0.waiting) })
    }
}

/// What the orchestrator runs: it waits so many milliseconds, or for ever.
#[async_trait]
impl Arm<TaskRequest> for Worker {
    async fn execute(&self, request: TaskRequest, _: &Context) -> Result<TaskResult, ArmError> {
        match request.goal.parse() {
            Ok(ms) => sleep(Duration::from_millis(ms)).await,
            Err(_) => std::future::pending().await,
        }
        Ok(TaskResult::new(request.goal))
    }
}

/// Tasks that wait in the orchestrator, and that run.
pub(crate) const MAX_QUEUED: usize = 100;
pub(crate) const MAX_RUNNING: usize = 8;

/// The limits that attacks run into, at their defaults.
#[derive(Debug, Clone)]
pub(crate) struct Limits {
    pub(crate) head_timeout: Duration,
    pub(crate) body_timeout: Duration,
    pub(crate) idle_timeout: Duration,
    pub(crate) write_timeout: Duration,
    pub(crate) max_body: usize,
    pub(crate) max_arriving: usize,
    pub(crate) max_head: usize,
    pub(crate) max_headers: usize,
    pub(crate) max_uri: usize,
    pub(crate) max_connections: usize,
    pub(crate) max_in_flight: usize,
    pub(crate) max_streams: u32,
}

impl Limits {
    fn set(self, server: Server) -> Server {
        server
            .head_timeout(self.head_timeout)
            .body_timeout(self.body_timeout)
            .idle_timeout(self.idle_timeout)
            .write_timeout(self.write_timeout)
            .max_body(self.max_body)
            .max_arriving(self.max_arriving)
            .max_head(self.max_head)
            .max_headers(self.max_headers)
            .max_uri(self.max_uri)
            .max_connections(self.max_connections)
            .max_in_flight(self.max_in_flight)
            .max_streams(self.max_streams)
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            head_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(30),
            write_timeout: Duration::from_secs(30),
            max_body: 2 << 20,
            max_arriving: 256 << 20,
            max_head: 16 << 10,
            max_headers: 100,
            max_uri: 8 << 10,
            max_connections: 10_000,
            max_in_flight: 1024,
            max_streams: 100,
        }
    }
}

/// The limits of the server: the defaults. In the short form an attack may set times of its own, in milliseconds.
pub(crate) fn limits(size: Size, settings: &[(&str, usize)]) -> Result<Limits, Broken> {
    let mut config = Limits::default();
    for (name, value) in settings {
        let time = Duration::from_millis(*value as u64);
        match *name {
            "max_in_flight" => config.max_in_flight = *value,
            "max_connections" => config.max_connections = *value,
            "max_arriving" => config.max_arriving = *value,
            "head_ms" | "body_ms" | "idle_ms" | "write_ms" if size == Size::Full => {}
            "head_ms" => config.head_timeout = time,
            "body_ms" => config.body_timeout = time,
            "idle_ms" => config.idle_timeout = time,
            "write_ms" => config.write_timeout = time,
            // Of the orchestrator.
            "max_queued_bytes" | "finished_bytes" => {}
            other => return Err(format!("there is no setting {other}").into()),
        }
    }
    Ok(config)
}

/// Listens on a port of its own.
pub(crate) async fn server(size: Size, settings: &[(&str, usize)]) -> Result<BoundServer, Broken> {
    let worker = Worker::default();
    let brain = Brain::builder().arm::<TaskRequest>(worker.clone());
    let (mut brain, mut store) = (brain.max_queued(MAX_QUEUED).max_running(MAX_RUNNING), MemoryStore::new());
    for (name, value) in settings {
        match *name {
            "max_queued_bytes" => brain = brain.max_queued_bytes(*value),
            "finished_bytes" => store = store.finished_bytes(*value),
            _ => {}
        }
    }
    let brain = brain.store(store).build()?;
    let server = Server::new("target")
        .arm::<Echo>(worker.clone())
        .arm::<Wait>(worker.clone())
        .arm::<Large>(worker.clone())
        .arm::<Store>(worker.clone())
        .arm::<Look>(worker)
        .orchestrator(brain);
    let server = limits(size, settings)?.set(server);
    Ok(server.bind("127.0.0.1:0").await?)
}
