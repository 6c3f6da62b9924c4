//! Sending HTTP requests: over the pool of connections, and through the layers of a user.

use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response};
use octollm_core::{
    deadline::Deadline,
    error::{ConfigError, ErrorKind, Failure},
};
use tower::{BoxError, Layer, Service, ServiceExt, service_fn, util::BoxCloneSyncService};

use super::{
    exchange::{ClientConfig, ExchangeError, ExchangeLimits, Target},
    pool::Pool,
};
use crate::io::{ClientTls, Connector, Tcp};

/// The service around which a [`request_layer`](super::ArmsBuilder::request_layer) is added. It sends a request and reads its
/// answer.
///
/// Each request has a [`Target`] among its extensions. Bodies are whole in both directions, so that a layer can always send a
/// request again.
///
/// If a layer returns a [`Failure`] as its error, the call fails with it. Any other error of a layer becomes the source of the
/// call's error.
pub type Exchange = BoxCloneSyncService<Request<Bytes>, Response<Bytes>, BoxError>;

/// How requests are sent: limits, connections, and layers from the innermost to the outermost.
#[derive(Default)]
pub(super) struct Requests {
    pub(super) config: ClientConfig,
    pub(super) connector: Option<Arc<dyn Connector>>,
    pub(super) tls: ClientTls,
    layers: Vec<Wrap>,
}

type Wrap = Box<dyn FnOnce(Exchange) -> Exchange + Send + Sync>;

impl Requests {
    /// Adds a layer around the others.
    pub(super) fn layer<L>(&mut self, layer: L)
    where
        L: Layer<Exchange> + Send + Sync + 'static,
        L::Service: Service<Request<Bytes>, Response = Response<Bytes>> + Clone + Send + Sync + 'static,
        <L::Service as Service<Request<Bytes>>>::Error: Into<BoxError>,
        <L::Service as Service<Request<Bytes>>>::Future: Send + 'static,
    {
        self.layers.push(Box::new(move |inner| {
            BoxCloneSyncService::new(layer.layer(inner).map_err(Into::<BoxError>::into))
        }));
    }

    /// Builds the exchanger for this number of arms.
    pub(super) fn build(self, arms: usize) -> Result<Exchanger, ConfigError> {
        self.config.validate()?;
        let connector = self.connector.unwrap_or_else(|| Arc::new(Tcp));
        let pool = Pool::new(self.config, connector, self.tls, arms);
        if self.layers.is_empty() {
            return Ok(Exchanger::Plain(pool));
        }
        let exchange = self.layers.into_iter().fold(innermost(pool), |inner, wrap| wrap(inner));
        Ok(Exchanger::Layered(exchange))
    }
}

/// Declares the setters of a builder with a field `requests`.
macro_rules! request_setters {
    ($Builder:ident) => {
        impl $Builder {
            /// Sets the connector that opens connections, in place of TCP.
            pub fn connector(mut self, connector: impl crate::io::Connector) -> Self {
                self.requests.connector = Some(std::sync::Arc::new(connector));
                self
            }

            /// Sets the configuration of TLS for `https` URLs: trusted roots, a certificate of the client. By default the roots
            /// of the system are trusted, which are read with the first such connection of the process. ALPN is always
            /// `http/1.1`.
            #[cfg(feature = "tls")]
            pub fn tls(
                mut self,
                config: impl Into<std::sync::Arc<crate::io::rustls::ClientConfig>>,
            ) -> Self {
                self.requests.tls = crate::io::ClientTls::new(config.into());
                self
            }

            /// Adds a tower layer around each HTTP request and its answer, for example to add a header. Requests for cards pass
            /// it too. The layer added last is the outermost.
            pub fn request_layer<L>(mut self, layer: L) -> Self
            where
                L: tower::Layer<Exchange> + Send + Sync + 'static,
                L::Service: tower::Service<http::Request<Bytes>, Response = http::Response<Bytes>>
                    + Clone
                    + Send
                    + Sync
                    + 'static,
                <L::Service as tower::Service<http::Request<Bytes>>>::Error: Into<tower::BoxError>,
                <L::Service as tower::Service<http::Request<Bytes>>>::Future: Send + 'static,
            {
                self.requests.layer(layer);
                self
            }

            fn config_mut(&mut self) -> &mut super::exchange::ClientConfig {
                &mut self.requests.config
            }
        }

        super::exchange::client_limits!(limits_setters $Builder);
    };
}
pub(super) use request_setters;

/// The pool as a service. It is always ready: the wait for a connection is part of the call, where it has a time limit.
fn innermost(pool: Pool) -> Exchange {
    BoxCloneSyncService::new(service_fn(move |mut request: Request<Bytes>| {
        let pool = pool.clone();
        async move {
            let Some(Target { arm, deadline, work, .. }) = request.extensions_mut().remove() else {
                let failure = Failure::new(ErrorKind::Internal, "a layer has removed the target");
                return Err(failure.before_execution().into());
            };
            let answer = pool.exchange(request, &arm, ExchangeLimits { deadline, work }).await;
            answer.map_err(BoxError::from)
        }
    }))
}

/// The pool, alone or within layers. Without layers nothing is boxed.
#[derive(Clone)]
pub(super) enum Exchanger {
    Plain(Pool),
    Layered(Exchange),
}

impl Exchanger {
    /// Sends a request and reads its answer, until its deadline.
    ///
    /// # Cancel safety
    /// Dropping the future closes the connection, which the server sees.
    pub(super) async fn send(
        &self,
        mut request: Request<Bytes>,
        arm: &Arc<str>,
        limits: ExchangeLimits,
        target: impl FnOnce() -> Target,
    ) -> Result<Response<Bytes>, ExchangeError> {
        match self {
            Self::Plain(pool) => pool.exchange(request, arm, limits).await,
            Self::Layered(service) => {
                request.extensions_mut().insert(target());
                match Deadline::run_until(limits.deadline, service.clone().oneshot(request)).await {
                    Some(answer) => answer.map_err(Into::into),
                    None => Err(Failure::of(ErrorKind::DeadlineExceeded).into()),
                }
            }
        }
    }
}
