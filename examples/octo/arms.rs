//! The commands of arms and events.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use futures_util::StreamExt;
use octollm::{
    RestClient,
    card::ArmCard,
    contract::{ContractRef, Spec},
    error::{CallError, ErrorKind, Failure},
    event::Pattern,
    http::Arms,
    task::Timestamp,
    update::{Update, UpdateSink},
};
use serde_json::{Value, json};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep},
};

use crate::{
    Octo,
    exit::Exit,
    print::line,
    tasks::{BETWEEN, PATIENCE, Shown, text_or_input},
};

/// What answers `GET /capabilities`: an orchestrator, or one arm.
enum Known {
    Arms(Vec<ArmCard>),
    Arm(Box<ArmCard>),
}

impl Known {
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
    fn rest(&self) -> Result<RestClient, Exit> {
        let mut client = RestClient::builder(&self.common.url).name("server");
        if let Some(token) = self.common.token()? {
            client = client.bearer(token);
        }
        if self.common.cleartext {
            client = client.cleartext();
        }
        Ok(client.build()?)
    }

    async fn known(&self) -> Result<Known, Exit> {
        let answer: Value = self.rest()?.get("capabilities").send().await?;
        Known::read(answer)
            .ok_or_else(|| Exit::unreadable("the answer is no card of an arm, and no list of them"))
    }

    pub(crate) async fn arms(&self) -> Result<(), Exit> {
        let known = tokio::select! {
            known = self.known() => known?,
            () = self.interrupt.notified() => return Err(Exit::interrupted("interrupted")),
        };
        for card in known.cards() {
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
        within: Option<u32>,
    ) -> Result<(), Exit> {
        let input = text_or_input(input)?;
        let input: Value = serde_json::from_str(&input)
            .map_err(|error| Exit::usage(format!("the input is not JSON: {error}")))?;
        let calling = async {
            let known = self.known().await?;
            self.called(&known, contract, &input, within).await
        };
        tokio::select! {
            ended = calling => ended,
            () = self.interrupt.notified() => Err(Exit::interrupted("interrupted; the call is cancelled")),
        }
    }

    async fn called(
        &self,
        known: &Known,
        contract: &ContractRef,
        input: &Value,
        within: Option<u32>,
    ) -> Result<(), Exit> {
        let (arms, spec) = self.arms_serving(known, contract)?;
        let spec =
            within.map_or(spec.clone(), |seconds| spec.with_timeout(Duration::from_secs(seconds.into())));
        let (sender, mut updates) = mpsc::channel(1);
        let mut shown = Shown::new(&self.print);
        let call = arms.call_json(contract, input).spec(spec).updates(Arc::new(Sink(sender)));
        let mut call = std::pin::pin!(call);
        let output = loop {
            tokio::select! {
                biased;
                Some(update) = updates.recv() => self.shown(&mut shown, update),
                output = &mut call => break output,
            }
        };
        while let Ok(update) = updates.try_recv() {
            self.shown(&mut shown, update);
        }
        match output {
            Ok(output) if self.print.is_json => {
                self.print.json(&json!({ "type": "output", "output": output }))
            }
            Ok(output) => shown.output(&output),
            Err(error) => {
                shown.pause();
                return Err(error.into());
            }
        }
        Ok(())
    }

    fn shown(&self, shown: &mut Shown<'_>, update: Update) {
        match update {
            Update::Chunk(data) if self.print.is_json => {
                self.print.json(&json!({ "type": "chunk", "data": data }));
            }
            Update::Progress(progress, message) if self.print.is_json => {
                self.print.json(&json!({ "type": "progress", "progress": progress, "message": message }));
            }
            Update::Chunk(data) => shown.chunk(&data),
            Update::Progress(progress, message) => shown.progress(progress, &message),
            _ => {}
        }
    }

    /// A client of the arm that serves the contract. The token is that of the server at the URL, and is sent to no other one.
    fn arms_serving(&self, known: &Known, contract: &ContractRef) -> Result<(Arms, Spec), Exit> {
        let offer = |card: &ArmCard| {
            card.contracts.iter().find(|offered| offered.reference().as_ref() == Some(contract)).cloned()
        };
        let offering: Vec<_> = known.cards().iter().filter_map(|card| Some((card, offer(card)?))).collect();
        let Some((first, offered)) = offering.first() else {
            let names: Vec<_> = known.cards().iter().flat_map(|card| card.capabilities.clone()).collect();
            let words = format!("{contract} is not offered; offered are: {}", names.join(", "));
            return Err(Failure::new(ErrorKind::ContractNotOffered, words).before_execution().into());
        };
        let mut arms = Arms::builder();
        match known {
            Known::Arm(card) => {
                arms = arms.endpoint(&card.arm_id, &self.common.url);
                if let Some(token) = self.common.token()? {
                    arms = arms.header(&card.arm_id, "authorization", format!("Bearer {token}"));
                }
                if self.common.cleartext {
                    arms = arms.cleartext();
                }
            }
            Known::Arms(_) => {
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

    pub(crate) async fn events(&self, pattern: &Pattern, count: Option<usize>) -> Result<(), Exit> {
        tokio::select! {
            ended = self.printed(pattern, count.unwrap_or(usize::MAX)) => ended,
            () = self.interrupt.notified() => Err(Exit::interrupted("interrupted")),
        }
    }

    async fn printed(&self, pattern: &Pattern, mut left: usize) -> Result<(), Exit> {
        let client = self.rest()?;
        let query = [("pattern", pattern.to_string())];
        let mut lost: Option<Instant> = None;
        while left > 0 {
            let error: Option<CallError> = match client.get("events").query(&query).events().await {
                Err(error) => Some(error),
                Ok(mut events) => {
                    if lost.take().is_some() {
                        self.gap(&json!({ "type": "gap", "reason": "the connection was lost" }));
                    }
                    loop {
                        match events.next().await {
                            Some(Ok(event)) => left -= usize::from(self.event(&event.data)?),
                            Some(Err(error)) => break Some(error),
                            None => break None,
                        }
                        if left == 0 {
                            return Ok(());
                        }
                    }
                }
            };
            let since = *lost.get_or_insert_with(Instant::now);
            if let Some(error) = error
                && (!error.retryable() || since.elapsed() >= PATIENCE)
            {
                return Err(error.into());
            }
            sleep(BETWEEN).await;
        }
        Ok(())
    }

    /// Prints an event, and returns whether it is one: a gap is not counted.
    fn event(&self, data: &str) -> Result<bool, Exit> {
        let event: Value = serde_json::from_str(data)
            .map_err(|error| Exit::unreadable(format!("an event is not JSON: {error}")))?;
        if event.get("type").is_some_and(|kind| kind == "gap") {
            self.gap(&event);
            return Ok(false);
        }
        if self.print.is_json {
            self.print.json(&event);
            return Ok(true);
        }
        let member = |name: &str| line(event.get(name).and_then(Value::as_str).unwrap_or("-"));
        let data = line(&event.get("data").unwrap_or(&Value::Null).to_string());
        let kind = self.print.colored(&format!("{:<18}", member("event_type")), "36");
        let time = member("timestamp");
        let time = time.parse::<Timestamp>().map_or(time, |time| format!("{time:.3}"));
        self.print.out(&format!("{time}  {kind} {:<14} {data}\n", member("source")));
        Ok(true)
    }

    fn gap(&self, gap: &Value) {
        if self.print.is_json {
            return self.print.json(gap);
        }
        let reason = match (gap.get("missed"), gap.get("reason").and_then(Value::as_str)) {
            (Some(missed), _) => format!("{missed} events are missing here: too slow"),
            (None, reason) => format!("events may be missing here: {}", reason.unwrap_or("not known")),
        };
        self.print.out(&format!("-- {}\n", line(&reason)));
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
