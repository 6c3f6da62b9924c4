//! The reflex layer: it screens requests before the brain.

use std::ops::Range;

use async_trait::async_trait;
use serde_json::Value;

use crate::{
    context::Context,
    error::ArmError,
    json::RawJson,
    task::{Submission, TaskRequest},
};

/// The input of a reflex.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ReflexInput {
    /// Text of the request, as earlier reflexes have rewritten it.
    pub text: String,
    /// Whether a reflex may answer from a cache.
    pub check_cache: bool,
    /// Whether to detect personal data.
    pub detect_pii: bool,
    /// Whether to detect prompt injection.
    pub detect_injection: bool,
}

impl ReflexInput {
    /// An input of this text, with every check on.
    pub fn new(text: impl Into<String>) -> Self {
        Self { text: text.into(), check_cache: true, detect_pii: true, detect_injection: true }
    }
}

/// What reflexes detected in a request.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct Observations {
    /// Kinds of personal data, such as `email`, each once.
    pub pii_types: Vec<String>,
    /// Whether a prompt injection was detected.
    pub injection_detected: bool,
    /// Risk, from 0 to 1.
    pub risk_score: f64,
}

impl Observations {
    /// Adds a kind of personal data.
    pub fn pii(&mut self, kind: impl Into<String>) {
        let kind = kind.into();
        if !self.pii_types.contains(&kind) {
            self.pii_types.push(kind);
        }
    }

    /// Raises the risk to at least `score`. A score outside of 0 to 1 is clamped, and NaN counts as 1.
    pub fn risk(&mut self, score: f64) {
        let score = if score.is_nan() { 1.0 } else { score.clamp(0.0, 1.0) };
        self.risk_score = self.risk_score.max(score);
    }
}

/// What a reflex does with a request.
#[derive(Debug, Clone, PartialEq)]
pub enum Reaction {
    /// The request passes unchanged.
    Pass,
    /// The request passes with this text.
    Rewrite(String),
    /// The request is answered with this.
    Answer(Value),
    /// The request is refused for this reason, which the caller receives.
    Refuse(String),
}

/// Screens requests before the brain.
#[async_trait]
pub trait Reflex: Send + Sync + 'static {
    /// Screens an input: adds what it detects to `seen`, and returns what to do with the request.
    ///
    /// # Errors
    /// When the reflex cannot decide. The request is then refused with this error.
    ///
    /// # Cancel safety
    /// The future is dropped when the deadline of the request passes or its caller disconnects.
    async fn react(
        &self,
        input: &ReflexInput,
        seen: &mut Observations,
        cx: &Context,
    ) -> Result<Reaction, ArmError>;

    /// Screens with this reflex, and then with `next`, which receives the text as this one rewrote it. An answer or a refusal ends
    /// the screening.
    fn then<R: Reflex>(self, next: R) -> impl Reflex
    where
        Self: Sized,
    {
        Then(self, next)
    }
}

/// Screens every text of a submission, and returns the submission as the reflex rewrote it.
///
/// The goal in words, or else the whole input as JSON, is screened first, and only this may be answered. Then each string of the
/// input and of the metadata is screened by itself, and replaced where it is rewritten. The orchestrator checks whether the
/// result fits its contract. The keys of objects are screened too, and never rewritten. The reaction is never
/// [`Reaction::Rewrite`].
///
/// # Errors
/// When the reflex cannot decide.
///
/// # Cancel safety
/// Dropping the future ends the screening.
pub async fn screen_submission(
    reflex: &dyn Reflex,
    submission: Submission,
    cx: &Context,
) -> Result<(Submission, Reaction), ArmError> {
    let mut screener = Screener { reflex, seen: Observations::default(), cx };
    match screener.submission(&submission).await {
        Ok(screened) => Ok((screened, Reaction::Pass)),
        Err(Interrupted::Ended(reaction)) => Ok((submission, reaction)),
        Err(Interrupted::Failed(error)) => Err(error),
    }
}

struct Screener<'a> {
    reflex: &'a dyn Reflex,
    seen: Observations,
    cx: &'a Context,
}

/// The reason why a submission is not screened to its end.
enum Interrupted {
    /// Answered or refused.
    Ended(Reaction),
    Failed(ArmError),
}

impl From<ArmError> for Interrupted {
    fn from(error: ArmError) -> Self {
        Self::Failed(error)
    }
}

impl Screener<'_> {
    async fn submission(&mut self, submission: &Submission) -> Result<Submission, Interrupted> {
        if submission.goal.is_some()
            && let Ok(request) = submission.input.read::<TaskRequest>()
        {
            return Ok(self.request(request).await?.into());
        }
        if let end @ (Reaction::Answer(_) | Reaction::Refuse(_)) =
            self.react(submission.input.as_str()).await?
        {
            return Err(Interrupted::Ended(end));
        }
        let mut screened = submission.clone();
        screened.input = self.json(&submission.input).await?;
        screened.metadata = self.json(&submission.metadata).await?;
        Ok(screened)
    }

    async fn request(&mut self, mut request: TaskRequest) -> Result<TaskRequest, Interrupted> {
        match self.react(&request.goal).await? {
            Reaction::Pass => {}
            Reaction::Rewrite(goal) => request.goal = goal,
            end @ (Reaction::Answer(_) | Reaction::Refuse(_)) => return Err(Interrupted::Ended(end)),
        }
        for text in request.constraints.iter_mut().chain(&mut request.acceptance_criteria) {
            if let Some(rewritten) = self.text(text).await? {
                *text = rewritten;
            }
        }
        request.context = self.json(&request.context).await?;
        request.metadata = self.json(&request.metadata).await?;
        Ok(request)
    }

    async fn react(&mut self, text: &str) -> Result<Reaction, ArmError> {
        tokio::task::coop::consume_budget().await;
        self.reflex.react(&ReflexInput::new(text), &mut self.seen, self.cx).await
    }

    /// The rewritten text. An answer to a part of a submission is ignored.
    async fn text(&mut self, text: &str) -> Result<Option<String>, Interrupted> {
        match self.react(text).await? {
            Reaction::Pass | Reaction::Answer(_) => Ok(None),
            Reaction::Rewrite(rewritten) => Ok(Some(rewritten)),
            refused @ Reaction::Refuse(_) => Err(Interrupted::Ended(refused)),
        }
    }

    /// Rewrites strings. Everything else stays as it is written, to the digit.
    async fn json(&mut self, json: &RawJson) -> Result<RawJson, Interrupted> {
        let (text, mut screened, mut done) = (json.as_str(), String::new(), 0);
        for (range, is_key) in strings(text) {
            let string: String = serde_json::from_str(&text[range.clone()]).map_err(ArmError::from)?;
            if let Some(rewritten) = self.text(&string).await?.filter(|_| !is_key) {
                screened.push_str(&text[done..range.start]);
                screened.push_str(&Value::String(rewritten).to_string());
                done = range.end;
            }
        }
        if done == 0 {
            return Ok(json.clone());
        }
        screened.push_str(&text[done..]);
        Ok(RawJson::from_slice(screened.as_bytes()).map_err(ArmError::from)?)
    }
}

/// The strings of a valid JSON text, with their quotes, and whether each is the key of an object.
fn strings(json: &str) -> impl Iterator<Item = (Range<usize>, bool)> {
    let bytes = json.as_bytes();
    let mut at = 0;
    std::iter::from_fn(move || {
        let start = at + bytes.get(at..)?.iter().position(|byte| *byte == b'"')?;
        let mut escaped = false;
        let ends = |byte: &u8| {
            let ends = *byte == b'"' && !escaped;
            escaped = *byte == b'\\' && !escaped;
            ends
        };
        let end = start + 2 + bytes.get(start + 1..)?.iter().position(ends)?;
        let next = bytes.get(end..)?.iter().find(|byte| !byte.is_ascii_whitespace());
        at = end;
        Some((start..end, next == Some(&b':')))
    })
}

/// Two reflexes, one after the other.
struct Then<A, B>(A, B);

#[async_trait]
impl<A: Reflex, B: Reflex> Reflex for Then<A, B> {
    async fn react(
        &self,
        input: &ReflexInput,
        seen: &mut Observations,
        cx: &Context,
    ) -> Result<Reaction, ArmError> {
        let text = match self.0.react(input, seen, cx).await? {
            Reaction::Pass => return self.1.react(input, seen, cx).await,
            Reaction::Rewrite(text) => text,
            end @ (Reaction::Answer(_) | Reaction::Refuse(_)) => return Ok(end),
        };
        let input = ReflexInput { text, ..input.clone() };
        Ok(match self.1.react(&input, seen, cx).await? {
            Reaction::Pass => Reaction::Rewrite(input.text),
            reaction => reaction,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::Priority;

    struct Lower;
    struct NoSpam;
    struct Greets;

    #[async_trait]
    impl Reflex for Lower {
        async fn react(
            &self,
            s: &ReflexInput,
            seen: &mut Observations,
            _: &Context,
        ) -> Result<Reaction, ArmError> {
            seen.risk(0.2);
            let lower = s.text.to_lowercase();
            Ok(if lower == s.text { Reaction::Pass } else { Reaction::Rewrite(lower) })
        }
    }

    #[async_trait]
    impl Reflex for NoSpam {
        async fn react(
            &self,
            s: &ReflexInput,
            seen: &mut Observations,
            _: &Context,
        ) -> Result<Reaction, ArmError> {
            if !s.text.contains("spam") {
                return Ok(Reaction::Pass);
            }
            seen.risk(0.9);
            Ok(Reaction::Refuse("no spam".into()))
        }
    }

    #[async_trait]
    impl Reflex for Greets {
        async fn react(
            &self,
            s: &ReflexInput,
            _: &mut Observations,
            _: &Context,
        ) -> Result<Reaction, ArmError> {
            Ok(if s.text == "hello" { Reaction::Answer("hello yourself".into()) } else { Reaction::Pass })
        }
    }

    async fn through(text: &str) -> (Reaction, Observations) {
        let (chain, mut seen) = (Lower.then(NoSpam).then(Greets), Observations::default());
        let reaction = chain.react(&ReflexInput::new(text), &mut seen, &Context::detached()).await.unwrap();
        (reaction, seen)
    }

    #[tokio::test]
    async fn a_chain_hands_on_what_was_rewritten() {
        assert_eq!(through("Review THIS").await.0, Reaction::Rewrite("review this".into()));
        assert_eq!(through("review this").await.0, Reaction::Pass);
    }

    #[tokio::test]
    async fn the_first_end_is_the_end() {
        let (reaction, seen) = through("SPAM").await;
        assert_eq!((reaction, seen.risk_score), (Reaction::Refuse("no spam".into()), 0.9));
        assert_eq!(through("Hello").await.0, Reaction::Answer("hello yourself".into()));
    }

    /// Replaces addresses.
    struct NoMail;

    #[async_trait]
    impl Reflex for NoMail {
        async fn react(
            &self,
            s: &ReflexInput,
            _: &mut Observations,
            _: &Context,
        ) -> Result<Reaction, ArmError> {
            let rewritten = s.text.replace("a@b", "\"mail\"");
            Ok(if rewritten == s.text { Reaction::Pass } else { Reaction::Rewrite(rewritten) })
        }
    }

    async fn screened(body: &str) -> (Submission, Reaction) {
        let chain = NoSpam.then(Greets).then(NoMail);
        let submission = Submission::from_json(body.as_bytes()).unwrap();
        screen_submission(&chain, submission, &Context::detached()).await.unwrap()
    }

    #[tokio::test]
    async fn every_string_of_a_submission_is_screened() {
        for body in [
            r#"{"goal":"spam"}"#,
            r#"{"goal":"look","constraints":["ok","spam"]}"#,
            r#"{"goal":"look","acceptance_criteria":["spam"]}"#,
            r#"{"goal":"look","context":{"x":[{"y":"sp\u0061m"}]}}"#,
            r#"{"goal":"look","context":{"spam":1}}"#,
            r#"{"goal":"look","metadata":{"x":"spam"}}"#,
            r#"{"contract":"a.b","input":{"text":"\\\"spam"}}"#,
            r#"{"contract":"a.b","input":{"text":"sp\u0061m"}}"#,
            r#"{"contract":"a.b","input":{},"metadata":{"x":"spam"}}"#,
        ] {
            assert_eq!(screened(body).await.1, Reaction::Refuse("no spam".into()), "{body}");
        }
    }

    #[tokio::test]
    async fn strings_are_rewritten_one_by_one_and_all_else_stays() {
        let (submission, reaction) = screened(
            r#"{"contract":"a.b","input":{ "to" :"a@b","a@b":1,"n":[340282366920938463463374607431768211455,"x\"y"]}}"#,
        )
        .await;
        let expected = r#"{ "to" :"\"mail\"","a@b":1,"n":[340282366920938463463374607431768211455,"x\"y"]}"#;
        assert_eq!((submission.input.as_str(), reaction), (expected, Reaction::Pass));
        let (submission, _) =
            screened(r#"{"goal":"to a@b","priority":"high","context":{"n":18446744073709551616,"x":"a@b"}}"#)
                .await;
        let request: TaskRequest = submission.input.read().unwrap();
        assert_eq!((request.goal.as_str(), submission.goal.as_deref()), ("to \"mail\"", Some("to \"mail\"")));
        assert_eq!(request.context.as_str(), r#"{"n":18446744073709551616,"x":"\"mail\""}"#);
        assert_eq!((request.priority, submission.priority), (Priority::High, Priority::High));
    }

    #[tokio::test]
    async fn only_the_whole_is_answered() {
        let answer = Reaction::Answer("hello yourself".into());
        assert_eq!(screened(r#"{"goal":"hello"}"#).await.1, answer);
        assert_eq!(screened(r#"{"goal":"look","context":{"x":"hello"}}"#).await.1, Reaction::Pass);
        assert_eq!(screened(r#"{"contract":"a.b","input":{"x":"hello"}}"#).await.1, Reaction::Pass);
    }
}
