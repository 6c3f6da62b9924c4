//! What travels with a task from hop to hop.

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
    /// Who calls, where it was established.
    pub caller: Option<Caller>,
    /// 1 for the first try.
    pub attempt: u32,
}

impl ContextParts {
    /// The beginning of a piece of work: ids of its own, no limits, nobody known.
    pub fn new() -> Self {
        let request_id = RequestId::new();
        Self {
            correlation_id: request_id.clone(),
            request_id,
            task_id: None,
            trace: None,
            deadline: None,
            budget: Budget::UNLIMITED,
            caller: None,
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

/// Who calls, and what they may do.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Caller {
    /// The subject of the caller's token.
    pub subject: String,
    /// The scopes it grants, such as `code:validate` or `tasks:*`.
    pub scopes: Vec<String>,
}

impl Caller {
    /// A caller with these scopes.
    pub fn new(subject: impl Into<String>, scopes: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self { subject: subject.into(), scopes: scopes.into_iter().map(Into::into).collect() }
    }

    /// Whether a scope is granted: matched exactly, or by `entity:*`.
    pub fn has_scope(&self, scope: &str) -> bool {
        let entity = scope.rsplit_once(':').map(|(entity, _)| entity);
        self.scopes.iter().any(|granted| {
            granted == scope
                || (granted.strip_suffix(":*").is_some_and(|all| Some(all) == entity && !all.is_empty()))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_match_whole_or_by_entity() {
        let caller = Caller::new("me", ["code:validate", "tasks:*", "*", ":*"]);
        for granted in ["code:validate", "tasks:admin"] {
            assert!(caller.has_scope(granted), "{granted}");
        }
        for refused in
            ["code:val", "code:validate2", "tasksx:admin", "tasks", "anything:else", ":x", "validate"]
        {
            assert!(!caller.has_scope(refused), "{refused}");
        }
    }
}
