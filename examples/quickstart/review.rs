//! What the brain runs: asks for a plan, runs it, joins the results.

use octollm::{prelude::*, update::Phase};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::{contracts::PlanReview, report::Report, source::Listing};

/// A review as a task: plain code, whose calls the brain journals.
pub(crate) struct Review;

#[async_trait]
impl Arm<TaskRequest> for Review {
    async fn execute(&self, request: TaskRequest, cx: &Context) -> Result<TaskResult, ArmError> {
        cx.phase(Phase::Planning);
        let plan = cx.call(PlanReview { goal: request.goal }).await?;
        let mut outputs = PlanRunner::default().run(&plan, cx).await?.outputs;
        cx.phase(Phase::Synthesis);
        let listing: Listing = taken(outputs.remove("list"))?;
        let judged = taken(outputs.remove("judge").or(Some(Value::Array(Vec::new()))))?;
        let scanned = taken(outputs.remove("scan"))?;
        Ok(TaskResult::of(&Report::new(judged, scanned, listing.skipped))?)
    }
}

/// An output of the plan, typed again.
fn taken<T: DeserializeOwned>(output: Option<Value>) -> Result<T, ArmError> {
    let output = output.ok_or_else(|| ArmError::failed("the plan lacks a step that the report needs"))?;
    Ok(serde_json::from_value(output)?)
}
