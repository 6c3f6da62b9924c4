//! The server of a reflex.

use std::{fmt, sync::Arc};

use http::Method;
use octollm_core::{orchestrator::Orchestrator, reflex::Reflex};

use super::{
    endpoints::{
        ArmCapabilities, Cancel, KnownArms, List, Preprocess, Screen, ScreenedSubmit, Status, Written,
    },
    error::ServeError,
    openapi::Document,
    service::HttpService,
    setup::{Setup, common_methods},
    vitals::Vitals,
};

/// Screens what comes in, by itself or in front of an orchestrator.
///
/// `POST /preprocess` tells what the reflex makes of a text. With an orchestrator behind it, `POST /tasks` forwards what
/// passes, and the other routes of tasks are the orchestrator's own. A task that the reflex answers by itself comes back
/// completed, with 200 in place of 202; nobody keeps it.
#[derive(Debug)]
pub struct ReflexServer {
    setup: Setup,
    kept: Kept,
}

struct Kept {
    reflex: Arc<dyn Reflex>,
    orchestrator: Option<Arc<dyn Orchestrator>>,
}

impl ReflexServer {
    /// A server for this reflex, or chain of reflexes.
    pub fn new(reflex: impl Reflex) -> Self {
        Self { setup: Setup::new("reflex"), kept: Kept { reflex: Arc::new(reflex), orchestrator: None } }
    }

    /// Puts it in front of an orchestrator: a brain, or a client of one elsewhere.
    #[must_use]
    pub fn orchestrator(mut self, orchestrator: impl Orchestrator) -> Self {
        self.kept.orchestrator = Some(Arc::new(orchestrator));
        self
    }

    common_methods!();

    fn build(self) -> Result<(HttpService, Arc<Vitals>), ServeError> {
        let Kept { reflex, orchestrator } = self.kept;
        let mut parts = self.setup.into_parts()?;
        let screen = Screen { reflex, transport: parts.transport.clone() };
        let mut document = Document::of(parts.dispatcher.card()).with_reflex();
        let own = ArmCapabilities { dispatcher: parts.dispatcher.clone(), vitals: parts.vitals.clone() };
        let routes = &mut parts.routes;
        routes.add(Method::POST, "/preprocess", Preprocess(screen.clone()))?;
        match orchestrator {
            None => routes.add(Method::GET, "/capabilities", own)?,
            Some(orchestrator) => {
                document = document.with_screened_tasks();
                routes.add(
                    Method::GET,
                    "/capabilities",
                    KnownArms { orchestrator: orchestrator.clone(), own },
                )?;
                let submit = ScreenedSubmit { screen, orchestrator: orchestrator.clone() };
                routes.add(Method::POST, "/tasks", submit)?;
                routes.add(Method::GET, "/tasks", List(orchestrator.clone()))?;
                routes.add(Method::GET, "/tasks/{id}", Status(orchestrator.clone()))?;
                routes.add(Method::DELETE, "/tasks/{id}", Cancel(orchestrator))?;
            }
        }
        routes.add(Method::GET, "/openapi.json", Written(document.write()))?;
        Ok(parts.build())
    }
}

impl fmt::Debug for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kept").field("orchestrator", &self.orchestrator.is_some()).finish_non_exhaustive()
    }
}
