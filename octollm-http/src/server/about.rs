//! What a server publishes about itself: its card, its metrics, its documentation, and whether it is ready.

use std::{future::Future, time::Duration};

use octollm_core::contract::TaskContract;

use super::{Server, arm::Check};

/// Who may read the metrics.
#[derive(Default)]
pub(crate) enum Metrics {
    #[default]
    Everybody,
    Scope(String),
    Nobody,
}

/// What a server publishes about itself.
impl Server {
    /// Adds the scope of a contract that an arm of this server calls to the `needs` of the card. Callers delegate no other scopes.
    pub fn needs<C: TaskContract>(self) -> Self {
        self.needs_scope(C::SPEC.scope)
    }

    /// Adds a scope to the `needs` of the card, as [`needs`](Self::needs) does. The server is not built with a text that is
    /// [no scope](octollm_core::parts::is_scope), or with more than [`MAX_NEEDS`](octollm_core::card::MAX_NEEDS).
    pub fn needs_scope(mut self, scope: impl Into<String>) -> Self {
        let (needs, scope) = (&mut self.dispatcher.card_mut().needs, scope.into());
        if !needs.contains(&scope) {
            needs.push(scope);
        }
        self
    }

    /// Serves the public keys of an issuer at `GET /.well-known/jwks.json`.
    #[cfg(feature = "tokens")]
    pub fn jwks(mut self, keys: crate::token::KeySet) -> Self {
        self.jwks = Some(keys);
        self
    }

    /// Sets the description in the card: the purpose of the server, in a sentence or two.
    pub fn description(mut self, description: impl Into<String>) -> Self {
        self.dispatcher.card_mut().description = description.into();
        self
    }

    /// Sets the version of the program in the card.
    pub fn version(mut self, version: impl Into<String>) -> Self {
        self.dispatcher.card_mut().version = version.into();
        self
    }

    /// Sets the cost tier of the arms in the card, from 1 (cheap) to 5. Default 3.
    pub fn cost_tier(mut self, tier: u8) -> Self {
        self.dispatcher.card_mut().cost_tier = tier;
        self
    }

    /// Sets the URL in the card, such as `http://judge-arm:8103`. By default the card has none: a server does not know the name and
    /// the scheme by which its callers reach it, and a client uses the URL that it was given.
    pub fn endpoint(mut self, endpoint: impl Into<String>) -> Self {
        self.dispatcher.card_mut().endpoint = Some(endpoint.into());
        self
    }

    /// Requires a scope for `GET /metrics`, such as `metrics:read`. By default everybody who reaches the server may read the
    /// metrics, as with `GET /capabilities`.
    pub fn metrics_scope(mut self, scope: impl Into<String>) -> Self {
        self.metrics = Metrics::Scope(scope.into());
        self
    }

    /// Leaves out `GET /metrics`. [`metrics::page`](octollm_core::metrics::page) returns its text.
    pub fn without_metrics(mut self) -> Self {
        self.metrics = Metrics::Nobody;
        self
    }

    /// Leaves out `GET /docs`, the page that displays `/openapi.json` in a browser. By default everybody who reaches the server may
    /// read both, as with `GET /capabilities`.
    pub fn without_docs(mut self) -> Self {
        self.has_docs = false;
        self
    }

    /// Adds a readiness check. `GET /ready` answers 200 if all of them return `true`, and else 503. A check that panics or exceeds
    /// [`check_timeout`](Self::check_timeout) has failed. Several checks of one name are reported as one, which holds if all of them
    /// do.
    ///
    /// All checks run at once. Requests that arrive while they run receive the result of that run, so that probes of many load
    /// balancers do not add up. The run ends with the last of those requests.
    ///
    /// ```
    /// # use octollm_core::{orchestrator::Orchestrator, brain::Brain, Context, task::TaskQuery};
    /// # use octollm_http::Server;
    /// # fn checked(brain: Brain) -> Server {
    /// let store = brain.clone();
    /// Server::new("brain").orchestrator(brain).check("store", move || {
    ///     let store = store.clone();
    ///     async move { store.list(TaskQuery::default().limit(1), &Context::detached()).await.is_ok() }
    /// })
    /// # }
    /// ```
    pub fn check<F, Fut>(mut self, name: impl Into<String>, check: F) -> Self
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = bool> + Send + 'static,
    {
        self.checks.push(Check::new(name.into(), None, check));
        self
    }

    /// Adds a readiness check as [`check`](Self::check) does, with a time limit of its own, at most a year.
    pub fn check_within<F, Fut>(mut self, name: impl Into<String>, limit: Duration, check: F) -> Self
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = bool> + Send + 'static,
    {
        self.checks.push(Check::new(name.into(), Some(limit), check));
        self
    }
}
