//! The server of an orchestrator.

use std::sync::Arc;

use http::Method;
use octollm_core::{Arm, contract::TaskContract, orchestrator::Orchestrator};

use super::{
    endpoints::{ArmCapabilities, Cancel, KnownArms, List, Status, Submit, Written},
    error::ServeError,
    openapi::Document,
    service::HttpService,
    setup::{Setup, common_methods},
    vitals::Vitals,
};

/// Takes tasks over HTTP for an orchestrator, such as a [`Brain`](octollm_core::brain::Brain).
///
/// Beside the routes of an [`ArmServer`](super::ArmServer) it has `POST /tasks`, `GET /tasks`, and `GET` and
/// `DELETE /tasks/{id}`; `GET /capabilities` tells the arms that the orchestrator knows.
#[derive(Debug)]
pub struct OrchestratorServer {
    setup: Setup,
    orchestrator: Shared,
}

struct Shared(Arc<dyn Orchestrator>);

impl OrchestratorServer {
    /// A server for this orchestrator.
    pub fn new(orchestrator: impl Orchestrator) -> Self {
        Self { setup: Setup::new("orchestrator"), orchestrator: Shared(Arc::new(orchestrator)) }
    }

    /// Serves a contract as well, by a route of its own: a brain is an arm of every contract that it runs.
    #[must_use]
    pub fn arm<C: TaskContract>(mut self, arm: impl Arm<C>) -> Self {
        self.setup.dispatcher.serve::<C>(arm);
        self
    }

    common_methods!();

    fn build(self) -> Result<(HttpService, Arc<Vitals>), ServeError> {
        let Shared(orchestrator) = self.orchestrator;
        let mut parts = self.setup.into_parts()?;
        let card = parts.dispatcher.card();
        let document = Document::of(card).with_contracts(card).with_tasks().write();
        let own = ArmCapabilities { dispatcher: parts.dispatcher.clone(), vitals: parts.vitals.clone() };
        let routes = &mut parts.routes;
        routes.add(Method::GET, "/openapi.json", Written(document))?;
        routes.add(Method::GET, "/capabilities", KnownArms { orchestrator: orchestrator.clone(), own })?;
        routes.add(Method::POST, "/tasks", Submit(orchestrator.clone()))?;
        routes.add(Method::GET, "/tasks", List(orchestrator.clone()))?;
        routes.add(Method::GET, "/tasks/{id}", Status(orchestrator.clone()))?;
        routes.add(Method::DELETE, "/tasks/{id}", Cancel(orchestrator))?;
        Ok(parts.with_contracts()?.build())
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Orchestrator")
    }
}
