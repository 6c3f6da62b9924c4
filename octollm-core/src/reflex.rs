//! The reflex layer: screens what comes in before the brain sees it.

use async_trait::async_trait;
use serde_json::Value;

use crate::{
    context::Context,
    error::{ArmError, ErrorKind, Failure},
};

/// What a reflex looks at.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stimulus {
    /// The text as it stands now: earlier reflexes may have rewritten it.
    pub text: String,
    /// Whether an answer may come from a cache.
    pub check_cache: bool,
    /// Whether to look for personal data.
    pub detect_pii: bool,
    /// Whether to look for attempts to take the model over.
    pub detect_injection: bool,
}

impl Stimulus {
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
        stimulus: &Stimulus,
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
pub async fn screen(reflex: &dyn Reflex, stimulus: Stimulus, cx: &Context) -> Result<Screening, ArmError> {
    let mut seen = Observations::default();
    let reaction = reflex.react(&stimulus, &mut seen, cx).await?;
    Ok(match reaction {
        Reaction::Rewrite(text) => Screening { text, seen, reaction: Reaction::Pass },
        reaction => Screening { text: stimulus.text, seen, reaction },
    })
}

#[async_trait]
impl Reflex for ReflexChain {
    async fn react(
        &self,
        stimulus: &Stimulus,
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

    struct Lower;
    struct NoSpam;
    struct Greets;

    #[async_trait]
    impl Reflex for Lower {
        async fn react(
            &self,
            s: &Stimulus,
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
            s: &Stimulus,
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
        async fn react(&self, s: &Stimulus, _: &mut Observations, _: &Context) -> Result<Reaction, ArmError> {
            Ok(if s.text == "hello" { Reaction::Answer("hello yourself".into()) } else { Reaction::Pass })
        }
    }

    async fn through(text: &str) -> Screening {
        let chain = ReflexChain::new().then(Lower).then(NoSpam).then(Greets);
        screen(&chain, Stimulus::new(text), &Context::detached()).await.unwrap()
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
}
