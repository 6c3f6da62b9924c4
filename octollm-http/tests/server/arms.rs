//! The arms that are served here.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use octollm_core::{Arm, Context, budget::Usage, error::ArmError};
use octollm_http::{
    io::{Acceptor, Pipes},
    server::Server,
};
use octollm_macros::TaskContract;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::io::DuplexStream;
use tokio::sync::Notify;

use crate::peer::Peer;

/// Says a text back.
#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "text.echo", output = Said, idempotent, timeout = "5s")]
pub(crate) struct Echo {
    pub(crate) text: String,
    #[serde(default)]
    pub(crate) data: serde_json::Value,
    #[serde(default)]
    pub(crate) number: f64,
}

#[derive(Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Said {
    pub(crate) text: String,
    pub(crate) caller: Option<Named>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Named {
    pub(crate) name: String,
}

/// Waits, for so long or for ever.
#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "work.wait", output = (), timeout = "60s")]
pub(crate) struct Wait {
    #[serde(default)]
    pub(crate) ms: Option<u64>,
}

/// Breaks.
#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "work.panic", version = 2, output = ())]
pub(crate) struct Panic {}

/// What the arms did.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    begun: AtomicUsize,
    dropped: AtomicUsize,
    ended: AtomicUsize,
    changed: Notify,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Worker(pub(crate) Arc<Seen>);

impl Seen {
    fn count(&self, counter: &AtomicUsize) {
        counter.fetch_add(1, Ordering::SeqCst);
        self.changed.notify_waiters();
    }

    async fn reaches(&self, counter: &AtomicUsize, n: usize) {
        let wait = async {
            loop {
                let changed = self.changed.notified();
                if counter.load(Ordering::SeqCst) >= n {
                    return;
                }
                changed.await;
            }
        };
        tokio::time::timeout(Duration::from_secs(3600), wait).await.expect("never happened");
    }

    /// Returns when so many waits have begun.
    pub(crate) async fn begun(&self, n: usize) {
        self.reaches(&self.begun, n).await;
    }

    /// The number of waits that have begun.
    pub(crate) fn begun_so_far(&self) -> usize {
        self.begun.load(Ordering::SeqCst)
    }

    /// The number of waits that go on now.
    pub(crate) fn running(&self) -> usize {
        let count = |counter: &AtomicUsize| counter.load(Ordering::SeqCst);
        count(&self.begun) - count(&self.dropped) - count(&self.ended)
    }

    /// Returns when so many waits were given up.
    pub(crate) async fn dropped(&self, n: usize) {
        self.reaches(&self.dropped, n).await;
    }
}

struct CountDrop<'a>(&'a Seen);

impl Drop for CountDrop<'_> {
    fn drop(&mut self) {
        self.0.count(&self.0.dropped);
    }
}

#[async_trait]
impl Arm<Echo> for Worker {
    async fn execute(&self, input: Echo, cx: &Context) -> Result<Said, ArmError> {
        cx.spend(Usage::tokens(3))?;
        if input.text == "fail" {
            return Err(std::io::Error::other("the password is swordfish").into());
        }
        Ok(Said { text: input.text, caller: None })
    }
}

#[async_trait]
impl Arm<Wait> for Worker {
    async fn execute(&self, input: Wait, _: &Context) -> Result<(), ArmError> {
        let drop = CountDrop(&self.0);
        self.0.count(&self.0.begun);
        match input.ms {
            Some(ms) => tokio::time::sleep(Duration::from_millis(ms)).await,
            None => std::future::pending().await,
        }
        std::mem::forget(drop);
        self.0.count(&self.0.ended);
        Ok(())
    }
}

#[async_trait]
impl Arm<Panic> for Worker {
    async fn execute(&self, _: Panic, _: &Context) -> Result<(), ArmError> {
        panic!("the password is swordfish")
    }
}

/// A server with all of them.
pub(crate) fn server(worker: &Worker) -> Server {
    Server::new("worker")
        .description("Works.")
        .version("1.2.3")
        .arm::<Echo>(worker.clone())
        .arm::<Wait>(worker.clone())
        .arm::<Panic>(worker.clone())
}

/// The same, when nobody looks at the arms.
pub(crate) fn worker() -> Server {
    server(&Worker::default())
}

/// A network in memory, and the place of its only host.
pub(crate) fn network() -> (Peer, impl Acceptor<Io = DuplexStream> + use<>) {
    let pipes: &'static Pipes = Box::leak(Box::new(Pipes::new()));
    (Peer::Pipe(pipes), pipes.listen("x").unwrap())
}

/// Starts a server in memory, and gives its peer.
pub(crate) fn start(server: Server) -> Peer {
    let (peer, acceptor) = network();
    tokio::spawn(server.listen(acceptor).unwrap().run());
    peer
}

/// Starts a server in memory with all arms and these limits.
pub(crate) fn start_with(limits: impl FnOnce(Server) -> Server) -> (Peer, Worker) {
    let worker = Worker::default();
    (start(limits(server(&worker))), worker)
}
