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
    reflex::{Reaction, Reflex, ReflexInput, screen, screen_submission},
    task::{Origin, Submission, TaskRecord, TaskResult},
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
        let mut stimulus = ReflexInput::new(body.input_text);
        stimulus.check_cache = body.check_cache;
        stimulus.detect_pii = body.detect_pii;
        stimulus.detect_injection = body.detect_injection;
        let cx = self.0.context(inbound.parts);
        let screening = screened(&cx, screen(&*self.0.reflex, stimulus, &cx)).await?;
        let should_proceed = screening.should_proceed();
        let cached_result = match screening.reaction {
            Reaction::Answer(answer) => Some(answer),
            _ => None,
        };
        Reply::json(&Preprocessed {
            cache_hit: cached_result.is_some(),
            cached_result,
            pii_detected: !screening.seen.pii_types.is_empty(),
            pii_types: screening.seen.pii_types,
            injection_detected: screening.seen.injection_detected,
            risk_score: screening.seen.risk_score,
            sanitized_input: screening.text,
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
            (submission, Reaction::Answer(answer)) => answered(submission, answer, parts),
            (_, Reaction::Refuse(reason)) => Err(Failure::new(ErrorKind::Refused, reason).into()),
            (submission, Reaction::Pass | Reaction::Rewrite(_)) => {
                submit(&*self.orchestrator, submission, parts).await
            }
        }
    }
}

/// A task that is finished before it began: no orchestrator knows of it.
fn answered(submission: Submission, answer: Value, parts: ContextParts) -> Result<Reply, Refusal> {
    let origin = Origin::new(parts.caller, parts.correlation_id);
    Reply::json(&TaskRecord::answered(submission, origin, TaskResult::new(answer), Timestamp::now()))
}
