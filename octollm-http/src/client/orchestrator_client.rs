//! A client of an orchestrator over HTTP.

mod events;
mod polls;
#[cfg(feature = "ws")]
mod sockets;

use std::{ffi::OsStr, fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Response, header::AUTHORIZATION};
use octollm_core::{
    __private::{machines::outcome_of_failure, settings::Vars},
    Context,
    card::ArmCard,
    contract::ContractSpec,
    deadline::Deadline,
    error::{ConfigError, ErrorKind, Failure},
    id::{RequestId, TaskId},
    json::read_output,
    orchestrator::{JournalStep, Orchestrator, TaskPage, TaskUpdates},
    parts::{Caller, ContextParts},
    resilience::Outcome,
    task::{Submission, Task, TaskQuery},
    transport::StepKey,
};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::json;
use tokio::{sync::Semaphore, time::Instant};

pub(super) use self::polls::updates;
use super::{
    authority::Authority,
    base_url::BaseUrl,
    env,
    exchange::{Exchange, Exchanger, Requests, Target, never_nothing, read_answer, request_setters},
    metrics::SendSpan,
    pool::{ExchangeLimits, ServerHints},
    protection::{Admission, Protection},
};
use crate::limits::limits_setters;

/// A client of an orchestrator over HTTP. It is cheap to clone; clones share their connections.
///
/// ```no_run
/// # use octollm_http::client::OrchestratorClient;
/// # use octollm_core::task::TaskRequest;
/// # async fn run() -> Result<(), octollm_core::error::Error> {
/// let orchestrator = OrchestratorClient::new("http://127.0.0.1:8000")?;
/// let report = orchestrator.run(TaskRequest::new("Review this crate.")).await?;
/// # Ok(()) }
/// ```
///
/// [`run`](Self::run) and [`submit`](Self::submit) need no context. Inside an arm use the methods of [`Orchestrator`], which send
/// the ids, deadline and budget of its context with each request.
///
/// Requests have what those of a [`RestClient`](crate::RestClient) have: a deadline of 30 s over all attempts, or that of the context, retries
/// within a budget, and a circuit breaker. What reads or cancels is sent again after a lost connection, a time limit or a refusal.
/// What submits or reruns a task is so only where nothing has run: there was no connection, or the orchestrator has refused it.
///
/// Updates of a task are streamed (`GET /tasks/{id}/events`). A stream that breaks is opened again after the last update that has arrived,
/// so that every number arrives once or is part of a [gap](octollm_core::task::TaskUpdate::Gap). At most half of the
/// [`max_connections`](OrchestratorClientBuilder::max_connections) are streams. Beyond that, and where the orchestrator has no such route,
/// updates are polled: they are the differences between two states of the task, numbered by the client, without chunks. The intervals grow
/// from 20 ms to 500 ms while nothing changes.
///
/// If a request for updates fails with `Retry-After`, the next one waits for at least that time, at most 60 s. When they have failed for
/// [`resume_timeout`](OrchestratorClientBuilder::resume_timeout), or after one that another cannot help, the updates end without a final
/// status: [`get`](Orchestrator::get) says why.
#[derive(Clone)]
pub struct OrchestratorClient(Arc<Inner>, Caller);

struct Inner {
    arm: Arc<str>,
    endpoint: BaseUrl,
    exchanger: Exchanger,
    protection: Protection,
    authority: Authority,
    /// Names the audience of its tokens.
    card: Arc<ArmCard>,
    /// Places for streams of updates: half of the connections, so that requests have some.
    streams: Arc<Semaphore>,
    resume_timeout: Duration,
    /// Where tasks are followed over WebSockets.
    #[cfg(feature = "ws")]
    sockets: Option<sockets::Sockets>,
}

impl OrchestratorClient {
    /// Creates a client of the orchestrator at this URL, or of the reflex server in front of it.
    ///
    /// # Errors
    /// The URL is invalid.
    pub fn new(url: impl Into<String>) -> Result<Self, ConfigError> {
        Self::builder(url).build()
    }

    /// Creates a client of the orchestrator whose URL the environment has as `OCTOLLM_CLIENT_ORCHESTRATOR_URL`, with limits and tokens
    /// as for [`ArmsBuilder::env`](super::ArmsBuilder::env). The audience of its tokens is `OCTOLLM_CLIENT_ORCHESTRATOR_AUDIENCE`, by
    /// default `orchestrator`.
    ///
    /// # Errors
    /// Those of [`ArmsBuilder::env`](super::ArmsBuilder::env), and the variable is not set or no URL.
    pub fn from_env() -> Result<Self, ConfigError> {
        Self::from_vars(std::env::vars_os())
    }

    /// Creates a client as [`from_env`](Self::from_env) does, from these variables.
    ///
    /// # Errors
    /// Those of [`from_env`](Self::from_env).
    pub fn from_vars<K: AsRef<OsStr>, V: AsRef<OsStr>>(
        variables: impl IntoIterator<Item = (K, V)>,
    ) -> Result<Self, ConfigError> {
        let mut builder = Self::builder("");
        let vars = Vars::read(env::PREFIX, variables)?;
        let named = env::take(vars, &mut builder.requests, &mut builder.authority)?;
        let not_set = || ConfigError::new(env::ORCHESTRATOR_URL, "is not set");
        builder.url = named.url.ok_or_else(not_set)?;
        builder.audience = named.audience.unwrap_or(builder.audience);
        BaseUrl::parse(&builder.url).map_err(|problem| ConfigError::new(env::ORCHESTRATOR_URL, problem))?;
        builder.build()
    }

    /// Returns a builder, to set limits and layers.
    pub fn builder(url: impl Into<String>) -> OrchestratorClientBuilder {
        OrchestratorClientBuilder {
            url: url.into(),
            bearer: None,
            requests: Requests::default(),
            authority: Authority::default(),
            audience: ORCHESTRATOR.to_owned(),
            resume_timeout: RESUME_TIMEOUT,
            #[cfg(feature = "ws")]
            has_sockets: false,
        }
    }

    /// Returns the same client on behalf of a caller, for [`run`](Self::run), [`submit`](Self::submit) and [`task`](Self::task), and for
    /// the methods of [`Orchestrator`] with a context whose callers are not checked, such as [`Context::detached`]. If the client has an
    /// issuer of tokens, each request has a token of this caller.
    #[must_use]
    pub fn on_behalf_of(&self, caller: Caller) -> Self {
        Self(Arc::clone(&self.0), caller)
    }

    /// The context of requests that have none.
    pub(super) fn context(&self) -> Context {
        let mut parts = ContextParts::new();
        parts.caller = self.1.clone();
        Context::from_parts(parts, Arc::new(()))
    }

    /// The caller on whose behalf it acts.
    pub(super) fn own_caller(&self) -> &Caller {
        &self.1
    }

    /// The id of the orchestrator, as tokens and proofs have it.
    pub(super) fn audience(&self) -> &str {
        &self.0.card.arm_id
    }

    /// The URL of the orchestrator.
    pub(super) fn url(&self) -> &str {
        self.0.endpoint.as_str()
    }

    /// Sends a request, again where that is safe and can help, and reads its answer as JSON.
    async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<Bytes>,
        cx: &Context,
    ) -> Result<T, Failure> {
        let retries = self.0.protection.limits().retries;
        self.ask_up_to(retries, (method, path, body), cx).await
    }

    /// The same with at most so many attempts after the first one.
    async fn ask_up_to<T: DeserializeOwned>(
        &self,
        retries: u32,
        (method, path, body): (Method, &str, Option<Bytes>),
        cx: &Context,
    ) -> Result<T, Failure> {
        let limit = Deadline::after(ContractSpec::DEFAULT_TIMEOUT);
        let deadline = cx.deadline().map_or(limit, |deadline| deadline.min(limit));
        let mut attempts = self.0.protection.begin(method.is_idempotent(), retries, deadline);
        let (mut last, mut executed): (Option<Failure>, bool) = (None, false);
        loop {
            let mut parts = parts_of(cx).map_err(|mut ended| {
                ended.may_have_executed = executed;
                ended
            })?;
            parts.attempt = attempts.number();
            if parts.caller == Caller::Unchecked {
                parts.caller = self.1.clone();
            }
            let answer = match self.0.protection.admit() {
                Ok(admission) => {
                    let request = (method.clone(), path, body.clone());
                    tokio::select! {
                        biased;
                        () = cx.cancelled() => Err(Failure::of(ErrorKind::Cancelled)),
                        answer = self.attempt(admission, request, &parts, deadline) => answer,
                    }
                }
                Err(rejected) => Err(rejected),
            };
            let mut failure = match answer {
                Ok(answer) => return Ok(answer),
                Err(failure) => failure,
            };
            let wait = attempts.failed(&failure);
            // What the orchestrator has answered before says more than that a further attempt was not sent.
            if failure.kind == ErrorKind::CircuitOpen {
                failure = last.unwrap_or(failure);
            }
            executed |= failure.may_have_executed;
            failure.may_have_executed = executed;
            let Some(wait) = wait else { return Err(failure) };
            last = Some(failure);
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = cx.cancelled() => {}
            }
        }
    }

    async fn get_up_to(&self, retries: u32, id: &TaskId, cx: &Context) -> Result<Task, Failure> {
        let request = (Method::GET, &*format!("/tasks/{id}"), None);
        self.ask_up_to(retries, request, cx).await.and_then(|task| of_id(task, id))
    }

    /// Makes one attempt.
    async fn attempt<T: DeserializeOwned>(
        &self,
        admission: Admission<'_>,
        request: (Method, &str, Option<Bytes>),
        parts: &ContextParts,
        deadline: Deadline,
    ) -> Result<T, Failure> {
        let answer = match self.exchange(request, parts, deadline, (HeaderMap::new(), None)).await {
            Ok(answer) => answer,
            Err(failure) => {
                let outcome = match outcome_of_failure(&failure, false) {
                    // It is none of an answer: this side has refused the request.
                    Outcome::Success | Outcome::Declined => Outcome::Ignored,
                    outcome => outcome,
                };
                admission.end(outcome, Instant::now());
                return Err(failure);
            }
        };
        let output = read_answer(answer, never_nothing).0;
        let outcome = match &output {
            // One that has too much work for now can still say how far a task is.
            Err(failure) if failure.kind == ErrorKind::Overloaded => Outcome::Success,
            Err(failure) => outcome_of_failure(failure, true),
            Ok(_) => Outcome::Success,
        };
        admission.end(outcome, Instant::now());
        read_output(&output?).map_err(|error| {
            Failure::new(ErrorKind::BadResponse, format!("the answer has another shape: {error}"))
        })
    }

    /// Sends one request, with more header fields, and a token for these scopes or for all that can be passed on.
    pub(super) async fn exchange(
        &self,
        (method, path, body): (Method, &str, Option<Bytes>),
        parts: &ContextParts,
        deadline: Deadline,
        (fields, scopes): (HeaderMap, Option<&[&str]>),
    ) -> Result<Response<Bytes>, Failure> {
        let Inner { arm, endpoint, exchanger, authority, card, .. } = &*self.0;
        let refused = || Failure::of(ErrorKind::BadRequest).before_execution();
        let uri = endpoint.uri(path).ok_or_else(refused)?;
        let idempotent = method.is_idempotent();
        let mut request = endpoint.request((method, uri), body, parts, (true, Instant::now()));
        request.headers_mut().extend(fields);
        let has_issued_token = authority.add(request.headers_mut(), &parts.caller, scopes, card)?;
        let limits = ExchangeLimits {
            deadline: Some(deadline),
            work: ContractSpec::DEFAULT_TIMEOUT,
            hints: ServerHints { has_issued_token, ..ServerHints::default() },
            begun: None,
        };
        let target = || Target {
            arm: Arc::clone(arm),
            endpoint: endpoint.shared(),
            contract: None,
            idempotent,
            deadline: Some(deadline),
            work: ContractSpec::DEFAULT_TIMEOUT,
        };
        let span = SendSpan::begin(&mut request, (arm, endpoint.as_str()), None, parts);
        let answer = exchanger.send(request, arm, limits, target).await;
        span.end(&answer);
        Ok(answer?)
    }
}

/// Builds an [`OrchestratorClient`]: see [`OrchestratorClient::builder`].
#[must_use = "a builder does nothing until it builds"]
pub struct OrchestratorClientBuilder {
    url: String,
    bearer: Option<SecretString>,
    requests: Requests,
    authority: Authority,
    audience: String,
    resume_timeout: Duration,
    #[cfg(feature = "ws")]
    has_sockets: bool,
}

/// The usual id of an orchestrator.
const ORCHESTRATOR: &str = "orchestrator";
const RESUME_TIMEOUT: Duration = Duration::from_secs(30);

impl OrchestratorClientBuilder {
    /// Sends a token with each request on behalf of a known caller: that of the context, or else that of
    /// [`on_behalf_of`](OrchestratorClient::on_behalf_of). Its audience is the id of the orchestrator. It has all
    /// scopes of the caller that this program can pass on, since the tasks of the caller run with them.
    #[cfg(feature = "tokens")]
    pub fn tokens(mut self, issuer: crate::token::TokenIssuer, audience: impl Into<String>) -> Self {
        self.authority.issuer = Some(issuer);
        self.audience = audience.into();
        self
    }

    /// Sends this token with each request: `Authorization: Bearer …`. Where the client also has an [issuer](Self::tokens), a request on
    /// behalf of a known caller has a token of that caller in its place.
    pub fn bearer(mut self, token: impl Into<SecretString>) -> Self {
        self.bearer = Some(token.into());
        self
    }

    /// Sets the id of the orchestrator, for which [registrations](crate::Server::register) are signed. Default `orchestrator`.
    /// [`tokens`](Self::tokens) sets it too.
    pub fn audience(mut self, id: impl Into<String>) -> Self {
        self.audience = id.into();
        self
    }

    /// Follows tasks over WebSockets (`GET /ws`): one connection for up to 256 tasks of a caller, in place of a stream for each task. What
    /// [`watch`](Orchestrator::watch) returns and promises is the same, and a connection that is lost is opened again after the last
    /// updates that have arrived.
    ///
    /// The first task opens the connection, which is closed [`idle_timeout`](Self::idle_timeout) after the last. A ping is sent after
    /// [`ping_interval`](Self::ping_interval) without a byte. At most half of [`max_connections`](Self::max_connections) are open, beside
    /// those of requests. A task that is followed twice, and each caller, has a connection of its own. At an orchestrator without WebSockets
    /// updates are streamed as without this.
    #[cfg(feature = "ws")]
    pub fn websockets(mut self) -> Self {
        self.has_sockets = true;
        self
    }

    /// Sets the time for which updates of a task are requested again while the orchestrator is away. 30 s by default.
    pub fn resume_timeout(mut self, timeout: Duration) -> Self {
        self.resume_timeout = timeout;
        self
    }

    /// Allows tokens to be sent in cleartext to another machine, as
    /// [`ArmsBuilder::cleartext`](super::ArmsBuilder::cleartext) does.
    pub fn cleartext(mut self) -> Self {
        self.authority.cleartext = true;
        self
    }

    /// Builds the client. The first request opens the first connection.
    ///
    /// # Errors
    /// A setting or the URL is invalid, or tokens would be sent in cleartext to another machine.
    pub fn build(self) -> Result<OrchestratorClient, ConfigError> {
        let mut endpoint =
            BaseUrl::parse(&self.url).map_err(|problem| ConfigError::new("orchestrator", problem))?;
        if let Some(token) = &self.bearer {
            let mut value = HeaderValue::try_from(format!("Bearer {}", token.expose_secret()))
                .map_err(|_| ConfigError::new("bearer", "has characters that no header field has"))?;
            value.set_sensitive(true);
            endpoint = endpoint.with_fields(vec![(AUTHORIZATION, value)]);
        }
        if self.requests.connector.is_none() {
            self.authority.check(ORCHESTRATOR, &endpoint)?;
        }
        #[cfg(feature = "ws")]
        let sockets = self.has_sockets.then(sockets::Sockets::default);
        let Self { authority, audience, requests, resume_timeout, .. } = self;
        let (arm, card): (Arc<str>, _) = (ORCHESTRATOR.into(), Arc::new(ArmCard::new(audience)));
        let protection = Protection::new(&requests.config, (&arm, endpoint.shared()), None);
        let streams = Arc::new(Semaphore::new((requests.config.max_connections / 2).max(1)));
        let exchanger = requests.build()?;
        let inner = Inner {
            arm,
            endpoint,
            exchanger,
            protection,
            authority,
            card,
            streams,
            resume_timeout,
            #[cfg(feature = "ws")]
            sockets,
        };
        Ok(OrchestratorClient(Arc::new(inner), Caller::Unchecked))
    }
}

impl fmt::Debug for OrchestratorClientBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // No URL: it is not checked yet for credentials.
        f.debug_struct("OrchestratorClientBuilder")
            .field("config", &self.requests.config)
            .finish_non_exhaustive()
    }
}

request_setters!(OrchestratorClientBuilder);

/// The parts that are sent: the deadline for the request, and the budget for the task that it submits.
fn parts_of(cx: &Context) -> Result<ContextParts, Failure> {
    let mut parts = cx.parts().clone();
    parts.request_id = RequestId::new();
    parts.budget = cx.budget();
    // They are those of the call in which this request is made.
    (parts.key, parts.repeated) = (None, false);
    let spent = if parts.deadline.is_some_and(Deadline::has_passed) {
        ErrorKind::DeadlineExceeded
    } else if cx.is_cancelled() {
        ErrorKind::Cancelled
    } else {
        return Ok(parts);
    };
    Err(Failure::of(spent).before_execution())
}

#[async_trait]
impl Orchestrator for OrchestratorClient {
    async fn submit(&self, submission: Submission, cx: &Context) -> Result<Task, Failure> {
        if cx.budget().is_exhausted() {
            return Err(Failure::of(ErrorKind::BudgetExhausted).before_execution());
        }
        // Infinity and NaN are null as JSON, which is no limit.
        submission.check().map_err(Failure::invalid)?;
        let body = submission.to_json().to_string();
        self.ask(Method::POST, "/tasks", Some(body.into()), cx).await
    }

    async fn get(&self, id: &TaskId, cx: &Context) -> Result<Task, Failure> {
        self.get_up_to(self.0.protection.limits().retries, id, cx).await
    }

    async fn list(&self, query: TaskQuery, cx: &Context) -> Result<TaskPage, Failure> {
        self.ask(Method::GET, &list_path(&query), None, cx).await
    }

    async fn cancel(&self, id: &TaskId, cx: &Context) -> Result<Task, Failure> {
        self.ask(Method::DELETE, &format!("/tasks/{id}"), None, cx).await.and_then(|task| of_id(task, id))
    }

    async fn watch(&self, id: &TaskId, after: Option<u64>, cx: &Context) -> Result<TaskUpdates, Failure> {
        if let Some(updates) = self.streamed(id, after, cx).await? {
            return Ok(updates);
        }
        let first = self.get(id, cx).await?;
        let (client, cx) = (self.clone(), cx.clone());
        Ok(updates(first, after, (cx.deadline(), self.0.resume_timeout), move |id| {
            let (client, cx) = (client.clone(), cx.clone());
            // A poll that fails is followed by the next one.
            async move { client.get_up_to(0, &id, &cx).await }
        }))
    }

    async fn rerun(&self, id: &TaskId, from: Option<&StepKey>, cx: &Context) -> Result<Task, Failure> {
        let body = from.map_or_else(|| json!({}), |step| json!({ "from": step }));
        let task =
            self.ask(Method::POST, &format!("/tasks/{id}/rerun"), Some(body.to_string().into()), cx).await?;
        of_id(task, id)
    }

    async fn journal(
        &self,
        id: &TaskId,
        after: Option<u64>,
        limit: Option<usize>,
        cx: &Context,
    ) -> Result<(Vec<JournalStep>, Option<u64>), Failure> {
        #[derive(Deserialize)]
        struct Page {
            steps: Vec<JournalStep>,
            #[serde(default)]
            next: Option<u64>,
        }
        let fields =
            [after.map(|after| format!("after={after}")), limit.map(|limit| format!("limit={limit}"))];
        let path = with_query(format!("/tasks/{id}/journal"), fields);
        let page: Page = self.ask(Method::GET, &path, None, cx).await?;
        Ok((page.steps, page.next))
    }

    async fn cards(&self) -> Result<Vec<ArmCard>, Failure> {
        #[derive(Deserialize)]
        struct Known {
            arms: Vec<ArmCard>,
        }
        // Cards need no token.
        let mut parts = ContextParts::new();
        parts.caller = Caller::Anonymous;
        let cx = Context::from_parts(parts, Arc::new(()));
        let known: Known = self.ask(Method::GET, "/capabilities", None, &cx).await?;
        Ok(known.arms)
    }
}

/// Refuses another task than the one that was asked for.
fn of_id(task: Task, id: &TaskId) -> Result<Task, Failure> {
    if task.task_id == *id {
        return Ok(task);
    }
    Err(Failure::new(ErrorKind::BadResponse, format!("the answer is of another task, {}", task.task_id)))
}

/// The path of a list. No value needs escaping: ids and statuses have letters, digits and underscores only.
fn list_path(query: &TaskQuery) -> String {
    let fields = [
        query.status.map(|status| format!("status={status}")),
        query.after.as_ref().map(|after| format!("after={after}")),
        query.limit.map(|limit| format!("limit={limit}")),
    ];
    with_query("/tasks".to_owned(), fields)
}

fn with_query<const N: usize>(path: String, fields: [Option<String>; N]) -> String {
    let fields: Vec<_> = fields.into_iter().flatten().collect();
    if fields.is_empty() { path } else { format!("{path}?{}", fields.join("&")) }
}

impl fmt::Debug for OrchestratorClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("OrchestratorClient").field(&self.0.endpoint).finish()
    }
}
