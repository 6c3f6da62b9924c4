//! One HTTP request and its answer, through the layers that a user put in between.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use octollm_core::{contract::ContractRef, deadline::Deadline, error::ErrorKind};
use tower::{Layer, Service, ServiceExt, util::BoxCloneSyncService};

use super::{
    exchange_error::ExchangeError,
    pool::{Pool, Terms},
};

/// What carries requests: the pool of connections, and the layers around it. A layer wraps it and is one again.
///
/// Each request carries a [`Target`] among its extensions. Its body is whole, and so is that of the answer: a layer
/// that sends again never has to ask whether it still can.
pub type Exchange = BoxCloneSyncService<Request<Bytes>, Response<Bytes>, ExchangeError>;

/// What a layer may need to know of a request.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Target {
    /// The arm, or `orchestrator`.
    pub arm: Arc<str>,
    /// Its URL.
    pub endpoint: Arc<str>,
    /// The contract that is called; `None` for what is no call, such as asking for capabilities.
    pub contract: Option<ContractRef>,
    /// Whether doing it twice does no more than doing it once, as far as the caller knows.
    pub idempotent: bool,
    /// After this moment nobody waits any more.
    pub deadline: Option<Deadline>,
    /// How long the server may work before it answers.
    pub work: Duration,
}

/// The pool as it is, or within layers. Without layers nothing is boxed.
#[derive(Clone)]
pub(super) enum Exchanger {
    Plain(Pool),
    Layered(Exchange),
}

impl Exchanger {
    /// Puts a layer around all that is there.
    pub(super) fn layer<L>(self, layer: &L) -> Self
    where
        L: Layer<Exchange>,
        L::Service: Service<Request<Bytes>, Response = Response<Bytes>> + Clone + Send + Sync + 'static,
        <L::Service as Service<Request<Bytes>>>::Error: Into<ExchangeError>,
        <L::Service as Service<Request<Bytes>>>::Future: Send + 'static,
    {
        let inner = match self {
            Self::Plain(pool) => BoxCloneSyncService::new(PoolService(pool)),
            Self::Layered(inner) => inner,
        };
        Self::Layered(BoxCloneSyncService::new(layer.layer(inner).map_err(Into::into)))
    }

    /// Sends a request and reads its answer, until its deadline.
    ///
    /// # Cancel safety
    /// Dropping the future closes the connection: the server sees it.
    pub(super) async fn send(
        &self,
        mut request: Request<Bytes>,
        arm: &Arc<str>,
        terms: Terms,
        target: impl FnOnce() -> Target,
    ) -> Result<Response<Bytes>, ExchangeError> {
        match self {
            Self::Plain(pool) => pool.exchange(request, arm, terms).await,
            Self::Layered(service) => {
                request.extensions_mut().insert(target());
                Deadline::run_until(terms.deadline, service.clone().oneshot(request))
                    .await
                    .unwrap_or_else(|| Err(ExchangeError::of(ErrorKind::DeadlineExceeded)))
            }
        }
    }
}

impl fmt::Debug for Exchanger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Plain(_) => "Plain",
            Self::Layered(_) => "Layered",
        })
    }
}

/// The pool, as the innermost service. Always ready: the wait for a connection is part of the call, where it has a
/// time limit.
#[derive(Clone)]
struct PoolService(Pool);

impl Service<Request<Bytes>> for PoolService {
    type Response = Response<Bytes>;
    type Error = ExchangeError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<Bytes>) -> Self::Future {
        let pool = self.0.clone();
        Box::pin(async move {
            let Some(target) = request.extensions_mut().remove::<Target>() else {
                let error = ExchangeError::new(ErrorKind::Internal, "a layer has removed the target");
                return Err(error.before_execution());
            };
            pool.exchange(request, &target.arm, Terms { deadline: target.deadline, work: target.work }).await
        })
    }
}
