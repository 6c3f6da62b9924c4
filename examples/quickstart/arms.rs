//! The arms of the review, each behind a server of its own, and the arm that the brain runs.

use std::{path::PathBuf, sync::LazyLock};

use octollm::{
    plan::{Plan, PlanRunner},
    prelude::*,
    update::Phase,
};
use serde_json::json;
use tokio::{sync::Semaphore, task::spawn_blocking};

use crate::{
    contracts::{FileReport, JudgeSource, ListSources, Listing, PlanReview, ReadSource, ScanSource, Secret},
    judge,
    report::Report,
    secrets, source,
};

/// Run by the brain, which records its calls: gets a plan, runs it, joins the results.
pub(crate) struct Review;

#[async_trait]
impl Arm<TaskRequest> for Review {
    async fn execute(&self, request: TaskRequest, cx: &Context) -> Result<TaskResult, ArmError> {
        cx.phase(Phase::Planning);
        let plan = cx.call(PlanReview { goal: request.goal }).await?;
        let mut outputs = PlanRunner::default().run(&plan, cx).await?.outputs;
        cx.phase(Phase::Synthesis);
        let mut output = |step| outputs.remove(step).unwrap_or_else(|| json!([]));
        let listing: Listing = serde_json::from_value(output("list"))?;
        let judged = serde_json::from_value(output("judge"))?;
        let secrets: Vec<Vec<Secret>> = serde_json::from_value(output("scan"))?;
        Ok(TaskResult::of(&Report::new(judged, secrets.into_iter().flatten().collect(), listing.skipped))?)
    }
}

/// Plans two goals: a review, and a search for secrets alone.
pub(crate) struct Planner;

#[async_trait]
impl Arm<PlanReview> for Planner {
    async fn execute(&self, input: PlanReview, _: &Context) -> Result<Plan, ArmError> {
        let goal = input.goal.to_lowercase();
        let (review, scan) = (goal.contains("review"), goal.contains("secret"));
        if !review && !scan {
            return Err(ArmError::invalid("goal", "is neither a review nor a search for secrets"));
        }
        let each = json!({ "$output": "list", "pointer": "/files" });
        let file = json!({ "path": { "$item": "" } });
        let mut steps = vec![json!({ "id": "list", "contract": "source.list", "input": {} })];
        if review {
            steps.push(json!({ "id": "judge", "contract": "source.judge", "each": each, "input": file }));
        }
        steps.push(json!({ "id": "scan", "contract": "source.scan", "each": each, "input": file }));
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
    async fn execute(&self, _: ListSources, _: &Context) -> Result<Listing, ArmError> {
        let root = self.root.clone();
        spawn_blocking(move || source::list(&root)).await?.map_err(ArmError::failed)
    }
}

#[async_trait]
impl Arm<ReadSource> for Retriever {
    async fn execute(&self, input: ReadSource, _: &Context) -> Result<String, ArmError> {
        let root = self.root.clone();
        spawn_blocking(move || source::read(&root, &input.path)).await?.map_err(ArmError::failed)
    }
}

/// Judges sources, which it reads through the retriever.
pub(crate) struct Judge;

#[async_trait]
impl Arm<JudgeSource> for Judge {
    async fn execute(&self, input: JudgeSource, cx: &Context) -> Result<FileReport, ArmError> {
        let text = cx.call(ReadSource { path: input.path.clone() }).await?;
        compute(move || judge::judge(&input.path, &text)).await
    }
}

/// Looks for secrets in sources, which it reads through the retriever.
pub(crate) struct Guardian;

#[async_trait]
impl Arm<ScanSource> for Guardian {
    async fn execute(&self, input: ScanSource, cx: &Context) -> Result<Vec<Secret>, ArmError> {
        let text = cx.call(ReadSource { path: input.path.clone() }).await?;
        compute(move || secrets::scan(&input.path, &text)).await
    }
}

/// Computes on at most as many threads as there are processors, so that the servers beside it stay responsive.
async fn compute<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, ArmError> {
    static PROCESSORS: LazyLock<Semaphore> =
        LazyLock::new(|| Semaphore::new(std::thread::available_parallelism().map_or(1, usize::from)));
    let _permit = PROCESSORS.acquire().await?;
    Ok(spawn_blocking(work).await?)
}
