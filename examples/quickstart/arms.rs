//! The arms, each behind a server of its own, the arm that the brain runs, and the reflex before it.

use std::{path::PathBuf, sync::Arc};

use octollm::{
    plan::{Plan, PlanRunner},
    prelude::*,
    reflex::{Reaction, Reflex, ReflexInput},
    update::Phase,
};
use serde_json::json;
use tokio::{sync::watch, task::spawn_blocking};

use crate::{
    analysis,
    contracts::{FileReport, Finding, JudgeSource, ListSources, PlanReview, ReadSource, Rule, ScanSource},
    report::Report,
    sources,
};

/// Refuses a goal that asks the arms to ignore their instructions, and joins the lines of any other.
pub(crate) struct NoTakeover;

#[async_trait]
impl Reflex for NoTakeover {
    async fn react(&self, goal: &mut ReflexInput, _: &Context) -> Result<Reaction, ArmError> {
        let text = goal.text().to_lowercase();
        if text.contains("ignore") && text.contains("previous instructions") {
            goal.injection_detected = true;
            goal.raise_risk(0.9);
            return Ok(Reaction::Refuse("the goal tries to take the arms over".into()));
        }
        let line = goal.text().split_whitespace().collect::<Vec<_>>().join(" ");
        Ok(if line == goal.text() { Reaction::Pass } else { Reaction::Rewrite(line) })
    }
}

/// Run by the brain, which records its calls: gets a plan, runs it, joins the results.
pub(crate) struct Review;

#[async_trait]
impl Arm<TaskRequest> for Review {
    async fn execute(&self, request: TaskRequest, cx: &Context) -> Result<TaskResult, ArmError> {
        cx.phase(Phase::Planning);
        let plan = cx.call(PlanReview { goal: request.goal }).await?;
        // Two for each file. A plan names contracts alone: the types say that the calls may be made again.
        let runner =
            PlanRunner::new().contract::<ListSources>().contract::<JudgeSource>().contract::<ScanSource>();
        let output = runner.max_calls(10_000)?.run(&plan, cx).await?;
        cx.phase(Phase::Synthesis);
        let files: Vec<String> = output.read("list")?;
        let judged: Option<Vec<FileReport>> = output.read("judge")?;
        let secrets: Option<Vec<Vec<Finding>>> = output.read("scan")?;
        Ok(TaskResult::of(&Report::new(files.len(), judged, secrets))?)
    }
}

/// What a goal can ask for, each of which is a call for each file: the word, the step, and its contract.
const TOPICS: [(&str, &str, &str); 2] =
    [("review", "judge", "source.judge"), ("secret", "scan", "source.scan")];

fn topics(goal: &str) -> impl Iterator<Item = (&'static str, &'static str)> {
    let goal = goal.to_lowercase();
    let asked = TOPICS.into_iter().filter(move |(word, ..)| goal.contains(word));
    asked.map(|(_, step, contract)| (step, contract))
}

/// The number of calls that judge or scan one of these files.
pub(crate) fn calls(goal: &str, files: usize) -> usize {
    topics(goal).count() * files
}

/// Plans a review, a search for secrets, or both.
pub(crate) struct Planner;

#[async_trait]
impl Arm<PlanReview> for Planner {
    async fn execute(&self, input: PlanReview, _: &Context) -> Result<Plan, ArmError> {
        let mut steps = vec![json!({ "id": "list", "contract": "source.list", "input": {} })];
        for (id, contract) in topics(&input.goal) {
            // One call for each file. The brain makes at most 16 of them at a time.
            let (each, input) = (json!({ "$output": "list" }), json!({ "path": { "$item": "" } }));
            steps.push(json!({ "id": id, "contract": contract, "each": each, "input": input }));
        }
        if steps.len() == 1 {
            return Err(ArmError::invalid("goal", "is neither a review nor a search for secrets"));
        }
        Ok(serde_json::from_value(json!({ "steps": steps }))?)
    }
}

/// Lists and reads the sources of one crate.
#[derive(Clone)]
pub(crate) struct Retriever {
    pub(crate) root: PathBuf,
}

#[async_trait]
impl Arm<ListSources> for Retriever {
    async fn execute(&self, _: ListSources, _: &Context) -> Result<Vec<String>, ArmError> {
        let root = self.root.clone();
        spawn_blocking(move || sources::list(&root)).await?.map_err(ArmError::failed)
    }
}

#[async_trait]
impl Arm<ReadSource> for Retriever {
    async fn execute(&self, input: ReadSource, _: &Context) -> Result<String, ArmError> {
        let root = self.root.clone();
        let text = spawn_blocking(move || sources::read(&root, &input.path)).await?;
        text.map_err(|reason| ArmError::invalid("path", reason))
    }
}

/// Reads a source through the retriever. The inner error is why the retriever refuses the file: the review goes on without it.
/// The outer error is any other failure, and ends the review.
async fn read(path: &str, cx: &Context) -> Result<Result<String, String>, CallError> {
    match cx.call(ReadSource { path: path.into() }).await {
        Ok(text) => Ok(Ok(text)),
        Err(error) if error.kind() == ErrorKind::ValidationFailed => {
            let reasons = error.failure().violations.iter().map(|violation| violation.message.clone());
            Ok(Err(reasons.collect::<Vec<_>>().join("; ")))
        }
        Err(error) => Err(error),
    }
}

/// Counts the files that were judged and scanned.
#[derive(Clone, Default)]
pub(crate) struct Answered(Arc<watch::Sender<usize>>);

impl Answered {
    fn add(&self) {
        self.0.send_modify(|answered| *answered += 1);
    }

    /// Returns when there are so many.
    pub(crate) async fn reach(&self, count: usize) {
        // The sender is in `self`.
        let _ = self.0.subscribe().wait_for(|answered| *answered >= count).await;
    }
}

/// Judges sources.
pub(crate) struct Judge(pub(crate) Answered);

#[async_trait]
impl Arm<JudgeSource> for Judge {
    async fn execute(&self, JudgeSource { path }: JudgeSource, cx: &Context) -> Result<FileReport, ArmError> {
        let text = match read(&path, cx).await? {
            Ok(text) => text,
            Err(message) => {
                let finding = Finding { path, line: 1, column: 1, rule: Rule::Unreadable, message };
                return Ok(FileReport { findings: vec![finding], ..FileReport::default() });
            }
        };
        let report = spawn_blocking(move || analysis::judge(&path, &text)).await?;
        self.0.add();
        Ok(report)
    }
}

/// Looks for secrets in sources.
pub(crate) struct Guardian(pub(crate) Answered);

#[async_trait]
impl Arm<ScanSource> for Guardian {
    async fn execute(&self, ScanSource { path }: ScanSource, cx: &Context) -> Result<Vec<Finding>, ArmError> {
        let Ok(text) = read(&path, cx).await? else { return Ok(Vec::new()) };
        let found = spawn_blocking(move || analysis::secrets(&path, &text)).await?;
        self.0.add();
        Ok(found)
    }
}
