//! Handing tasks to an orchestrator.

use std::{future::Future, sync::Arc};

use async_trait::async_trait;
use http::{HeaderValue, StatusCode, header};
use octollm_core::{
    Context,
    card::ArmCard,
    deadline::Deadline,
    error::{ErrorKind, Failure},
    id::TaskId,
    json,
    orchestrator::{JournalStep, Orchestrator, TaskQuery},
    parts::ContextParts,
    task::Submission,
    transport::StepKey,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    head::percent_decoded,
    probes::ArmCapabilities,
    reply::{Refusal, Reply},
    routes::{Endpoint, Inbound, Takes},
};

/// `POST /tasks`
pub(crate) struct Submit(pub(crate) Arc<dyn Orchestrator>);
/// `GET /tasks`
pub(crate) struct List(pub(crate) Arc<dyn Orchestrator>);
/// `GET /tasks/{id}`
pub(crate) struct Status(pub(crate) Arc<dyn Orchestrator>);
/// `DELETE /tasks/{id}`
pub(crate) struct Cancel(pub(crate) Arc<dyn Orchestrator>);
/// `POST /tasks/{id}/rerun`
pub(crate) struct Rerun(pub(crate) Arc<dyn Orchestrator>);
/// `GET /tasks/{id}/journal`
pub(crate) struct Journal(pub(crate) Arc<dyn Orchestrator>);
/// `GET /capabilities` and `GET /arms` of an orchestrator: the cards of the arms it knows, and its own beside them where it serves
/// contracts itself.
pub(crate) struct KnownArms {
    pub(crate) orchestrator: Arc<dyn Orchestrator>,
    pub(crate) own: ArmCapabilities,
}

#[async_trait]
impl Endpoint for Submit {
    fn takes(&self) -> Takes {
        Takes::Json
    }

    async fn call(&self, inbound: Inbound<'_>) -> Result<Reply, Refusal> {
        let submission = Submission::from_json(&inbound.body)?;
        submit(&*self.0, submission, inbound.parts).await
    }
}

/// Queues a task; 202 and where it is, relative to the request, so that it holds below any prefix.
pub(crate) async fn submit(
    orchestrator: &dyn Orchestrator,
    submission: Submission,
    parts: ContextParts,
) -> Result<Reply, Refusal> {
    let (deadline, cx) = context(parts);
    let task = within(deadline, orchestrator.submit(submission, &cx)).await?;
    let location = HeaderValue::try_from(format!("tasks/{}", task.task_id))
        .map_err(|_| Failure::of(ErrorKind::Internal))?;
    Ok(Reply::json(&task)?.status(StatusCode::ACCEPTED).header(header::LOCATION, location))
}

#[async_trait]
impl Endpoint for List {
    fn takes(&self) -> Takes {
        Takes::Place
    }

    async fn call(&self, inbound: Inbound<'_>) -> Result<Reply, Refusal> {
        let query = query(inbound.head.uri.query().unwrap_or_default())?;
        let (deadline, cx) = context(inbound.parts);
        Reply::json(&within(deadline, self.0.list(query, &cx)).await?)
    }
}

#[async_trait]
impl Endpoint for Status {
    fn takes(&self) -> Takes {
        Takes::Place
    }

    async fn call(&self, inbound: Inbound<'_>) -> Result<Reply, Refusal> {
        let id = task_id(inbound.id)?;
        let (deadline, cx) = context(inbound.parts);
        answer(within(deadline, self.0.get(&id, &cx)).await, id)
    }
}

#[async_trait]
impl Endpoint for Cancel {
    fn takes(&self) -> Takes {
        Takes::Place
    }

    async fn call(&self, inbound: Inbound<'_>) -> Result<Reply, Refusal> {
        let id = task_id(inbound.id)?;
        let (deadline, cx) = context(inbound.parts);
        answer(within(deadline, self.0.cancel(&id, &cx)).await, id)
    }
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RerunBody {
    /// The number or the name of the first step to discard.
    #[serde(default)]
    from: Option<StepKey>,
}

#[async_trait]
impl Endpoint for Rerun {
    fn takes(&self) -> Takes {
        Takes::Json
    }

    async fn call(&self, inbound: Inbound<'_>) -> Result<Reply, Refusal> {
        let id = task_id(inbound.id)?;
        let body: RerunBody = json::read_input(&inbound.body)?;
        let (deadline, cx) = context(inbound.parts);
        let task = within(deadline, self.0.rerun(&id, body.from.as_ref(), &cx)).await;
        Ok(answer(task, id)?.status(StatusCode::ACCEPTED))
    }
}

#[derive(Serialize, JsonSchema)]
pub(crate) struct Steps {
    steps: Vec<JournalStep>,
}

#[async_trait]
impl Endpoint for Journal {
    fn takes(&self) -> Takes {
        Takes::Place
    }

    async fn call(&self, inbound: Inbound<'_>) -> Result<Reply, Refusal> {
        let id = task_id(inbound.id)?;
        let (deadline, cx) = context(inbound.parts);
        let steps = within(deadline, self.0.journal(&id, &cx)).await;
        answer(steps.map(|steps| Steps { steps }), id)
    }
}

#[derive(Serialize, JsonSchema)]
pub(crate) struct ArmsBody {
    #[serde(flatten)]
    own: Option<ArmCard>,
    arms: Vec<ArmCard>,
}

#[async_trait]
impl Endpoint for KnownArms {
    fn takes(&self) -> Takes {
        Takes::Document
    }

    async fn call(&self, inbound: Inbound<'_>) -> Result<Reply, Refusal> {
        let own = Some(self.own.card(&inbound)).filter(|card| !card.contracts.is_empty());
        let cards = async { Ok(self.orchestrator.cards().await) };
        Reply::json(&ArmsBody { own, arms: within(inbound.parts.deadline, cards).await? })
    }
}

/// The orchestrator calls arms by transports of its own.
fn context(parts: ContextParts) -> (Option<Deadline>, Context) {
    (parts.deadline, Context::from_parts(parts, Arc::new(())))
}

/// Ends work when the caller does not wait for it any more.
pub(crate) async fn within<T>(
    deadline: Option<Deadline>,
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    Deadline::run_until(deadline, work).await.unwrap_or_else(|| Err(Failure::of(ErrorKind::DeadlineExceeded)))
}

fn answer(found: Result<impl Serialize, Failure>, id: TaskId) -> Result<Reply, Refusal> {
    match found {
        Ok(found) => Reply::json(&found),
        Err(failure) => Err(Refusal::from(failure).task(id)),
    }
}

/// What is no task id names no task.
fn task_id(text: &str) -> Result<TaskId, Failure> {
    text.parse().map_err(|_| Failure::of(ErrorKind::TaskNotFound))
}

/// Reads `status=&after=&limit=`, each at most once.
fn query(text: &str) -> Result<TaskQuery, Failure> {
    let refused =
        |name: &str| Failure::new(ErrorKind::BadRequest, format!("malformed query parameter {name}"));
    let mut query = TaskQuery::default();
    for pair in text.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value = percent_decoded(value.as_bytes()).and_then(|value| String::from_utf8(value).ok());
        let value = value.ok_or_else(|| refused(name))?;
        let read = match name {
            _ if value.is_empty() => Some(false),
            "status" => value.parse().ok().map(|status| query.status.replace(status).is_some()),
            "after" => value.parse().ok().map(|after| query.after.replace(after).is_some()),
            "limit" => {
                let limit = value.parse().ok().filter(|limit| (1..=TaskQuery::MAX_LIMIT).contains(limit));
                limit.map(|limit| query.limit.replace(limit).is_some())
            }
            _ => None,
        };
        if read != Some(false) {
            return Err(refused(name));
        }
    }
    Ok(query)
}

#[cfg(test)]
mod tests {
    use octollm_core::task::TaskStatus;

    use super::*;

    #[test]
    fn a_query_is_read_or_refused() {
        assert_eq!(query("").unwrap(), TaskQuery::default());
        assert_eq!(query("status=&after=&limit=").unwrap(), TaskQuery::default());
        let full = query("status=%66ailed&after=task_3fK9aZ0qLw81bXyT&limit=100").unwrap();
        assert_eq!((full.status, full.limit), (Some(TaskStatus::Failed), Some(100)));
        assert_eq!(full.after.unwrap().as_str(), "task_3fK9aZ0qLw81bXyT");
        for text in [
            "status=done",
            "limit=0",
            "limit=101",
            "limit=-1",
            "after=task_1",
            "limit=1&limit=2",
            "stats=failed",
            "status=%zz",
        ] {
            assert_eq!(query(text).unwrap_err().kind, ErrorKind::BadRequest, "{text}");
        }
    }
}
