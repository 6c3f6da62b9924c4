//! A task as a store keeps it.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    IllegalTransition, Priority, Submission, Task, TaskBudget, TaskError, TaskMetadata, TaskResult,
    TaskStatus,
};
use crate::{
    contract::ContractRef,
    id::{RequestId, TaskId},
    parts::Caller,
    update::Progress,
};

/// A task with all that is needed to run it. Each change of status is a method, and only legal ones succeed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct TaskRecord {
    /// What its owner sees.
    pub task: Task,
    /// What is to be run.
    pub contract: ContractRef,
    /// The contract's JSON.
    pub input: Value,
    /// Who submitted it, and what they may do.
    pub caller: Caller,
    /// How urgent it is.
    pub priority: Priority,
    /// What it may use up.
    pub budget: TaskBudget,
    /// Names the piece of work over all its requests.
    pub correlation_id: RequestId,
    /// After this moment nobody waits any more.
    pub deadline_at: Option<Timestamp>,
    /// The how-manieth run this is; 0 before the first. Whoever holds an older number has lost the task.
    pub run: u32,
    /// Who runs it, and until when they have it.
    pub lease: Option<Lease>,
    /// Counts the changes: a store refuses one that was made from an older revision.
    pub revision: u64,
}

/// A brain's hold on a task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// The brain.
    pub holder: String,
    /// After this moment another may take it.
    pub until: Timestamp,
}

impl TaskRecord {
    /// A queued task.
    pub fn new(submission: Submission, caller: Caller, correlation_id: RequestId, now: Timestamp) -> Self {
        let Submission { contract, input, goal, priority, budget, metadata } = submission;
        Self {
            task: Task {
                task_id: TaskId::new(),
                status: TaskStatus::Queued,
                goal,
                progress: Progress::default(),
                result: None,
                error: None,
                metadata: TaskMetadata { submitted: metadata, ..TaskMetadata::default() },
                created_at: now,
                updated_at: now,
                completed_at: None,
                failed_at: None,
            },
            contract,
            input,
            caller,
            priority,
            budget,
            correlation_id,
            deadline_at: None,
            run: 0,
            lease: None,
            revision: 0,
        }
    }

    /// Names the task.
    pub fn id(&self) -> &TaskId {
        &self.task.task_id
    }

    /// Whether a brain may take it now: it waits, or whoever had it has let it go.
    pub fn is_free(&self, now: Timestamp) -> bool {
        match self.task.status {
            TaskStatus::Queued => true,
            TaskStatus::Processing => self.lease.as_ref().is_none_or(|lease| lease.until <= now),
            TaskStatus::Completed | TaskStatus::Failed | TaskStatus::Cancelled => false,
        }
    }

    fn become_(&mut self, status: TaskStatus, now: Timestamp) -> Result<(), IllegalTransition> {
        let from = self.task.status;
        if !from.may_become(status) {
            return Err(IllegalTransition { from, to: status });
        }
        self.task.status = status;
        self.task.updated_at = now;
        self.lease = None;
        Ok(())
    }

    /// A brain takes the task and runs it. One that was being run by a brain which let it go goes on as processing.
    ///
    /// # Errors
    /// [`IllegalTransition`] when it is finished.
    pub fn start(
        &mut self,
        lease: Lease,
        deadline_at: Timestamp,
        now: Timestamp,
    ) -> Result<(), IllegalTransition> {
        if self.task.status == TaskStatus::Processing {
            self.become_(TaskStatus::Queued, now)?;
        }
        self.become_(TaskStatus::Processing, now)?;
        self.lease = Some(lease);
        self.run = self.run.saturating_add(1);
        self.deadline_at.get_or_insert(deadline_at);
        Ok(())
    }

    /// It has a result.
    ///
    /// # Errors
    /// [`IllegalTransition`] unless it is being run.
    pub fn complete(&mut self, result: TaskResult, now: Timestamp) -> Result<(), IllegalTransition> {
        self.become_(TaskStatus::Completed, now)?;
        self.task.progress.percentage = 100;
        self.task.result = Some(result);
        self.task.completed_at = Some(now);
        Ok(())
    }

    /// It has an error.
    ///
    /// # Errors
    /// [`IllegalTransition`] when it is finished.
    pub fn fail(&mut self, error: TaskError, now: Timestamp) -> Result<(), IllegalTransition> {
        self.become_(TaskStatus::Failed, now)?;
        self.task.error = Some(error);
        self.task.failed_at = Some(now);
        Ok(())
    }

    /// It is given up on request.
    ///
    /// # Errors
    /// [`IllegalTransition`] when it is finished.
    pub fn cancel(&mut self, now: Timestamp) -> Result<(), IllegalTransition> {
        self.become_(TaskStatus::Cancelled, now)
    }

    /// It waits again: its brain let go of it, or it failed and is to be run once more, with its time limit anew.
    ///
    /// # Errors
    /// [`IllegalTransition`] unless it is being run or has failed.
    pub fn requeue(&mut self, now: Timestamp) -> Result<(), IllegalTransition> {
        let failed = self.task.status == TaskStatus::Failed;
        self.become_(TaskStatus::Queued, now)?;
        if failed {
            (self.task.error, self.task.failed_at, self.deadline_at) = (None, None, None);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        error::{ErrorKind, Failure},
        task::TaskRequest,
    };

    #[derive(Debug, Clone, Copy)]
    enum Change {
        Start,
        Complete,
        Fail,
        Cancel,
        Requeue,
    }

    fn apply(record: &mut TaskRecord, change: Change, now: Timestamp) -> Result<(), IllegalTransition> {
        match change {
            Change::Start => record.start(Lease { holder: "b".into(), until: now }, now, now),
            Change::Complete => record.complete(TaskResult::new("done"), now),
            Change::Fail => record.fail((&Failure::of(ErrorKind::ArmFailed)).into(), now),
            Change::Cancel => record.cancel(now),
            Change::Requeue => record.requeue(now),
        }
    }

    proptest! {
        #[test]
        fn whatever_is_tried_the_record_stays_true(changes in prop::collection::vec(
            prop_oneof![Just(Change::Start), Just(Change::Complete), Just(Change::Fail), Just(Change::Cancel), Just(Change::Requeue)], 0..24,
        )) {
            let now = Timestamp::UNIX_EPOCH;
            let mut record = TaskRecord::new(TaskRequest::new("goal").into(), Caller::Unchecked, RequestId::new(), now);
            for change in changes {
                let before = record.clone();
                if apply(&mut record, change, now).is_err() {
                    prop_assert_eq!(&before, &record);
                }
                let task = &record.task;
                prop_assert_eq!(task.result.is_some(), task.status == TaskStatus::Completed);
                prop_assert_eq!(task.error.is_some(), task.status == TaskStatus::Failed);
                prop_assert_eq!(record.lease.is_some(), task.status == TaskStatus::Processing);
                prop_assert!(!matches!(before.task.status, TaskStatus::Completed | TaskStatus::Cancelled) || before == record);
                prop_assert!(record.run >= before.run);
            }
        }
    }
}
