//! The way from the settings of a server to its service.

use std::sync::Arc;

use http::Method;
use octollm_core::{card::MAX_NEEDS, error::ConfigError, id::is_arm_id, parts::is_scope};

#[cfg(feature = "ws")]
use super::socket;
use super::{
    HttpService, Server,
    about::Metrics,
    arm::{self, ArmCapabilities, HealthState, MetricsPage, Written},
    bus_events::BusEvents,
    dead_letters,
    docs::DocsPage,
    events::LiveStreams,
    identity::Identity,
    listen::Built,
    openapi::{Document, Features},
    registry::{self, TokenNames},
    routes::{ErrorForm, RouteTable},
    tasks::{self, Screen},
};
use crate::limits::{SHORTEST, ServerConfig, YEAR, within};

impl Server {
    /// Fails if nothing establishes who calls what others can reach.
    pub(super) fn guarded(&self, exposed: impl FnOnce() -> String) -> Result<(), ConfigError> {
        #[cfg(feature = "tokens")]
        if self.tokens.is_some() {
            return Ok(());
        }
        if self.identity.is_decided() {
            return Ok(());
        }
        let problem = format!(
            "is not set, so that nothing establishes who calls {}, which others can reach: set {TOKENS}`authenticate(..)`, \
             `identity_from_extensions()` or, to let everybody call everything, `open_to_all()`{}",
            exposed(),
            self.exposure.alternatives()
        );
        Err(ConfigError::new("authenticate", problem))
    }

    pub(super) fn build(mut self) -> Result<Built, ConfigError> {
        self.announcing.put_key(self.dispatcher.card_mut())?;
        self.check_settings()?;
        let names = self.verifier()?;
        let Self { dispatcher, transport, orchestrator, errors, .. } = self;
        let health = Arc::new(HealthState::new(self.checks, self.config.check_timeout));
        let dispatcher = Arc::new(dispatcher);
        let (rates, guards) =
            self.limiting.build(&dispatcher, orchestrator.is_some(), &self.config, self.bus.clone())?;
        let own = ArmCapabilities { dispatcher: dispatcher.clone(), health: health.clone() };
        let mut table = RouteTable::new(&dispatcher.card().arm_id);
        // Before the routes of contracts: of two routes with one path the error names the contract.
        arm::add_probes(&mut table, &own)?;
        let (screens, has_tasks) = (self.reflex.is_some(), orchestrator.is_some());
        let nested_errors = errors == ErrorForm::Nested;
        let (has_registry, verifies_tokens) = (self.registry.is_some(), self.verifies_tokens);
        let has_dead_letters = self.dead_letters.is_some();
        let features =
            Features { nested_errors, screens, has_tasks, has_registry, has_dead_letters, verifies_tokens };
        let mut document = Document::new(&dispatcher, features);
        #[cfg(feature = "tokens")]
        if self.jwks.is_some() {
            document = document.with_jwks();
        }
        #[cfg(feature = "ws")]
        if has_tasks {
            document.add_sockets();
        }
        if has_tasks && self.bus.is_some() {
            document.add_events();
        }
        let page = metrics_page(self.metrics)?;
        if let Some(page) = page {
            document.add_metrics(page.scope.as_deref());
            table.add(Method::GET, "/metrics", page)?;
        }
        if self.has_docs {
            document.add_page();
            table.add(Method::GET, "/docs", DocsPage)?;
        }
        #[cfg(feature = "dashboard")]
        if has_tasks && self.has_dashboard {
            super::dashboard::add_dashboard(&mut table, &mut document)?;
        }
        table.add(Method::GET, "/openapi.json", Written(document.write()))?;
        let ServerConfig { reflex_timeout: limit, max_screened_texts: max_texts, .. } = self.config;
        let screen =
            self.reflex.map(|reflex| Screen { reflex, transport: transport.clone(), limit, max_texts });
        let live = LiveStreams { ping: self.config.event_ping, end: health.streams() };
        tasks::add_tasks(
            &mut table,
            own,
            screen,
            (orchestrator.clone(), self.registry.clone()),
            rates.clone(),
            live.clone(),
        )?;
        #[cfg(feature = "ws")]
        if let Some(orchestrator) = &orchestrator {
            socket::add_sockets(&mut table, orchestrator, &live, self.origins, &self.config)?;
        }
        if let (Some(bus), Some(orchestrator)) = (&self.bus, &orchestrator) {
            let (bus, orchestrator) = (bus.clone(), orchestrator.clone());
            table.add(Method::GET, "/events", BusEvents { bus, orchestrator, live })?;
        }
        if let Some(registry) = self.registry {
            registry::add_registry(
                &mut table,
                registry,
                (&dispatcher.card().arm_id, names),
                orchestrator.iter().flat_map(|orchestrator| orchestrator.configured_arms()),
                self.bus.clone(),
            )?;
        }
        if let Some(bus) = &self.dead_letters {
            dead_letters::add_dead_letters(&mut table, bus)?;
        }
        arm::add_contracts(
            &mut table,
            &dispatcher,
            &transport,
            rates.clone(),
            guards,
            self.config.event_ping,
        )?;
        #[cfg(feature = "tokens")]
        if let Some(keys) = self.jwks {
            table.add(Method::GET, "/.well-known/jwks.json", arm::Jwks(keys))?;
        }
        for (method, path, service) in self.routes {
            table.service(method, &path, service)?;
        }
        let identity = Identity { limit: self.config.authenticate_timeout, ..self.identity };
        let (card, lifetime) = (dispatcher.card().clone(), self.config.registration_lifetime);
        let service =
            HttpService::new(table, self.config, identity, errors, rates, (self.audit, self.is_compressing));
        let service = self.layers.into_iter().fold(service, |service, layer| layer(service));
        let announcing = (self.announcing, card, lifetime);
        Ok(Built { service, health, orchestrator, bus: self.bus, announcing })
    }

    /// Builds the verifier of tokens. Returns the names in its tokens.
    #[cfg_attr(not(feature = "tokens"), expect(clippy::unnecessary_wraps, clippy::unused_self))]
    fn verifier(&mut self) -> Result<TokenNames, ConfigError> {
        #[cfg(feature = "tokens")]
        {
            if let Some(verifier) = self.tokens.take() {
                let verifier = verifier.audience_or(&self.dispatcher.card().arm_id).build()?;
                self.identity.authenticator = Some(Arc::new(verifier.clone()));
                self.verifier = Some(verifier);
            }
            if let Some(verifier) = &self.verifier {
                let (audiences, issuers) = verifier.names();
                return Ok(TokenNames { audiences, issuers });
            }
        }
        Ok(TokenNames::default())
    }

    fn check_registry(&self) -> Result<(), ConfigError> {
        let Some(registry) = &self.registry else { return Ok(()) };
        let refused = |problem: &'static str| Err(ConfigError::new("registry", problem));
        if self.orchestrator.is_none() {
            return refused("needs an orchestrator: set `orchestrator(..)`");
        }
        if self.identity.open_to_all && !self.checks_callers() && registry.allows_by_default() {
            return refused(
                "allows the endpoints of this machine by default, and everybody could register those: set the URLs of the arms \
                 with `allow(..)`, such as `http://judge-arm:8103`",
            );
        }
        Ok(())
    }

    fn check_settings(&self) -> Result<(), ConfigError> {
        self.config.validate()?;
        for limit in self.checks.iter().filter_map(|check| check.limit) {
            within("check_within", SHORTEST, limit, YEAR)?;
        }
        within("cost_tier", 1, self.dispatcher.card().cost_tier, 5)?;
        if !is_arm_id(&self.dispatcher.card().arm_id) {
            let problem = "is not an id of at most 128 lower-case letters, digits and dashes, of which the first is a letter";
            return Err(ConfigError::new("id", problem));
        }
        check_needs(&self.dispatcher.card().needs)?;
        self.check_registry()?;
        if let Some(refused) = self.dispatcher.refused().first() {
            return Err(refused.clone());
        }
        Ok(())
    }
}

fn metrics_page(metrics: Metrics) -> Result<Option<MetricsPage>, ConfigError> {
    match metrics {
        Metrics::Everybody => Ok(Some(MetricsPage { scope: None })),
        Metrics::Scope(scope) if scope.contains(':') => Ok(Some(MetricsPage { scope: Some(scope) })),
        Metrics::Scope(_) => Err(ConfigError::new("metrics_scope", "is not a scope such as metrics:read")),
        Metrics::Nobody => Ok(None),
    }
}

/// A way to establish who calls, where it is there.
const TOKENS: &str = if cfg!(feature = "tokens") { "`tokens(..)`, " } else { "" };

fn check_needs(needs: &[String]) -> Result<(), ConfigError> {
    if let Some(need) = needs.iter().find(|need| !is_scope(need)) {
        return Err(ConfigError::new("needs", format!("has {need:?}, which is no scope: use `entity:verb`")));
    }
    within("needs", 0, needs.len(), MAX_NEEDS)
}
