//! Keys from a URL: when they are fetched, by which request, and for how long they are valid.

use std::{
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::{Either, select};
use http::{Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use octollm_core::error::InvalidValue;
use tokio::{
    runtime::Handle,
    sync::watch,
    time::{Instant, timeout},
};
use tower::BoxError;

use super::key_set::KeySet;
use crate::io::{ClientTls, Connector, Tcp, is_loopback};

/// Age at which fetched keys are fetched again.
const REFETCH: Duration = Duration::from_secs(5 * 60);
/// Time without an attempt after which a verification waits for the next: nothing was verified for that long.
const IDLE: Duration = Duration::from_secs(6 * 60);
/// Shortest time between two attempts.
const BETWEEN: Duration = Duration::from_secs(30);
/// The same, until keys were fetched once.
const FIRST: Duration = Duration::from_secs(1);
/// Time for which fetched keys are valid, if they cannot be fetched again.
const VALID: Duration = Duration::from_secs(60 * 60);
/// Time limit of an attempt, which is below that of the authentication in a server.
const LIMIT: Duration = Duration::from_secs(3);
/// Most bytes of a set.
const MOST: usize = 256 * 1024;

/// Where the keys of a set are fetched from, and when they were.
#[derive(Clone)]
pub(super) struct Source {
    url: Option<Uri>,
    pub(super) connector: Arc<dyn Connector>,
    pub(super) tls: ClientTls,
    pub(super) validity: Arc<Validity>,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    /// Begin of the last attempt.
    attempted: Option<Instant>,
    /// End of the last attempt that succeeded.
    fetched: Option<Instant>,
    /// Why the last attempt failed.
    problem: Option<Arc<str>>,
    /// Closed when the attempt that runs ends.
    running: Option<watch::Receiver<()>>,
}

impl Source {
    pub(super) fn new() -> Self {
        Self {
            url: None,
            connector: Arc::new(Tcp),
            tls: Default::default(),
            validity: Arc::new(Validity { base: Instant::now(), until: AtomicU64::new(ALWAYS) }),
            state: Arc::default(),
        }
    }

    pub(super) fn set_url(&mut self, url: &str) -> Result<(), InvalidValue> {
        let invalid = |reason: &'static str| InvalidValue::new("URL of keys").because(reason);
        let url: Uri = url.parse().map_err(|_| invalid("it is not a URL"))?;
        let (Some(scheme), Some(authority)) = (url.scheme_str(), url.authority()) else {
            return Err(invalid("it has no scheme or no host"));
        };
        if authority.as_str().contains('@') {
            return Err(invalid("it has a user or a password"));
        }
        match scheme {
            "https" if cfg!(feature = "tls") => {}
            "https" => return Err(invalid("https needs the feature `tls`")),
            "http" if is_loopback(authority.host()) => {}
            _ => return Err(invalid("it is neither https nor http on loopback")),
        }
        self.url = Some(url);
        Ok(())
    }

    pub(super) fn has_url(&self) -> bool {
        self.url.is_some()
    }

    /// Why the last attempt failed.
    pub(super) fn problem(&self) -> Option<Arc<str>> {
        self.state().problem.clone()
    }

    /// Fetches the keys if they are due, or a key is wanted that is not among them, and waits for an attempt that runs.
    pub(super) async fn fetch(&self, keys: &KeySet) {
        if let Some(running) = self.begin(keys, true) {
            ended(running).await;
        }
    }

    /// Begins to fetch the keys if they are due. It waits for that only if none were fetched or tried for long.
    pub(super) async fn keep_fresh(&self, keys: &KeySet) {
        let is_idle = self.is_idle();
        let running = self.begin(keys, false);
        if let Some(running) = running.filter(|_| is_idle) {
            ended(running).await;
        }
    }

    /// Whether nothing was fetched or tried for so long that a verification waits for the next attempt.
    pub(super) fn is_idle(&self) -> bool {
        self.url.is_some() && self.state().attempted.is_some_and(|attempted| attempted.elapsed() >= IDLE)
    }

    /// The attempt that runs, which begins here if one is due. It runs on when its first caller is gone.
    pub(super) fn begin(&self, keys: &KeySet, is_wanted: bool) -> Option<watch::Receiver<()>> {
        self.url.as_ref()?;
        let runtime = Handle::try_current().ok()?;
        let now = Instant::now();
        let mut state = self.state();
        if let Some(running) = state.running(now) {
            return Some(running);
        }
        if !state.is_due(now, is_wanted) {
            return None;
        }
        let (sender, receiver) = watch::channel(());
        (state.attempted, state.running) = (Some(now), Some(receiver.clone()));
        drop(state);
        let keys = keys.clone();
        runtime.spawn(async move {
            keys.source.attempt(&keys).await;
            drop(sender);
        });
        Some(receiver)
    }

    async fn attempt(&self, keys: &KeySet) {
        let fetched = match timeout(LIMIT, self.get()).await {
            Ok(Ok(body)) => replace(keys, &body),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(format!("no answer within {LIMIT:?}").into()),
        };
        let now = Instant::now();
        let mut state = self.state();
        match fetched {
            Ok(()) => {
                (state.fetched, state.problem) = (Some(now), None);
                self.validity.extend(now + VALID);
            }
            Err(error) => {
                tracing::warn!(issuer = keys.issuer(), error, "keys of an issuer were not fetched");
                state.problem = Some(error.to_string().into());
            }
        }
    }

    /// Requests the set. Redirects are not followed.
    async fn get(&self) -> Result<Bytes, BoxError> {
        let url = self.url.as_ref().ok_or("there is no URL")?;
        let io = self.connector.connect(url).await?;
        let (io, _) = self.tls.secure(url, io, &[b"http/1.1"]).await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(io)).await?;
        let path = url.path_and_query().map_or("/", |path| path.as_str());
        let host = url.authority().map_or("", |authority| authority.as_str());
        let request =
            Request::get(path).header(header::HOST, host).header(header::ACCEPT, "application/json");
        let request = request.body(Empty::<Bytes>::new())?;
        let answer = pin!(async move {
            let answer = sender.send_request(request).await?;
            if answer.status() != StatusCode::OK {
                return Err(format!("answered {}", answer.status().as_u16()).into());
            }
            Ok(Limited::new(answer.into_body(), MOST).collect().await?.to_bytes())
        });
        match select(answer, pin!(connection)).await {
            Either::Left((answer, _)) => answer,
            Either::Right((_, answer)) => answer.await,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Whether the keys may be fetched now, and are to be: since they are old, or another key is wanted.
    fn is_due(&self, now: Instant, is_wanted: bool) -> bool {
        let Some(attempted) = self.attempted else { return true };
        let pause = now.saturating_duration_since(attempted);
        match self.fetched {
            None => pause >= FIRST,
            Some(fetched) => {
                pause >= BETWEEN && (is_wanted || now.saturating_duration_since(fetched) >= REFETCH)
            }
        }
    }

    /// The attempt that runs. One whose runtime stands still runs no longer than its limit.
    fn running(&self, now: Instant) -> Option<watch::Receiver<()>> {
        let running = self.running.as_ref().filter(|running| running.has_changed().is_ok())?;
        let is_alive = self.attempted.is_some_and(|attempted| now < attempted + LIMIT);
        is_alive.then(|| running.clone())
    }
}

async fn ended(mut running: watch::Receiver<()>) {
    // Its sender is dropped at the end. The limit is for a runtime that stands still.
    let _ = timeout(LIMIT, running.changed()).await;
}

fn replace(keys: &KeySet, body: &[u8]) -> Result<(), BoxError> {
    Ok(keys.set_jwks(std::str::from_utf8(body)?)?)
}

/// How long the keys of a set are valid.
pub(super) struct Validity {
    base: Instant,
    /// In milliseconds after `base`.
    until: AtomicU64,
}

/// Keys that are not fetched are valid until they are removed.
const ALWAYS: u64 = u64::MAX;

impl Validity {
    pub(super) fn holds(&self) -> bool {
        let until = self.until.load(Ordering::Acquire);
        until == ALWAYS || self.base.elapsed() < Duration::from_millis(until)
    }

    fn extend(&self, end: Instant) {
        let end = end.saturating_duration_since(self.base).as_millis();
        self.until.store(u64::try_from(end).unwrap_or(ALWAYS - 1), Ordering::Release);
    }
}
