//! An orchestrator elsewhere.

use std::{fmt, future::Future, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use http::{
    HeaderValue, Method, Request, Response,
    header::{ACCEPT, CONTENT_TYPE, HOST},
};
use octollm_core::{
    Context,
    card::ArmCard,
    contract::ContractSpec,
    deadline::Deadline,
    error::{ErrorKind, Failure},
    id::{RequestId, TaskId},
    orchestrator::{Orchestrator, TaskPage, TaskQuery, TaskUpdates},
    parts::ContextParts,
    task::{Submission, Task},
};
use serde::{Deserialize, de::DeserializeOwned};

use super::{
    answer,
    endpoint::Endpoint,
    exchange::{Exchanger, Target},
    watch,
};
use crate::wire;

/// Hands tasks to an orchestrator over HTTP. Cheap to clone; clones share their connections.
///
/// ```no_run
/// # use octollm_http::client::OrchestratorClient;
/// # use octollm_core::{Context, orchestrator::{Orchestrator, finished}, task::TaskRequest};
/// # async fn run() -> Result<(), octollm_core::error::Error> {
/// let orchestrator = OrchestratorClient::new("http://127.0.0.1:8000")?;
/// let cx = Context::detached();
/// let task = orchestrator.submit(TaskRequest::new("Review this crate.").into(), &cx).await?;
/// let task = finished(&orchestrator, &task.task_id, &cx).await?;
/// # Ok(()) }
/// ```
///
/// The ids, the deadline and the budget of the context travel with each request. What a task tells is asked for again
/// and again, ever more slowly, up to twice a second.
#[derive(Clone)]
pub struct OrchestratorClient(Arc<Inner>);

struct Inner {
    endpoint: Endpoint,
    exchanger: Exchanger,
}

impl OrchestratorClient {
    pub(super) fn assemble(endpoint: Endpoint, exchanger: Exchanger) -> Self {
        Self(Arc::new(Inner { endpoint, exchanger }))
    }

    /// Sends one request and reads its answer as JSON.
    async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<Bytes>,
        cx: &Context,
    ) -> Result<T, Failure> {
        let parts = parts_of(cx)?;
        let limit = Deadline::after(ContractSpec::DEFAULT_TIMEOUT);
        let deadline = parts.deadline.map_or(limit, |deadline| deadline.min(limit));
        let answer = within(deadline, self.exchange(method, path, body, &parts, deadline)).await?;
        let output = answer::read(answer).0?;
        serde_json::from_slice(&output).map_err(|error| {
            Failure::new(ErrorKind::BadResponse, format!("the answer has another shape: {error}"))
        })
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Option<Bytes>,
        parts: &ContextParts,
        deadline: Deadline,
    ) -> Result<Response<Bytes>, Failure> {
        let Inner { endpoint, exchanger } = &*self.0;
        let uri =
            endpoint.route(path).ok_or_else(|| Failure::of(ErrorKind::BadRequest).before_execution())?;
        let idempotent = method.is_idempotent();
        let has_body = body.is_some();
        let mut request = Request::new(body.unwrap_or_default());
        *request.method_mut() = method;
        *request.uri_mut() = uri;
        let head = request.headers_mut();
        head.insert(HOST, endpoint.host());
        head.insert(ACCEPT, HeaderValue::from_static("application/json"));
        if has_body {
            head.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        }
        wire::write_parts(parts, head);
        let target = || Target {
            arm: "orchestrator".into(),
            endpoint: endpoint.as_str().into(),
            contract: None,
            idempotent,
            deadline: Some(deadline),
        };
        Ok(exchanger.send(request, Some(deadline), target).await?)
    }
}

/// What travels: the context's own limits. The deadline is for the request, the budget for the task it submits.
fn parts_of(cx: &Context) -> Result<ContextParts, Failure> {
    let mut parts = cx.parts().clone();
    parts.request_id = RequestId::new();
    parts.budget = cx.budget();
    parts.attempt = 1;
    let spent = if parts.deadline.is_some_and(Deadline::has_passed) {
        ErrorKind::DeadlineExceeded
    } else if cx.is_cancelled() {
        ErrorKind::Cancelled
    } else {
        return Ok(parts);
    };
    Err(Failure::of(spent).before_execution())
}

async fn within<T>(deadline: Deadline, work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    tokio::time::timeout_at(deadline.instant(), work)
        .await
        .unwrap_or_else(|_| Err(Failure::of(ErrorKind::DeadlineExceeded)))
}

#[async_trait]
impl Orchestrator for OrchestratorClient {
    async fn submit(&self, submission: Submission, cx: &Context) -> Result<Task, Failure> {
        let body = submission.to_json().to_string();
        self.ask(Method::POST, "/tasks", Some(body.into()), cx).await
    }

    async fn get(&self, id: &TaskId, cx: &Context) -> Result<Task, Failure> {
        self.ask(Method::GET, &format!("/tasks/{id}"), None, cx).await
    }

    async fn list(&self, query: TaskQuery, cx: &Context) -> Result<TaskPage, Failure> {
        self.ask(Method::GET, &list_path(&query), None, cx).await
    }

    async fn cancel(&self, id: &TaskId, cx: &Context) -> Result<Task, Failure> {
        self.ask(Method::DELETE, &format!("/tasks/{id}"), None, cx).await
    }

    async fn watch(&self, id: &TaskId, after: Option<u64>, cx: &Context) -> Result<TaskUpdates, Failure> {
        let first = self.get(id, cx).await?;
        let (client, cx) = (self.clone(), cx.clone());
        Ok(watch::updates(first, after, move |id| {
            let (client, cx) = (client.clone(), cx.clone());
            async move { client.get(&id, &cx).await }
        }))
    }

    async fn cards(&self) -> Vec<ArmCard> {
        #[derive(Deserialize)]
        struct Known {
            arms: Vec<ArmCard>,
        }
        match self.ask::<Known>(Method::GET, "/capabilities", None, &Context::detached()).await {
            Ok(known) => known.arms,
            Err(failure) => {
                tracing::warn!(%failure, "the orchestrator did not tell what its arms offer");
                Vec::new()
            }
        }
    }
}

/// No value needs escaping: ids and statuses are letters, digits and underscores.
fn list_path(query: &TaskQuery) -> String {
    let fields = [
        query.status.map(|status| format!("status={status}")),
        query.after.as_ref().map(|after| format!("after={after}")),
        query.limit.map(|limit| format!("limit={limit}")),
    ];
    let fields: Vec<_> = fields.into_iter().flatten().collect();
    if fields.is_empty() { "/tasks".to_owned() } else { format!("/tasks?{}", fields.join("&")) }
}

impl fmt::Debug for OrchestratorClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("OrchestratorClient").field(&self.0.endpoint).finish()
    }
}
