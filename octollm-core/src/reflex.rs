//! The reflex layer: it screens requests before the brain.

use std::{collections::HashMap, mem, ops::Range};

use async_trait::async_trait;
use serde_json::Value;

use crate::{
    context::Context,
    contract::Violation,
    error::{ArmError, Failure},
    json::RawJson,
    task::{Submission, TaskRequest},
};

/// The input of a reflex: a text, the checks that are asked for, and what reflexes have detected so far.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct ReflexInput {
    text: String,
    /// Whether a reflex may answer from a cache.
    pub check_cache: bool,
    /// Whether to detect personal data.
    pub detect_pii: bool,
    /// Whether to detect prompt injection.
    pub detect_injection: bool,
    /// Kinds of personal data that were detected, such as `email`, each once.
    pub pii_types: Vec<String>,
    /// Whether a prompt injection was detected.
    pub injection_detected: bool,
    /// Risk, from 0 to 1.
    pub risk_score: f64,
}

impl ReflexInput {
    /// An input of this text, with every check on, in which nothing was detected.
    pub fn new(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            check_cache: true,
            detect_pii: true,
            detect_injection: true,
            pii_types: Vec::new(),
            injection_detected: false,
            risk_score: 0.0,
        }
    }

    /// The text of the request, as earlier reflexes have rewritten it. A reflex rewrites it by [`Reaction::Rewrite`].
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Adds a kind of personal data to those that were detected.
    pub fn add_pii(&mut self, kind: impl Into<String>) {
        let kind = kind.into();
        if !self.pii_types.contains(&kind) {
            self.pii_types.push(kind);
        }
    }

    /// Raises the risk to at least `score`. A score outside of 0 to 1 is clamped, and NaN counts as 1.
    pub fn raise_risk(&mut self, score: f64) {
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
    /// Screens an input: adds what it detects to the input, and returns what to do with the request.
    ///
    /// # Errors
    /// When the reflex cannot decide. The request is then refused with this error.
    ///
    /// # Cancel safety
    /// The future is dropped when the deadline of the request passes or its caller disconnects.
    async fn react(&self, input: &mut ReflexInput, cx: &Context) -> Result<Reaction, ArmError>;

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
/// [`Reaction::Rewrite`]. Empty texts are not screened, and equal texts are screened once. There is no time limit.
///
/// # Errors
/// When the reflex cannot decide. [`ErrorKind::ValidationFailed`](crate::error::ErrorKind::ValidationFailed) when the submission has
/// more than `max_texts` different texts.
///
/// # Cancel safety
/// Dropping the future ends the screening.
pub async fn screen_submission(
    reflex: &dyn Reflex,
    submission: Submission,
    max_texts: usize,
    cx: &Context,
) -> Result<(Submission, Reaction), ArmError> {
    let (input, known) = (ReflexInput::new(""), HashMap::new());
    let mut screener = Screener { reflex, input, known, texts: 0, max_texts, cx };
    match screener.submission(&submission).await {
        Ok(screened) => Ok((screened, Reaction::Pass)),
        Err(Interrupted::Ended(reaction)) => Ok((submission, reaction)),
        Err(Interrupted::Failed(error)) => Err(error),
    }
}

struct Screener<'a> {
    reflex: &'a dyn Reflex,
    /// The text that is screened now, and what was detected in all of them.
    input: ReflexInput,
    /// The texts that were screened, with what they were rewritten to.
    known: HashMap<String, Option<String>>,
    /// Number of texts that were screened.
    texts: usize,
    max_texts: usize,
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
            let request = self.request(request).await?;
            let metadata = self.json(&submission.metadata).await?;
            return Ok(submission.clone().with_request(request, metadata));
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
        let rewritten = match self.react(&request.goal).await? {
            Reaction::Pass => None,
            Reaction::Rewrite(goal) => Some(goal),
            end @ (Reaction::Answer(_) | Reaction::Refuse(_)) => return Err(Interrupted::Ended(end)),
        };
        self.known.insert(request.goal.clone(), rewritten.clone());
        if let Some(goal) = rewritten {
            request.goal = goal;
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
        if self.texts == self.max_texts {
            let problem = format!(
                "the submission has more than {} different texts, which are screened one by one",
                self.max_texts
            );
            return Err(Failure::invalid(vec![Violation::new("", problem)]).into());
        }
        self.texts += 1;
        text.clone_into(&mut self.input.text);
        self.reflex.react(&mut self.input, self.cx).await
    }

    /// The rewritten text. An answer to a part of a submission is ignored.
    async fn text(&mut self, text: &str) -> Result<Option<String>, Interrupted> {
        if text.is_empty() {
            return Ok(None);
        }
        tokio::task::coop::consume_budget().await;
        if let Some(known) = self.known.get(text) {
            return Ok(known.clone());
        }
        let rewritten = match self.react(text).await? {
            Reaction::Pass | Reaction::Answer(_) => None,
            Reaction::Rewrite(rewritten) => Some(rewritten),
            refused @ Reaction::Refuse(_) => return Err(Interrupted::Ended(refused)),
        };
        self.known.insert(text.to_owned(), rewritten.clone());
        Ok(rewritten)
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
    async fn react(&self, input: &mut ReflexInput, cx: &Context) -> Result<Reaction, ArmError> {
        let rewritten = match self.0.react(input, cx).await? {
            Reaction::Pass => return self.1.react(input, cx).await,
            Reaction::Rewrite(text) => text,
            end @ (Reaction::Answer(_) | Reaction::Refuse(_)) => return Ok(end),
        };
        let text = mem::replace(&mut input.text, rewritten);
        let reaction = self.1.react(input, cx).await;
        let rewritten = mem::replace(&mut input.text, text);
        Ok(match reaction? {
            Reaction::Pass => Reaction::Rewrite(rewritten),
            reaction => reaction,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::task::Priority;

    struct Lower;
    struct NoSpam;
    struct Greets;

    #[async_trait]
    impl Reflex for Lower {
        async fn react(&self, input: &mut ReflexInput, _: &Context) -> Result<Reaction, ArmError> {
            input.raise_risk(0.2);
            let lower = input.text().to_lowercase();
            Ok(if lower == input.text() { Reaction::Pass } else { Reaction::Rewrite(lower) })
        }
    }

    #[async_trait]
    impl Reflex for NoSpam {
        async fn react(&self, input: &mut ReflexInput, _: &Context) -> Result<Reaction, ArmError> {
            if !input.text().contains("spam") {
                return Ok(Reaction::Pass);
            }
            input.raise_risk(0.9);
            Ok(Reaction::Refuse("no spam".into()))
        }
    }

    #[async_trait]
    impl Reflex for Greets {
        async fn react(&self, input: &mut ReflexInput, _: &Context) -> Result<Reaction, ArmError> {
            Ok(if input.text() == "hello" {
                Reaction::Answer("hello yourself".into())
            } else {
                Reaction::Pass
            })
        }
    }

    async fn through(text: &str) -> (Reaction, ReflexInput) {
        let (chain, mut input) = (Lower.then(NoSpam).then(Greets), ReflexInput::new(text));
        let reaction = chain.react(&mut input, &Context::detached()).await.unwrap();
        assert_eq!(input.text(), text, "a reflex does not change it");
        (reaction, input)
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
        async fn react(&self, input: &mut ReflexInput, _: &Context) -> Result<Reaction, ArmError> {
            let rewritten = input.text().replace("a@b", "\"mail\"");
            Ok(if rewritten == input.text() { Reaction::Pass } else { Reaction::Rewrite(rewritten) })
        }
    }

    async fn screened(body: &str) -> (Submission, Reaction) {
        let chain = NoSpam.then(Greets).then(NoMail);
        let submission = Submission::from_json(body.as_bytes()).unwrap();
        screen_submission(&chain, submission, 100, &Context::detached()).await.unwrap()
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

    #[derive(Default)]
    struct Counts(AtomicUsize);

    #[async_trait]
    impl Reflex for Counts {
        async fn react(&self, input: &mut ReflexInput, _: &Context) -> Result<Reaction, ArmError> {
            self.0.fetch_add(1, Ordering::Relaxed);
            assert!(!input.text().is_empty());
            Ok(if input.text() == "a" { Reaction::Rewrite("b".into()) } else { Reaction::Pass })
        }
    }

    #[tokio::test]
    async fn empty_texts_are_skipped_and_equal_ones_are_screened_once() {
        let items = r#""","a","#.repeat(50_000);
        let body = format!(r#"{{"goal":"a","constraints":["a"],"context":{{"x":[{items}"c"]}}}}"#);
        let submission = Submission::from_json(body.as_bytes()).unwrap();
        let reflex = Counts::default();
        // `a`, `x` and `c`.
        let (screened, reaction) =
            screen_submission(&reflex, submission, 3, &Context::detached()).await.unwrap();
        assert_eq!((reaction, reflex.0.load(Ordering::Relaxed)), (Reaction::Pass, 3));
        let request: TaskRequest = screened.input.read().unwrap();
        assert_eq!((&*request.goal, &*request.constraints[0]), ("b", "b"));
        let rewritten = format!(r#"{{"x":[{}"c"]}}"#, r#""","b","#.repeat(50_000));
        assert_eq!(request.context.as_str(), rewritten);
    }

    #[tokio::test]
    async fn the_number_of_different_texts_is_bounded() {
        for body in [
            r#"{"goal":"a","context":{"x":["c","d"]}}"#,
            r#"{"contract":"a.b","input":{"x":"c"},"metadata":{"y":""}}"#,
        ] {
            let submission = Submission::from_json(body.as_bytes()).unwrap();
            let reflex = Counts::default();
            let error = screen_submission(&reflex, submission, 3, &Context::detached()).await.unwrap_err();
            assert_eq!(error.kind(), crate::error::ErrorKind::ValidationFailed);
            assert!(error.to_string().contains("more than 3 different texts"), "{error}");
            assert_eq!(reflex.0.load(Ordering::Relaxed), 3);
        }
    }
}
