//! Task contracts: what can be asked of an arm, and what comes back.
//!
//! One annotated type is the single source of truth. Its [`ContractSpec`] gives the route, the required scope, the
//! time limit and whether a retry is safe; its schemas and their fingerprint stand on the arm's [`ContractCard`].

mod card;
mod reference;
mod spec;
mod violation;

use std::{fmt, time::Duration};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

pub(crate) use self::card::{canonical, hex};
pub use self::{
    card::{ContractCard, fingerprint},
    reference::{ContractRef, InvalidContractRef},
    spec::{OwnedSpec, Spec},
    violation::{Violation, Violations},
};

/// A type that can be asked of an arm. Derive it with `#[derive(TaskContract)]`.
///
/// The type itself is the input; [`Output`](Self::Output) is what comes back and [`Chunk`](Self::Chunk) what may be
/// streamed on the way.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a task contract",
    note = "derive it: `#[derive(Serialize, Deserialize, JsonSchema, TaskContract)]`"
)]
pub trait TaskContract: Serialize + DeserializeOwned + JsonSchema + Send + Sync + 'static {
    /// What the arm answers.
    type Output: Serialize + DeserializeOwned + JsonSchema + Send + Sync + 'static;
    /// What the arm may stream before it answers; [`NoChunk`] where it streams nothing.
    type Chunk: Serialize + DeserializeOwned + JsonSchema + Send + Sync + 'static;
    /// The facts of the contract that are not in its types.
    const SPEC: ContractSpec;

    /// Checks the rules that the JSON form cannot express, such as lengths and ranges.
    ///
    /// # Errors
    /// Every rule that was broken, each with the path of its field.
    fn check(&self) -> Result<(), Violations> {
        Ok(())
    }
}

/// The chunk of a contract that streams nothing: it has no values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum NoChunk {}

impl JsonSchema for NoChunk {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "NoChunk".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        false.into()
    }
}

/// The facts of a contract that its types do not say.
///
/// The derive macro writes it; a contract made by hand starts with [`ContractSpec::new`].
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct ContractSpec {
    /// `entity.verb`, such as `code.validate`.
    pub name: &'static str,
    /// 1 unless told.
    pub version: u32,
    /// The route on an arm server, such as `/validate` or `/v2/validate`.
    pub path: &'static str,
    /// The scope a caller's token needs, such as `code:validate`.
    pub scope: &'static str,
    /// How long one execution may take.
    pub timeout: Duration,
    /// Whether running it twice does no more than running it once.
    pub idempotent: bool,
    /// One sentence for catalogues and for a planner.
    pub summary: &'static str,
    /// Computes the digest of the contract's schemas; see [`fingerprint`]. Callers compare it with the arm's.
    pub fingerprint: Option<fn() -> String>,
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

    /// Says that running it twice does no more than running it once.
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

    /// Sets how the digest of the contract's schemas is computed: `|| ContractCard::of::<C>().fingerprint`.
    #[must_use]
    pub const fn fingerprint(mut self, fingerprint: fn() -> String) -> Self {
        self.fingerprint = Some(fingerprint);
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
