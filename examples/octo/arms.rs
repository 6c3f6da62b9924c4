//! The commands of arms.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use octollm::{
    RestClient,
    card::ArmCard,
    contract::{ContractRef, Spec},
    error::{ErrorKind, Failure},
    http::Arms,
    update::{Update, UpdateSink},
};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::{Octo, Step, exit::Exit, print::line, screen::Screen, tasks::text_or_input};

/// What answers `GET /capabilities`: an orchestrator, or one arm.
enum Capabilities {
    Arms(Vec<ArmCard>),
    Arm(Box<ArmCard>),
}

impl Capabilities {
    fn read(answer: Value) -> Option<Self> {
        match answer.get("arms") {
            Some(arms) => serde_json::from_value(arms.clone()).ok().map(Self::Arms),
            None => serde_json::from_value(answer).ok().map(|card| Self::Arm(Box::new(card))),
        }
    }

    fn cards(&self) -> &[ArmCard] {
        match self {
            Self::Arms(cards) => cards,
            Self::Arm(card) => std::slice::from_ref(card),
        }
    }
}

impl Octo {
    /// A client of the routes that are not of tasks.
    pub(crate) fn rest(&self) -> Result<RestClient, Exit> {
        let mut client = RestClient::builder(&self.common.url).name("server");
        if let Some(token) = self.common.token()? {
            client = client.bearer(token);
        }
        if self.common.cleartext {
            client = client.cleartext();
        }
        Ok(client.build()?)
    }

    async fn capabilities(&self) -> Result<Capabilities, Exit> {
        let answer: Value = self.rest()?.get("capabilities").send().await?;
        Capabilities::read(answer)
            .ok_or_else(|| Exit::unreadable("the answer is no card of an arm, and no list of them"))
    }

    pub(crate) async fn arms(&self) -> Result<(), Exit> {
        let capabilities = self.capabilities().await?;
        for card in capabilities.cards() {
            if self.print.is_json {
                self.print.json(card);
                continue;
            }
            let status = json!(card.status).as_str().unwrap_or_default().to_owned();
            let color = if status == "healthy" { "32" } else { "31" };
            let (id, status) =
                (line(&card.arm_id), self.print.colored(&format!("{:<11}", line(&status)), color));
            let endpoint = line(card.endpoint.as_deref().unwrap_or("-"));
            let contracts: Vec<_> = card.capabilities.iter().map(|name| line(name)).collect();
            self.print.out(&format!("{id:<16} {status} {endpoint:<28} {}\n", contracts.join(" ")));
        }
        Ok(())
    }

    pub(crate) async fn call(
        &self,
        contract: &ContractRef,
        input: &str,
        within: Option<Duration>,
    ) -> Result<(), Exit> {
        let input = text_or_input(input).await?;
        let input: Value = serde_json::from_str(&input)
            .map_err(|error| Exit::usage(format!("the input is not JSON: {error}")))?;
        let capabilities = self.capabilities().await?;
        let (arms, spec) = self.arms_serving(&capabilities, contract)?;
        let spec = within.map_or(spec.clone(), |time| spec.with_timeout(time));
        self.step.set(Step::Call);
        let (sender, mut updates) = mpsc::channel(1);
        let mut screen = Screen::new(&self.print);
        let call = arms.call_json(contract, &input).spec(spec).updates(Arc::new(Sink(sender)));
        let mut call = std::pin::pin!(call);
        let output = loop {
            tokio::select! {
                biased;
                Some(update) = updates.recv() => self.show(&mut screen, update),
                output = &mut call => break output,
            }
        };
        while let Ok(update) = updates.try_recv() {
            self.show(&mut screen, update);
        }
        let output = output?;
        if self.print.is_json {
            self.print.json(&json!({ "type": "output", "output": output }));
        } else {
            screen.output(&output);
        }
        Ok(())
    }

    fn show(&self, screen: &mut Screen<'_>, update: Update) {
        match update {
            Update::Chunk(data) if self.print.is_json => {
                self.print.json(&json!({ "type": "chunk", "data": data }));
            }
            Update::Progress(progress, message) if self.print.is_json => {
                self.print.json(&json!({ "type": "progress", "progress": progress, "message": message }));
            }
            Update::Chunk(data) => screen.chunk(&data),
            Update::Progress(progress, message) => screen.progress(progress, &message),
            _ => {}
        }
    }

    /// A client of the arm that serves the contract. The token is that of the server at the URL, and is sent to no other one.
    fn arms_serving(
        &self,
        capabilities: &Capabilities,
        contract: &ContractRef,
    ) -> Result<(Arms, Spec), Exit> {
        let offer = |card: &ArmCard| {
            card.contracts.iter().find(|offered| offered.reference().as_ref() == Some(contract)).cloned()
        };
        let offering: Vec<_> =
            capabilities.cards().iter().filter_map(|card| Some((card, offer(card)?))).collect();
        let Some((first, offered)) = offering.first() else {
            let names: Vec<_> =
                capabilities.cards().iter().flat_map(|card| card.capabilities.clone()).collect();
            let words = format!("{contract} is not offered; offered are: {}", names.join(", "));
            return Err(Failure::new(ErrorKind::ContractNotOffered, words).before_execution().into());
        };
        let mut arms = Arms::builder();
        match capabilities {
            Capabilities::Arm(card) => {
                arms = arms.endpoint(&card.arm_id, &self.common.url);
                if let Some(token) = self.common.token()? {
                    arms = arms.header(&card.arm_id, "authorization", format!("Bearer {token}"));
                }
                if self.common.cleartext {
                    arms = arms.cleartext();
                }
            }
            Capabilities::Arms(_) => {
                let same = offering.iter().filter(|(card, _)| card.arm_id == first.arm_id);
                let urls: Vec<_> = same.filter_map(|(card, _)| card.endpoint.as_deref()).collect();
                if urls.is_empty() {
                    let words = format!("the list of arms has no URL of {}", first.arm_id);
                    return Err(Exit::unreadable(words).hint("set --url to that of the arm"));
                }
                arms = arms.endpoint(&first.arm_id, urls.join(","));
            }
        }
        let spec = Spec::new(contract.clone()).with_timeout(Duration::from_millis(offered.timeout_ms));
        Ok((arms.build()?, spec))
    }
}

/// Passes the updates of a call on, and makes the arm wait for the terminal.
struct Sink(mpsc::Sender<Update>);

#[async_trait]
impl UpdateSink for Sink {
    fn update(&self, update: Update) {
        // Progress that arrives faster than it is printed is left out.
        let _ = self.0.try_send(update);
    }

    async fn chunk(&self, chunk: Value) {
        let _ = self.0.send(Update::Chunk(chunk)).await;
    }
}
