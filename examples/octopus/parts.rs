//! One part of the system in a process of its own: the reflex, a brain, or an instance of an arm.

use std::{
    env,
    io::{self, Read},
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use octollm::{
    bus::EventBus,
    http::{
        client::Arms,
        io::{Connector, Io},
    },
    prelude::*,
    redis::RedisBus,
    sql::{SqlBus, SqlDatabase, SqlIdempotencyStore, SqlStore},
};
use tokio::net::TcpStream;

use crate::{
    Result,
    llm::Model,
    system::{Critic, Editor, Guard, Publisher, WriteStory, Writer},
};

/// What all parts know of the system.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Setting {
    pub(crate) database: String,
    /// The database with the keys of the publisher.
    pub(crate) keys: String,
    pub(crate) redis: Option<String>,
    /// The file with the tasks whose stories were published.
    pub(crate) ledger: PathBuf,
    pub(crate) llm: Option<String>,
    pub(crate) model: String,
    /// Name and address of each part, such as `writer-2`.
    pub(crate) parts: Vec<(String, SocketAddr)>,
}

impl Setting {
    /// The addresses of the instances of a part.
    pub(crate) fn of(&self, id: &str) -> Vec<SocketAddr> {
        let is_of =
            |name: &str| name.strip_prefix(id).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'));
        self.parts.iter().filter(|(name, _)| is_of(name)).map(|(_, address)| *address).collect()
    }
}

/// The name of the part that a child is, and its setting as JSON.
pub(crate) const CHILD: [&str; 2] = ["OCTOPUS_PART", "OCTOPUS_SETTING"];

/// Serves a part, where this process is the child of another one. `None` where it is not.
pub(crate) async fn child() -> Option<Result<()>> {
    let [name, setting] = CHILD.map(|name| env::var(name).ok());
    Some(serve(&name?, &setting?).await)
}

async fn serve(name: &str, setting: &str) -> Result<()> {
    let setting: Setting = serde_json::from_str(setting)?;
    let (_, address) = setting.parts.iter().find(|(part, _)| part == name).ok_or("no such part")?;
    let id = name.split('-').next().unwrap_or(name);
    let server = match id {
        "reflex" => reflex(&setting).await?,
        "brain" => brain(name, &setting).await?,
        "writer" => {
            let model = setting.llm.as_deref().map(|url| Model::new(url, setting.model.clone()));
            Server::new(id).description("Writes stories.").arm(Writer(model.transpose()?))
        }
        "critic" => Server::new(id).description("Grades stories.").arm(Critic),
        _ => {
            let keys = SqlIdempotencyStore::open(&SqlDatabase::open(&setting.keys).await?).await?;
            let publisher = Publisher(setting.ledger.clone());
            Server::new(id).description("Publishes stories.").arm(publisher).idempotency(keys)
        }
    };
    let server = server.drain_notice(Duration::ZERO).drain_grace(Duration::from_secs(2));
    let server = server.bind(address).await?;
    println!("{address}");
    server.run_until(parent_has_ended()).await;
    Ok(())
}

/// Ends with the standard input, which is that of the parent.
async fn parent_has_ended() {
    let (ended, end) = tokio::sync::oneshot::channel();
    // A thread of its own: the end of the program does not wait for a read.
    std::thread::spawn(move || {
        let _ = io::stdin().read(&mut [0]);
        drop::<tokio::sync::oneshot::Sender<()>>(ended);
    });
    let _ = end.await;
}

/// After so long without a sign of its process, a task is continued by another one.
const LEASE: Duration = Duration::from_secs(2);

async fn brain(name: &str, setting: &Setting) -> Result<Server> {
    let database = SqlDatabase::open(&setting.database).await?;
    let store = SqlStore::builder().open(&database).await?;
    let bus = bus(&database, setting).await?;
    let mut arms = Arms::builder();
    for id in ["writer", "critic", "publisher"] {
        let urls: Vec<_> = setting.of(id).iter().map(|address| format!("http://{address}")).collect();
        arms = arms.endpoint(id, urls.join(","));
    }
    let brain = Brain::builder().name(name).arm::<TaskRequest>(Editor).arm::<WriteStory>(Editor);
    let brain = brain.arms(arms.build()?).store(store).bus(bus.clone()).lease(LEASE).build()?;
    // It tries again by itself.
    let _ = brain.recover().await;
    Ok(Server::new("brain").orchestrator(brain).bus(bus))
}

async fn reflex(setting: &Setting) -> Result<Server> {
    let database = SqlDatabase::open(&setting.database).await?;
    let bus = bus(&database, setting).await?;
    let brains = OrchestratorClient::builder("http://brains").connector(Any::new(setting.of("brain")));
    Ok(Server::new("reflex").reflex(Guard).orchestrator(brains.build()?).bus(bus))
}

async fn bus(database: &SqlDatabase, setting: &Setting) -> Result<Arc<dyn EventBus>> {
    Ok(match &setting.redis {
        Some(url) => Arc::new(RedisBus::connect(url).await?),
        None => Arc::new(SqlBus::open(database).await?),
    })
}

/// Connects to any of these addresses that answers, as a balancer before them would.
struct Any {
    addresses: Vec<SocketAddr>,
    next: AtomicUsize,
}

impl Any {
    fn new(addresses: Vec<SocketAddr>) -> Self {
        Self { addresses, next: AtomicUsize::new(0) }
    }
}

#[async_trait]
impl Connector for Any {
    async fn connect(&self, _: &http::Uri) -> io::Result<Box<dyn Io>> {
        let first = self.next.fetch_add(1, Ordering::Relaxed);
        let mut last = io::Error::from(io::ErrorKind::ConnectionRefused);
        for at in 0..self.addresses.len() {
            match TcpStream::connect(self.addresses[first.wrapping_add(at) % self.addresses.len()]).await {
                Ok(stream) => {
                    stream.set_nodelay(true)?;
                    return Ok(Box::new(stream));
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }
}
