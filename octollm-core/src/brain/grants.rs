//! On whose authority tasks run, and until when.

use std::sync::Arc;

use jiff::Timestamp;

use super::{Brain, limited};
use crate::{
    clock::Clock,
    context::Context,
    contract::Spec,
    error::{ErrorKind, Failure},
    orchestrator::Orchestrator,
    parts::{Caller, Grant},
    task::TaskRecord,
};

/// The scope of a caller that sees the tasks of all callers.
const ADMIN: &str = "tasks:admin";

impl Brain {
    /// Checks that a caller may see a task and act on it. It is its own and one that its token is for, and the scope of its contract
    /// is granted; or the caller has `tasks:admin`, and its token is not for another task.
    ///
    /// # Errors
    /// [`TaskNotFound`](ErrorKind::TaskNotFound); for a task of the caller those of [`Caller::may`].
    pub(super) fn check_access(&self, record: &TaskRecord, cx: &Context) -> Result<(), Failure> {
        let caller = cx.caller();
        // An administrator by a token without a task sees all, whoever acts for it.
        let is_admin = sees_all(caller);
        let is_limited = |grant: &Grant| grant.task.is_some() || !is_admin;
        let is_other = caller.grant().is_some_and(|grant| is_limited(grant) && !record.is_of(grant));
        if is_other || !is_admin && !record.caller().is_same_as(caller) {
            return Err(Failure::of(ErrorKind::TaskNotFound));
        }
        if is_admin { Ok(()) } else { self.authorize(record.contract(), cx) }
    }

    /// The caller with the grant under which its task runs.
    ///
    /// The grant of a subject ends some time after the submission. A task that an arm submits on behalf of a subject ends with the
    /// grant under which the arm works.
    pub(super) async fn granted(&self, cx: &Context) -> Result<Caller, Failure> {
        let Some(grant) = cx.caller().grant() else { return Ok(cx.caller().clone()) };
        let now = self.0.clock.now();
        let end = now.checked_add(self.0.limits.grant_life).unwrap_or(Timestamp::MAX);
        let limit = match &grant.task {
            Some(task) => {
                let above = limited(self.0.store.get(task)).await?;
                let above = above.filter(|record| record.caller().is_same_as(cx.caller()));
                // That of another brain is not known here.
                above.map_or(grant.valid_until, |record| {
                    record.runs_for().grant().and_then(|own| own.valid_until)
                })
            }
            // The token of the subject itself, which ends in minutes, stands for a new grant.
            None if grant.links.is_some() && grant.actor.is_none() => None,
            None => grant.valid_until,
        };
        let mut grant = stored(grant);
        grant.valid_until = Some(limit.map_or(end, |limit| limit.min(end)));
        Ok(Caller::Known(Arc::new(grant)))
    }

    /// Sets on whose authority a task is run again. Where its owner runs it again, that is with its present scopes as far as it had
    /// them at first: if it has all of these, its grant is renewed, and else that of this attempt alone. Others renew nothing: the task
    /// runs with the grant that is stored.
    pub(super) async fn grant_again(&self, record: &mut TaskRecord, cx: &Context) -> Result<(), Failure> {
        record.narrow(None);
        let caller = cx.caller();
        let (Some(own), true) = (record.caller().grant(), record.caller().is_same_as(caller)) else {
            return Ok(());
        };
        let present = self.granted(cx).await?;
        let Some(present) = present.grant() else { return Ok(()) };
        let has_all = own.scopes.iter().all(|scope| present.has_scope(scope));
        let mut grant = own.clone();
        grant.valid_until = present.valid_until;
        if has_all {
            record.set_caller(Caller::Known(Arc::new(grant)));
        } else {
            grant.scopes = present.scopes_within(&own.scopes);
            record.narrow(Some(Caller::Known(Arc::new(grant))));
        }
        Ok(())
    }
}

/// Whether a caller may see the tasks of all callers.
pub(super) fn sees_all(caller: &Caller) -> bool {
    caller.may(ADMIN).is_ok()
}

/// Checks that a caller is known, or that callers are not checked.
pub(super) fn check_known(caller: &Caller) -> Result<(), Failure> {
    match caller {
        Caller::Anonymous => {
            Err(Failure::new(ErrorKind::Unauthenticated, "tasks need a caller that is known")
                .before_execution())
        }
        _ => Ok(()),
    }
}

/// A grant without what holds for one request only.
fn stored(grant: &Grant) -> Grant {
    Grant { task: None, actor: None, links: None, ..grant.clone() }
}

/// The caller of the calls of a task: its owner, limited to the task.
pub(super) fn of_run(record: &TaskRecord) -> Caller {
    match record.runs_for() {
        Caller::Known(grant) => Caller::Known(Arc::new(Grant::clone(grant).task(record.id().clone()))),
        other => other.clone(),
    }
}

/// When the grant ends under which the task runs. `None` where it does not.
pub(super) fn end_of(record: &TaskRecord) -> Option<Timestamp> {
    record.runs_for().grant().and_then(|grant| grant.valid_until)
}

/// Checks that a task may make a call now, or receive the recorded answer of one.
pub(super) fn check(record: &TaskRecord, spec: Option<&Spec>, clock: &Clock) -> Result<(), Failure> {
    if end_of(record).is_some_and(|end| end <= clock.now()) {
        let words = "the grant of the task has ended: its owner can run it again";
        return Err(Failure::new(ErrorKind::Unauthenticated, words).before_execution());
    }
    spec.and_then(Spec::scope).map_or(Ok(()), |scope| record.runs_for().may(scope))
}
