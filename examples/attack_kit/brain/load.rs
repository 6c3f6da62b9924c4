//! More work, larger values and more watchers than there is room for.

use std::{sync::Arc, time::Duration};

use octollm::{
    arm::arm_fn,
    brain::Brain,
    bus::MemoryBus,
    dispatcher::Dispatcher,
    id::TaskId,
    prelude::*,
    store::MemoryStore,
    task::{Submission, Task},
};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

use super::{
    faulty::{Dice, FullBus},
    scene::{Double, Journey, Ledger, Scene},
};
use crate::frame::{Broken, Outcome, Size, counted, ensure};

fn anyone() -> Context {
    Context::detached()
}

/// Waits until the tasks have ended, and returns how.
async fn ends(brain: &Brain, ids: &[TaskId]) -> Result<Vec<Task>, Broken> {
    let (begun, mut tasks) = (Instant::now(), Vec::new());
    for id in ids {
        loop {
            let task = brain.get(id, &anyone()).await.map_err(|failure| failure.to_string())?;
            if task.status.is_finished() {
                tasks.push(task);
                break;
            }
            ensure!(begun.elapsed() < Duration::from_secs(60), "a task does not end: {task:?}");
            sleep(Duration::from_millis(5)).await;
        }
    }
    Ok(tasks)
}

/// Thousands of submissions at once where a hundred tasks may wait: no more are accepted, and each of them ends.
pub(super) async fn storm(size: Size) -> Outcome {
    let (dice, count, queued, running) = (Dice::new(1), size.pick(2000, 20_000), 100, 10);
    let bus = FullBus::new(dice.clone());
    let arm = arm_fn(|input: Double, _| async move {
        sleep(Duration::from_millis(100)).await;
        Ok::<_, ArmError>(input.number)
    });
    let brain = Brain::builder()
        .arm::<Double>(arm)
        .bus(bus.clone())
        .max_queued(queued)
        .max_running(running)
        .build()?;
    let mut submitting = JoinSet::new();
    let begun = Instant::now();
    for number in 0..count {
        let brain = brain.clone();
        submitting.spawn(async move {
            let submission = Submission::of(&Double { number }).map_err(|error| error.to_string())?;
            brain
                .submit(submission, &anyone())
                .await
                .map(|task| task.task_id)
                .map_err(|failure| failure.kind.to_string())
        });
    }
    let (mut ids, mut refused) = (Vec::new(), Vec::new());
    while let Some(submitted) = submitting.join_next().await {
        match submitted? {
            Ok(id) => ids.push(id),
            Err(kind) => refused.push(kind),
        }
    }
    // In each 100 ms as many places become free as tasks may run.
    let rounds = begun.elapsed().as_millis() / 100 + 1;
    let most = queued + running + running * usize::try_from(rounds)?;
    ensure!(ids.len() >= queued && ids.len() <= most, "{} accepted, not {queued} to {most}", ids.len());
    ensure!(refused.iter().all(|kind| kind == "overloaded"), "refused: {}", counted(refused));
    bus.open();
    let statuses = ends(&brain, &ids).await?.into_iter().map(|task| task.status);
    let words = counted(statuses);
    brain.close().await;
    Ok(format!("{count} submissions at once, {} accepted (at most {most}): {words}", ids.len()))
}

/// Streams so many chunks of so many bytes, and returns as much.
#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "attack.pour", output = String, chunk = String, timeout = "60s")]
struct Pour {
    chunks: usize,
    bytes: usize,
    padding: String,
}

/// Inputs, chunks and results of megabytes: what is stored of them is bounded.
pub(super) async fn giant(size: Size) -> Outcome {
    let arm = arm_fn(|input: Pour, cx: Context| async move {
        for _ in 0..input.chunks {
            cx.chunk::<Pour>(&"x".repeat(input.bytes)).await;
        }
        Ok::<_, ArmError>("x".repeat(input.bytes))
    });
    let bytes = size.pick(200_000, 16 << 20);
    let store = Arc::new(MemoryStore::new().finished_bytes(bytes));
    let brain =
        Brain::builder().arm::<Pour>(arm).store(store).max_queued_bytes(bytes).max_running(4).build()?;
    let (count, length) = size.pick((16, 30_000), (1000, 1 << 20));
    let (mut refused, mut accepted) = (0, 0);
    for _ in 0..count {
        let submission = Submission::of(&Pour { chunks: 30, bytes: length, padding: "x".repeat(length) })?;
        match brain.submit(submission, &anyone()).await {
            Ok(_) => accepted += 1,
            Err(failure) if failure.kind == ErrorKind::Overloaded => {
                refused += 1;
                sleep(Duration::from_millis(20)).await;
            }
            Err(failure) => return Err(failure.to_string().into()),
        }
    }
    let begun = Instant::now();
    loop {
        let page = brain.list(octollm::task::TaskQuery::default().limit(100), &anyone()).await;
        let page = page.map_err(|failure| failure.to_string())?;
        let failed = page.tasks.iter().find(|task| task.status == TaskStatus::Failed);
        ensure!(failed.is_none(), "failed: {:?}", failed.and_then(|task| task.error.as_ref()));
        if page.tasks.iter().all(|task| task.status.is_finished()) {
            break;
        }
        ensure!(begun.elapsed() < Duration::from_secs(60), "tasks do not end");
        sleep(Duration::from_millis(20)).await;
    }
    brain.close().await;
    Ok(format!(
        "{accepted} tasks of {length} bytes in, 30 chunks of as many, and as many out; {refused} refused"
    ))
}

/// Watchers that come and leave at any moment, and some that read nothing: no task waits for one.
pub(super) async fn watchers(seed: u64, size: Size) -> Outcome {
    let (dice, bus) = (Dice::new(seed), MemoryBus::new());
    let mut scene = Scene::new(&dice, &bus, 0).await?;
    let brain = scene.brain(scene.store.clone(), bus, Duration::from_secs(30))?;
    let (count, each) = (size.pick(20, 400), size.pick(25, 100));
    let (mut ids, mut watching, mut held) = (Vec::new(), JoinSet::new(), Vec::new());
    for number in 0..count {
        let submission = Submission::of(&Journey { number })?;
        let id = brain.submit(submission, &anyone()).await.map_err(|failure| failure.to_string())?.task_id;
        for _ in 0..each {
            let mut updates = brain
                .watch(&id, Some(dice.below(4)), &anyone())
                .await
                .map_err(|failure| failure.to_string())?;
            let (leaves, dice) = (dice.below(3), dice.clone());
            match leaves {
                0 => held.push(updates),
                1 => drop(watching.spawn(async move {
                    let _ = tokio::time::timeout(Duration::from_millis(dice.below(60)), updates.next()).await;
                })),
                _ => drop(watching.spawn(async move { while updates.next().await.is_some() {} })),
            }
        }
        ids.push(id);
    }
    let words = scene.ended(&ids).await?;
    let all = async { while watching.join_next().await.is_some() {} };
    tokio::time::timeout(Duration::from_secs(30), all)
        .await
        .map_err(|_| "a watcher of a task that has ended waits")?;
    for mut updates in held {
        while updates.next().await.is_some() {}
    }
    brain.close().await;
    Ok(format!("{count} tasks with {each} watchers each: {words}"))
}

/// Makes a batch of so many calls.
#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "attack.batch", output = u64, timeout = "60s")]
struct Batch {
    calls: u64,
    each: bool,
}

/// Batches of thousands of calls, some of which fail: the first failure ends one batch, and the other one survives all.
pub(super) async fn batches(size: Size) -> Outcome {
    let arm = || {
        arm_fn(|input: Batch, cx: Context| async move {
            let calls = (0..input.calls).map(|number| Double { number });
            if input.each {
                let answers = cx.call_all(calls).at_once(64).each().await;
                return Ok(answers.iter().filter(|answer| answer.is_ok()).count() as u64);
            }
            Ok::<_, ArmError>(cx.call_all(calls).at_once(64).await?.into_iter().sum())
        })
    };
    let dice = Dice::new(7);
    let (sound, failing) = (Ledger::new(&dice, 0), Ledger::new(&dice, 5));
    let calls = size.pick(1000, 10_000);
    let mut words = Vec::new();
    for (ledger, fails) in [(sound, false), (failing, true)] {
        let brain = Brain::builder().arm::<Batch>(arm()).arms(ledger.clone()).build()?;
        let mut ids = Vec::new();
        for each in [false, true] {
            let submission = Submission::of(&Batch { calls, each })?;
            ids.push(
                brain.submit(submission, &anyone()).await.map_err(|failure| failure.to_string())?.task_id,
            );
        }
        let tasks = ends(&brain, &ids).await?;
        let all = if fails { TaskStatus::Failed } else { TaskStatus::Completed };
        ensure!(tasks[0].status == all && tasks[1].status == TaskStatus::Completed, "{tasks:?}");
        ensure!(ledger.running() == 0, "{} calls run on", ledger.running());
        words.push(counted(tasks.into_iter().map(|task| task.status)));
        brain.close().await;
    }
    Ok(format!("batches of {calls} calls: {}; with 5 % failures {}", words[0], words[1]))
}

/// Outer tasks whose work is a task of an inner brain, cancelled at any moment: no inner task outlives its caller.
pub(super) async fn nested(seed: u64, size: Size) -> Outcome {
    let (dice, bus) = (Dice::new(seed), MemoryBus::new());
    let scene = Scene::new(&dice, &bus, 0).await?;
    let inner = scene.brain(scene.store.clone(), bus, Duration::from_secs(30))?;
    let mut arm = Dispatcher::new("inner");
    arm.serve::<Journey>(inner.clone());
    let outer_arm = arm_fn(|input: Double, cx: Context| async move {
        Ok::<_, ArmError>(cx.call(Journey { number: input.number }).await?)
    });
    let arms = Ledger::of(arm, &dice, 0);
    let outer = Brain::builder().arm::<Double>(outer_arm).arms(arms.clone()).build()?;
    let (count, mut ids, mut cancelling) = (size.pick(50, 3000), Vec::new(), JoinSet::new());
    for number in 0..count {
        let submission = Submission::of(&Double { number })?;
        let id = outer.submit(submission, &anyone()).await.map_err(|failure| failure.to_string())?.task_id;
        if dice.below(3) > 0 {
            let (outer, dice, id) = (outer.clone(), dice.clone(), id.clone());
            cancelling.spawn(async move {
                dice.pause(100).await;
                drop(outer.cancel(&id, &anyone()).await);
            });
        }
        ids.push(id);
    }
    while cancelling.join_next().await.is_some() {}
    let statuses = counted(ends(&outer, &ids).await?.into_iter().map(|task| task.status));
    let begun = Instant::now();
    loop {
        let mut left = 0;
        for status in [TaskStatus::Queued, TaskStatus::Processing] {
            let query = octollm::task::TaskQuery::default().status(status);
            left += inner.list(query, &anyone()).await.map_err(|failure| failure.to_string())?.tasks.len();
        }
        if left == 0 && arms.running() == 0 && scene.ledger.running() == 0 {
            break;
        }
        ensure!(begun.elapsed() < Duration::from_secs(10), "{left} inner tasks outlive their callers");
        sleep(Duration::from_millis(10)).await;
    }
    outer.close().await;
    inner.close().await;
    Ok(format!("{count} tasks over two brains: {statuses}"))
}
