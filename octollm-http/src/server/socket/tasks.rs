//! The tasks that one WebSocket follows, and what its caller asks about them.

use std::{
    collections::{HashMap, VecDeque},
    pin::Pin,
    sync::Arc,
    task::{Context as Poll_, Poll},
    vec,
};

use bytes::Bytes;
use futures_util::{
    FutureExt, Stream, StreamExt,
    future::{AbortHandle, Abortable, BoxFuture},
    stream::{self, FuturesUnordered, SelectAll},
};
use octollm_core::{
    Context,
    error::{ErrorKind, Failure},
    id::TaskId,
    json::read_input,
    orchestrator::{Orchestrator, TaskUpdates},
    task::TaskUpdate,
};

use super::line::{Close, code};
use serde::Serialize;

use crate::wire::socket::{Notice, Request};

/// Requests of one caller that run at once. While there are as many, no message is read.
const MOST_RUNNING: usize = 16;
/// Updates of one task that are taken at once, as far as they are there.
const CHUNK: usize = 16;
/// Bytes for the JSON of a message that a connection holds beyond it.
const MAX_SPACE: usize = 16 * 1024;

/// The tasks that a WebSocket follows.
pub(super) struct Tasks {
    orchestrator: Arc<dyn Orchestrator>,
    cx: Context,
    most: usize,
    /// The task in the path, with which the connection ends.
    only: Option<TaskId>,
    followed: HashMap<TaskId, Followed>,
    /// Number of the last subscription.
    last: u64,
    updates: SelectAll<Pin<Box<dyn Stream<Item = Item> + Send>>>,
    /// Updates that were taken, and the number of their subscription.
    taken: (u64, vec::IntoIter<TaskUpdate>),
    running: FuturesUnordered<BoxFuture<'static, Done>>,
    notices: VecDeque<Notice>,
    /// Messages that were no request.
    malformed: u32,
    /// Where JSON is written.
    space: Vec<u8>,
}

struct Followed {
    /// A later subscription of the same task has another one.
    number: u64,
    stop: Option<AbortHandle>,
    is_over: bool,
}

/// Updates of a subscription, or its end.
type Item = (TaskId, u64, Option<Vec<TaskUpdate>>);

/// A request that has ended.
enum Done {
    Watched {
        task_id: TaskId,
        after: u64,
        number: u64,
        updates: Result<TaskUpdates, Failure>,
    },
    Failed(TaskId, Failure),
    Cancelled,
    /// The updates have ended without a final status: whether the task has ended.
    Ended {
        task_id: TaskId,
        number: u64,
        is_over: bool,
    },
}

/// What is to be sent.
pub(super) enum Outgoing {
    /// JSON.
    Text(Bytes),
    Close(Close),
}

impl Tasks {
    pub(super) fn new(orchestrator: Arc<dyn Orchestrator>, cx: Context, most: usize) -> Self {
        Self {
            orchestrator,
            cx,
            most,
            only: None,
            followed: HashMap::new(),
            last: 0,
            updates: SelectAll::new(),
            taken: (0, Vec::new().into_iter()),
            running: FuturesUnordered::new(),
            notices: VecDeque::new(),
            malformed: 0,
            space: Vec::new(),
        }
    }

    /// Follows this task alone, and ends with it.
    pub(super) fn follow_only(&mut self, id: TaskId, updates: TaskUpdates) {
        let number = self.reserve(id.clone());
        self.follow(id.clone(), number, updates);
        self.only = Some(id);
    }

    /// Whether a further message may be read.
    pub(super) fn has_room(&self) -> bool {
        self.running.len() < MOST_RUNNING && self.notices.len() < MOST_RUNNING
    }

    /// Takes a message of the caller.
    ///
    /// # Errors
    /// It is the second one that is no request.
    pub(super) fn asked(&mut self, text: &[u8]) -> Result<(), Close> {
        let request = match read_input::<Request>(text) {
            Ok(request) => request,
            Err(failure) => {
                self.malformed += 1;
                if self.malformed > 1 {
                    return Err(Close::new(code::POLICY, "the second message that is no request"));
                }
                self.notices.push_back(Notice::of(&failure, None));
                return Ok(());
            }
        };
        match request {
            Request::Cancel { task_id } => self.cancel(task_id),
            Request::Subscribe { task_id, .. } | Request::Unsubscribe { task_id } if self.only.is_some() => {
                let words = "this connection follows the task in its path: use /ws for several";
                self.refuse(task_id, &Failure::new(ErrorKind::BadRequest, words));
            }
            Request::Subscribe { task_id, after } => self.subscribe(task_id, after),
            Request::Unsubscribe { task_id } => self.forget(&task_id),
        }
        Ok(())
    }

    fn cancel(&mut self, task_id: TaskId) {
        let (orchestrator, cx) = (self.orchestrator.clone(), self.cx.clone());
        self.running.push(
            async move {
                match orchestrator.cancel(&task_id, &cx).await {
                    Ok(_) => Done::Cancelled,
                    Err(failure) => Done::Failed(task_id, failure),
                }
            }
            .boxed(),
        );
    }

    fn subscribe(&mut self, task_id: TaskId, after: Option<u64>) {
        self.forget(&task_id);
        if self.followed.len() >= self.most {
            let words = format!("this connection follows {} tasks, which is the most", self.most);
            return self.refuse(task_id, &Failure::new(ErrorKind::Overloaded, words));
        }
        let number = self.reserve(task_id.clone());
        let (orchestrator, cx) = (self.orchestrator.clone(), self.cx.clone());
        self.running.push(
            async move {
                let updates = orchestrator.watch(&task_id, after, &cx).await;
                Done::Watched { task_id, after: after.unwrap_or(0), number, updates }
            }
            .boxed(),
        );
    }

    fn refuse(&mut self, task_id: TaskId, failure: &Failure) {
        self.notices.push_back(Notice::of(failure, Some(task_id)));
    }

    fn reserve(&mut self, task_id: TaskId) -> u64 {
        self.last += 1;
        self.followed.insert(task_id, Followed { number: self.last, stop: None, is_over: false });
        self.last
    }

    fn follow(&mut self, id: TaskId, number: u64, updates: TaskUpdates) {
        let Some(followed) = self.followed.get_mut(&id).filter(|followed| followed.number == number) else {
            return;
        };
        let (stop, stopped) = AbortHandle::new_pair();
        followed.stop = Some(stop);
        let chunks = updates.ready_chunks(CHUNK).map(Some).chain(stream::once(async { None }));
        let items = chunks.map(move |chunk| (id.clone(), number, chunk));
        self.updates.push(Box::pin(Abortable::new(items, stopped)));
    }

    fn forget(&mut self, id: &TaskId) {
        let Some(followed) = self.followed.remove(id) else { return };
        if followed.number == self.taken.0 {
            self.taken = (0, Vec::new().into_iter());
        }
        if let Some(stop) = followed.stop {
            stop.abort();
        }
    }

    /// What is to be sent next.
    pub(super) fn poll_next(&mut self, cx: &mut Poll_<'_>) -> Poll<Outgoing> {
        loop {
            if let Some(notice) = self.notices.pop_front() {
                return Poll::Ready(self.json(&notice));
            }
            if !self.running.is_empty()
                && let Poll::Ready(Some(done)) = self.running.poll_next_unpin(cx)
            {
                match self.done(done) {
                    Some(outgoing) => return Poll::Ready(outgoing),
                    None => continue,
                }
            }
            if let Some(update) = self.taken.1.next() {
                return Poll::Ready(self.json(&update));
            }
            let Poll::Ready(Some(item)) = self.updates.poll_next_unpin(cx) else { return Poll::Pending };
            if let Some(outgoing) = self.item(item) {
                return Poll::Ready(outgoing);
            }
        }
    }

    fn done(&mut self, done: Done) -> Option<Outgoing> {
        match done {
            Done::Cancelled => {}
            Done::Failed(task_id, failure) => self.refuse(task_id, &failure),
            Done::Ended { task_id, number, is_over } => {
                if self.followed.get(&task_id).is_some_and(|followed| followed.number == number) {
                    self.followed.remove(&task_id);
                    return Some(self.ended(task_id, is_over));
                }
            }
            Done::Watched { task_id, after, number, updates } => {
                if self.followed.get(&task_id).is_none_or(|followed| followed.number != number) {
                    return None;
                }
                match updates {
                    Ok(updates) => {
                        self.notices.push_back(Notice::Subscribed { task_id: task_id.clone(), after });
                        self.follow(task_id, number, updates);
                    }
                    Err(failure) => {
                        self.followed.remove(&task_id);
                        self.refuse(task_id, &failure);
                    }
                }
            }
        }
        None
    }

    fn item(&mut self, (id, number, chunk): Item) -> Option<Outgoing> {
        let followed = self.followed.get_mut(&id).filter(|followed| followed.number == number)?;
        if let Some(chunk) = chunk {
            followed.is_over = chunk.last().is_some_and(TaskUpdate::is_last);
            self.taken = (number, chunk.into_iter());
            return None;
        }
        if followed.is_over {
            self.followed.remove(&id);
            let is_only = self.only.is_some();
            return is_only.then(|| Outgoing::Close(Close::new(code::NORMAL, "the task has ended")));
        }
        let (orchestrator, cx) = (self.orchestrator.clone(), self.cx.clone());
        self.running.push(
            async move {
                let task = orchestrator.get(&id, &cx).await;
                let is_over = task.is_ok_and(|task| task.status.is_finished());
                Done::Ended { task_id: id, number, is_over }
            }
            .boxed(),
        );
        None
    }

    /// What follows from updates that have ended without a final status.
    fn ended(&mut self, task_id: TaskId, is_over: bool) -> Outgoing {
        match (self.only.is_some(), is_over) {
            (true, true) => Outgoing::Close(Close::new(code::NORMAL, "the task has ended")),
            (true, false) => {
                Outgoing::Close(Close::new(code::TRY_AGAIN, "the updates have ended: connect again"))
            }
            (false, true) => self.json(&Notice::Ended { task_id }),
            (false, false) => {
                let words = "the updates have ended before the task: subscribe again";
                let failure = Failure::new(ErrorKind::Unavailable, words);
                self.json(&Notice::of(&failure, Some(task_id)))
            }
        }
    }

    fn json(&mut self, value: &impl Serialize) -> Outgoing {
        self.space.clear();
        self.space.shrink_to(MAX_SPACE);
        match serde_json::to_writer(&mut self.space, value) {
            Ok(()) => Outgoing::Text(Bytes::copy_from_slice(&self.space)),
            Err(error) => {
                tracing::error!(%error, "event cannot be written");
                Outgoing::Close(Close::new(code::INTERNAL, "an update cannot be written"))
            }
        }
    }
}
