//! The service that all servers are: checks, route, endpoint, answer.

use std::{
    convert::Infallible,
    error::Error,
    fmt,
    future::Future,
    panic::AssertUnwindSafe,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_util::FutureExt;
use http::{Method, Request, Response, request::Parts};
use http_body::Body;
use octollm_core::{
    error::{ErrorKind, Failure},
    parts::ContextParts,
};
use tokio::sync::{Semaphore, SemaphorePermit};

use super::{
    body::{self, BodyLimits, ResponseBody},
    config::ServerConfig,
    error::ServeError,
    fields::{Arrival, Fields},
    intake,
    respond::{Ids, Refusal, Reply, head_only},
    routes::{Endpoint, Inbound, RouteTable, Takes},
};
use crate::wire::read_parts;

/// A server as a tower service: mount it into a server of your own.
///
/// It is always ready, keeps its own limit of requests that run at a time, and never fails: what goes wrong is an
/// answer.
#[derive(Clone)]
pub struct HttpService(Arc<Core>);

pub(crate) struct Core {
    pub(crate) routes: RouteTable,
    pub(crate) config: ServerConfig,
    places: Semaphore,
    broken: bool,
}

/// An answer on its way.
pub type ResponseFuture = Pin<Box<dyn Future<Output = Result<Response<ResponseBody>, Infallible>> + Send>>;

impl<B> tower::Service<Request<B>> for HttpService
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    type Response = Response<ResponseBody>;
    type Error = Infallible;
    type Future = ResponseFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> ResponseFuture {
        let core = self.0.clone();
        Box::pin(async move { Ok(core.answer(request, Arrival::Mounted).await) })
    }
}

impl fmt::Debug for HttpService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpService").field("config", &self.0.config).finish_non_exhaustive()
    }
}

impl HttpService {
    pub(crate) fn new(routes: RouteTable, config: ServerConfig) -> Self {
        let places = Semaphore::new(config.max_in_flight);
        Self(Arc::new(Core { routes, config, places, broken: false }))
    }

    /// What stands for a server that could not be built.
    pub(crate) fn broken(error: ServeError) -> Self {
        let cause = error.source().map(ToString::to_string).unwrap_or_default();
        tracing::error!(%error, cause, "server cannot be built; it answers 500");
        let places = Semaphore::new(0);
        Self(Arc::new(Core {
            routes: RouteTable::default(),
            config: ServerConfig::default(),
            places,
            broken: true,
        }))
    }

    pub(crate) fn core(&self) -> &Arc<Core> {
        &self.0
    }
}

impl Core {
    /// Answers one request.
    ///
    /// # Cancel safety
    /// Everything runs inside this future: dropping it drops the arm's.
    pub(crate) async fn answer<B>(&self, request: Request<B>, arrival: Arrival) -> Response<ResponseBody>
    where
        B: Body<Data = Bytes>,
        B::Error: Into<Box<dyn Error + Send + Sync>>,
    {
        let (head, body) = request.into_parts();
        let (parts, limits) = match read_parts(&head.headers) {
            Ok(parts) => (parts, None),
            Err((failure, parts)) => (*parts, Some(failure)),
        };
        let ids = Ids::of(&head.headers, &parts);
        let result = match self.admit(&head, &parts, limits, arrival) {
            Ok(admitted) => self.reply(&head, body, parts, admitted).await,
            Err(refusal) => Err(refusal),
        };
        let response = ids.respond(result);
        if head.method == Method::HEAD { head_only(response) } else { response }
    }

    async fn reply<B>(
        &self,
        head: &Parts,
        body: B,
        parts: ContextParts,
        admitted: Admitted<'_>,
    ) -> Result<Reply, Refusal>
    where
        B: Body<Data = Bytes>,
        B::Error: Into<Box<dyn Error + Send + Sync>>,
    {
        let body = match admitted.endpoint.takes() {
            Takes::Json => {
                let (bytes, time) = (self.config.max_body, self.config.body_timeout);
                body::read(body, BodyLimits { bytes, time, deadline: parts.deadline }).await?
            }
            Takes::Place | Takes::Probe => Bytes::new(),
        };
        let call = admitted.endpoint.call(Inbound { parts, head, id: admitted.id, body });
        // Arms catch their own panics; this is for orchestrators, reflexes and checks.
        AssertUnwindSafe(call).catch_unwind().await.unwrap_or_else(|_| {
            tracing::error!(path = head.uri.path(), "endpoint panicked");
            Err(Failure::of(ErrorKind::Internal).into())
        })
    }

    /// All that is decided by the head.
    fn admit<'a>(
        &'a self,
        head: &'a Parts,
        parts: &ContextParts,
        malformed: Option<Failure>,
        arrival: Arrival,
    ) -> Result<Admitted<'a>, Refusal> {
        if self.broken {
            return Err(Failure::new(ErrorKind::Internal, "this server is misconfigured")
                .before_execution()
                .into());
        }
        let fields = Fields::of(&head.headers);
        fields.check_framing(arrival, head.version)?;
        intake::check_head(head, &self.config)?;
        fields.check()?;
        if let Some(failure) = malformed {
            return Err(failure.into());
        }
        let (endpoint, id) = self.routes.find(&head.method, head.uri.path())?;
        fields.check_accept()?;
        let takes = endpoint.takes();
        if takes == Takes::Json {
            fields.check_content()?;
        }
        let place = match takes {
            Takes::Probe => None,
            Takes::Place | Takes::Json => Some(self.places.try_acquire().map_err(|_| overloaded())?),
        };
        if takes != Takes::Probe && parts.deadline.is_some_and(|deadline| deadline.has_passed()) {
            return Err(Failure::of(ErrorKind::DeadlineExceeded).before_execution().into());
        }
        Ok(Admitted { endpoint: endpoint.as_ref(), id, _place: place })
    }
}

struct Admitted<'a> {
    endpoint: &'a dyn Endpoint,
    id: &'a str,
    _place: Option<SemaphorePermit<'a>>,
}

fn overloaded() -> Failure {
    let mut failure = Failure::of(ErrorKind::Overloaded);
    failure.retry_after = Some(Duration::from_secs(1));
    failure
}
