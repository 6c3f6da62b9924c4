//! What travels with a task from hop to hop.

use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    budget::Budget,
    deadline::Deadline,
    error::{ErrorKind, Failure},
    id::{RequestId, TaskId},
    trace::TraceContext,
};

/// Everything that travels with a task, as plain data: what a server reads from the head of a request and a client
/// writes into one.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ContextParts {
    /// Names this request alone.
    pub request_id: RequestId,
    /// Names the piece of work over all its requests.
    pub correlation_id: RequestId,
    /// The task that this work belongs to.
    pub task_id: Option<TaskId>,
    /// The trace of the caller.
    pub trace: Option<TraceContext>,
    /// After this moment nobody waits any more.
    pub deadline: Option<Deadline>,
    /// What may still be used up.
    pub budget: Budget,
    /// Who calls.
    pub caller: Caller,
    /// 1 for the first try.
    pub attempt: u32,
}

impl ContextParts {
    /// The beginning of a piece of work: ids of its own, no limits, nobody known.
    pub fn new() -> Self {
        let request_id = RequestId::new();
        Self::of(request_id.clone(), request_id)
    }

    /// One request of a piece of work: without limits, of a caller that nobody checked.
    pub fn of(request_id: RequestId, correlation_id: RequestId) -> Self {
        Self {
            correlation_id,
            request_id,
            task_id: None,
            trace: None,
            deadline: None,
            budget: Budget::UNLIMITED,
            caller: Caller::Unchecked,
            attempt: 1,
        }
    }

    /// The parts of one more request for the same piece of work.
    pub(crate) fn next_request(&self, deadline: Deadline, budget: Budget) -> Self {
        Self {
            request_id: RequestId::new(),
            correlation_id: self.correlation_id.clone(),
            task_id: self.task_id.clone(),
            trace: self.trace.clone(),
            deadline: Some(deadline),
            budget,
            caller: self.caller.clone(),
            attempt: 1,
        }
    }
}

impl Default for ContextParts {
    fn default() -> Self {
        Self::new()
    }
}

/// Why work with these limits must not start, where one is spent.
pub(crate) fn spent(deadline: Option<Deadline>, budget: Budget) -> Option<Failure> {
    if deadline.is_some_and(Deadline::has_passed) {
        Some(Failure::of(ErrorKind::DeadlineExceeded).before_execution())
    } else if budget.is_exhausted() {
        Some(Failure::of(ErrorKind::BudgetExhausted).before_execution())
    } else {
        None
    }
}

/// Who calls, and what they may do: three different values, never confused.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Caller {
    /// Nobody checks callers here: a program that calls its own arms, a test, a server open to all. Everything is
    /// allowed.
    #[default]
    Unchecked,
    /// Callers are checked, and this one showed no credentials. Only what needs no scope is allowed.
    Anonymous,
    /// Callers are checked, and this one is known.
    Known(Arc<Grant>),
}

/// What a known caller was granted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Grant {
    /// Who vouches for the subject: the issuer of the first token. Equal subjects of two issuers are two callers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issuer: Option<String>,
    /// The subject: a person or a service.
    pub subject: String,
    /// The scopes, such as `code:validate` or `tasks:*`.
    pub scopes: Vec<String>,
    /// When the grant ends; `None` where it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub valid_until: Option<Timestamp>,
}

/// Verbs that `entity:*` does not cover: they are always granted by name.
const NAMED_VERBS: [&str; 4] = ["admin", "register", "serve", "publish"];

impl Grant {
    /// A grant without an issuer and without an end.
    pub fn new(subject: impl Into<String>, scopes: impl IntoIterator<Item = impl Into<String>>) -> Self {
        let scopes = scopes.into_iter().map(Into::into).collect();
        Self { issuer: None, subject: subject.into(), scopes, valid_until: None }
    }

    /// Sets who vouches for the subject.
    #[must_use]
    pub fn issuer(mut self, issuer: impl Into<String>) -> Self {
        self.issuer = Some(issuer.into());
        self
    }

    /// Sets when the grant ends.
    #[must_use]
    pub fn valid_until(mut self, end: Timestamp) -> Self {
        self.valid_until = Some(end);
        self
    }

    /// Whether a scope is granted: by name, or by `entity:*`, which covers every verb of the entity but `admin`,
    /// `register`, `serve` and `publish`.
    pub fn has_scope(&self, scope: &str) -> bool {
        let Some((entity, verb)) = scope.rsplit_once(':').filter(|(entity, _)| !entity.is_empty()) else {
            return false;
        };
        let covers =
            |granted: &str| granted.strip_suffix(":*") == Some(entity) && !NAMED_VERBS.contains(&verb);
        self.scopes.iter().any(|granted| granted == scope || covers(granted))
    }
}

impl Caller {
    /// A known caller with these scopes.
    pub fn known(subject: impl Into<String>, scopes: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self::Known(Arc::new(Grant::new(subject, scopes)))
    }

    /// What the caller was granted; `None` unless it is known.
    pub fn grant(&self) -> Option<&Grant> {
        match self {
            Self::Known(grant) => Some(grant),
            Self::Unchecked | Self::Anonymous => None,
        }
    }

    /// The subject of a known caller.
    pub fn subject(&self) -> Option<&str> {
        self.grant().map(|grant| &*grant.subject)
    }

    /// Whether this scope is granted. The one place where scopes are checked.
    ///
    /// # Errors
    /// [`ErrorKind::Unauthenticated`] for an anonymous caller, [`ErrorKind::InsufficientScope`] for a known one without
    /// the scope.
    pub fn may(&self, scope: &str) -> Result<(), Failure> {
        let refused = match self {
            Self::Unchecked => return Ok(()),
            Self::Known(grant) if grant.has_scope(scope) => return Ok(()),
            Self::Known(_) => ErrorKind::InsufficientScope,
            Self::Anonymous => ErrorKind::Unauthenticated,
        };
        Err(Failure::new(refused, format!("the scope {scope} is required")).before_execution())
    }

    /// Whether both are the same caller, whatever each was granted: the same subject of the same issuer.
    pub fn is_same_as(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Known(a), Self::Known(b)) => (&a.issuer, &a.subject) == (&b.issuer, &b.subject),
            (a, b) => a == b,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_match_whole_or_by_entity() {
        let grant = Grant::new("me", ["code:validate", "tasks:*", "*", ":*", "arms.judge:register"]);
        for granted in ["code:validate", "tasks:read", "tasks:*", "arms.judge:register"] {
            assert!(grant.has_scope(granted), "{granted}");
        }
        for refused in [
            "code:val",
            "code:validate2",
            "tasks:admin",
            "tasksx:read",
            "tasks",
            "anything:else",
            ":x",
            "validate",
            "arms:register",
        ] {
            assert!(!grant.has_scope(refused), "{refused}");
        }
    }

    #[test]
    fn three_callers_are_three_answers() {
        let kind = |caller: Caller| caller.may("code:validate").err().map(|failure| failure.kind);
        assert_eq!(kind(Caller::Unchecked), None);
        assert_eq!(kind(Caller::Anonymous), Some(ErrorKind::Unauthenticated));
        assert_eq!(kind(Caller::known("me", ["code:validate"])), None);
        assert_eq!(kind(Caller::known("me", ["code:run"])), Some(ErrorKind::InsufficientScope));
    }

    #[test]
    fn equal_names_of_two_issuers_are_two_callers() {
        let of = |issuer: &str| Caller::Known(Arc::new(Grant::new("me", ["a:b"]).issuer(issuer)));
        assert!(of("here").is_same_as(&of("here")));
        assert!(!of("here").is_same_as(&of("there")));
        assert!(!Caller::Anonymous.is_same_as(&Caller::Unchecked));
    }
}
