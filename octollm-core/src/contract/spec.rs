//! The facts of a contract that its types do not show.

use std::{fmt, sync::Arc, time::Duration};

use serde_json::Value;

use super::{ContractRef, TaskContract, fingerprint};

/// The facts of a contract that its types do not show.
///
/// The derive macro writes it; a contract made by hand starts with [`ContractSpec::new`]. For a contract that is known
/// at run time only there is [`OwnedSpec`]; [`Spec`] is either of them.
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
    /// One sentence for catalogues and for a planner.
    pub summary: &'static str,
    /// Computes the digest of the schemas; `None` where nobody set it, and drift is then not reported.
    pub fingerprint: Option<fn() -> String>,
    /// A name for people; empty where there is none.
    pub title: &'static str,
    /// Words to find it by.
    pub tags: &'static [&'static str],
    /// Requests in plain words that it serves.
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
    /// The time limit of a contract that names none: the read timeout of the decision record.
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

    /// Sets the name for people.
    #[must_use]
    pub const fn title(mut self, title: &'static str) -> Self {
        self.title = title;
        self
    }

    /// Sets the words to find it by.
    #[must_use]
    pub const fn tags(mut self, tags: &'static [&'static str]) -> Self {
        self.tags = tags;
        self
    }

    /// Sets requests in plain words that it serves.
    #[must_use]
    pub const fn examples(mut self, examples: &'static [&'static str]) -> Self {
        self.examples = examples;
        self
    }

    /// States what it changes beyond its output.
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

/// A contract that is known at run time only, from the user's own configuration: a tool of another protocol, or an
/// arm whose contract this program was not compiled with.
///
/// It is the caller's statement, never the callee's: a card that calls a contract idempotent does not make it so here.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct OwnedSpec {
    /// Name and version.
    pub contract: ContractRef,
    /// The route on an arm server.
    pub path: String,
    /// The scope a caller's token needs.
    pub scope: String,
    /// How long one execution may take.
    pub timeout: Duration,
    /// Whether running it twice has the same effect as running it once.
    pub idempotent: bool,
    /// One sentence about it; empty where there is none.
    pub summary: String,
    /// JSON Schema of the input, where it is known.
    pub input_schema: Option<Value>,
    /// JSON Schema of the output, where it is known.
    pub output_schema: Option<Value>,
}

impl OwnedSpec {
    /// A contract that is not idempotent and may take 30 s, with the route and the scope that follow from its name:
    /// `code.validate@2` is at `/v2/validate` and needs `code:validate`.
    pub fn new(contract: ContractRef) -> Self {
        let name = contract.name();
        let (entity, verb) = name.rsplit_once('.').unwrap_or(("", name));
        let path = match contract.version() {
            1 => format!("/{verb}"),
            version => format!("/v{version}/{verb}"),
        };
        let scope = format!("{entity}:{verb}");
        Self {
            contract,
            path,
            scope,
            timeout: ContractSpec::DEFAULT_TIMEOUT,
            idempotent: false,
            summary: String::new(),
            input_schema: None,
            output_schema: None,
        }
    }

    /// Sets the route.
    #[must_use]
    pub fn with_path(mut self, path: impl Into<String>) -> Self {
        self.path = path.into();
        self
    }

    /// Sets the scope.
    #[must_use]
    pub fn with_scope(mut self, scope: impl Into<String>) -> Self {
        self.scope = scope.into();
        self
    }

    /// Sets the time limit of one execution.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Declares that running it twice has the same effect as running it once.
    #[must_use]
    pub fn idempotent(mut self) -> Self {
        self.idempotent = true;
        self
    }

    /// Sets the one-sentence summary.
    #[must_use]
    pub fn with_summary(mut self, summary: impl Into<String>) -> Self {
        self.summary = summary.into();
        self
    }

    /// Sets the schemas of input and output.
    #[must_use]
    pub fn with_schemas(mut self, input: Value, output: Value) -> Self {
        (self.input_schema, self.output_schema) = (Some(input), Some(output));
        self
    }
}

/// The facts of a contract, whether the program was compiled with it or read it from its configuration.
#[derive(Debug, Clone)]
pub enum Spec {
    /// Of a Rust type.
    Static(&'static ContractSpec),
    /// Known at run time only.
    Owned(Arc<OwnedSpec>),
}

impl Spec {
    /// The facts of `C`.
    pub const fn of<C: TaskContract>() -> Self {
        Self::Static(&C::SPEC)
    }

    /// Name and version.
    pub fn reference(&self) -> ContractRef {
        match self {
            Self::Static(spec) => spec.reference(),
            Self::Owned(spec) => spec.contract.clone(),
        }
    }

    /// The name alone.
    pub fn name(&self) -> &str {
        match self {
            Self::Static(spec) => spec.name,
            Self::Owned(spec) => spec.contract.name(),
        }
    }

    /// The version, 1 or more.
    pub fn version(&self) -> u32 {
        match self {
            Self::Static(spec) => spec.version,
            Self::Owned(spec) => spec.contract.version(),
        }
    }

    /// The route on an arm server.
    pub fn path(&self) -> &str {
        match self {
            Self::Static(spec) => spec.path,
            Self::Owned(spec) => &spec.path,
        }
    }

    /// The scope a caller's token needs.
    pub fn scope(&self) -> &str {
        match self {
            Self::Static(spec) => spec.scope,
            Self::Owned(spec) => &spec.scope,
        }
    }

    /// How long one execution may take.
    pub fn timeout(&self) -> Duration {
        match self {
            Self::Static(spec) => spec.timeout,
            Self::Owned(spec) => spec.timeout,
        }
    }

    /// Whether running it twice has the same effect as running it once.
    pub fn idempotent(&self) -> bool {
        match self {
            Self::Static(spec) => spec.idempotent,
            Self::Owned(spec) => spec.idempotent,
        }
    }

    /// One sentence about it; empty where there is none.
    pub fn summary(&self) -> &str {
        match self {
            Self::Static(spec) => spec.summary,
            Self::Owned(spec) => &spec.summary,
        }
    }

    /// The digest of the schemas, as a card shows it; `None` where the schemas are not known on this side.
    ///
    /// It is computed at each call.
    pub fn fingerprint(&self) -> Option<String> {
        match self {
            Self::Static(spec) => spec.fingerprint.map(|fingerprint| fingerprint()),
            Self::Owned(spec) => {
                let (input, output) = (spec.input_schema.as_ref()?, spec.output_schema.as_ref()?);
                Some(fingerprint(&[input, output, &Value::Null]))
            }
        }
    }
}

impl From<&'static ContractSpec> for Spec {
    fn from(spec: &'static ContractSpec) -> Self {
        Self::Static(spec)
    }
}

impl From<OwnedSpec> for Spec {
    fn from(spec: OwnedSpec) -> Self {
        Self::Owned(Arc::new(spec))
    }
}

/// `code.validate`, or `code.validate@2` where the version is not 1.
impl fmt::Display for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Static(spec) => spec.fmt(f),
            Self::Owned(spec) => spec.contract.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_owned_contract_is_not_idempotent_unless_it_is_declared_so() {
        let owned = OwnedSpec::new("rust.code.validate@2".parse().unwrap());
        assert_eq!((&*owned.path, &*owned.scope), ("/v2/validate", "rust.code:validate"));
        assert!(!Spec::from(owned.clone()).idempotent());
        assert!(Spec::from(owned.idempotent()).idempotent());
    }

    #[test]
    fn both_forms_of_one_contract_agree() {
        const STATIC: ContractSpec =
            ContractSpec::new("code.validate", "/v2/validate", "code:validate").version(2);
        let owned = Spec::from(OwnedSpec::new(STATIC.reference()));
        let compiled = Spec::from(&STATIC);
        assert_eq!(owned.reference(), compiled.reference());
        assert_eq!((owned.name(), owned.version()), (compiled.name(), compiled.version()));
        assert_eq!((owned.path(), owned.scope()), (compiled.path(), compiled.scope()));
        assert_eq!((owned.timeout(), owned.idempotent()), (compiled.timeout(), compiled.idempotent()));
        assert_eq!(owned.to_string(), compiled.to_string());
        assert_eq!((owned.fingerprint(), compiled.fingerprint()), (None, None));
    }

    #[test]
    fn schemas_given_at_run_time_have_the_fingerprint_of_a_card() {
        let (input, output) = (json!({"type": "object", "title": "A"}), json!({"type": "string"}));
        let expected = fingerprint(&[&input, &output, &Value::Null]);
        let owned = OwnedSpec::new("a.b".parse().unwrap()).with_schemas(input, output);
        assert_eq!(Spec::from(owned).fingerprint(), Some(expected));
    }
}
