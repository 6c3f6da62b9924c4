//! By which token a task was submitted, and which tokens are for it.

use serde::{Deserialize, Serialize};

use crate::{
    id::TaskId,
    parts::{Caller, Grant},
};

/// The token by which a task was submitted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Submitted {
    /// The task that it was limited to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    under: Option<TaskId>,
    /// The arm that acted for the subject.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    by: Option<String>,
}

impl Submitted {
    pub(super) fn of(caller: &Caller) -> Option<Self> {
        let grant = caller.grant().filter(|grant| grant.task.is_some() || grant.actor.is_some())?;
        Some(Self { under: grant.task.clone(), by: grant.actor.clone() })
    }

    /// The task that the token was limited to, and the arm that acted.
    pub(super) fn parts(&self) -> (Option<&str>, Option<&str>) {
        (self.under.as_ref().map(TaskId::as_str), self.by.as_deref())
    }

    /// Whether a token is for a task: every token of a subject itself, a token that is limited to this task or to the one that it
    /// was submitted under, and, of those that are limited to no task, that of the arm that submitted it.
    pub(super) fn is_of(submitted: Option<&Self>, task: &TaskId, grant: &Grant) -> bool {
        match (&grant.task, &grant.actor) {
            (Some(own), _) => own == task || submitted.is_some_and(|token| token.under.as_ref() == Some(own)),
            (None, Some(actor)) => submitted.is_some_and(|token| token.by.as_ref() == Some(actor)),
            (None, None) => true,
        }
    }
}
