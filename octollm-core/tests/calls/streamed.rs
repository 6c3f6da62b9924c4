//! Calls whose caller reads chunks: what is tried again, by whom, and what a failure says.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use octollm_core::{
    Arm, Context,
    arm::arm_fn,
    brain::Brain,
    card::ArmCard,
    context::CallStream,
    error::{ArmError, CallError, ErrorKind, Failure},
    mesh::{Fault, Mesh},
    orchestrator::{Orchestrator, finished},
    resilience::{HedgeLayer, RetryLayer},
    task::{Submission, Task, TaskStatus, TaskUpdate},
    transport::{Call, Reply, Transport, from_service},
    update::{Update, UpdateSink},
};
use octollm_macros::TaskContract;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::time::Instant;
use tower::Layer;

use crate::support::*;

/// Sends so many words, and fails after them in so many of its first runs.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "text.tell", output = u32, chunk = u32, idempotent, timeout = "100s")]
struct Tell {
    words: u32,
    fails: u32,
}

fn tell(words: u32, fails: u32) -> Tell {
    Tell { words, fails }
}

/// Returns the number of its run.
#[derive(Clone, Default)]
struct Teller(Arc<AtomicU32>);

#[async_trait]
impl Arm<Tell> for Teller {
    async fn execute(&self, tell: Tell, cx: &Context) -> Result<u32, ArmError> {
        let run = self.0.fetch_add(1, Ordering::Relaxed) + 1;
        for word in 1..=tell.words {
            cx.chunk::<Tell>(&word).await;
        }
        if run <= tell.fails {
            return Err(ArmError::unavailable("the model is gone").retry_after(Duration::from_secs(7)));
        }
        Ok(run)
    }
}

/// Passes the words of the teller on.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "text.retell", output = u32, chunk = u32, timeout = "1h")]
struct Retell {
    tell: Tell,
}

struct Reteller;

#[async_trait]
impl Arm<Retell> for Reteller {
    async fn execute(&self, Retell { tell }: Retell, cx: &Context) -> Result<u32, ArmError> {
        let mut words = cx.stream(tell);
        while let Some(word) = words.next().await {
            cx.chunk::<Retell>(&word).await;
        }
        Ok(words.output().await?)
    }
}

async fn read(mut words: CallStream<Tell>) -> (Vec<u32>, Result<u32, CallError>) {
    let mut read = Vec::new();
    while let Some(word) = words.next().await {
        read.push(word);
    }
    (read, words.output().await)
}

fn assert_interrupted(error: &CallError, kind: ErrorKind, chunks: u32) {
    let failure = error.failure();
    assert_eq!((error.kind(), failure.retryable, failure.retry_after), (kind, false, None), "{error:?}");
    assert!(failure.may_have_executed);
    assert_eq!(failure.details, Some(json!({ "chunks": chunks })));
}

#[tokio::test(start_paused = true)]
async fn a_call_is_not_tried_again_after_its_first_chunk() {
    let lost = ErrorKind::ConnectionLost;
    for (fails, fault, kind, chunks) in [
        (9, None, ErrorKind::Unavailable, 3),
        (0, Some(Fault::DropReply), lost, 3),
        (0, Some(Fault::CrashAfterChunks(1)), lost, 1),
        (0, Some(Fault::CrashAfterChunks(3)), lost, 3),
    ] {
        let mesh = Mesh::builder().arm("teller", Teller::default()).start().await;
        fault.into_iter().for_each(|fault| mesh.fault("teller", fault.always()));
        let (words, output) = read(mesh.context().stream(tell(3, fails)).retry(2)).await;
        assert_eq!(words, (1..=chunks).collect::<Vec<_>>());
        assert_interrupted(&output.unwrap_err(), kind, chunks);
        assert_eq!(mesh.calls().len(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_is_tried_again_before_its_first_chunk() {
    let mesh = Mesh::builder().arm("teller", Teller::default()).start().await;
    mesh.fault("teller", Fault::CrashAfterChunks(0).once());
    let (words, output) = read(mesh.context().stream(tell(3, 0)).retry(1)).await;
    assert_eq!((words, output.unwrap()), (vec![1, 2, 3], 2));
    // Nobody reads the chunks.
    assert_eq!(mesh.call(tell(3, 3)).retry(1).await.unwrap(), 4);
    // The fault is for one call, and its arm is dropped at the third chunk.
    mesh.fault("teller", Fault::CrashAfterChunks(2).once());
    assert_eq!(mesh.call(tell(3, 0)).retry(1).await.unwrap(), 6);
    assert!(mesh.unfired().is_empty());
    assert_eq!(mesh.calls().iter().filter(|call| call.failure().is_some()).count(), 3);
}

/// Sends a chunk at each call, and fails.
#[derive(Default)]
struct OwnTransport(AtomicU32);

#[async_trait]
impl Transport for OwnTransport {
    async fn call(&self, call: Call) -> Result<Reply, CallError> {
        self.0.fetch_add(1, Ordering::Relaxed);
        call.updates.chunk(json!(1)).await;
        Err(CallError::new(call.contract, Failure::of(ErrorKind::Unreachable)))
    }

    async fn cards(&self) -> Vec<ArmCard> {
        Vec::new()
    }
}

#[derive(Default)]
struct Sink(Mutex<Vec<Update>>);

#[async_trait]
impl UpdateSink for Sink {
    fn update(&self, update: Update) {
        self.0.lock().unwrap().push(update);
    }
}

#[tokio::test(start_paused = true)]
async fn the_rule_holds_for_any_transport_and_below_any_layer() {
    let own = Arc::new(OwnTransport::default());
    let retried = || Arc::new(from_service(RetryLayer::new().layer(own.clone()), own.clone()));
    for transport in [own.clone() as Arc<dyn Transport>, retried()] {
        let cx = Context::root(transport);
        let (words, output) = read(cx.stream(tell(1, 1)).retry(3)).await;
        assert_eq!(words, [1]);
        assert_interrupted(&output.unwrap_err(), ErrorKind::Unreachable, 1);
    }
    assert_eq!(own.0.load(Ordering::Relaxed), 2);
    let sink = Arc::new(Sink::default());
    let called = Context::root(retried()).call(tell(1, 1)).updates(sink.clone()).await;
    assert_interrupted(&called.unwrap_err(), ErrorKind::Unreachable, 1);
    assert_eq!(*sink.0.lock().unwrap(), [Update::Chunk(json!(1))]);
    let error = Context::root(own.clone()).call(tell(1, 1)).await.unwrap_err();
    assert!(error.retryable(), "nobody has received a chunk");
}

#[tokio::test(start_paused = true)]
async fn a_call_whose_chunks_are_read_is_not_hedged() {
    let slow = arm_fn(|tell: Tell, cx: Context| async move {
        cx.chunk::<Tell>(&1).await;
        tokio::time::sleep(Duration::from_secs(tell.words.into())).await;
        Ok(tell.words)
    });
    let mesh = Mesh::builder().layer(HedgeLayer::new()).arm("teller", slow).start().await;
    for _ in 0..30 {
        mesh.call(tell(1, 0)).await.unwrap();
    }
    let before = mesh.calls().len();
    let (words, output) = read(mesh.context().stream(tell(60, 0))).await;
    assert_eq!((words, output.unwrap(), mesh.calls().len() - before), (vec![1], 60, 1));
    mesh.call(tell(60, 0)).await.unwrap();
    assert_eq!(mesh.calls().len() - before, 3, "one that is not read is");
}

async fn ended(brain: &Brain, cx: &Context, words: u32, fails: u32, attempts: u32) -> Task {
    let job = Submission::of(&Retell { tell: tell(words, fails) }).unwrap().attempts(attempts);
    let task = brain.submit(job, cx).await.unwrap();
    finished(brain, &task.task_id, cx).await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn an_attempt_of_a_task_begins_the_stream_of_its_program_anew() {
    let mesh = Mesh::builder().arm("teller", Teller::default()).brain::<Retell>(Reteller).start().await;
    let (brain, cx, begun) = (mesh.brain(), mesh.context(), Instant::now());
    let task = ended(&brain, &cx, 2, 1, 3).await;
    assert_eq!((task.status, task.attempt), (TaskStatus::Completed, 2));
    assert!(begun.elapsed() >= Duration::from_secs(7), "as long as the failure asks");
    let mut updates = brain.watch(&task.task_id, None, &cx).await.unwrap();
    let mut seen = Vec::new();
    while let Some(update) = updates.next().await {
        seen.push(match update {
            TaskUpdate::Chunk { data, .. } => data.as_str().to_owned(),
            TaskUpdate::Status { status, .. } => status.to_string(),
            other => format!("{other:?}"),
        });
    }
    assert_eq!(seen, ["processing", "1", "2", "queued", "processing", "1", "2", "completed"]);
}

#[tokio::test(start_paused = true)]
async fn a_task_whose_stream_has_failed_is_run_again_on_request() {
    let mesh = Mesh::builder().arm("teller", Teller::default()).brain::<Retell>(Reteller).start().await;
    let task = ended(&mesh.brain(), &mesh.context(), 2, 1, 1).await;
    let error = task.error.unwrap();
    assert_eq!(
        (task.status, error.kind, error.retryable),
        (TaskStatus::Failed, ErrorKind::Unavailable, false)
    );
    assert_eq!(mesh.rerun(&task.task_id).await.unwrap().status, TaskStatus::Completed);
}

#[tokio::test(start_paused = true)]
async fn no_attempt_follows_where_the_failure_is_of_no_retryable_kind_or_the_call_must_not_run_twice() {
    /// Must not run twice.
    #[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, TaskContract)]
    #[task(name = "text.sign", output = u32, chunk = u32, timeout = "100s")]
    struct Sign {
        kind: ErrorKind,
    }

    let signer = arm_fn(|sign: Sign, cx: Context| async move {
        cx.chunk::<Sign>(&1).await;
        Err(ArmError::new(sign.kind, "it broke"))
    });
    let broken = arm_fn(|_: Tell, cx: Context| async move {
        cx.chunk::<Tell>(&1).await;
        Err(ArmError::failed("it broke"))
    });
    let program = arm_fn(|Retell { tell }: Retell, cx: Context| async move {
        Ok(match tell.words {
            0 => cx.stream(Sign { kind: ErrorKind::Unavailable }).output().await?,
            _ => cx.stream(tell).output().await?,
        })
    });
    let mesh =
        Mesh::builder().arm("signer", signer).arm("teller", broken).brain::<Retell>(program).start().await;
    for words in [0, 1] {
        let task = ended(&mesh.brain(), &mesh.context(), words, 0, 3).await;
        assert_eq!((task.status, task.attempt), (TaskStatus::Failed, 1), "{words}");
    }
    assert_eq!(mesh.calls().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_failure_after_chunks_is_replayed_as_it_was() {
    type Seen = (u32, Option<Value>, bool);
    let seen: Arc<Mutex<Vec<Seen>>> = Arc::default();
    let noted = seen.clone();
    let program = arm_fn(move |Retell { tell }: Retell, cx: Context| {
        let noted = noted.clone();
        async move {
            let (words, output) = read(cx.stream(tell)).await;
            let error = output.unwrap_err();
            let details = error.failure().details.clone();
            noted.lock().unwrap().push((words.len() as u32, details, error.retryable()));
            Ok(cx.call(measure(1)).await?.attempt)
        }
    });
    let builder = Mesh::builder().arm("teller", Teller::default()).arm::<Measure>("worker", Worker);
    let mesh = builder.brain::<Retell>(program).start().await;
    mesh.fault("worker", Fault::error(ErrorKind::Unavailable).once());
    let task = ended(&mesh.brain(), &mesh.context(), 2, 9, 2).await;
    assert_eq!((task.status, task.attempt), (TaskStatus::Completed, 2));
    let details = || Some(json!({ "chunks": 2 }));
    assert_eq!(*seen.lock().unwrap(), [(2, details(), false), (0, details(), false)]);
}
