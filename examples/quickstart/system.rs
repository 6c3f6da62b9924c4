//! The whole system in one process: every part behind a server of its own, on ports that the operating system chooses.

use std::path::PathBuf;

use octollm::{
    http::BoundServer,
    prelude::*,
    reflex::{Observations, Reaction, Reflex, ReflexInput},
};

use crate::{
    arms::{Guardian, Judge, Planner, Retriever, Review},
    contracts::{ListSources, ReadSource},
};

/// Starts reflex server, orchestrator and arms for the crate at `root`. Returns the URL of the reflex server, and the brain
/// for its journal.
pub(crate) async fn start(root: PathBuf) -> Result<(String, Brain), octollm::Error> {
    let retriever = Retriever { root };
    let retriever = Server::new("retriever")
        .description("Lists and reads the sources of one crate.")
        .arm::<ListSources>(retriever.clone())
        .arm::<ReadSource>(retriever);
    let retriever = spawn(retriever.bind("127.0.0.1:0").await?);

    // Arms call arms directly: these two call the retriever for each file.
    let sources = Arms::builder().endpoint("retriever", &retriever).build()?;
    let judge = spawn(Server::new("judge").arm(Judge).arms(sources.clone()).bind("127.0.0.1:0").await?);
    let guardian = spawn(Server::new("guardian").arm(Guardian).arms(sources).bind("127.0.0.1:0").await?);
    let planner = spawn(Server::new("planner").arm(Planner).bind("127.0.0.1:0").await?);

    let arms = Arms::builder()
        .endpoint("planner", planner)
        .endpoint("retriever", retriever)
        .endpoint("judge", judge)
        .endpoint("guardian", guardian)
        .build()?;
    let brain = Brain::builder().arm(Review).arms(arms).build()?;
    let orchestrator = spawn(Server::new("brain").orchestrator(brain.clone()).bind("127.0.0.1:0").await?);

    let orchestrator = OrchestratorClient::new(orchestrator)?;
    let reflex = Server::new("reflex").reflex(NoTakeover).orchestrator(orchestrator);
    Ok((spawn(reflex.bind("127.0.0.1:0").await?), brain))
}

/// Serves until the process ends. Returns the URL.
fn spawn(server: BoundServer) -> String {
    let url = server.url();
    tokio::spawn(server.run());
    url
}

/// Refuses a goal that asks the arms to ignore their instructions, and joins the lines of any other.
struct NoTakeover;

#[async_trait]
impl Reflex for NoTakeover {
    async fn react(
        &self,
        goal: &ReflexInput,
        seen: &mut Observations,
        _: &Context,
    ) -> Result<Reaction, ArmError> {
        let text = goal.text.to_lowercase();
        if text.contains("ignore") && text.contains("previous instructions") {
            seen.injection_detected = true;
            seen.risk(0.9);
            return Ok(Reaction::Refuse("the goal tries to take the arms over".into()));
        }
        let line = goal.text.split_whitespace().collect::<Vec<_>>().join(" ");
        Ok(if line == goal.text { Reaction::Pass } else { Reaction::Rewrite(line) })
    }
}
