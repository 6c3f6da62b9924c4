//! A brain as an arm whose caller reads the chunks of the task.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use octollm_core::{
    Arm, Context,
    arm::arm_fn,
    brain::Brain,
    error::{ArmError, ErrorKind},
    orchestrator::Orchestrator,
    store::MemoryStore,
    task::{TaskQuery, TaskStatus, TaskUpdate},
    update::{Update, UpdateSink},
};
use octollm_macros::TaskContract;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::time::{Instant, sleep, timeout};

use crate::support::{Compute, anyone, shared_store};

const SECOND: Duration = Duration::from_secs(1);

/// Sends so many words, with a pause after each.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "text.tell", output = u64, chunk = u64, timeout = "1h")]
struct Tell {
    words: u64,
    pause_ms: u64,
}

fn teller(store: Arc<MemoryStore>) -> Brain {
    let arm = arm_fn(|tell: Tell, cx: Context| async move {
        for word in 1..=tell.words {
            cx.progress(50, "going on");
            cx.chunk::<Tell>(&word).await;
            sleep(Duration::from_millis(tell.pause_ms)).await;
        }
        Ok::<_, ArmError>(tell.words)
    });
    Brain::builder().arm::<Tell>(arm).store(store).build().unwrap()
}

/// Takes so long for each chunk.
#[derive(Default)]
struct Reader {
    pause: Duration,
    words: Mutex<Vec<u64>>,
    progress: Mutex<usize>,
}

impl Reader {
    fn new(pause: Duration) -> Arc<Self> {
        Arc::new(Self { pause, ..Self::default() })
    }

    fn words(&self) -> Vec<u64> {
        self.words.lock().unwrap().clone()
    }
}

#[async_trait]
impl UpdateSink for Reader {
    fn update(&self, update: Update) {
        if let Update::Progress(50, _) = update {
            *self.progress.lock().unwrap() += 1;
        }
    }

    async fn chunk(&self, chunk: Value) {
        sleep(self.pause).await;
        self.words.lock().unwrap().push(chunk.as_u64().unwrap());
    }
}

async fn told(brain: &Brain, tell: Tell, reader: &Arc<Reader>) -> Result<u64, ArmError> {
    let cx = anyone().with_updates(reader.clone());
    timeout(400 * SECOND, brain.execute(tell, &cx)).await.expect("no answer")
}

#[tokio::test(start_paused = true)]
async fn a_program_waits_for_who_reads_its_chunks_in_this_process() {
    let (brain, reader, begun) = (teller(shared_store()), Reader::new(SECOND), Instant::now());
    assert_eq!(told(&brain, Tell { words: 300, pause_ms: 0 }, &reader).await.unwrap(), 300);
    assert_eq!(reader.words(), (1..=300).collect::<Vec<_>>());
    assert!(*reader.progress.lock().unwrap() >= 300, "each progress");
    assert!((300 * SECOND..301 * SECOND).contains(&begun.elapsed()), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn chunks_for_watchers_alone_are_not_those_of_the_call() {
    let arm = arm_fn(|input: Compute, cx: Context| async move {
        for word in 0..input.number {
            cx.progress(50, "going on");
            cx.chunk::<Tell>(&word).await;
            sleep(SECOND / 100).await;
        }
        Ok::<_, ArmError>(input.number)
    });
    let (store, arm) = (shared_store(), Arc::new(arm));
    let brain = || Brain::builder().arm::<Compute>(arm.clone()).store(store.clone()).build().unwrap();
    let (here, elsewhere, reader) = (brain(), brain(), Reader::new(SECOND));
    let cx = anyone().with_updates(reader.clone());
    assert_eq!(here.execute(Compute { number: 1_000 }, &cx).await.unwrap(), 1_000);
    here.drain().await;
    elsewhere.recover().await.unwrap();
    assert_eq!(here.execute(Compute { number: 1_000 }, &cx).await.unwrap(), 1_000);
    assert_eq!(reader.words(), [0_u64; 0]);
    assert!(*reader.progress.lock().unwrap() > 1_000);
    let id = here.list(TaskQuery::default(), &anyone()).await.unwrap().tasks.remove(0).task_id;
    let mut updates = here.watch(&id, None, &anyone()).await.unwrap();
    let mut stored = 0;
    while let Some(update) = updates.next().await {
        stored += usize::from(matches!(update, TaskUpdate::Chunk { .. }));
    }
    assert!(stored > 0);
}

#[tokio::test(start_paused = true)]
async fn chunks_of_a_task_that_another_brain_runs_arrive_once_and_in_order() {
    let store = shared_store();
    let (asked, runs) = (teller(store.clone()), teller(store));
    asked.drain().await;
    runs.recover().await.unwrap();
    let reader = Reader::new(Duration::ZERO);
    assert_eq!(told(&asked, Tell { words: 100, pause_ms: 50 }, &reader).await.unwrap(), 100);
    assert_eq!(reader.words(), (1..=100).collect::<Vec<_>>());
    assert!(*reader.progress.lock().unwrap() > 0);
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_falls_behind_another_brain_is_told_and_the_task_is_cancelled() {
    let store = shared_store();
    let (asked, runs) = (teller(store.clone()), teller(store));
    asked.drain().await;
    runs.recover().await.unwrap();
    let reader = Reader::new(SECOND / 5);
    let error = told(&asked, Tell { words: 2_000, pause_ms: 10 }, &reader).await.unwrap_err();
    assert_eq!((error.kind(), error.failure().may_have_executed), (ErrorKind::ConnectionLost, true));
    assert!(error.failure().message.ends_with("updates of the task are no longer stored"), "{error}");
    let words = reader.words();
    assert_eq!(words, (1..=words.len() as u64).collect::<Vec<_>>(), "none is left out before");
    sleep(5 * SECOND).await;
    let tasks = runs.list(TaskQuery::default(), &anyone()).await.unwrap().tasks;
    assert_eq!(tasks[0].status, TaskStatus::Cancelled);
    // Who reads no chunks has the output.
    assert_eq!(asked.execute(Tell { words: 2_000, pause_ms: 10 }, &anyone()).await.unwrap(), 2_000);
}

#[tokio::test(start_paused = true)]
async fn a_task_that_is_begun_anew_ends_the_call_after_a_chunk_and_not_before() {
    for (before, words) in [(SECOND / 2, 0), (5 * SECOND / 2, 2)] {
        let store = shared_store();
        let asked = teller(store.clone());
        asked.drain().await;
        let reader = Reader::new(Duration::ZERO);
        let late = arm_fn(|tell: Tell, cx: Context| async move {
            for word in 1..=tell.words {
                sleep(SECOND).await;
                cx.chunk::<Tell>(&word).await;
            }
            Ok::<_, ArmError>(tell.words)
        });
        let late = Brain::builder().arm::<Tell>(late).store(store.clone()).build().unwrap();
        late.recover().await.unwrap();
        let taken_over = async {
            sleep(before).await;
            // It hands the task back, and another one begins it anew.
            late.close().await;
            let next = teller(store.clone());
            next.recover().await.unwrap();
            next
        };
        let tell = Tell { words: 3, pause_ms: 1_000 };
        let (answer, _next) = tokio::join!(told(&asked, tell, &reader), taken_over);
        match words {
            0 => {
                assert_eq!(answer.unwrap(), 3);
                assert_eq!(reader.words(), [1, 2, 3]);
            }
            words => {
                let error = answer.unwrap_err();
                assert_eq!(
                    (error.kind(), reader.words()),
                    (ErrorKind::ConnectionLost, (1..=words).collect())
                );
                assert_eq!(error.to_string(), "the task is begun anew after 2 chunks");
            }
        }
    }
}
