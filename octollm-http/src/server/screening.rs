//! Screening: by itself, and in front of an orchestrator.

use std::{future::Future, sync::Arc};

use async_trait::async_trait;
use jiff::Timestamp;
use octollm_core::{
    Context,
    error::{ArmError, ErrorKind, Failure},
    json,
    orchestrator::Orchestrator,
    parts::ContextParts,
    reflex::{Observations, Reaction, Reflex, ReflexInput, screen_submission},
    task::{Submission, TaskRecord, TaskResult},
    transport::Transport,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    reply::{Refusal, Reply},
    routes::{Endpoint, Inbound, Takes},
    tasks::{submit, within},
};

/// A reflex, and the arms that it may call.
#[derive(Clone)]
pub(crate) struct Screen {
    pub(crate) reflex: Arc<dyn Reflex>,
    pub(crate) transport: Arc<dyn Transport>,
}

impl Screen {
    fn context(&self, parts: ContextParts) -> Context {
        Context::from_parts(parts, self.transport.clone())
    }
}

/// What a reflex returns by the deadline.
async fn screened<T>(cx: &Context, work: impl Future<Output = Result<T, ArmError>>) -> Result<T, Failure> {
    let logged = async {
        work.await.map_err(|error| {
            tracing::warn!(request = %cx.request_id(), %error, "reflex failed");
            error.into_failure()
        })
    };
    within(cx.deadline(), logged).await
}

/// `POST /preprocess`
pub(crate) struct Preprocess(pub(crate) Screen);

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

    async fn call(&self, inbound: Inbound<'_>) -> Result<Reply, Refusal> {
        let body: PreprocessBody = json::read_input(&inbound.body)?;
        let mut input = ReflexInput::new(body.input_text);
        input.check_cache = body.check_cache;
        input.detect_pii = body.detect_pii;
        input.detect_injection = body.detect_injection;
        let cx = self.0.context(inbound.parts);
        let mut seen = Observations::default();
        let reaction = screened(&cx, self.0.reflex.react(&input, &mut seen, &cx)).await?;
        let should_proceed = matches!(reaction, Reaction::Pass | Reaction::Rewrite(_));
        let (sanitized_input, cached_result) = match reaction {
            Reaction::Rewrite(text) => (text, None),
            Reaction::Answer(answer) => (input.text, Some(answer)),
            Reaction::Pass | Reaction::Refuse(_) => (input.text, None),
        };
        Reply::json(&Preprocessed {
            cache_hit: cached_result.is_some(),
            cached_result,
            pii_detected: !seen.pii_types.is_empty(),
            pii_types: seen.pii_types,
            injection_detected: seen.injection_detected,
            risk_score: seen.risk_score,
            sanitized_input,
            should_proceed,
        })
    }
}

/// `POST /tasks` of a reflex: what passes is forwarded, as the reflex left it.
pub(crate) struct ScreenedSubmit {
    pub(crate) screen: Screen,
    pub(crate) orchestrator: Arc<dyn Orchestrator>,
}

#[async_trait]
impl Endpoint for ScreenedSubmit {
    fn takes(&self) -> Takes {
        Takes::Json
    }

    async fn call(&self, inbound: Inbound<'_>) -> Result<Reply, Refusal> {
        let submission = Submission::from_json(&inbound.body)?;
        let (parts, cx) = (inbound.parts.clone(), self.screen.context(inbound.parts));
        let work = screen_submission(&*self.screen.reflex, submission, &cx);
        match screened(&cx, work).await? {
            (submission, Reaction::Answer(answer)) => answered(submission, answer),
            (_, Reaction::Refuse(reason)) => Err(Failure::new(ErrorKind::Refused, reason).into()),
            (submission, Reaction::Pass | Reaction::Rewrite(_)) => {
                submit(&*self.orchestrator, submission, parts).await
            }
        }
    }
}

/// A task that is finished before it began: no orchestrator knows of it.
fn answered(submission: Submission, answer: Value) -> Result<Reply, Refusal> {
    Reply::json(&TaskRecord::answered(submission, TaskResult::new(answer), Timestamp::now()))
}
