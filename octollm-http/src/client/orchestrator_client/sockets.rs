//! The WebSockets of a client, each of which follows many tasks of one caller.

mod driver;

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::SystemTime,
};

use base64::{Engine, prelude::BASE64_STANDARD};
use http::{HeaderValue, Method, header};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use octollm_core::{
    contract::ContractSpec,
    deadline::Deadline,
    error::{ErrorKind, Failure},
    id::TaskId,
    parts::{Caller, ContextParts},
    task::TaskUpdate,
};
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc},
    time::Instant,
};
use tokio_tungstenite::{WebSocketStream, tungstenite::protocol::Role};

use self::driver::Driver;
use super::{Inner, OrchestratorClient};
use crate::{
    client::{
        exchange::Target,
        foreign,
        metrics::SendSpan,
        pool::{ExchangeLimits, ServerHints},
    },
    wire::socket::{Request, VERSION, WEBSOCKET, accept_key, config},
};

/// Tasks that one connection follows, which is the default of a server.
const MOST_TASKS: usize = 256;
/// Updates that wait for whoever follows a task. One that is slower subscribes again after the last.
const WAITING: usize = 256;
/// Requests that wait to be sent.
const REQUESTS: usize = 2 * MOST_TASKS;

/// The connections of a client.
#[derive(Default)]
pub(super) struct Sockets {
    open: Mutex<Vec<Weak<Socket>>>,
    /// The orchestrator has no such route.
    is_unsupported: AtomicBool,
}

impl Sockets {
    pub(super) fn are_supported(&self) -> bool {
        !self.is_unsupported.load(Ordering::Relaxed)
    }
}

/// One connection, which is closed once nobody follows a task by it.
struct Socket {
    caller: Caller,
    requests: mpsc::Sender<Request>,
    followed: Arc<Followers>,
}

/// Whoever follows a task over a connection.
#[derive(Default)]
struct Followers {
    tasks: Mutex<HashMap<TaskId, Follower>>,
}

struct Follower {
    items: mpsc::Sender<Item>,
    /// What arrives before is of the subscription before.
    is_confirmed: bool,
}

impl Followers {
    fn tasks(&self) -> MutexGuard<'_, HashMap<TaskId, Follower>> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What whoever follows a task receives.
#[derive(Clone)]
enum Item {
    Subscribed,
    Update(TaskUpdate),
    Failed(Failure),
    /// The orchestrator has no WebSockets.
    NoRoute,
}

/// The updates of one task over a connection.
pub(super) struct Subscription {
    id: TaskId,
    socket: Arc<Socket>,
    items: mpsc::Receiver<Item>,
}

impl Subscription {
    /// The next update. `None` where the connection has ended, or what waits has become too much.
    pub(super) async fn next(&mut self) -> Option<Result<TaskUpdate, Failure>> {
        loop {
            return match self.items.recv().await? {
                Item::Subscribed => continue,
                Item::Update(update) => Some(Ok(update)),
                Item::Failed(failure) => Some(Err(failure)),
                Item::NoRoute => None,
            };
        }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.items.close();
        let mut tasks = self.socket.followed.tasks();
        // The place may be another one's by now.
        if tasks.get(&self.id).is_some_and(|follower| follower.items.is_closed()) {
            tasks.remove(&self.id);
            drop(tasks);
            let _ = self.socket.requests.try_send(Request::Unsubscribe { task_id: self.id.clone() });
        }
    }
}

impl OrchestratorClient {
    /// Follows a task over a WebSocket. `None` where the orchestrator has none, or there is no place for one more.
    ///
    /// # Errors
    /// The orchestrator refuses the connection or the subscription, or the connection is lost.
    pub(super) async fn subscribed(
        &self,
        sockets: &Sockets,
        (id, after, caller): (&TaskId, Option<u64>, Caller),
    ) -> Result<Option<Subscription>, Failure> {
        let (items, received) = mpsc::channel(WAITING);
        let Some(socket) = self.socket_for(sockets, id, caller, items) else { return Ok(None) };
        let mut subscription = Subscription { id: id.clone(), socket, items: received };
        let request = Request::Subscribe { task_id: id.clone(), after };
        // Where the connection has ended, what it has left says why.
        let _ = subscription.socket.requests.send(request).await;
        match subscription.items.recv().await {
            Some(Item::Subscribed) => Ok(Some(subscription)),
            Some(Item::NoRoute) => {
                sockets.is_unsupported.store(true, Ordering::Relaxed);
                Ok(None)
            }
            Some(Item::Failed(failure)) => Err(failure),
            Some(Item::Update(_)) | None => {
                Err(Failure::new(ErrorKind::ConnectionLost, "the WebSocket was lost").before_execution())
            }
        }
    }

    /// A connection of this caller that can follow the task, and does so for these items.
    fn socket_for(
        &self,
        sockets: &Sockets,
        id: &TaskId,
        caller: Caller,
        items: mpsc::Sender<Item>,
    ) -> Option<Arc<Socket>> {
        let follower = Follower { items, is_confirmed: false };
        let mut open = sockets.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|socket| socket.upgrade().is_some_and(|socket| !socket.requests.is_closed()));
        for socket in open.iter().filter_map(Weak::upgrade).filter(|socket| socket.caller == caller) {
            let mut tasks = socket.followed.tasks();
            // A server sends the updates of a task once over each connection.
            if tasks.len() < MOST_TASKS && !tasks.contains_key(id) {
                tasks.insert(id.clone(), follower);
                drop(tasks);
                return Some(socket);
            }
        }
        let place = self.0.streams.clone().try_acquire_owned().ok()?;
        let (requests, received) = mpsc::channel(REQUESTS);
        let followed = Arc::<Followers>::default();
        followed.tasks().insert(id.clone(), follower);
        let socket = Arc::new(Socket { caller: caller.clone(), requests, followed: followed.clone() });
        open.push(Arc::downgrade(&socket));
        tokio::spawn(connected(self.clone(), caller, followed, received, place));
        Some(socket)
    }

    /// Opens a connection. `None` where the orchestrator has no such route.
    async fn open_socket(
        &self,
        caller: Caller,
    ) -> Result<Option<WebSocketStream<TokioIo<Upgraded>>>, Failure> {
        let Inner { arm, endpoint, exchanger, authority, card, .. } = &*self.0;
        let mut parts = ContextParts::new();
        parts.caller = caller;
        let refused = || Failure::of(ErrorKind::BadRequest).before_execution();
        let uri = endpoint.uri("/ws").ok_or_else(refused)?;
        let mut request = endpoint.request((Method::GET, uri), None, &parts, (false, Instant::now()));
        let nonce = [RandomState::new().hash_one(1_u8), RandomState::new().hash_one(2_u8)];
        let key = BASE64_STANDARD.encode(nonce.map(u64::to_be_bytes).concat());
        let head = request.headers_mut();
        head.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        head.insert(header::UPGRADE, WEBSOCKET);
        head.insert(header::SEC_WEBSOCKET_VERSION, VERSION);
        head.insert(header::SEC_WEBSOCKET_KEY, HeaderValue::try_from(&key).map_err(|_| refused())?);
        let has_issued_token = authority.add(head, &parts.caller, None, card)?;
        let hints = ServerHints { has_issued_token, ..ServerHints::default() };
        let work = ContractSpec::DEFAULT_TIMEOUT;
        let deadline = Some(Deadline::after(work));
        let limits = ExchangeLimits { deadline, work, hints, begun: None };
        let (arm, endpoint) = (arm.clone(), endpoint.shared());
        let span = SendSpan::begin(&mut request, (&arm, &endpoint), None, &parts);
        let target = Target { arm, endpoint, contract: None, idempotent: true, deadline, work };
        let answer = exchanger.upgrade(request, limits, target).await;
        let (answer, io) = match answer {
            Ok((answer, io)) => (Ok(answer), io),
            Err(error) => (Err(error), None),
        };
        span.end(&answer);
        let (head, body) = answer?.into_parts();
        let accepted = head.headers.get(header::SEC_WEBSOCKET_ACCEPT);
        match io {
            Some(io) if accepted.is_some_and(|accepted| *accepted == accept_key(key.as_bytes())) => {
                let largest = exchanger.max_answer();
                let config = config(largest, largest);
                Ok(Some(WebSocketStream::from_raw_socket(TokioIo::new(io), Role::Client, Some(config)).await))
            }
            Some(_) => Err(Failure::new(ErrorKind::BadResponse, "the answer accepts another WebSocket")),
            // A server that ignores the upgrade.
            None if head.status.is_success() => Ok(None),
            None => {
                let failure = foreign::failure(head.status, &head.headers, &body, SystemTime::now());
                match failure.kind {
                    ErrorKind::NotFound
                    | ErrorKind::MethodNotAllowed
                    | ErrorKind::NotAcceptable
                    | ErrorKind::UpgradeRequired
                    | ErrorKind::NotImplemented => Ok(None),
                    _ => Err(failure),
                }
            }
        }
    }
}

/// Opens a connection, and serves it until nobody follows a task by it.
async fn connected(
    client: OrchestratorClient,
    caller: Caller,
    followed: Arc<Followers>,
    mut requests: mpsc::Receiver<Request>,
    place: OwnedSemaphorePermit,
) {
    let opened = client.open_socket(caller).await;
    let limits = client.0.exchanger.pool().ping_limits();
    // Whoever follows tasks has the client, and a client is not to live for its connections.
    drop(client);
    let left = match opened {
        Ok(Some(ws)) => Driver::new(ws, followed.clone(), limits).run(&mut requests).await,
        Ok(None) => Item::NoRoute,
        Err(failure) => Item::Failed(failure),
    };
    // No further request is accepted, and whoever has come before learns the end.
    requests.close();
    drop(place);
    for (_, follower) in followed.tasks().drain() {
        let _ = follower.items.try_send(left.clone());
    }
}
