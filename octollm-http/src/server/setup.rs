//! What all servers are set up with, and how they come to listen.

use std::{fmt, sync::Arc};

use http::Method;
use octollm_core::{
    dispatcher::Dispatcher,
    transport::{NoArms, Transport},
};

use super::{
    config::ServerConfig,
    endpoints::{Contract, Execute, Health, Ready},
    error::ServeError,
    routes::RouteTable,
    service::HttpService,
    vitals::{Check, Vitals},
};

/// What the three servers have in common before they are built.
pub(crate) struct Setup {
    pub(crate) dispatcher: Dispatcher,
    pub(crate) transport: Arc<dyn Transport>,
    pub(crate) config: ServerConfig,
    pub(crate) checks: Vec<Check>,
    pub(crate) open_to_all: bool,
}

impl Setup {
    pub(crate) fn new(id: impl Into<String>) -> Self {
        Self {
            dispatcher: Dispatcher::new(id),
            transport: Arc::new(NoArms),
            config: ServerConfig::default(),
            checks: Vec::new(),
            open_to_all: false,
        }
    }

    /// Checks the limits, and makes the routes that every server has.
    pub(crate) fn into_parts(self) -> Result<ServerParts, ServeError> {
        let Self { dispatcher, transport, config, checks, .. } = self;
        config.check()?;
        let (dispatcher, vitals) =
            (Arc::new(dispatcher), Arc::new(Vitals::new(checks, config.check_timeout)));
        let mut routes = RouteTable::default();
        let version = dispatcher.card().version.clone();
        routes.add(Method::GET, "/health", Health { vitals: vitals.clone(), version })?;
        routes.add(Method::GET, "/ready", Ready { vitals: vitals.clone() })?;
        Ok(ServerParts { dispatcher, transport, config, vitals, routes })
    }
}

/// A server whose own routes are still to come.
pub(crate) struct ServerParts {
    pub(crate) dispatcher: Arc<Dispatcher>,
    pub(crate) vitals: Arc<Vitals>,
    pub(crate) routes: RouteTable,
    pub(crate) transport: Arc<dyn Transport>,
    config: ServerConfig,
}

impl ServerParts {
    /// Adds the routes of the contracts. The server's own come first, so that it is a contract's that is told to be
    /// taken.
    pub(crate) fn with_contracts(mut self) -> Result<Self, ServeError> {
        let execute = Execute { dispatcher: self.dispatcher.clone(), transport: self.transport.clone() };
        self.routes.add(Method::POST, "/execute", execute)?;
        for (position, route) in self.dispatcher.routes().iter().enumerate() {
            let (contract, path) = (route.contract().clone(), route.spec().path);
            let (dispatcher, transport) = (self.dispatcher.clone(), self.transport.clone());
            self.routes.contract(path, Contract { dispatcher, contract, position, transport })?;
        }
        Ok(self)
    }

    pub(crate) fn build(self) -> (HttpService, Arc<Vitals>) {
        (HttpService::new(self.routes, self.config), self.vitals)
    }
}

impl fmt::Debug for Setup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Setup")
            .field("dispatcher", &self.dispatcher)
            .field("config", &self.config)
            .field("checks", &self.checks)
            .finish_non_exhaustive()
    }
}

/// Writes the methods that all servers have. Their `build` says what is their own.
macro_rules! common_methods {
    () => {
        /// What the server is for, in a sentence or two.
        #[must_use]
        pub fn description(mut self, description: impl Into<String>) -> Self {
            self.setup.dispatcher.card_mut().description = description.into();
            self
        }

        /// The version of the program that serves.
        #[must_use]
        pub fn version(mut self, version: impl Into<String>) -> Self {
            self.setup.dispatcher.card_mut().version = version.into();
            self
        }

        /// The arms that may be called from here.
        #[must_use]
        pub fn arms(mut self, arms: impl octollm_core::transport::Transport) -> Self {
            self.setup.transport = std::sync::Arc::new(arms);
            self
        }

        /// Replaces the limits. They are checked when the server is built.
        #[must_use]
        pub fn config(mut self, config: crate::server::ServerConfig) -> Self {
            self.setup.config = config;
            self
        }

        /// Adds something that must hold for `GET /ready` to say so. A check of the same name is kept as well.
        #[must_use]
        pub fn check<F, Fut>(mut self, name: impl Into<String>, check: F) -> Self
        where
            F: Fn() -> Fut + Send + Sync + 'static,
            Fut: std::future::Future<Output = bool> + Send + 'static,
        {
            self.setup.checks.push(crate::server::vitals::Check::new(name.into(), check));
            self
        }

        /// Allows to listen where other machines can reach it, though nobody's token is checked.
        #[must_use]
        pub fn open_to_all(mut self) -> Self {
            self.setup.open_to_all = true;
            self
        }

        /// Listens, and serves until SIGTERM or Ctrl-C; then lets what is running come to its end: see
        /// [`run_until_signal`](crate::server::BoundServer::run_until_signal).
        ///
        /// # Errors
        /// A [`ServeError`](crate::server::ServeError), as the error of a whole program, when it cannot be built or
        /// cannot listen.
        ///
        /// # Cancel safety
        /// Dropping the future closes the server and every connection at once.
        pub async fn serve(
            self,
            address: impl tokio::net::ToSocketAddrs,
        ) -> Result<(), octollm_core::error::Error> {
            self.bind(address).await?.run_until_signal().await;
            Ok(())
        }

        /// Listens, and serves nothing yet. Port 0 has the system choose one.
        ///
        /// # Errors
        /// A [`ServeError`](crate::server::ServeError) when it cannot be built or cannot listen.
        pub async fn bind(
            self,
            address: impl tokio::net::ToSocketAddrs,
        ) -> Result<crate::server::BoundServer, crate::server::ServeError> {
            let open_to_all = self.setup.open_to_all;
            let (service, vitals) = self.build()?;
            crate::server::BoundServer::bind(address, open_to_all, service, vitals).await
        }

        /// The server as a tower service, to mount into a server that exists already. Limits on connections are then that
        /// server's; those on requests hold.
        ///
        /// # Errors
        /// A [`ServeError`](crate::server::ServeError) when it cannot be built.
        pub fn try_into_service(self) -> Result<crate::server::HttpService, crate::server::ServeError> {
            self.build().map(|(service, _)| service)
        }

        /// As [`try_into_service`](Self::try_into_service); a server that cannot be built is logged as an error, and
        /// answers 500 to everything.
        pub fn into_service(self) -> crate::server::HttpService {
            self.try_into_service().unwrap_or_else(crate::server::HttpService::broken)
        }
    };
}

pub(crate) use common_methods;
