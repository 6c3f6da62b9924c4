//! The data that travels from hop to hop, and the caller with its scopes.

use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::time::Instant;

pub use crate::scope::is_scope;
use crate::{
    budget::Budget,
    deadline::Deadline,
    error::{ErrorKind, Failure},
    id::{IdempotencyKey, RequestId, TaskId},
    scope,
    trace::TraceContext,
};

/// Everything that travels with a call, as plain data. A server reads it from the head of a request, and a client writes it.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ContextParts {
    /// Id of this request.
    pub request_id: RequestId,
    /// Id of the piece of work over all its requests.
    pub correlation_id: RequestId,
    /// The task that this work belongs to.
    pub task_id: Option<TaskId>,
    /// The trace of the caller.
    pub trace: Option<TraceContext>,
    /// The moment after which the result is no longer awaited.
    pub deadline: Option<Deadline>,
    /// The budget that is left.
    pub budget: Budget,
    /// The caller.
    pub caller: Caller,
    /// The number of the attempt, from 1.
    pub attempt: u32,
    /// The idempotency key of the call: an arm that honours keys runs it once. A journal sets it.
    pub key: Option<IdempotencyKey>,
    /// Whether a call with this key may have been made before. Then an arm whose records are not shared answers from the record
    /// of the key alone: without one the call may have run at another instance.
    pub repeated: bool,
}

impl ContextParts {
    /// The parts of new work: new ids, no limits, an unchecked caller.
    pub fn new() -> Self {
        let request_id = RequestId::new();
        Self::of(request_id.clone(), request_id)
    }

    /// The parts of a request with these ids: no limits, an unchecked caller.
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
            key: None,
            repeated: false,
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
            key: None,
            repeated: false,
        }
    }
}

impl Default for ContextParts {
    fn default() -> Self {
        Self::new()
    }
}

/// The failure of starting work with these limits, if one is spent.
pub(crate) fn spent(deadline: Option<Deadline>, budget: Budget, now: Instant) -> Option<Failure> {
    if deadline.is_some_and(|deadline| deadline.has_passed_at(now)) {
        Some(Failure::of(ErrorKind::DeadlineExceeded).before_execution())
    } else if budget.is_exhausted() {
        Some(Failure::of(ErrorKind::BudgetExhausted).before_execution())
    } else {
        None
    }
}

/// The caller of an arm, and its scopes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Caller {
    /// Callers are not checked, as in a program that calls its own arms, a test, or a server open to all. Everything is
    /// allowed.
    #[default]
    Unchecked,
    /// Callers are checked, and this one showed no credentials. Only what needs no scope is allowed.
    Anonymous,
    /// Callers are checked, and this one is known.
    Known(Arc<Grant>),
}

/// The identity and the scopes of a known caller.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Grant {
    /// The issuer of the first token. Equal subjects of two issuers are two callers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issuer: Option<String>,
    /// The subject: a person or a service.
    pub subject: String,
    /// The scopes, such as `code:validate` or `tasks:*`. A text that is [no scope](is_scope) grants nothing.
    pub scopes: Vec<String>,
    /// When the grant ends; `None` where it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub valid_until: Option<Timestamp>,
    /// The task that the caller's token is limited to; `None` where it is limited to none. It is not stored.
    #[serde(skip)]
    pub task: Option<TaskId>,
    /// The arm that acts for the subject; `None` where the subject does, or a root that nobody has delegated to. It is not stored.
    #[serde(skip)]
    pub actor: Option<String>,
    /// The delegation links from a root to this process, by which it may call on: none where the caller's token has no link for
    /// it. `None` where the caller is not known by a token. They are not stored.
    #[serde(skip)]
    pub links: Option<Arc<[Arc<str>]>>,
}

impl Grant {
    /// A grant without an issuer and without an end. Texts that are [no scopes](is_scope) are left out.
    pub fn new(subject: impl Into<String>, scopes: impl IntoIterator<Item = impl Into<String>>) -> Self {
        let scopes = scopes.into_iter().map(Into::into).filter(|scope: &String| is_scope(scope)).collect();
        Self {
            issuer: None,
            subject: subject.into(),
            scopes,
            valid_until: None,
            task: None,
            actor: None,
            links: None,
        }
    }

    /// Sets the issuer.
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

    /// Limits the grant to a task.
    #[must_use]
    pub fn task(mut self, task: TaskId) -> Self {
        self.task = Some(task);
        self
    }

    /// Sets the delegation links by which this process may call on.
    #[must_use]
    pub fn links(mut self, links: impl Into<Arc<[Arc<str>]>>) -> Self {
        self.links = Some(links.into());
        self
    }

    /// Whether a scope is granted: by name, or by `entity:*`, which covers every verb of the entity but `admin`,
    /// `register`, `serve` and `publish`. A text that is [no scope](is_scope) is not granted.
    pub fn has_scope(&self, scope: &str) -> bool {
        scope::covers(&self.scopes, scope)
    }

    /// The scopes that are both granted and in `needed`: `a:*` and `a:b` have `a:b` in common.
    pub fn scopes_within(&self, needed: &[String]) -> Vec<String> {
        scope::common(&self.scopes, needed)
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

    /// Checks that a scope is granted. Scopes are checked nowhere else.
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
        let mut failure = Failure::new(refused, format!("the scope {scope} is required")).before_execution();
        failure.details = Some(json!({ "scope": scope }));
        Err(failure)
    }

    /// Checks that the caller may work for a task: its token can be limited to one.
    ///
    /// # Errors
    /// [`ErrorKind::InsufficientScope`] if the token is for another task.
    pub fn may_work_for(&self, task: &TaskId) -> Result<(), Failure> {
        match self.grant().and_then(|grant| grant.task.as_ref()) {
            Some(own) if own != task => {
                let words = "the token is for another task";
                Err(Failure::new(ErrorKind::InsufficientScope, words).before_execution())
            }
            _ => Ok(()),
        }
    }

    /// Whether both are the same caller, whatever their scopes: the same subject of the same issuer.
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
    fn common_scopes_are_no_wider_than_either_list() {
        let list = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        for (granted, needed, common) in [
            ("code:validate", "code:*", "code:validate"),
            ("code:*", "code:validate", "code:validate"),
            ("code:*", "code:* code:run", "code:* code:run"),
            ("code:*", "code:admin code:publish code:run", "code:run"),
            ("code:admin code:run", "code:*", "code:run"),
            ("code:admin", "code:admin", "code:admin"),
            ("code:run", "data:* code:ru", ""),
            ("*", "*", ""),
            ("", "code:run", ""),
            ("code:run", "", ""),
        ] {
            let grant = Grant::new("me", list(granted));
            assert_eq!(grant.scopes_within(&list(needed)), list(common), "{granted} and {needed}");
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
