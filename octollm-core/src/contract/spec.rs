//! The facts of a contract as its caller knows them.

use std::{sync::Arc, time::Duration};

use super::{ContractRef, ContractSpec};

/// What the caller of a contract knows of it: from a type that derives `TaskContract`, or from its user's configuration.
///
/// The caller's own facts decide whether a call may be sent twice, never what the arm says of itself.
#[derive(Debug, Clone)]
pub enum Spec {
    /// Of a type.
    Static(&'static ContractSpec),
    /// Known at run time only.
    Owned(Arc<OwnedSpec>),
}

/// A contract that is known at run time only.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct OwnedSpec {
    /// Name and version.
    pub contract: ContractRef,
    /// The scope a caller needs; empty where it is not known.
    pub scope: String,
    /// How long one execution may take.
    pub timeout: Duration,
    /// Whether running it twice does no more than running it once.
    pub idempotent: bool,
}

impl OwnedSpec {
    /// A contract that is not idempotent and may take [`ContractSpec::DEFAULT_TIMEOUT`].
    pub fn new(contract: ContractRef) -> Self {
        Self { contract, scope: String::new(), timeout: ContractSpec::DEFAULT_TIMEOUT, idempotent: false }
    }
}

impl Spec {
    /// Name and version.
    pub fn reference(&self) -> ContractRef {
        match self {
            Self::Static(spec) => spec.reference(),
            Self::Owned(spec) => spec.contract.clone(),
        }
    }

    /// Whether running it twice does no more than running it once.
    pub fn idempotent(&self) -> bool {
        match self {
            Self::Static(spec) => spec.idempotent,
            Self::Owned(spec) => spec.idempotent,
        }
    }

    /// How long one execution may take.
    pub fn timeout(&self) -> Duration {
        match self {
            Self::Static(spec) => spec.timeout,
            Self::Owned(spec) => spec.timeout,
        }
    }

    /// The scope a caller needs.
    pub fn scope(&self) -> &str {
        match self {
            Self::Static(spec) => spec.scope,
            Self::Owned(spec) => &spec.scope,
        }
    }

    /// Digest of the caller's own schemas; `None` where it has none.
    pub fn fingerprint(&self) -> Option<String> {
        match self {
            Self::Static(spec) => spec.fingerprint.map(|fingerprint| fingerprint()),
            Self::Owned(_) => None,
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
