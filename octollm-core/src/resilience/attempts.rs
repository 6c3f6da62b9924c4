//! The attempts of one call, and what they have come to.

use std::{
    fmt,
    sync::{Arc, LazyLock},
    time::Duration,
};

use tokio::time::Instant;

use super::{
    RetryBudget,
    policy::{Failed, RetryLimits},
    random,
};
use crate::{
    budget::{Budget, Usage},
    contract::Keys,
    deadline::Deadline,
    dropped::report,
    error::{CallError, Failure},
    explain::CallEvent,
    id::RequestId,
    meters::Counters,
    transport::{Call, Reply},
};

static RETRIES: LazyLock<Counters> = LazyLock::new(|| {
    let help = "Attempts of calls after the first one, by the code of the error before.";
    Counters::new("octollm_call_retries_total", help, &["code"])
});
static REFUSED: LazyLock<Counters> = LazyLock::new(|| {
    let help = "Attempts of calls that the retry budget refused, by the code of the error before.";
    Counters::new("octollm_call_retries_refused_total", help, &["code"])
});

/// Who has the records of the key of a call.
pub type KeysHonoured = dyn Fn(&Call) -> Keys + Send + Sync;

/// When calls are tried again.
#[derive(Clone, Default)]
pub struct RetryPolicy {
    /// How often, and after which waits.
    pub limits: RetryLimits,
    /// Whether the arms of a call honour its key; `None` where none does.
    pub honoured: Option<Arc<KeysHonoured>>,
}

impl RetryPolicy {
    /// Attempts after the first one.
    fn allowed(&self, call: &Call) -> u32 {
        match call.retry {
            Some(asked) => asked,
            None if call.input.len() > self.limits.max_stored => 0,
            None => self.limits.retries,
        }
    }

    /// Who has the record of the call.
    fn keys(&self, call: &Call) -> Keys {
        match &self.honoured {
            Some(honoured) if call.parts.key.is_some() && !call.is_idempotent() => honoured(call),
            _ => Keys::None,
        }
    }
}

/// The attempts of one call. Dropped before the call has ended, it reports what the failed attempts have used.
#[derive(Debug, Clone)]
pub struct Attempts {
    /// Attempts after the first one.
    allowed: u32,
    retries: u32,
    /// How often the call was sent, with what happened below.
    sent: u32,
    used: Usage,
    may_have_executed: bool,
    /// Whether a further attempt follows.
    goes_on: bool,
}

impl Attempts {
    /// Before the first attempt.
    pub fn new(policy: &RetryPolicy, call: &Call) -> Self {
        Self {
            allowed: policy.allowed(call),
            retries: 0,
            sent: 0,
            used: Usage::ZERO,
            may_have_executed: false,
            goes_on: false,
        }
    }

    /// Attempts that may follow the first one.
    pub fn allowed(&self) -> u32 {
        self.allowed
    }

    /// Prepares the next attempt, and returns how long to wait for it. Where there is none the error becomes that of all attempts.
    /// A further attempt takes a token of the `budget`.
    pub fn failed(
        &mut self,
        policy: &RetryPolicy,
        budget: Option<&RetryBudget>,
        call: &mut Call,
        error: &mut CallError,
        now: Instant,
    ) -> Option<Duration> {
        self.used = self.used.plus(error.usage());
        self.sent = self.sent.saturating_add(error.attempts());
        if error.may_have_executed() && !self.may_have_executed {
            call.instance = error.instance().map(Into::into);
        }
        self.may_have_executed |= error.may_have_executed();
        call.parts.budget = call.parts.budget.after(error.usage());
        if let Some(record) = &call.explain {
            record.add(CallEvent::Failed { kind: error.kind(), endpoint: error.endpoint().map(Into::into) });
        }
        let keys = policy.keys(call);
        let failed = Failed {
            failure: error.failure(),
            may_have_executed: self.may_have_executed,
            repeatable: call.is_idempotent() || keys != Keys::None,
            retries: self.retries,
            allowed: self.allowed,
            deadline: call.parts.deadline,
            budget: call.parts.budget,
        };
        let wait =
            policy.limits.wait(&failed, now, random()).filter(|_| is_granted(budget, call, error, now));
        self.goes_on = wait.is_some();
        let Some(wait) = wait else {
            error.after_attempts(self.sent, self.used, self.may_have_executed);
            return None;
        };
        if let Some(record) = &call.explain {
            record
                .add(CallEvent::Retried { after: wait, budget_left: budget.map(|budget| budget.left(now)) });
        }
        self.retries += 1;
        RETRIES.with(&[error.kind().code()]).count();
        tracing::debug!(contract = %call.contract, %error, ?wait, "call is tried again");
        call.parts.attempt = call.parts.attempt.saturating_add(1);
        call.parts.request_id = RequestId::new();
        if let Some(endpoint) = error.endpoint() {
            // The last one to fail is the last in the list, also where it failed before.
            call.avoid.retain(|avoided| **avoided != *endpoint);
            call.avoid.push(endpoint.into());
            if keys == Keys::Instance && error.may_have_executed() {
                call.only.get_or_insert_with(|| endpoint.into());
            }
        }
        call.parts.repeated |= keys != Keys::None && self.may_have_executed;
        Some(wait)
    }

    /// The answer of all attempts.
    pub fn answered(&mut self, reply: &mut Reply) {
        self.goes_on = false;
        reply.usage = self.used.plus(reply.usage);
        reply.attempts = reply.attempts.saturating_add(self.sent);
    }
}

/// A request that is no call, after an attempt that failed.
#[derive(Debug, Clone, Copy)]
pub struct FailedRequest<'a> {
    /// The failure of the last attempt.
    pub failure: &'a Failure,
    /// Whether the request may be sent again after the work was done.
    pub repeatable: bool,
    /// Attempts after the first one.
    pub retries: u32,
    /// How many of those may be made.
    pub allowed: u32,
    /// When the request ends.
    pub deadline: Option<Deadline>,
}

impl FailedRequest<'_> {
    /// How long to wait before the request is sent again, by the rules for calls; `None` where it is not. A further attempt takes a
    /// token of the `budget`.
    pub fn wait(&self, limits: &RetryLimits, budget: &RetryBudget, now: Instant) -> Option<Duration> {
        let Self { failure, repeatable, retries, allowed, deadline } = *self;
        let may_have_executed = failure.may_have_executed;
        let failed = Failed {
            failure,
            may_have_executed,
            repeatable,
            retries,
            allowed,
            deadline,
            budget: Budget::UNLIMITED,
        };
        let wait = limits.wait(&failed, now, random())?;
        let code = failure.kind.code();
        if !budget.withdraw(now) {
            REFUSED.with(&[code]).count();
            return None;
        }
        RETRIES.with(&[code]).count();
        Some(wait)
    }
}

fn is_granted(budget: Option<&RetryBudget>, call: &Call, error: &CallError, now: Instant) -> bool {
    let granted = budget.is_none_or(|budget| budget.withdraw(now));
    if !granted {
        REFUSED.with(&[error.kind().code()]).count();
        call.explain.iter().for_each(|record| record.add(CallEvent::BudgetSpent));
    }
    granted
}

impl Drop for Attempts {
    fn drop(&mut self) {
        if self.goes_on {
            report(self.used);
        }
    }
}

impl fmt::Debug for RetryPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RetryPolicy").field("limits", &self.limits).finish_non_exhaustive()
    }
}
