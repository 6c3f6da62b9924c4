//! A contract whose progress, chunks and output are answered as server-sent events.

use std::{
    collections::VecDeque,
    future::{Future, poll_fn},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context as Poll_, Poll},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{Stream, StreamExt, task::AtomicWaker};
use octollm_core::{
    budget::Usage,
    error::Failure,
    id::{RequestId, TaskId},
    json::RawJson,
    update::{Phase, Progress, Update, UpdateSink},
};
use serde::Serialize;
use serde_json::{Value, value::RawValue};
use tokio::{sync::Notify, time::timeout};

use super::{
    events::{EventBody, ServerEvent, answer},
    routes::{Answer, Refusal},
};
use crate::wire::{Problem, write_problem};

/// Updates that are not sent yet. Above this number, and above so many bytes, chunks wait, and progress is dropped.
const UNSENT: usize = 64;
const UNSENT_BYTES: usize = 64 * 1024;

/// The end of a call.
pub(crate) struct Ended {
    /// The output, and the age of an answer that was cached.
    pub(crate) result: Result<(Bytes, Option<Duration>), Failure>,
    pub(crate) usage: Usage,
    pub(crate) is_replayed: bool,
}

type Work = Pin<Box<dyn Future<Output = Ended> + Send>>;

/// Runs a call as its answer is read, until its updates have begun. A call that fails before is answered with a problem and its status.
/// Where nothing happens for the time of a ping, the answer begins as well.
///
/// The work is part of the body: it is dropped with it, and waits while the caller does not read.
pub(crate) async fn streamed(
    unsent: Arc<Unsent>,
    work: impl Future<Output = Ended> + Send + 'static,
    (request, task): (RequestId, Option<TaskId>),
    ping: Duration,
) -> Result<Answer, Refusal> {
    let mut events = CallEvents { unsent, work: Some(Box::pin(work)), ended: None, seq: 0, request, task };
    let begun = timeout(ping, poll_fn(|cx| events.poll_begun(cx))).await;
    if let (Ok(()), Some(ended)) = (begun, &events.ended) {
        let is_replayed = ended.is_replayed;
        if events.unsent.state().updates.is_empty()
            && let Some(Ended { result: Err(failure), usage, .. }) =
                events.ended.take_if(|ended| ended.result.is_err())
        {
            return Err(Refusal::from(failure).usage(usage).replayed(is_replayed));
        }
        let age = events.ended.as_ref().and_then(|ended| ended.result.as_ref().ok()?.1);
        return Ok(answer(EventBody::new(events.boxed(), ping)).replayed(is_replayed).age(age));
    }
    Ok(answer(EventBody::new(events.boxed(), ping)))
}

/// An event of a call.
#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum CallEvent<'a> {
    Progress { seq: u64, progress: u8, phase: Phase, message: &'a str },
    Chunk { seq: u64, data: &'a RawJson },
    Output { seq: u64, output: &'a RawValue, usage: String },
    Problem { seq: u64, problem: &'a RawValue, usage: String },
}

/// The events of a call, whose work they drive.
struct CallEvents {
    unsent: Arc<Unsent>,
    /// `None` once it has ended.
    work: Option<Work>,
    /// Until the last event.
    ended: Option<Ended>,
    seq: u64,
    request: RequestId,
    task: Option<TaskId>,
}

impl CallEvents {
    /// Ready once there is an event.
    fn poll_begun(&mut self, cx: &mut Poll_<'_>) -> Poll<()> {
        self.unsent.reader.register(cx.waker());
        if let Some(work) = &mut self.work
            && let Poll::Ready(ended) = work.as_mut().poll(cx)
        {
            (self.work, self.ended) = (None, Some(ended));
        }
        let is_begun = self.work.is_none() || !self.unsent.state().updates.is_empty();
        if is_begun { Poll::Ready(()) } else { Poll::Pending }
    }

    fn update(&mut self, update: &Unread) -> Option<ServerEvent> {
        self.seq += 1;
        let seq = self.seq;
        let event = match update {
            Unread::Progress(Progress { percentage, current_step, message, .. }) => {
                CallEvent::Progress { seq, progress: *percentage, phase: *current_step, message }
            }
            Unread::Chunk(data) => CallEvent::Chunk { seq, data },
        };
        ServerEvent::numbered(seq, &event)
    }

    fn last(&mut self, ended: Ended) -> Option<ServerEvent> {
        self.seq += 1;
        let (seq, usage) = (self.seq, ended.usage.to_string());
        match ended.result {
            Ok((output, _)) => {
                let output = serde_json::from_slice(&output).ok()?;
                ServerEvent::numbered(seq, &CallEvent::Output { seq, output, usage })
            }
            Err(failure) => {
                let problem = Problem::new(&failure, Some(self.request.clone()), self.task.clone());
                let problem = write_problem(&problem, false);
                let problem = serde_json::from_slice(&problem).ok()?;
                ServerEvent::numbered(seq, &CallEvent::Problem { seq, problem, usage })
            }
        }
    }
}

impl Stream for CallEvents {
    type Item = ServerEvent;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Poll_<'_>) -> Poll<Option<ServerEvent>> {
        loop {
            let next = self.unsent.take();
            if let Some(update) = next {
                match self.update(&update) {
                    Some(event) => return Poll::Ready(Some(event)),
                    None => continue,
                }
            }
            if self.work.is_some() {
                if self.poll_begun(cx).is_pending() {
                    return Poll::Pending;
                }
                continue;
            }
            let Some(ended) = self.ended.take() else { return Poll::Ready(None) };
            return Poll::Ready(self.last(ended));
        }
    }
}

/// The updates of a call that are not sent yet.
#[derive(Debug, Default)]
pub(crate) struct Unsent {
    state: Mutex<State>,
    /// Notified when there is room.
    room: Notify,
    reader: AtomicWaker,
}

#[derive(Debug, Default)]
struct State {
    updates: VecDeque<Unread>,
    bytes: usize,
    progress: Progress,
}

#[derive(Debug)]
enum Unread {
    Progress(Progress),
    Chunk(RawJson),
}

impl Unread {
    fn bytes(&self) -> usize {
        match self {
            Self::Progress(progress) => progress.message.len(),
            Self::Chunk(data) => data.as_str().len(),
        }
    }
}

impl State {
    fn has_room(&self) -> bool {
        self.updates.len() < UNSENT && self.bytes < UNSENT_BYTES
    }

    fn push(&mut self, update: Unread) {
        self.bytes += update.bytes();
        self.updates.push_back(update);
    }
}

impl Unsent {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the update if there is room for it.
    fn push(&self, update: &mut Option<Unread>) -> bool {
        let mut state = self.state();
        if !state.has_room() {
            return false;
        }
        if let Some(update) = update.take() {
            state.push(update);
        }
        drop(state);
        self.reader.wake();
        true
    }

    fn take(&self) -> Option<Unread> {
        let mut state = self.state();
        let update = state.updates.pop_front()?;
        state.bytes -= update.bytes();
        let has_room = state.has_room();
        drop(state);
        if has_room {
            self.room.notify_waiters();
        }
        Some(update)
    }
}

#[async_trait]
impl UpdateSink for Unsent {
    fn update(&self, update: Update) {
        let progress = {
            let mut state = self.state();
            state.progress.apply(&update);
            state.progress.clone()
        };
        self.push(&mut Some(match update {
            Update::Chunk(data) => Unread::Chunk(RawJson::from(data)),
            _ => Unread::Progress(progress),
        }));
    }

    async fn chunk(&self, chunk: Value) {
        let mut chunk = Some(Unread::Chunk(RawJson::from(chunk)));
        loop {
            let room = self.room.notified();
            if self.push(&mut chunk) {
                return;
            }
            room.await;
        }
    }
}
