//! A brain as an arm: its caller waits for a task.

use std::{
    collections::HashMap,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use tokio::{sync::oneshot, time::timeout};

use super::{Brain, limited, replay::replayed, running::Stop, tasks::closed, updates::watch};
use crate::{
    arm::Arm,
    budget::Usage,
    context::{Context, WeakContext},
    contract::{TaskContract, has_chunks},
    deadline::Deadline,
    error::{ArmError, ErrorKind, Failure},
    id::TaskId,
    orchestrator::{Orchestrator, follow},
    task::{Submission, Task, TaskBudget, TaskRecord, TaskStatus, TaskUpdate},
    update::{CountedChunks, Update, UpdateSink},
};

/// Runs the contract as a task of this brain and waits for its end.
///
/// The task has at most the budget of the caller, and slightly less time than its deadline leaves, so that the usage of the
/// task is known before the deadline. It is cancelled when the call is dropped. The usage of a task that another brain on the
/// store runs is what its journal has if it is cancelled, and one unmetered call if that has nothing.
///
/// The progress and the chunks of the task are those of the call. Where the task runs in this process, its program waits for a reader
/// that is slow, as any arm does. Where another brain on the store runs it, the chunks are read from the stored updates, and the program
/// does not wait. A call whose caller reads chunks fails with [`ErrorKind::ConnectionLost`], and its task is cancelled, if chunks are no
/// longer stored when they are read, or if another run begins the task anew after a chunk. A caller that reads none does not notice that. Those of a
/// contract without chunks, which are for the watchers of its tasks, are not passed on.
///
/// A brain that is closed answers with [`ErrorKind::Unavailable`]: see [`Brain::close`]. While it drains it accepts calls, and
/// their tasks wait for another brain on the store, until the brain closes.
#[async_trait]
impl<C: TaskContract> Arm<C> for Brain {
    async fn execute(&self, input: C, cx: &Context) -> Result<C::Output, ArmError> {
        let submission = Submission::of(&input)?;
        let end = cx.deadline().map(|deadline| Deadline::after(shortened(deadline.remaining())));
        let budget = narrowed(submission.budget, end);
        let (record, _) = self.prepare(submission.budget(budget), cx).await?;
        let id = record.id().clone();
        // Before the task is stored: the call may be dropped meanwhile.
        let mut guard = CancelOnDrop { brain: self, id: &id, cx, armed: true, stored: false, lost: false };
        let waiting = self.0.callers.add::<C>(&id, cx);
        self.accept(record, None, cx).await?;
        guard.stored = true;
        let (task, used, ended) = match self.ended(&id, end, cx, waiting).await {
            Ok(ended) => ended,
            Err(failure) => {
                guard.lost = true;
                return Err(ArmError::from(failure).executed());
            }
        };
        let used = match used {
            Some(used) => used,
            None => self.used(&task).await,
        };
        guard.disarm();
        // Work that is done is answered, also above the budget: the next call is refused then.
        let _ = cx.spend(used);
        match ended {
            Ended::Late if task.status == TaskStatus::Cancelled => {
                Err(Failure::of(ErrorKind::DeadlineExceeded).into())
            }
            Ended::Closed { executed } => Err(Failure { may_have_executed: executed, ..closed() }.into()),
            Ended::Itself | Ended::Late => Ok(task.into_output::<C>()?),
        }
    }
}

/// How the task of a caller ended.
enum Ended {
    Itself,
    /// The time of the caller was up.
    Late,
    /// The brain is closed, and nobody continues the task.
    Closed {
        executed: bool,
    },
}

impl Brain {
    /// Waits for the end of the task of a caller, or ends it.
    async fn ended(
        &self,
        id: &TaskId,
        end: Option<Deadline>,
        cx: &Context,
        waiting: Waiting<'_>,
    ) -> Result<(Task, Option<Usage>, Ended), Failure> {
        let mut followed = pin!(Deadline::run_until(end, self.followed(id, cx, waiting)));
        let in_time = tokio::select! {
            biased;
            in_time = &mut followed => in_time,
            () = self.0.relay.ended.cancelled() => {
                let is_left = |record: &TaskRecord| record.run() == 0 || self.0.is_alone;
                let (record, cancelled) = self.cancel_stored(id, cx, is_left).await?;
                if cancelled {
                    let executed = record.run() > 0;
                    return Ok((record.into_task(), None, Ended::Closed { executed }));
                }
                followed.await
            }
        };
        match in_time {
            Some(followed) => followed.map(|(task, used)| (task, used, Ended::Itself)),
            // It is queued, or is just being ended.
            None => Ok((self.end(id, cx).await?, None, Ended::Late)),
        }
    }

    /// Returns the task of a caller once it has ended, with its usage where that is known. A task that runs here is followed without
    /// the store.
    async fn followed(
        &self,
        id: &TaskId,
        cx: &Context,
        mut waiting: Waiting<'_>,
    ) -> Result<(Task, Option<Usage>), Failure> {
        let (reporting, chunks) = (waiting.cx.clone(), waiting.chunks.clone());
        let mut ended = timeout(ELSEWHERE, &mut waiting.ended).await.ok();
        if ended.is_none() && self.0.callers.has_begun(id) {
            ended = Some((&mut waiting.ended).await);
        }
        let finished = |record: Arc<TaskRecord>| {
            let used = record.usage();
            (Arc::unwrap_or_clone(record).into_task(), used)
        };
        // A run here that has not ended the task reports nothing more.
        let gave_up = matches!(ended, Some(Err(_)));
        if let Some(Ok(record)) = ended {
            return Ok(finished(record));
        }
        let each = |update: &TaskUpdate| {
            if chunks.is_none() && (gave_up || !self.0.callers.has_begun(id)) {
                pass_on(update, cx);
            }
        };
        let elsewhere = async {
            if let Some(chunks) = &chunks {
                self.pass_on_stored(id, gave_up, &reporting, chunks).await?;
            }
            follow(self, id, cx, each).await
        };
        tokio::select! {
            biased;
            Ok(record) = &mut waiting.ended, if !gave_up => Ok(finished(record)),
            task = elsewhere => Ok((task?, None)),
        }
    }

    /// Reports the stored progress and chunks of a task as those of the arm, to the end of the task. A run in this process reports
    /// its own, unless `gave_up`, or unless chunks of a run elsewhere were reported before it began.
    ///
    /// # Errors
    /// Chunks are missing, or another run has begun the task anew after some.
    async fn pass_on_stored(
        &self,
        id: &TaskId,
        gave_up: bool,
        cx: &Context,
        chunks: &CountedChunks,
    ) -> Result<(), Failure> {
        let lost = |words: String| Err(Failure::new(ErrorKind::ConnectionLost, words));
        if gave_up && chunks.count() > 0 {
            return lost("the task is begun anew elsewhere".to_owned());
        }
        let (mut from_store, mut runs, mut stored) = (gave_up, 0, 0_u64);
        let mut updates = watch(self.0.store.clone(), id.clone(), None);
        while let Some(update) = updates.next().await {
            let is_here = !from_store && self.0.callers.has_begun(id);
            match update {
                TaskUpdate::Chunk { data, .. } => {
                    stored += 1;
                    // From now on no run here reports its chunks to the caller.
                    from_store = from_store || self.0.callers.take(id).is_some();
                    if from_store && let Ok(data) = data.read() {
                        chunks.chunk(data).await;
                    }
                }
                TaskUpdate::Status { status: TaskStatus::Processing, .. } => {
                    runs += 1;
                    if runs > 1 && stored > 0 && chunks.count() > 0 {
                        return lost(format!("the task is begun anew after {} chunks", chunks.count()));
                    }
                }
                TaskUpdate::Gap { missed, .. } if !is_here => {
                    return lost(format!("{missed} updates of the task are no longer stored"));
                }
                update if !is_here => pass_on(&update, cx),
                _ => {}
            }
        }
        Ok(())
    }

    /// The usage of a task that has ended.
    async fn used(&self, task: &Task) -> Usage {
        // The task itself has neither the parts of its tokens nor the unmetered calls.
        let record = limited(self.0.store.get(&task.task_id)).await.ok().flatten();
        let Some(record) = record else {
            return Usage { cost: task.metadata.cost, ..Usage::tokens(task.metadata.tokens_used) };
        };
        match record.usage() {
            Some(used) => used,
            None if record.run() == 0 => Usage::ZERO,
            None => {
                let journal = limited(self.0.store.journal(record.id(), None, usize::MAX)).await;
                let journal = journal.ok().filter(|journal| !journal.is_empty());
                journal.map_or(Usage::UNMETERED, |journal| replayed(&journal, &[], &[]))
            }
        }
    }
}

/// A task that has not begun here within this time may run in another process: it is followed in the store.
const ELSEWHERE: Duration = Duration::from_millis(25);

/// The callers that wait in this process, until their tasks begin here.
#[derive(Default)]
pub(super) struct Callers(Mutex<HashMap<TaskId, Caller>>);

/// A caller that waits for a task.
pub(super) struct Caller {
    /// Reports the progress and the chunks of the task.
    pub(super) cx: WeakContext,
    /// Takes the record of the task once its end is stored. It is dropped where the run does not end the task.
    pub(super) ended: oneshot::Sender<Arc<TaskRecord>>,
}

impl Callers {
    fn callers(&self) -> MutexGuard<'_, HashMap<TaskId, Caller>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add<C: TaskContract>(&self, id: &TaskId, cx: &Context) -> Waiting<'_> {
        let (sender, ended) = oneshot::channel();
        let (cx, chunks) = match cx.reader() {
            Some(reader) if has_chunks::<C>() => {
                let counted = CountedChunks::new(reader);
                (cx.clone().with_updates(counted.clone()), Some(counted))
            }
            // The program may send chunks to the watchers of its task.
            Some(reader) => (cx.clone().with_updates(Arc::new(ProgressAlone(reader))), None),
            None => (cx.clone(), None),
        };
        self.callers().insert(id.clone(), Caller { cx: cx.downgrade(), ended: sender });
        Waiting { callers: self, id: id.clone(), ended, cx, chunks }
    }

    /// Whether a run of a task has begun here whose caller waits.
    fn has_begun(&self, id: &TaskId) -> bool {
        !self.callers().contains_key(id)
    }

    /// Takes the caller of a task whose run begins.
    pub(super) fn take(&self, id: &TaskId) -> Option<Caller> {
        self.callers().remove(id)
    }
}

/// Receives no chunks.
struct ProgressAlone(Arc<dyn UpdateSink>);

impl UpdateSink for ProgressAlone {
    fn update(&self, update: Update) {
        self.0.update(update);
    }

    fn is_read(&self) -> bool {
        false
    }
}

/// The wait of a caller.
struct Waiting<'a> {
    callers: &'a Callers,
    id: TaskId,
    ended: oneshot::Receiver<Arc<TaskRecord>>,
    /// The context to which the updates of the task are reported.
    cx: Context,
    /// The chunks that its reader has received; `None` where there is no reader, or the contract has none.
    chunks: Option<Arc<CountedChunks>>,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.callers.callers().remove(&self.id);
    }
}

/// The longest part of a caller's time that is reserved to end a task and to read its usage.
const TO_END: Duration = Duration::from_millis(50);

fn shortened(left: Duration) -> Duration {
    left.saturating_sub(TO_END.min(left / 10))
}

/// The caller waits, so that its deadline is that of the task.
fn narrowed(asked: TaskBudget, end: Option<Deadline>) -> TaskBudget {
    let seconds = end.map(|end| end.remaining().as_secs_f64().max(1e-3));
    let max_time_seconds = match (asked.max_time_seconds, seconds) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    };
    TaskBudget { max_time_seconds, ..asked }
}

/// Reports the progress of the task as that of the arm.
fn pass_on(update: &TaskUpdate, cx: &Context) {
    if let TaskUpdate::Progress { progress, phase, message, .. } = update {
        cx.phase(*phase);
        cx.progress(*progress, message.clone());
    }
}

/// Cancels the task of a call that is dropped.
struct CancelOnDrop<'a> {
    brain: &'a Brain,
    id: &'a TaskId,
    cx: &'a Context,
    armed: bool,
    stored: bool,
    /// The task cannot be followed: what it has used beyond what is known here is unknown.
    lost: bool,
}

impl CancelOnDrop<'_> {
    fn disarm(mut self) {
        self.armed = false;
    }
}

/// Attempts to cancel a task that may just be on its way into the store.
const ATTEMPTS: usize = 3;
const PAUSE: Duration = Duration::from_secs(1);

impl Drop for CancelOnDrop<'_> {
    fn drop(&mut self) {
        if !self.armed {
            return;
        }
        // What runs here has used this much. What runs elsewhere is unknown.
        let _ = self.cx.spend(match self.brain.0.running.log(self.id) {
            Some(log) if self.lost => log.used().plus(Usage::UNMETERED),
            Some(log) => log.used(),
            None if self.stored => Usage::UNMETERED,
            None => Usage::ZERO,
        });
        // A run stops at once; the change of the task waits for the store.
        self.brain.0.running.stop(self.id, Stop::Cancel);
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let (brain, id, cx) = (self.brain.clone(), self.id.clone(), self.cx.clone());
            runtime.spawn(async move {
                for _ in 0..ATTEMPTS {
                    match brain.cancel(&id, &cx).await {
                        Ok(_) => return,
                        Err(failure) => {
                            tracing::debug!(task = %id, %failure, "abandoned task not cancelled yet");
                        }
                    }
                    tokio::time::sleep(PAUSE).await;
                }
            });
        }
    }
}
