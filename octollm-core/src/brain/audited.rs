//! What a brain writes to its audit log.

use std::time::Duration;

use super::Brain;
use crate::{
    audit::AuditEntry,
    context::Context,
    contract::ContractRef,
    error::{ErrorKind, Failure},
    id::TaskId,
    task::{Task, TaskRecord},
};

impl Brain {
    /// Queues a task, and records that before.
    pub(super) async fn accept(
        &self,
        record: TaskRecord,
        delay: Option<Duration>,
        cx: &Context,
    ) -> Result<Task, Failure> {
        if !self.0.audit.is_on() {
            return self.store(record, delay).await;
        }
        self.act_recorded(AuditEntry::SUBMITTED, &record, cx).await?;
        let stored = self.store(record.clone(), delay).await;
        self.failure_recorded(stored, &record, cx).await
    }

    /// Records an act, before it is done.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`].
    pub(super) async fn act_recorded(
        &self,
        action: &str,
        record: &TaskRecord,
        cx: &Context,
    ) -> Result<(), Failure> {
        self.0.audit.record(|| self.entry(action, Some(record.contract()), Some(record.id()), cx)).await
    }

    /// Records that an act that was recorded had no effect, because it failed or another task has its key. The caller reads the answer
    /// also where that cannot be recorded.
    pub(super) async fn failure_recorded(
        &self,
        done: Result<Task, Failure>,
        record: &TaskRecord,
        cx: &Context,
    ) -> Result<Task, Failure> {
        if let Err(failure) = &done
            && !failure.may_have_executed
        {
            let entry = || self.entry(AuditEntry::REFUSED, Some(record.contract()), Some(record.id()), cx);
            let _ = self.0.audit.record(|| entry().reason(failure.kind)).await;
        }
        if let Ok(existing) = &done
            && existing.existing
        {
            let entry =
                || self.entry(AuditEntry::ANSWERED, Some(record.contract()), Some(&existing.task_id), cx);
            let _ = self.0.audit.record(entry).await;
        }
        done
    }

    /// Records a refusal for lack of authority.
    ///
    /// # Errors
    /// The failure, or [`ErrorKind::Unavailable`] where it cannot be recorded.
    pub(super) async fn refusal_recorded<T>(
        &self,
        checked: Result<T, Failure>,
        (contract, task): (Option<&ContractRef>, Option<&TaskId>),
        cx: &Context,
    ) -> Result<T, Failure> {
        if let Err(Failure {
            kind: kind @ (ErrorKind::Unauthenticated | ErrorKind::InsufficientScope), ..
        }) = &checked
        {
            let entry = || self.entry(AuditEntry::REFUSED, contract, task, cx).reason(*kind);
            self.0.audit.record(entry).await?;
        }
        checked
    }

    fn entry(
        &self,
        action: &str,
        contract: Option<&ContractRef>,
        task: Option<&TaskId>,
        cx: &Context,
    ) -> AuditEntry {
        let mut entry = AuditEntry::new(action, self.0.source()).by(cx.parts());
        if let Some(contract) = contract {
            entry = entry.contract(contract);
            if let Ok(spec) = self.0.dispatcher.spec(contract) {
                entry = entry.scope(spec.scope);
            }
        }
        // The task of the caller is that of its own work.
        entry.task = task.cloned();
        entry
    }
}
