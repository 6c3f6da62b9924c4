//! The whole system in one process: every part behind a server of its own, on ports that the system gives out.

use std::path::PathBuf;

use octollm::{
    http::BoundServer,
    prelude::*,
    reflex::{Reaction, Reflex, ReflexInput},
};

use crate::{
    arms::{Guardian, Judge, Planner, Retriever, Review},
    contracts::{ListSources, ReadSource},
};

/// A running system: where its reflex server is, and the brain, for those who want to look inside.
pub(crate) struct System {
    pub(crate) reflex_url: String,
    pub(crate) brain: Brain,
}

/// Starts reflex server, orchestrator and arms for the crate at `root`.
pub(crate) async fn start(root: PathBuf) -> Result<System, octollm::Error> {
    let retriever = Retriever { root };
    let retriever = Server::new("retriever")
        .description("Lists and reads the sources of one crate.")
        .arm::<ListSources>(retriever.clone())
        .arm::<ReadSource>(retriever);
    let retriever_url = spawn(retriever.bind("127.0.0.1:0").await?);

    // Arms call arms directly: these two ask the retriever for each file.
    let sources = Arms::builder().endpoint("retriever", &retriever_url).build()?;
    let judge = Server::new("judge").arm(Judge).arms(sources.clone());
    let judge_url = spawn(judge.bind("127.0.0.1:0").await?);
    let guardian = Server::new("guardian").arm(Guardian).arms(sources);
    let guardian_url = spawn(guardian.bind("127.0.0.1:0").await?);
    let planner = Server::new("planner").arm(Planner);
    let planner_url = spawn(planner.bind("127.0.0.1:0").await?);

    let arms = Arms::builder()
        .endpoint("planner", planner_url)
        .endpoint("retriever", retriever_url)
        .endpoint("judge", judge_url)
        .endpoint("guardian", guardian_url)
        .build()?;
    let brain = Brain::builder().arm(Review).arms(arms).build()?;
    let orchestrator_url = spawn(Server::new("brain").orchestrator(brain.clone()).bind("127.0.0.1:0").await?);

    let orchestrator = OrchestratorClient::new(orchestrator_url)?;
    let reflex = Server::new("reflex").reflex(OneLine.then(NoTakeover)).orchestrator(orchestrator);
    let reflex_url = spawn(reflex.bind("127.0.0.1:0").await?);
    Ok(System { reflex_url, brain })
}

fn spawn(server: BoundServer) -> String {
    let url = server.url();
    tokio::spawn(server.run());
    url
}

/// A goal is one line.
struct OneLine;

#[async_trait]
impl Reflex for OneLine {
    async fn react(&self, goal: &mut ReflexInput, _: &Context) -> Result<Reaction, ArmError> {
        let line = goal.text().split_whitespace().collect::<Vec<_>>().join(" ");
        Ok(if line == goal.text() { Reaction::Pass } else { Reaction::Rewrite(line) })
    }
}

/// A goal does not tell the arms to forget what they are for.
struct NoTakeover;

#[async_trait]
impl Reflex for NoTakeover {
    async fn react(&self, goal: &mut ReflexInput, _: &Context) -> Result<Reaction, ArmError> {
        let text = goal.text().to_lowercase();
        if !(text.contains("ignore") && text.contains("previous instructions")) {
            return Ok(Reaction::Pass);
        }
        goal.injection_detected = true;
        goal.raise_risk(0.9);
        Ok(Reaction::Refuse("the goal tries to take the arms over".into()))
    }
}
