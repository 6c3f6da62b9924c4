//! Which routes a server has, and what answers each of them.

use std::sync::Arc;

use http::Method;
use octollm_core::{
    dispatcher::Dispatcher, error::ConfigError, orchestrator::Orchestrator, reflex::Reflex,
    transport::Transport,
};

use super::{
    contracts::{Contract, Execute},
    openapi::Document,
    probes::{ArmCapabilities, Health, HealthState, Ready, Written},
    reply::ErrorForm,
    routes::RouteTable,
    screening::{Preprocess, Screen, ScreenedSubmit},
    tasks::{Cancel, Journal, KnownArms, List, Rerun, Status, Submit},
};

/// What the routes of a server are made of.
pub(crate) struct Parts {
    pub(crate) dispatcher: Arc<Dispatcher>,
    pub(crate) transport: Arc<dyn Transport>,
    pub(crate) health: Arc<HealthState>,
    pub(crate) screen: Option<Arc<dyn Reflex>>,
    pub(crate) orchestrator: Option<Arc<dyn Orchestrator>>,
    pub(crate) errors: ErrorForm,
}

impl Parts {
    /// The routes of the server's own come before those of contracts: where two have the same path, it is the contract that
    /// needs another.
    pub(crate) fn routes(self) -> Result<RouteTable, ConfigError> {
        let mut table = RouteTable::default();
        let (dispatcher, health) = (&self.dispatcher, &self.health);
        let card = dispatcher.card();
        let (health, version) = (health.clone(), card.version.clone());
        table.add(Method::GET, "/health", Health { health: health.clone(), version })?;
        table.add(Method::GET, "/ready", Ready { health: health.clone() })?;
        let mut document = Document::of(card);
        if self.errors == ErrorForm::Nested {
            document = document.with_nested_errors();
        }
        if !card.contracts.is_empty() {
            document = document.with_contracts(card);
        }
        if self.screen.is_some() {
            document = document.with_reflex();
        }
        document = match (&self.orchestrator, &self.screen) {
            (None, _) => document,
            (Some(_), None) => document.with_tasks(),
            (Some(_), Some(_)) => document.with_screened_tasks(),
        };
        table.add(Method::GET, "/openapi.json", Written(document.write()))?;
        self.tasks(&mut table)?;
        self.contracts(&mut table)?;
        Ok(table)
    }

    fn tasks(&self, table: &mut RouteTable) -> Result<(), ConfigError> {
        let own = ArmCapabilities { dispatcher: self.dispatcher.clone(), health: self.health.clone() };
        let screen = self.screen.clone().map(|reflex| Screen { reflex, transport: self.transport.clone() });
        if let Some(screen) = &screen {
            table.add(Method::POST, "/preprocess", Preprocess(screen.clone()))?;
        }
        let Some(orchestrator) = self.orchestrator.clone() else {
            return table.add(Method::GET, "/capabilities", own);
        };
        for path in ["/capabilities", "/arms"] {
            let known = KnownArms { orchestrator: orchestrator.clone(), own: own.clone() };
            table.add(Method::GET, path, known)?;
        }
        match screen {
            Some(screen) => {
                let submit = ScreenedSubmit { screen, orchestrator: orchestrator.clone() };
                table.add(Method::POST, "/tasks", submit)?;
            }
            None => table.add(Method::POST, "/tasks", Submit(orchestrator.clone()))?,
        }
        table.add(Method::GET, "/tasks", List(orchestrator.clone()))?;
        table.add(Method::GET, "/tasks/{id}", Status(orchestrator.clone()))?;
        table.add(Method::DELETE, "/tasks/{id}", Cancel(orchestrator.clone()))?;
        table.add(Method::POST, "/tasks/{id}/rerun", Rerun(orchestrator.clone()))?;
        table.add(Method::GET, "/tasks/{id}/journal", Journal(orchestrator))
    }

    fn contracts(&self, table: &mut RouteTable) -> Result<(), ConfigError> {
        if self.dispatcher.routes().is_empty() {
            return Ok(());
        }
        let (dispatcher, transport) = (&self.dispatcher, &self.transport);
        let execute = Execute { dispatcher: dispatcher.clone(), transport: transport.clone() };
        table.add(Method::POST, "/execute", execute)?;
        for (position, route) in dispatcher.routes().iter().enumerate() {
            let (contract, path) = (route.contract().clone(), route.spec().path);
            let (dispatcher, transport) = (dispatcher.clone(), transport.clone());
            table.contract(path, Contract { dispatcher, contract, position, transport })?;
        }
        Ok(())
    }
}
