//! The reflex layer: screens what comes in before the brain sees it.

use std::ops::Range;

use async_trait::async_trait;
use serde_json::Value;

use crate::{
    context::Context,
    error::{ArmError, ErrorKind, Failure},
    json::RawJson,
    task::{Submission, TaskRequest},
};

/// What a reflex looks at.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ReflexInput {
    /// The text as it stands now: earlier reflexes may have rewritten it.
    pub text: String,
    /// Whether an answer may come from a cache.
    pub check_cache: bool,
    /// Whether to look for personal data.
    pub detect_pii: bool,
    /// Whether to look for attempts to take the model over.
    pub detect_injection: bool,
}

impl ReflexInput {
    /// A text, with everything looked for.
    pub fn new(text: impl Into<String>) -> Self {
        Self { text: text.into(), check_cache: true, detect_pii: true, detect_injection: true }
    }
}

/// What was seen in it, beside what is done about it.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct Observations {
    /// The kinds of personal data found, such as `email`; each once.
    pub pii_types: Vec<String>,
    /// Whether it tries to take the model over.
    pub injection_detected: bool,
    /// From 0, harmless, to 1.
    pub risk_score: f64,
}

impl Observations {
    /// Personal data of this kind was found.
    pub fn pii(&mut self, kind: impl Into<String>) {
        let kind = kind.into();
        if !self.pii_types.contains(&kind) {
            self.pii_types.push(kind);
        }
    }

    /// Raises the risk to at least this; what is not a number from 0 to 1 is taken as the nearer end.
    pub fn risk(&mut self, score: f64) {
        let score = if score.is_nan() { 1.0 } else { score.clamp(0.0, 1.0) };
        self.risk_score = self.risk_score.max(score);
    }
}

/// What is done about a stimulus.
#[derive(Debug, Clone, PartialEq)]
pub enum Reaction {
    /// It goes on as it is.
    Pass,
    /// It goes on with another text.
    Rewrite(String),
    /// It is answered here and goes no further.
    Answer(Value),
    /// It goes no further. The reason is told to the caller.
    Refuse(String),
}

/// Screens a request before the brain.
#[async_trait]
pub trait Reflex: Send + Sync + 'static {
    /// Looks at a stimulus, notes what it sees, and says what is to be done.
    ///
    /// # Errors
    /// When the reflex itself cannot tell; the request does not go on then.
    async fn react(
        &self,
        stimulus: &ReflexInput,
        seen: &mut Observations,
        cx: &Context,
    ) -> Result<Reaction, ArmError>;
}

/// What a chain of reflexes made of a stimulus.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Screening {
    /// The text as the last reflex left it.
    pub text: String,
    /// What was seen on the way.
    pub seen: Observations,
    /// What is to be done: never [`Reaction::Rewrite`], whose text is in `text`.
    pub reaction: Reaction,
}

impl Screening {
    /// Whether the request goes on to the brain.
    pub fn should_proceed(&self) -> bool {
        self.reaction == Reaction::Pass
    }

    /// The refusal as a failure, where it is one.
    pub fn refusal(&self) -> Option<Failure> {
        match &self.reaction {
            Reaction::Refuse(reason) => Some(Failure::new(ErrorKind::Refused, reason)),
            _ => None,
        }
    }
}

/// Reflexes one behind the other. The first that answers or refuses ends the chain; a rewritten text is what the next
/// one sees. A chain is a reflex itself.
#[derive(Default)]
pub struct ReflexChain(Vec<Box<dyn Reflex>>);

impl ReflexChain {
    /// A chain that passes everything.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a reflex at the end.
    #[must_use]
    pub fn then(mut self, reflex: impl Reflex) -> Self {
        self.0.push(Box::new(reflex));
        self
    }
}

/// Screens a stimulus with one reflex, or one chain.
///
/// # Errors
/// When the reflex cannot tell.
pub async fn screen(reflex: &dyn Reflex, stimulus: ReflexInput, cx: &Context) -> Result<Screening, ArmError> {
    let mut seen = Observations::default();
    let reaction = reflex.react(&stimulus, &mut seen, cx).await?;
    Ok(match reaction {
        Reaction::Rewrite(text) => Screening { text, seen, reaction: Reaction::Pass },
        reaction => Screening { text: stimulus.text, seen, reaction },
    })
}

/// Screens every text of a submission with one reflex, or one chain, and returns the submission as the reflex left it.
///
/// The goal in words, or else the whole input as JSON, is screened first: it alone may be answered. Then each string of the
/// input and of the metadata is screened by itself, and replaced where it is rewritten; whether the result still fits its
/// contract is for the orchestrator to check. The keys of objects are screened too, and never rewritten. The reaction is
/// never [`Reaction::Rewrite`].
///
/// # Errors
/// When the reflex cannot tell.
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
        Err(Stop::Ended(reaction)) => Ok((submission, reaction)),
        Err(Stop::Failed(error)) => Err(error),
    }
}

struct Screener<'a> {
    reflex: &'a dyn Reflex,
    seen: Observations,
    cx: &'a Context,
}

/// Why a submission is not screened to its end.
enum Stop {
    /// Answered or refused.
    Ended(Reaction),
    Failed(ArmError),
}

impl From<ArmError> for Stop {
    fn from(error: ArmError) -> Self {
        Self::Failed(error)
    }
}

impl Screener<'_> {
    async fn submission(&mut self, submission: &Submission) -> Result<Submission, Stop> {
        if submission.goal.is_some()
            && let Ok(request) = submission.input.read::<TaskRequest>()
        {
            return Ok(self.request(request).await?.into());
        }
        if let end @ (Reaction::Answer(_) | Reaction::Refuse(_)) =
            self.react(submission.input.as_str()).await?
        {
            return Err(Stop::Ended(end));
        }
        let mut screened = submission.clone();
        screened.input = self.json(&submission.input).await?;
        screened.metadata = self.json(&submission.metadata).await?;
        Ok(screened)
    }

    async fn request(&mut self, mut request: TaskRequest) -> Result<TaskRequest, Stop> {
        match self.react(&request.goal).await? {
            Reaction::Pass => {}
            Reaction::Rewrite(goal) => request.goal = goal,
            end @ (Reaction::Answer(_) | Reaction::Refuse(_)) => return Err(Stop::Ended(end)),
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

    /// The text as it is rewritten, where it is. An answer is one to the whole, and none to a part of it.
    async fn text(&mut self, text: &str) -> Result<Option<String>, Stop> {
        match self.react(text).await? {
            Reaction::Pass | Reaction::Answer(_) => Ok(None),
            Reaction::Rewrite(rewritten) => Ok(Some(rewritten)),
            refused @ Reaction::Refuse(_) => Err(Stop::Ended(refused)),
        }
    }

    /// Everything but the strings stays as it is written, to the digit.
    async fn json(&mut self, json: &RawJson) -> Result<RawJson, Stop> {
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

#[async_trait]
impl Reflex for ReflexChain {
    async fn react(
        &self,
        stimulus: &ReflexInput,
        seen: &mut Observations,
        cx: &Context,
    ) -> Result<Reaction, ArmError> {
        let mut stimulus = stimulus.clone();
        let mut rewritten = false;
        for reflex in &self.0 {
            match reflex.react(&stimulus, seen, cx).await? {
                Reaction::Pass => {}
                Reaction::Rewrite(text) => (stimulus.text, rewritten) = (text, true),
                end @ (Reaction::Answer(_) | Reaction::Refuse(_)) => return Ok(end),
            }
        }
        Ok(if rewritten { Reaction::Rewrite(stimulus.text) } else { Reaction::Pass })
    }
}

impl std::fmt::Debug for ReflexChain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("ReflexChain").field(&self.0.len()).finish()
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

    async fn through(text: &str) -> Screening {
        let chain = ReflexChain::new().then(Lower).then(NoSpam).then(Greets);
        screen(&chain, ReflexInput::new(text), &Context::detached()).await.unwrap()
    }

    #[tokio::test]
    async fn a_chain_hands_on_what_was_rewritten() {
        let screening = through("Review THIS").await;
        assert!(screening.should_proceed());
        assert_eq!(screening.text, "review this");
    }

    #[tokio::test]
    async fn the_first_end_is_the_end() {
        assert_eq!(through("SPAM").await.refusal().unwrap().kind, ErrorKind::Refused);
        assert_eq!(through("SPAM").await.seen.risk_score, 0.9);
        assert_eq!(through("Hello").await.reaction, Reaction::Answer("hello yourself".into()));
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
        let chain = ReflexChain::new().then(NoSpam).then(Greets).then(NoMail);
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
