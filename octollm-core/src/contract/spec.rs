//! The properties of a contract that are not in its types.

use std::{fmt, sync::Arc, time::Duration};

use serde_json::Value;

use super::{ContractRef, TaskContract, fingerprint};

/// The properties of a contract that are not in its types.
///
/// The derive macro writes it. A contract by hand starts with [`ContractSpec::new`]. For a contract that is known at run time
/// only there is [`Spec::new`].
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct ContractSpec {
    /// `entity.verb`, such as `code.validate`.
    pub name: &'static str,
    /// 1 or more (default 1).
    pub version: u32,
    /// The route on an arm server, such as `/validate` or `/v2/validate`.
    pub path: &'static str,
    /// The scope a caller's token needs, such as `code:validate`.
    pub scope: &'static str,
    /// How long one execution may take.
    pub timeout: Duration,
    /// Whether running it twice has the same effect as running it once.
    pub idempotent: bool,
    /// How long a server may repeat an answer in place of running it again; `None` for not at all.
    pub cache: Option<Duration>,
    /// One sentence for catalogues and for a planner.
    pub summary: &'static str,
    /// Computes the digest of the schemas. Without it (`None`), differing schemas are not reported.
    pub fingerprint: Option<fn() -> String>,
    /// A human-readable name; empty where there is none.
    pub title: &'static str,
    /// Keywords.
    pub tags: &'static [&'static str],
    /// Example requests in plain words.
    pub examples: &'static [&'static str],
    /// What it changes beyond its output; `None` where that is not stated.
    pub effects: Option<Effects>,
}

/// What an execution changes beyond its output.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Effects {
    /// Nothing: it only reads.
    None,
    /// It adds, and neither changes nor removes what exists.
    Additive,
    /// It may change or remove what exists.
    Destructive,
}

impl ContractSpec {
    /// The default time limit: 30 s.
    pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);

    /// A contract of version 1 that is not idempotent and may take 30 s.
    pub const fn new(name: &'static str, path: &'static str, scope: &'static str) -> Self {
        Self {
            name,
            version: 1,
            path,
            scope,
            timeout: Self::DEFAULT_TIMEOUT,
            idempotent: false,
            cache: None,
            summary: "",
            fingerprint: None,
            title: "",
            tags: &[],
            examples: &[],
            effects: None,
        }
    }

    /// Sets the version.
    #[must_use]
    pub const fn version(mut self, version: u32) -> Self {
        self.version = version;
        self
    }

    /// Sets the time limit of one execution.
    #[must_use]
    pub const fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Declares that running it twice has the same effect as running it once.
    #[must_use]
    pub const fn idempotent(mut self) -> Self {
        self.idempotent = true;
        self
    }

    /// Sets how long a server may repeat an answer, to an equal input of the same caller, in place of running it again. Only for
    /// a contract that is idempotent and streams nothing.
    #[must_use]
    pub const fn cache(mut self, time: Duration) -> Self {
        self.cache = Some(time);
        self
    }

    /// Sets the one-sentence summary.
    #[must_use]
    pub const fn summary(mut self, summary: &'static str) -> Self {
        self.summary = summary;
        self
    }

    /// Sets what computes the digest of the schemas: for a contract `C` it is
    /// [`ContractCard::fingerprint_of::<C>`](super::ContractCard::fingerprint_of).
    #[must_use]
    pub const fn fingerprint(mut self, fingerprint: fn() -> String) -> Self {
        self.fingerprint = Some(fingerprint);
        self
    }

    /// Sets the human-readable name.
    #[must_use]
    pub const fn title(mut self, title: &'static str) -> Self {
        self.title = title;
        self
    }

    /// Sets the keywords.
    #[must_use]
    pub const fn tags(mut self, tags: &'static [&'static str]) -> Self {
        self.tags = tags;
        self
    }

    /// Sets example requests in plain words.
    #[must_use]
    pub const fn examples(mut self, examples: &'static [&'static str]) -> Self {
        self.examples = examples;
        self
    }

    /// Sets what it changes beyond its output.
    #[must_use]
    pub const fn effects(mut self, effects: Effects) -> Self {
        self.effects = Some(effects);
        self
    }

    /// Name and version as an owned reference.
    pub fn reference(&self) -> ContractRef {
        ContractRef::known(self.name, self.version)
    }
}

/// `code.validate`, or `code.validate@2` where the version is not 1.
impl fmt::Display for ContractSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.version {
            1 => f.write_str(self.name),
            version => write!(f, "{}@{version}", self.name),
        }
    }
}

/// What a caller knows of a contract: its time limit, whether it is idempotent, and its schemas.
///
/// It is of a Rust type, or of a contract that is known at run time only, from the user's own configuration: a tool of
/// another protocol, or an arm whose contract this program was not compiled with. It is the caller's statement, never the
/// callee's: a card that calls a contract idempotent does not make it so here.
///
/// ```
/// use octollm_core::contract::Spec;
///
/// let spec = Spec::new("code.validate@2".parse()?).idempotent();
/// assert!(spec.is_idempotent());
/// # Ok::<(), octollm_core::error::InvalidValue>(())
/// ```
#[derive(Debug, Clone)]
pub struct Spec(Facts);

#[derive(Debug, Clone)]
enum Facts {
    OfType(&'static ContractSpec),
    AtRunTime(Arc<RunTimeFacts>),
}

#[derive(Debug, Clone)]
struct RunTimeFacts {
    contract: ContractRef,
    timeout: Duration,
    idempotent: bool,
    scope: Option<&'static str>,
    /// Of the input and the output.
    schemas: Option<(Value, Value)>,
}

impl Spec {
    /// The facts of `C`.
    pub const fn of<C: TaskContract>() -> Self {
        Self(Facts::OfType(&C::SPEC))
    }

    /// A contract that is known at run time only. It is not idempotent and may take 30 s.
    pub fn new(contract: ContractRef) -> Self {
        let timeout = ContractSpec::DEFAULT_TIMEOUT;
        let (idempotent, scope, schemas) = (false, None, None);
        Self(Facts::AtRunTime(Arc::new(RunTimeFacts { contract, timeout, idempotent, scope, schemas })))
    }

    /// Sets the time limit of one execution.
    #[must_use]
    pub fn with_timeout(self, timeout: Duration) -> Self {
        self.with(|facts| facts.timeout = timeout)
    }

    /// Declares that running it twice has the same effect as running it once.
    #[must_use]
    pub fn idempotent(self) -> Self {
        self.with(|facts| facts.idempotent = true)
    }

    /// Sets the schemas of the input and the output.
    #[must_use]
    pub fn with_schemas(self, input: Value, output: Value) -> Self {
        self.with(|facts| facts.schemas = Some((input, output)))
    }

    fn with(self, change: impl FnOnce(&mut RunTimeFacts)) -> Self {
        let mut facts = match self.0 {
            Facts::AtRunTime(facts) => facts,
            Facts::OfType(spec) => Arc::new(RunTimeFacts {
                contract: spec.reference(),
                timeout: spec.timeout,
                idempotent: spec.idempotent,
                scope: Some(spec.scope),
                schemas: None,
            }),
        };
        change(Arc::make_mut(&mut facts));
        Self(Facts::AtRunTime(facts))
    }

    /// Name and version.
    pub fn reference(&self) -> ContractRef {
        match &self.0 {
            Facts::OfType(spec) => spec.reference(),
            Facts::AtRunTime(facts) => facts.contract.clone(),
        }
    }

    /// How long one execution may take.
    pub fn timeout(&self) -> Duration {
        match &self.0 {
            Facts::OfType(spec) => spec.timeout,
            Facts::AtRunTime(facts) => facts.timeout,
        }
    }

    /// Whether running it twice has the same effect as running it once.
    pub fn is_idempotent(&self) -> bool {
        match &self.0 {
            Facts::OfType(spec) => spec.idempotent,
            Facts::AtRunTime(facts) => facts.idempotent,
        }
    }

    /// The scope that a caller needs. `None` where it is not known on this side.
    pub fn scope(&self) -> Option<&'static str> {
        match &self.0 {
            Facts::OfType(spec) => Some(spec.scope),
            Facts::AtRunTime(facts) => facts.scope,
        }
    }

    /// The digest of the schemas, as a card has it; `None` where the schemas are not known on this side.
    ///
    /// It is computed at each call.
    pub fn fingerprint(&self) -> Option<String> {
        match &self.0 {
            Facts::OfType(spec) => spec.fingerprint.map(|fingerprint| fingerprint()),
            Facts::AtRunTime(facts) => {
                let (input, output) = facts.schemas.as_ref()?;
                Some(fingerprint(&[input, output, &Value::Null]))
            }
        }
    }
}

impl From<&'static ContractSpec> for Spec {
    fn from(spec: &'static ContractSpec) -> Self {
        Self(Facts::OfType(spec))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_contract_of_run_time_is_not_idempotent_unless_it_is_declared_so() {
        let spec = Spec::new("rust.code.validate@2".parse().unwrap());
        assert!(!spec.is_idempotent());
        assert!(spec.idempotent().is_idempotent());
    }

    #[test]
    fn both_forms_of_one_contract_agree() {
        const STATIC: ContractSpec =
            ContractSpec::new("code.validate", "/v2/validate", "code:validate").version(2);
        let (compiled, at_run_time) = (Spec::from(&STATIC), Spec::new(STATIC.reference()));
        assert_eq!(at_run_time.reference(), compiled.reference());
        assert_eq!(at_run_time.timeout(), compiled.timeout());
        assert_eq!(at_run_time.is_idempotent(), compiled.is_idempotent());
        assert_eq!((at_run_time.fingerprint(), compiled.fingerprint()), (None, None));
    }

    #[test]
    fn facts_of_a_type_can_be_changed() {
        const STATIC: ContractSpec = ContractSpec::new("a.b", "/b", "a:b").idempotent();
        let spec = Spec::from(&STATIC).with_timeout(Duration::from_secs(1));
        assert_eq!((spec.timeout(), spec.is_idempotent()), (Duration::from_secs(1), true));
    }

    #[test]
    fn schemas_given_at_run_time_have_the_fingerprint_of_a_card() {
        let (input, output) = (json!({"type": "object", "title": "A"}), json!({"type": "string"}));
        let expected = fingerprint(&[&input, &output, &Value::Null]);
        let spec = Spec::new("a.b".parse().unwrap()).with_schemas(input, output);
        assert_eq!(spec.fingerprint(), Some(expected));
    }
}
