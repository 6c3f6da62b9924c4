//! The brain: in this process, or in one of its own that is killed and started again.

use std::{
    env,
    future::Future,
    io::{self, Read},
    net::SocketAddr,
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use octollm::{
    brain::BrainBuilder,
    bus::{EventBus, MemoryBus},
    http::BoundServer,
    prelude::*,
    store::{MemoryStore, TaskStore},
};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    task::spawn_blocking,
};

use crate::arms::Review;

/// The id of an arm, and its URL.
pub(crate) type Url = (&'static str, String);

/// The URLs of the servers that store tasks and events, where they are not in memory.
#[derive(Clone, Default)]
pub(crate) struct Servers {
    pub(crate) database: Option<String>,
    /// Has the events, in place of the database.
    pub(crate) redis: Option<String>,
}

/// The store of the task, and the bus of its events.
pub(crate) struct Storage {
    store: Arc<dyn TaskStore>,
    pub(crate) bus: Arc<dyn EventBus>,
    servers: Servers,
    _folder: Option<tempfile::TempDir>,
}

impl Storage {
    /// Opens it on these servers. Without a database it is in memory, or in a temporary folder where another process has to read
    /// it.
    pub(crate) async fn open(mut servers: Servers, is_shared: bool) -> Result<Self, octollm::Error> {
        let folder = (servers.database.is_none() && is_shared).then(tempfile::tempdir).transpose()?;
        if let Some(folder) = &folder {
            servers.database = Some(format!("sqlite:{}", folder.path().join("quickstart.db").display()));
        }
        let (store, mut bus) = match &servers.database {
            None => (Arc::new(MemoryStore::new()) as _, Arc::new(MemoryBus::new()) as _),
            Some(url) => database(url).await?,
        };
        if let Some(url) = &servers.redis {
            bus = redis(url).await?;
        }
        Ok(Self { store, bus, servers, _folder: folder })
    }

    fn brain(&self, arms: Arms) -> BrainBuilder {
        Brain::builder().arm(Review).arms(arms).bus(self.bus.clone()).store(self.store.clone())
    }
}

type Shared = (Arc<dyn TaskStore>, Arc<dyn EventBus>);

#[cfg(feature = "sql")]
async fn database(url: &str) -> Result<Shared, octollm::Error> {
    use octollm::sql::{SqlBus, SqlDatabase, SqlStore};
    let database = SqlDatabase::open(url).await?;
    let store = SqlStore::builder().open(&database).await?;
    Ok((Arc::new(store), Arc::new(SqlBus::open(&database).await?)))
}

#[cfg(not(feature = "sql"))]
async fn database(_: &str) -> Result<Shared, octollm::Error> {
    Err("--database and --kill-brain need the feature `sql`".into())
}

#[cfg(feature = "redis")]
async fn redis(url: &str) -> Result<Arc<dyn EventBus>, octollm::Error> {
    Ok(Arc::new(octollm::redis::RedisBus::connect(url).await?))
}

#[cfg(not(feature = "redis"))]
async fn redis(_: &str) -> Result<Arc<dyn EventBus>, octollm::Error> {
    Err("--redis needs the feature `redis`".into())
}

/// The server of a brain in this process.
pub(crate) async fn serve(storage: &Storage, arms: &[Url]) -> Result<BoundServer, octollm::Error> {
    let arms = arms.iter().fold(Arms::builder(), |arms, (id, url)| arms.endpoint(*id, url));
    let brain = storage.brain(arms.build()?).build()?;
    Ok(Server::new("brain").orchestrator(brain).bind("127.0.0.1:0").await?)
}

/// Starts the brain in a process of its own, and returns its URL. At the end of `until` it is killed, and another one is started at
/// the same address.
pub(crate) async fn killed_after(
    storage: &Storage,
    arms: &[Url],
    until: impl Future<Output = ()> + Send + 'static,
) -> Result<String, octollm::Error> {
    let (servers, arms) = (storage.servers.clone(), arms.to_vec());
    let (mut first, address) = start(&servers, &arms, ([127, 0, 0, 1], 0).into()).await?;
    tokio::spawn(async move {
        until.await;
        // SIGKILL: nothing is handed over, and nothing is written any more.
        let killed = first.kill().await;
        let second = match killed {
            Ok(()) => start(&servers, &arms, address).await,
            Err(error) => Err(error.into()),
        };
        match second {
            // It ends with this process. `wait` alone would close its input.
            Ok((mut second, _)) => {
                let _input = second.stdin.take();
                let _ = second.wait().await;
            }
            Err(error) => eprintln!("quickstart: the brain is not started again: {error}"),
        }
    });
    Ok(format!("http://{address}"))
}

/// The address at which a child listens, its database, and its Redis.
const CHILD: [&str; 3] = ["QUICKSTART_BRAIN", "QUICKSTART_DATABASE", "QUICKSTART_REDIS"];

/// Starts a brain. It ends when its standard input is closed.
async fn start(
    servers: &Servers,
    arms: &[Url],
    address: SocketAddr,
) -> Result<(Child, SocketAddr), octollm::Error> {
    let mut command = Command::new(env::current_exe()?);
    command.env(CHILD[0], address.to_string());
    for (name, url) in CHILD[1..].iter().zip([&servers.database, &servers.redis]) {
        command.envs(url.as_ref().map(|url| (name, url)));
    }
    for (id, url) in arms {
        command.env(format!("OCTOLLM_ARM_{}", id.to_uppercase()), url);
    }
    // Ctrl-C in a terminal is for this process, which cancels the task.
    #[cfg(unix)]
    command.process_group(0);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true).spawn()?;
    let output = child.stdout.take().ok_or("the brain has no output")?;
    let line = BufReader::new(output).lines().next_line().await?;
    let line = line.ok_or("the brain does not start")?;
    Ok((child, line.parse()?))
}

/// After so long without a sign of its process, a task is continued by another one.
const LEASE: Duration = Duration::from_secs(2);

/// Serves a brain, where this process is the child of another one. `None` where it is not.
pub(crate) async fn child() -> Option<Result<(), octollm::Error>> {
    let [address, database, redis] = CHILD.map(|name| env::var(name).ok());
    Some(serve_child(&address?, Servers { database, redis }).await)
}

async fn serve_child(address: &str, servers: Servers) -> Result<(), octollm::Error> {
    let storage = Storage::open(servers, true).await?;
    let brain = storage.brain(Arms::from_env()?).lease(LEASE).build()?;
    brain.recover().await?;
    let server = Server::new("brain").orchestrator(brain).bind(address).await?;
    println!("{}", server.local_addr());
    // Its parent has ended, where there is nothing more to read.
    let end = spawn_blocking(|| io::stdin().read(&mut [0]));
    tokio::select! {
        () = server.run() => {}
        _ = end => {}
    }
    Ok(())
}
