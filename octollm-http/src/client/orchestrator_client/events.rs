//! The updates of a task as server-sent events.

use std::time::{Duration, SystemTime};

use futures_util::stream;
use http::{HeaderValue, Method, Response, header::ACCEPT};
use octollm_core::{
    __private::machines::outcome_of_failure,
    Context,
    contract::ContractSpec,
    deadline::Deadline,
    error::{ErrorKind, Failure},
    id::TaskId,
    orchestrator::{TaskUpdates, wait_to_poll},
    parts::Caller,
    resilience::Outcome,
    task::TaskUpdate,
};
use tokio::{
    sync::OwnedSemaphorePermit,
    time::{Instant, sleep},
};

#[cfg(feature = "ws")]
use super::sockets;
use super::{
    Inner, OrchestratorClient, parts_of,
    polls::{LONGEST, SHORTEST},
    with_query,
};
use crate::client::{
    exchange::{CODED, Received, Target, is_coded, read},
    foreign,
    metrics::SendSpan,
    pool::{ExchangeLimits, ServerHints},
    sse::{EVENTS, EventReader, is_events},
};

/// The longest wait before a stream is opened again.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

impl OrchestratorClient {
    /// The updates of a task as they arrive. `None` where the orchestrator does not stream them, or there is no place for one more stream.
    ///
    /// # Errors
    /// The orchestrator refuses the request.
    pub(super) async fn streamed(
        &self,
        id: &TaskId,
        after: Option<u64>,
        cx: &Context,
    ) -> Result<Option<TaskUpdates>, Failure> {
        let mut place = None;
        let events = loop {
            let has_sockets = self.has_sockets();
            if !has_sockets {
                let Ok(free) = self.0.streams.clone().try_acquire_owned() else { return Ok(None) };
                place = Some(free);
            }
            let opened = self.open(id, after, cx).await;
            // The orchestrator has no WebSockets, but may have streams.
            let has_learned = has_sockets && !self.has_sockets();
            if !has_learned || !matches!(opened, Ok(None)) {
                break opened;
            }
        };
        let events = match events {
            Ok(Some(events)) => Some((events, Instant::now())),
            Ok(None) => return Ok(None),
            Err(failure) if failure.retryable => {
                // Whether there is such a task, with the attempts of any request.
                super::Orchestrator::get(self, id, cx).await?;
                None
            }
            Err(failure) => return Err(failure),
        };
        let (client, cx, id, after) = (self.clone(), cx.clone(), id.clone(), after.unwrap_or(0));
        let followed = Followed {
            client,
            cx,
            id,
            after,
            events,
            has_begun: false,
            following: None,
            is_over: false,
            failures: 0,
            lost: None,
            _place: place,
        };
        Ok(Some(TaskUpdates::new(stream::unfold(followed, async |mut followed| {
            let update = followed.next().await?;
            Some((update, followed))
        }))))
    }

    /// Whether updates come over WebSockets.
    fn has_sockets(&self) -> bool {
        #[cfg(feature = "ws")]
        if let Some(sockets) = &self.0.sockets {
            return sockets.are_supported();
        }
        false
    }

    /// Opens the updates of a task. `None` where there is no such route.
    async fn open(&self, id: &TaskId, after: Option<u64>, cx: &Context) -> Result<Option<Source>, Failure> {
        let admission = self.0.protection.admit()?;
        let limit = Deadline::after(ContractSpec::DEFAULT_TIMEOUT);
        let limit = cx.deadline().map_or(limit, |deadline| deadline.min(limit));
        let answer = tokio::select! {
            biased;
            () = cx.cancelled() => Err(Failure::of(ErrorKind::Cancelled)),
            answer = limit.run(self.source(id, after, cx)) => {
                answer.unwrap_or_else(|| Err(Failure::of(ErrorKind::DeadlineExceeded)))
            }
        };
        let outcome = match &answer {
            Ok(_) => Outcome::Success,
            Err(failure) if failure.kind == ErrorKind::Overloaded => Outcome::Success,
            Err(failure) => match outcome_of_failure(failure, false) {
                Outcome::Success | Outcome::Declined => Outcome::Ignored,
                outcome => outcome,
            },
        };
        admission.end(outcome, Instant::now());
        answer
    }

    async fn source(&self, id: &TaskId, after: Option<u64>, cx: &Context) -> Result<Option<Source>, Failure> {
        #[cfg(feature = "ws")]
        if let Some(sockets) = self.0.sockets.as_ref().filter(|sockets| sockets.are_supported()) {
            let mut caller = parts_of(cx)?.caller;
            if caller == Caller::Unchecked {
                caller = self.1.clone();
            }
            let subscription = self.subscribed(sockets, (id, after, caller)).await?;
            return Ok(subscription.map(Source::Socket));
        }
        Ok(self.events(id, after, cx).await?.map(Source::Events))
    }

    async fn events(
        &self,
        id: &TaskId,
        after: Option<u64>,
        cx: &Context,
    ) -> Result<Option<EventReader>, Failure> {
        let Inner { arm, endpoint, exchanger, authority, card, .. } = &*self.0;
        let mut parts = parts_of(cx)?;
        if parts.caller == Caller::Unchecked {
            parts.caller = self.1.clone();
        }
        let path = with_query(format!("/tasks/{id}/events"), [after.map(|after| format!("after={after}"))]);
        let uri = endpoint.uri(&path).ok_or_else(|| Failure::of(ErrorKind::BadRequest).before_execution())?;
        let mut request = endpoint.request((Method::GET, uri), None, &parts, (false, Instant::now()));
        request.headers_mut().insert(ACCEPT, HeaderValue::from_static(EVENTS));
        let has_issued_token = authority.add(request.headers_mut(), &parts.caller, None, card)?;
        let hints = ServerHints { has_issued_token, ..ServerHints::default() };
        let (deadline, work) = (cx.deadline(), ContractSpec::DEFAULT_TIMEOUT);
        let limits = ExchangeLimits { deadline, work, hints, begun: None };
        let target = || Target {
            arm: arm.clone(),
            endpoint: endpoint.shared(),
            contract: None,
            idempotent: true,
            deadline,
            work,
        };
        let span = SendSpan::begin(&mut request, (arm, endpoint.as_str()), None, &parts);
        let answer = exchanger.send_streamed(request, None, arm, limits, target).await;
        span.end(&answer);
        events_of(answer?, exchanger.max_answer()).await
    }
}

/// The events of an answer. `None` where there is no such route.
async fn events_of(answer: Response<Received>, most: usize) -> Result<Option<EventReader>, Failure> {
    let (head, body) = answer.into_parts();
    if head.status.is_success() {
        return match is_events(&head.headers) {
            true if is_coded(&head.headers) => Err(Failure::new(ErrorKind::BadResponse, CODED)),
            true => Ok(Some(EventReader::new(body, most))),
            false => Ok(None),
        };
    }
    let body = match body {
        Received::Whole(whole) => whole,
        // Of an answer that breaks off the status counts.
        Received::Streaming(download) => read(*download, foreign::MOST_READ).await.0,
    };
    let failure = foreign::failure(head.status, &head.headers, &body, SystemTime::now());
    match failure.kind {
        ErrorKind::NotFound
        | ErrorKind::MethodNotAllowed
        | ErrorKind::NotAcceptable
        | ErrorKind::NotImplemented => Ok(None),
        _ => Err(failure),
    }
}

/// Where the updates of a task come from.
enum Source {
    Events(EventReader),
    #[cfg(feature = "ws")]
    Socket(sockets::Subscription),
}

impl Source {
    /// The next update. `None` where the source has ended.
    async fn next(&mut self) -> Option<Result<TaskUpdate, Failure>> {
        match self {
            Self::Events(events) => {
                Some(events.next().await?.map_err(Failure::from).and_then(|event| event.json()))
            }
            #[cfg(feature = "ws")]
            Self::Socket(subscription) => subscription.next().await,
        }
    }
}

/// A task that is followed over all streams of its updates.
struct Followed {
    client: OrchestratorClient,
    cx: Context,
    id: TaskId,
    /// The number of the last update.
    after: u64,
    /// The stream, and when it was opened.
    events: Option<(Source, Instant)>,
    /// Whether an update of this stream has arrived.
    has_begun: bool,
    /// The update that follows a gap.
    following: Option<TaskUpdate>,
    /// Whether the last update was a final status.
    is_over: bool,
    /// Streams that were not opened, or ended at once, in a row.
    failures: u32,
    /// When the first of them had failed.
    lost: Option<Instant>,
    /// That of a stream.
    _place: Option<OwnedSemaphorePermit>,
}

impl Followed {
    async fn next(&mut self) -> Option<TaskUpdate> {
        loop {
            if let Some(update) = self.following.take() {
                return Some(self.passed(update));
            }
            let Some((events, _)) = &mut self.events else {
                self.reopen().await?;
                continue;
            };
            let event = tokio::select! {
                biased;
                () = self.cx.cancelled() => return None,
                event = events.next() => event,
            };
            match event.map(|update| update.and_then(|update| self.read(update))) {
                Some(Ok(None)) => {}
                Some(Ok(Some(update))) => return Some(self.passed(update)),
                ended => {
                    if self.is_over {
                        return None;
                    }
                    match ended {
                        // The final status may have arrived before.
                        None if !self.has_begun && self.is_finished().await => return None,
                        Some(Err(error)) => {
                            tracing::debug!(task = %self.id, %error, "the stream of updates broke off");
                        }
                        _ => {}
                    }
                    self.ended();
                }
            }
        }
    }

    async fn is_finished(&mut self) -> bool {
        let task = self.client.get_up_to(0, &self.id, &self.cx).await;
        task.is_ok_and(|task| task.status.is_finished())
    }

    fn passed(&mut self, update: TaskUpdate) -> TaskUpdate {
        (self.after, self.is_over) = (update.seq(), update.is_last());
        update
    }

    /// Reads an update that is a new one, with the gap before it.
    fn read(&mut self, update: TaskUpdate) -> Result<Option<TaskUpdate>, Failure> {
        let (task_id, seq) = (update.task_id(), update.seq());
        if *task_id != self.id {
            let words = format!("the update is of another task, {task_id}");
            return Err(Failure::new(ErrorKind::BadResponse, words));
        }
        (self.failures, self.lost) = (0, None);
        if seq < self.after && !self.has_begun {
            // The log of the task has begun anew, as after the loss of a store in memory.
            self.after = 0;
        }
        self.has_begun = true;
        if seq <= self.after {
            return Ok(None);
        }
        let gap =
            |until: u64| TaskUpdate::Gap { task_id: self.id.clone(), seq: until, missed: until - self.after };
        Ok(Some(match update {
            TaskUpdate::Gap { .. } => gap(seq),
            update if seq - self.after > 1 => {
                let gap = gap(seq - 1);
                self.following = Some(update);
                gap
            }
            update => update,
        }))
    }

    /// The stream has ended before its task.
    fn ended(&mut self) {
        // A proxy may end each after a minute.
        if self.events.take().is_some_and(|(_, since)| since.elapsed() >= LONGEST) {
            (self.failures, self.lost) = (0, None);
        }
        self.failed();
    }

    fn failed(&mut self) {
        self.failures += 1;
        self.lost.get_or_insert_with(Instant::now);
    }

    fn is_given_up(&self) -> bool {
        self.lost.is_some_and(|lost| lost.elapsed() >= self.client.0.resume_timeout)
    }

    /// Opens the next stream. `None` where it is no longer tried.
    async fn reopen(&mut self) -> Option<()> {
        if self.failures > 0 {
            wait(SHORTEST.saturating_mul(1 << self.failures.min(8)).min(LONGEST_PAUSE), &self.cx).await?;
        }
        match self.client.open(&self.id, Some(self.after), &self.cx).await {
            Ok(Some(events)) => (self.events, self.has_begun) = (Some((events, Instant::now())), false),
            Ok(None) => self.failed(),
            Err(failure) => {
                self.failed();
                tracing::debug!(task = %self.id, %failure, "the updates of the task cannot be opened");
                wait(wait_to_poll(&failure, Duration::ZERO, self.cx.deadline())?, &self.cx).await?;
            }
        }
        (!self.is_given_up()).then_some(())
    }
}

/// `None` where the caller has ended.
async fn wait(time: Duration, cx: &Context) -> Option<()> {
    tokio::select! {
        () = sleep(time) => Some(()),
        () = cx.cancelled() => None,
    }
}
