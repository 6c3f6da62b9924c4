//! The server of one arm.

use std::sync::Arc;

use http::Method;
use octollm_core::{Arm, contract::TaskContract};

use super::{
    endpoints::{ArmCapabilities, Written},
    error::ServeError,
    openapi::Document,
    service::HttpService,
    setup::{Setup, common_methods},
    vitals::Vitals,
};

/// Serves the contracts of one arm over HTTP.
///
/// Each contract has a route of its own; beside them there are `POST /execute`, which picks the contract by its body, and
/// `GET /capabilities`, `/health`, `/ready` and `/openapi.json`.
#[derive(Debug)]
pub struct ArmServer {
    setup: Setup,
}

impl ArmServer {
    /// A server for the arm of this id, which serves nothing yet.
    pub fn new(arm_id: impl Into<String>) -> Self {
        Self { setup: Setup::new(arm_id) }
    }

    /// Adds a contract, and the arm that serves it. One that is served already is replaced.
    #[must_use]
    pub fn arm<C: TaskContract>(mut self, arm: impl Arm<C>) -> Self {
        self.setup.dispatcher.serve::<C>(arm);
        self
    }

    /// How dear it is to run, from 1 (cheap) to 5; 3 unless told.
    #[must_use]
    pub fn cost_tier(mut self, tier: u8) -> Self {
        self.setup.dispatcher.card_mut().cost_tier = tier.clamp(1, 5);
        self
    }

    /// Where others reach it, such as `http://judge-arm:8103`. Unless told, the card says what the caller used.
    #[must_use]
    pub fn endpoint(mut self, endpoint: impl Into<String>) -> Self {
        self.setup.dispatcher.card_mut().endpoint = Some(endpoint.into());
        self
    }

    common_methods!();

    fn build(self) -> Result<(HttpService, Arc<Vitals>), ServeError> {
        let mut parts = self.setup.into_parts()?;
        let (dispatcher, vitals) = (parts.dispatcher.clone(), parts.vitals.clone());
        let document = Document::of(dispatcher.card()).with_contracts(dispatcher.card()).write();
        parts.routes.add(Method::GET, "/openapi.json", Written(document))?;
        parts.routes.add(Method::GET, "/capabilities", ArmCapabilities { dispatcher, vitals })?;
        Ok(parts.with_contracts()?.build())
    }
}
