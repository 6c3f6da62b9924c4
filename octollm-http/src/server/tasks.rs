//! The routes of an orchestrator and of a reflex: tasks, and their screening.

use std::{future::Future, sync::Arc, time::Duration};

use async_trait::async_trait;
use http::{HeaderValue, Method, StatusCode, header};
use jiff::Timestamp;
use octollm_core::{
    Context,
    contract::TaskContract,
    error::{ArmError, ConfigError, ErrorKind, Failure},
    id::{StepKey, TaskId},
    json,
    orchestrator::{JournalStep, MAX_STEPS, Orchestrator},
    parts::{Caller, ContextParts},
    reflex::{Reaction, Reflex, ReflexInput, screen_submission},
    task::{Submission, TaskQuery, TaskRecord, TaskRequest, TaskResult},
    transport::Transport,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    arm::{ArmCapabilities, KnownArms},
    events::{self, LiveStreams},
    head::percent_decoded,
    rates::Rates,
    request_body::earlier,
    routes::{Answer, Endpoint, Inbound, Refusal, RouteTable, Takes, within},
};
use crate::registry::Registry;

/// Adds the routes of an orchestrator and of a reflex.
pub(crate) fn add_tasks(
    table: &mut RouteTable,
    own: ArmCapabilities,
    screen: Option<Screen>,
    (orchestrator, registry): (Option<Arc<dyn Orchestrator>>, Option<Registry>),
    rates: Option<Arc<Rates>>,
    live: LiveStreams,
) -> Result<(), ConfigError> {
    if let Some(screen) = &screen {
        table.add(Method::POST, "/preprocess", Preprocess(screen.clone(), rates.clone()))?;
    }
    let Some(orchestrator) = orchestrator else {
        return table.add(Method::GET, "/capabilities", own);
    };
    let known = KnownArms { orchestrator: orchestrator.clone(), own, registry, written: Arc::default() };
    for path in ["/capabilities", "/arms"] {
        table.add(Method::GET, path, known.clone())?;
    }
    for (method, path, operation) in [
        (Method::POST, "/tasks", TaskOperation::Submit),
        (Method::GET, "/tasks", TaskOperation::List),
        (Method::GET, "/tasks/{id}", TaskOperation::Get),
        (Method::DELETE, "/tasks/{id}", TaskOperation::Cancel),
        (Method::POST, "/tasks/{id}/rerun", TaskOperation::Rerun),
        (Method::GET, "/tasks/{id}/journal", TaskOperation::Journal),
        (Method::GET, "/tasks/{id}/events", TaskOperation::Events),
    ] {
        let (orchestrator, screen, rates) = (orchestrator.clone(), screen.clone(), rates.clone());
        table.add(method, path, Tasks { operation, orchestrator, screen, rates, live: live.clone() })?;
    }
    Ok(())
}

/// A route of an orchestrator.
struct Tasks {
    operation: TaskOperation,
    orchestrator: Arc<dyn Orchestrator>,
    /// Screens each task before it is submitted.
    screen: Option<Screen>,
    /// Limits on submissions and reruns.
    rates: Option<Arc<Rates>>,
    live: LiveStreams,
}

/// The operation of a route.
#[derive(Debug, Clone, Copy)]
enum TaskOperation {
    /// `POST /tasks`
    Submit,
    /// `GET /tasks`
    List,
    /// `GET /tasks/{id}`
    Get,
    /// `DELETE /tasks/{id}`
    Cancel,
    /// `POST /tasks/{id}/rerun`
    Rerun,
    /// `GET /tasks/{id}/journal`
    Journal,
    /// `GET /tasks/{id}/events`
    Events,
}

#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RerunBody {
    /// The number or the name of the first step to discard.
    #[serde(default)]
    from: Option<StepKey>,
}

#[derive(Serialize, JsonSchema)]
pub(crate) struct Steps {
    /// Calls, in the order of their answers.
    steps: Vec<JournalStep>,
    /// Cursor of the next page. Null at the end.
    next: Option<u64>,
}

#[async_trait]
impl Endpoint for Tasks {
    fn takes(&self) -> Takes {
        match self.operation {
            TaskOperation::Submit | TaskOperation::Rerun => Takes::Json,
            TaskOperation::Events => Takes::Stream,
            _ => Takes::Place,
        }
    }

    fn is_json(&self) -> bool {
        !self.is_streaming()
    }

    fn is_streaming(&self) -> bool {
        matches!(self.operation, TaskOperation::Events)
    }

    async fn call(&self, inbound: Inbound<'_>) -> Result<Answer, Refusal> {
        if inbound.parts.caller == Caller::Anonymous {
            let words = "the routes of tasks need a caller that is known";
            return Err(Failure::new(ErrorKind::Unauthenticated, words).before_execution().into());
        }
        match (self.operation, &self.rates) {
            (TaskOperation::Submit, None) => {
                self.submit(Submission::from_json(&inbound.body)?, inbound.parts).await
            }
            (TaskOperation::Submit, Some(rates)) => {
                let submission = Submission::from_json(&inbound.body);
                let contract = submission.as_ref().ok().map(|submission| &submission.contract);
                let report = rates.take(&inbound.parts.caller, inbound.head, contract).await?;
                report.on(match submission {
                    Ok(submission) => self.submit(submission, inbound.parts).await,
                    Err(failure) => Err(failure.into()),
                })
            }
            (TaskOperation::Rerun, Some(rates)) => {
                let report = rates.take(&inbound.parts.caller, inbound.head, None).await?;
                report.on(self.one(inbound).await)
            }
            (TaskOperation::List, _) => self.list(inbound).await,
            _ => self.one(inbound).await,
        }
    }
}

impl Tasks {
    async fn one(&self, inbound: Inbound<'_>) -> Result<Answer, Refusal> {
        // A text that is no task id is the id of no task.
        let id: TaskId = inbound.id.parse().map_err(|_| Failure::of(ErrorKind::TaskNotFound))?;
        let done = self.with_one(&id, inbound).await;
        done.map_err(|failure| Refusal::from(failure).task(id))
    }

    async fn submit(&self, mut submission: Submission, parts: ContextParts) -> Result<Answer, Refusal> {
        if let Some(screen) = &self.screen {
            let cx = screen.context(parts.clone());
            self.orchestrator.authorize(&submission.contract, &cx)?;
            let screening = screen_submission(&*screen.reflex, submission, screen.max_texts, &cx);
            let reaction;
            (submission, reaction) = screened(&cx, screen.limit, screening).await?;
            match reaction {
                Reaction::Answer(answer) => return answered(submission, answer),
                Reaction::Refuse(reason) => return Err(Failure::new(ErrorKind::Refused, reason).into()),
                Reaction::Pass | Reaction::Rewrite(_) => {}
            }
        }
        let (deadline, cx) = (parts.deadline, context(parts));
        let task = within(deadline, self.orchestrator.submit(submission, &cx)).await?;
        if task.status.is_finished() {
            // A reflex in front of the orchestrator has answered it.
            return Ok(Answer::json(&task)?);
        }
        // Relative to the request, so that it holds below any prefix.
        let location = HeaderValue::try_from(format!("tasks/{}", task.task_id))
            .map_err(|_| Failure::of(ErrorKind::Internal))?;
        let status = if task.existing { StatusCode::OK } else { StatusCode::ACCEPTED };
        Ok(Answer::json(&task)?.status(status).header(header::LOCATION, location))
    }

    async fn list(&self, inbound: Inbound<'_>) -> Result<Answer, Refusal> {
        let query = query(inbound.head.uri.query().unwrap_or_default())?;
        let (deadline, cx) = (inbound.parts.deadline, context(inbound.parts));
        Ok(Answer::json(&within(deadline, self.orchestrator.list(query, &cx)).await?)?)
    }

    async fn with_one(&self, id: &TaskId, inbound: Inbound<'_>) -> Result<Answer, Failure> {
        let orchestrator = &*self.orchestrator;
        let (deadline, cx) = (inbound.parts.deadline, context(inbound.parts));
        match self.operation {
            TaskOperation::Journal => {
                let (after, limit) = page(inbound.head.uri.query().unwrap_or_default())?;
                let page = orchestrator.journal(id, after, limit, &cx);
                let (steps, next) = within(deadline, page).await?;
                Answer::json(&Steps { steps, next })
            }
            TaskOperation::Events => {
                let after = events::cursor(inbound.head, cursor)?;
                let updates = within(deadline, orchestrator.watch(id, after, &cx)).await?;
                Ok(self.live.updates(updates, &cx))
            }
            TaskOperation::Cancel => Answer::json(&within(deadline, orchestrator.cancel(id, &cx)).await?),
            TaskOperation::Rerun => {
                let rerun: RerunBody = json::read_input(&inbound.body)?;
                let task = within(deadline, orchestrator.rerun(id, rerun.from.as_ref(), &cx)).await?;
                Ok(Answer::json(&task)?.status(StatusCode::ACCEPTED))
            }
            _ => Answer::json(&within(deadline, orchestrator.get(id, &cx)).await?),
        }
    }
}

/// The context of a request to an orchestrator, which calls arms by transports of its own.
fn context(parts: ContextParts) -> Context {
    Context::from_parts(parts, Arc::new(()))
}

/// A task that a reflex has answered, so that no orchestrator knows it.
fn answered(submission: Submission, answer: Value) -> Result<Answer, Refusal> {
    let task = TaskRecord::answered(submission, TaskResult::new(answer), Timestamp::now());
    Ok(Answer::json(&task)?)
}

/// A reflex, and the arms that it can call.
#[derive(Clone)]
pub(crate) struct Screen {
    pub(crate) reflex: Arc<dyn Reflex>,
    pub(crate) transport: Arc<dyn Transport>,
    pub(crate) limit: Duration,
    pub(crate) max_texts: usize,
}

impl Screen {
    fn context(&self, parts: ContextParts) -> Context {
        Context::from_parts(parts, self.transport.clone())
    }
}

/// The result of a reflex, until the deadline and within the limit.
async fn screened<T>(
    cx: &Context,
    limit: Duration,
    work: impl Future<Output = Result<T, ArmError>>,
) -> Result<T, Failure> {
    let logged = async {
        work.await.map_err(|error| {
            tracing::warn!(request = %cx.request_id(), %error, "reflex failed");
            error.into_failure()
        })
    };
    let (end, kind) = earlier(cx.deadline(), limit, ErrorKind::Unavailable);
    end.run(logged).await.unwrap_or_else(|| {
        if kind == ErrorKind::Unavailable {
            tracing::warn!(request = %cx.request_id(), ?limit, "reflex exceeded its time limit");
        }
        Err(Failure::new(kind, "the screening took too long: try again later").before_execution())
    })
}

/// `POST /preprocess`: screens a text.
struct Preprocess(Screen, Option<Arc<Rates>>);

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct PreprocessBody {
    input_text: String,
    #[serde(default = "yes")]
    check_cache: bool,
    #[serde(default = "yes")]
    detect_pii: bool,
    #[serde(default = "yes")]
    detect_injection: bool,
}

fn yes() -> bool {
    true
}

#[derive(Serialize, JsonSchema)]
pub(crate) struct Preprocessed {
    cache_hit: bool,
    cached_result: Option<Value>,
    pii_detected: bool,
    pii_types: Vec<String>,
    injection_detected: bool,
    #[schemars(range(min = 0, max = 1))]
    risk_score: f64,
    sanitized_input: String,
    should_proceed: bool,
}

#[async_trait]
impl Endpoint for Preprocess {
    fn takes(&self) -> Takes {
        Takes::Json
    }

    async fn call(&self, inbound: Inbound<'_>) -> Result<Answer, Refusal> {
        match &self.1 {
            Some(rates) => {
                let report = rates.take(&inbound.parts.caller, inbound.head, None).await?;
                report.on(self.preprocess(inbound).await)
            }
            None => self.preprocess(inbound).await,
        }
    }
}

impl Preprocess {
    async fn preprocess(&self, inbound: Inbound<'_>) -> Result<Answer, Refusal> {
        inbound.parts.caller.may(TaskRequest::SPEC.scope)?;
        let body: PreprocessBody = json::read_input(&inbound.body)?;
        let mut input = ReflexInput::new(body.input_text);
        input.check_cache = body.check_cache;
        input.detect_pii = body.detect_pii;
        input.detect_injection = body.detect_injection;
        let cx = self.0.context(inbound.parts);
        let reaction = screened(&cx, self.0.limit, self.0.reflex.react(&mut input, &cx)).await?;
        let should_proceed = matches!(reaction, Reaction::Pass | Reaction::Rewrite(_));
        let (sanitized_input, cached_result) = match reaction {
            Reaction::Rewrite(text) => (text, None),
            Reaction::Answer(answer) => (input.text().to_owned(), Some(answer)),
            Reaction::Pass | Reaction::Refuse(_) => (input.text().to_owned(), None),
        };
        Ok(Answer::json(&Preprocessed {
            cache_hit: cached_result.is_some(),
            cached_result,
            pii_detected: !input.pii_types.is_empty(),
            pii_types: input.pii_types,
            injection_detected: input.injection_detected,
            risk_score: input.risk_score,
            sanitized_input,
            should_proceed,
        })?)
    }
}

/// Reads `status=&after=&limit=`, each at most once.
fn query(text: &str) -> Result<TaskQuery, Failure> {
    let mut query = TaskQuery::default();
    parameters(text, |name, value| match name {
        "status" => value.parse().ok().map(|status| query.status.replace(status).is_some()),
        "after" => value.parse().ok().map(|after| query.after.replace(after).is_some()),
        "limit" => limit(value, TaskQuery::MAX_LIMIT).map(|limit| query.limit.replace(limit).is_some()),
        _ => None,
    })?;
    Ok(query)
}

/// Reads `after=&limit=` of a journal, each at most once.
fn page(text: &str) -> Result<(Option<u64>, Option<usize>), Failure> {
    let (mut after, mut at_most) = (None, None);
    parameters(text, |name, value| match name {
        "after" => value.parse().ok().map(|position| after.replace(position).is_some()),
        "limit" => limit(value, MAX_STEPS).map(|limit| at_most.replace(limit).is_some()),
        _ => None,
    })?;
    Ok((after, at_most))
}

/// Reads `after=` of a stream, at most once.
pub(crate) fn cursor(text: &str) -> Result<Option<u64>, Failure> {
    let mut after = None;
    parameters(text, |name, value| match name {
        "after" => value.parse().ok().map(|position| after.replace(position).is_some()),
        _ => None,
    })?;
    Ok(after)
}

pub(crate) fn limit(value: &str, most: usize) -> Option<usize> {
    value.parse().ok().filter(|limit| (1..=most).contains(limit))
}

/// Reads the parameters of a query. `read` returns whether a parameter is given twice, and `None` where it is malformed or
/// unknown. An empty one counts as left out.
pub(crate) fn parameters(
    text: &str,
    mut read: impl FnMut(&str, &str) -> Option<bool>,
) -> Result<(), Failure> {
    let refused =
        |name: &str| Failure::new(ErrorKind::BadRequest, format!("malformed query parameter {name}"));
    for pair in text.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value = percent_decoded(value.as_bytes()).and_then(|value| String::from_utf8(value).ok());
        let value = value.ok_or_else(|| refused(name))?;
        if !value.is_empty() && read(name, &value) != Some(false) {
            return Err(refused(name));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use octollm_core::task::TaskStatus;

    use super::*;

    #[test]
    fn a_page_of_a_journal_is_read_or_refused() {
        assert_eq!(page("").unwrap(), (None, None));
        assert_eq!(page("after=&limit=").unwrap(), (None, None));
        assert_eq!(page("after=0&limit=1000").unwrap(), (Some(0), Some(1_000)));
        for text in ["limit=0", "limit=1001", "after=-1", "after=task_1", "after=1&after=2", "status=failed"]
        {
            assert_eq!(page(text).unwrap_err().kind, ErrorKind::BadRequest, "{text}");
        }
    }

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
