//! The arms of the review: each behind a server of its own.

use std::{path::PathBuf, sync::LazyLock};

use octollm::{plan::Plan, prelude::*};
use serde_json::json;
use tokio::{sync::Semaphore, task::spawn_blocking};

use crate::{
    contracts::{JudgeSource, ListSources, PlanReview, ReadSource, ScanSource},
    judge::{self, FileReport},
    secrets::{self, FileSecrets},
    source::{self, Listing},
};

/// The largest source that is read, in bytes.
pub(crate) const MAX_BYTES: u64 = 1 << 20;

/// Knows the sources of one crate, and nothing beside it.
#[derive(Clone)]
pub(crate) struct Retriever {
    pub(crate) root: PathBuf,
}

#[async_trait]
impl Arm<ListSources> for Retriever {
    async fn execute(&self, _: ListSources, _: &Context) -> Result<Listing, ArmError> {
        let root = self.root.clone();
        let listed = spawn_blocking(move || source::list(&root, MAX_BYTES)).await?;
        listed.map_err(|error| ArmError::failed(error.to_string()))
    }
}

#[async_trait]
impl Arm<ReadSource> for Retriever {
    async fn execute(&self, task: ReadSource, _: &Context) -> Result<String, ArmError> {
        let root = self.root.clone();
        let read = spawn_blocking(move || source::read(&root, &task.path, MAX_BYTES)).await?;
        read.map_err(|error| ArmError::failed(error.to_string()))
    }
}

/// Computes on as many threads as there are processors, so that the servers beside it are still heard.
async fn compute<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, ArmError> {
    static PROCESSORS: LazyLock<Semaphore> =
        LazyLock::new(|| Semaphore::new(std::thread::available_parallelism().map_or(1, usize::from)));
    let _place = PROCESSORS.acquire().await?;
    Ok(spawn_blocking(work).await?)
}

/// Judges sources, which it asks the retriever for.
pub(crate) struct Judge;

#[async_trait]
impl Arm<JudgeSource> for Judge {
    async fn execute(&self, task: JudgeSource, cx: &Context) -> Result<FileReport, ArmError> {
        let text = cx.call(ReadSource { path: task.path.clone() }).await?;
        compute(move || judge::judge(&task.path, &text)).await
    }
}

/// Looks for secrets in sources, which it asks the retriever for.
pub(crate) struct Guardian;

#[async_trait]
impl Arm<ScanSource> for Guardian {
    async fn execute(&self, task: ScanSource, cx: &Context) -> Result<FileSecrets, ArmError> {
        let text = cx.call(ReadSource { path: task.path.clone() }).await?;
        compute(move || secrets::scan(&task.path, &text)).await
    }
}

/// Knows two goals: a review, and a search for secrets alone.
pub(crate) struct Planner;

#[async_trait]
impl Arm<PlanReview> for Planner {
    async fn execute(&self, task: PlanReview, _: &Context) -> Result<Plan, ArmError> {
        let goal = task.goal.to_lowercase();
        let (review, scan) = (goal.contains("review"), goal.contains("secret"));
        if !review && !scan {
            return Err(ArmError::invalid("goal", "is neither a review nor a search for secrets"));
        }
        let each = json!({ "$output": "list", "pointer": "/files" });
        let file = json!({ "path": { "$item": "/path" } });
        let mut steps = vec![json!({ "id": "list", "contract": "source.list", "input": {} })];
        if review {
            steps.push(json!({ "id": "judge", "contract": "source.judge", "each": each, "input": file }));
        }
        steps.push(json!({ "id": "scan", "contract": "source.scan", "each": each, "input": file }));
        Ok(serde_json::from_value(json!({ "steps": steps }))?)
    }
}
