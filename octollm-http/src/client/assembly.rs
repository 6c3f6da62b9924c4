//! What all clients are put together from.

use std::{fmt, sync::Arc};

use bytes::Bytes;
use http::{Request, Response};
use tower::{Layer, Service};

use super::{
    config::ClientConfig,
    config_error::ConfigError,
    exchange::{Exchange, Exchanger},
    exchange_error::ExchangeError,
    pool::Pool,
};
use crate::io::{Connector, Tcp};

/// Limits, and layers from the innermost to the outermost.
#[derive(Default)]
pub(super) struct Assembly {
    pub(super) config: ClientConfig,
    pub(super) connector: Option<Arc<dyn Connector>>,
    layers: Vec<Wrap>,
}

type Wrap = Box<dyn FnOnce(Exchanger) -> Exchanger + Send>;

impl Assembly {
    pub(super) fn layer<L>(&mut self, layer: L)
    where
        L: Layer<Exchange> + Send + 'static,
        L::Service: Service<Request<Bytes>, Response = Response<Bytes>> + Clone + Send + Sync + 'static,
        <L::Service as Service<Request<Bytes>>>::Error: Into<ExchangeError>,
        <L::Service as Service<Request<Bytes>>>::Future: Send + 'static,
    {
        self.layers.push(Box::new(move |inner| inner.layer(&layer)));
    }

    /// For a client of this number of arms.
    pub(super) fn build(self, arms: usize) -> Result<Exchanger, ConfigError> {
        self.config.check()?;
        let connector = self.connector.unwrap_or_else(|| Arc::new(Tcp));
        let plain = Exchanger::Plain(Pool::new(self.config, connector, arms));
        Ok(self.layers.into_iter().fold(plain, |inner, wrap| wrap(inner)))
    }
}

impl fmt::Debug for Assembly {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Assembly").field("config", &self.config).field("layers", &self.layers.len()).finish()
    }
}
