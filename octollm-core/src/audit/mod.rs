//! The audit log: who did what, with which scope.
//!
//! A brain and a server write to the log that they are given, before the act has an effect. An [`AuditLog`] is a store such as
//! `SqlAuditLog`, or one of your own.

pub(crate) mod optional;

use std::sync::Arc;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::{
    contract::ContractRef,
    error::{ErrorKind, Failure},
    id::{RequestId, TaskId},
    parts::{Caller, ContextParts},
};

/// A log of acts, to which entries are only ever appended.
#[async_trait]
pub trait AuditLog: Send + Sync + 'static {
    /// Appends an entry. Returns once it is stored.
    ///
    /// # Errors
    /// A failure, such as [`ErrorKind::Unavailable`], if the entry is not or may not be stored. The act then has no effect.
    ///
    /// # Cancel safety
    /// If the future is dropped, the entry may or may not be stored.
    async fn record(&self, entry: AuditEntry) -> Result<(), Failure>;
}

/// An act, for an [`AuditLog`]. The log adds a number and a time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct AuditEntry {
    /// What was done: see [`AuditEntry::SUBMITTED`] and the other constants, or a name of your own.
    pub action: String,
    /// The id of the brain, the server or the program that writes the entry.
    pub source: String,
    /// The issuer of the token of the caller.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issuer: Option<String>,
    /// The subject of the caller. `None` for one that is anonymous or not checked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// The arm that acted for the subject.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actor: Option<String>,
    /// The scope that the act needs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<String>,
    /// The task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<TaskId>,
    /// The contract, or the route of a request without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// The request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<RequestId>,
    /// The kind of the failure of a refusal, as on the wire.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl AuditEntry {
    /// A task is submitted.
    pub const SUBMITTED: &'static str = "task.submitted";
    /// A task is cancelled.
    pub const CANCELLED: &'static str = "task.cancelled";
    /// A task is run again.
    pub const RERUN: &'static str = "task.rerun";
    /// A submission, a cancellation, a rerun or a request is refused. If it follows the entry of an act with the same request, that
    /// act had no effect.
    pub const REFUSED: &'static str = "request.refused";
    /// The recorded answer of a call with an idempotency key is returned, or the task that has the uniqueness key of a submission.
    pub const ANSWERED: &'static str = "key.answered";

    /// An entry without a caller.
    pub fn new(action: impl Into<String>, source: impl Into<String>) -> Self {
        Self {
            action: action.into(),
            source: source.into(),
            issuer: None,
            subject: None,
            actor: None,
            scope: None,
            task: None,
            target: None,
            request_id: None,
            reason: None,
        }
    }

    /// Sets caller, request and, if it is not set, the task to those of a context.
    #[must_use]
    pub fn by(mut self, parts: &ContextParts) -> Self {
        self.request_id = Some(parts.request_id.clone());
        self.task = self.task.or_else(|| parts.task_id.clone());
        self.caller(&parts.caller)
    }

    /// Sets the caller.
    #[must_use]
    pub fn caller(mut self, caller: &Caller) -> Self {
        if let Some(grant) = caller.grant() {
            self.issuer.clone_from(&grant.issuer);
            self.subject = Some(grant.subject.clone());
            self.actor.clone_from(&grant.actor);
        }
        self
    }

    /// Sets the request.
    #[must_use]
    pub fn request(mut self, id: RequestId) -> Self {
        self.request_id = Some(id);
        self
    }

    /// Sets the scope that the act needs.
    #[must_use]
    pub fn scope(mut self, scope: impl Into<String>) -> Self {
        self.scope = Some(scope.into());
        self
    }

    /// Sets the task.
    #[must_use]
    pub fn task(mut self, task: TaskId) -> Self {
        self.task = Some(task);
        self
    }

    /// Sets the contract.
    #[must_use]
    pub fn contract(self, contract: &ContractRef) -> Self {
        self.target(contract.to_string())
    }

    /// Sets the contract or the route.
    #[must_use]
    pub fn target(mut self, target: impl Into<String>) -> Self {
        self.target = Some(target.into());
        self
    }

    /// Sets the reason of a refusal.
    #[must_use]
    pub fn reason(mut self, kind: ErrorKind) -> Self {
        self.reason = Some(kind.code().to_owned());
        self
    }
}

#[async_trait]
impl<L: AuditLog + ?Sized> AuditLog for Arc<L> {
    async fn record(&self, entry: AuditEntry) -> Result<(), Failure> {
        (**self).record(entry).await
    }
}

/// A log whose failures are logged and stop no act: for programs to which acts without an entry matter less than an outage.
pub fn best_effort(log: impl AuditLog) -> impl AuditLog {
    BestEffort(log)
}

struct BestEffort<L>(L);

#[async_trait]
impl<L: AuditLog> AuditLog for BestEffort<L> {
    async fn record(&self, entry: AuditEntry) -> Result<(), Failure> {
        let what = format!("{} by {}", entry.action, entry.subject.as_deref().unwrap_or("nobody"));
        if let Err(error) = self.0.record(entry).await {
            tracing::warn!(%error, entry = what, "act without an entry in the audit log");
        }
        Ok(())
    }
}
