//! Brains on one store, with everything at once: cancellations, closings, reruns, a store that is slow and fails.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use octollm_core::{
    Arm, Context,
    brain::Brain,
    error::ArmError,
    id::TaskId,
    orchestrator::Orchestrator,
    store::StoreError,
    task::{Task, TaskStatus},
};
use tokio::time::{sleep, timeout};

use crate::{
    support::{Compute, Double, Increment, Local, anyone, compute, end_of},
    trouble::{Trouble, away},
};

/// A sequence that looks random, the same for the same seed.
#[derive(Clone)]
struct Dice(Arc<Mutex<u64>>);

impl Dice {
    fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)))
    }

    fn below(&self, limit: u64) -> u64 {
        let mut state = self.0.lock().unwrap();
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        *state % limit
    }

    async fn pause(&self, limit: u64) {
        sleep(Duration::from_millis(self.below(limit))).await;
    }
}

#[derive(Clone, Default)]
struct Watched {
    running: Arc<Mutex<HashMap<TaskId, u32>>>,
    overlaps: Arc<Mutex<u32>>,
}

struct Here(Watched, TaskId);

impl Drop for Here {
    fn drop(&mut self) {
        *self.0.running.lock().unwrap().get_mut(&self.1).unwrap() -= 1;
    }
}

/// Calls a few times, some at once, with pauses.
struct Busy(Dice, Watched);

#[async_trait]
impl Arm<Compute> for Busy {
    async fn execute(&self, input: Compute, cx: &Context) -> Result<u64, ArmError> {
        let id = cx.task_id().unwrap().clone();
        let here = Here(self.1.clone(), id.clone());
        let running = {
            let mut running = self.1.running.lock().unwrap();
            let running = running.entry(id).or_default();
            *running += 1;
            *running
        };
        *self.1.overlaps.lock().unwrap() += u32::from(running > 1);
        let number = cx.call(Increment { number: input.number }).await?;
        self.0.pause(3_000).await;
        let doubled = cx.call_all((0..4).map(|more| Double { number: number + more })).await?;
        self.0.pause(3_000).await;
        drop(here);
        Ok(doubled.into_iter().sum())
    }
}

fn fail_at_random(store: &Trouble, dice: &Dice, failures: u64) {
    let dice = dice.clone();
    store.fails(move |operation, _| match dice.below(100) {
        roll if roll < failures / 2 => Some(away()),
        roll if roll < failures && operation == "commit" => Some(StoreError::Conflict),
        _ => None,
    });
}

async fn storm(seed: u64, failures: u64) {
    let (dice, arms, store, watched) = (Dice::new(seed), Local::new(), Trouble::new(), Watched::default());
    store.slow(Duration::from_millis(dice.below(40)));
    let make = || {
        let arm = Busy(dice.clone(), watched.clone());
        let builder = Brain::builder().arm::<Compute>(arm).arms(arms.clone()).store(store.clone());
        builder.max_running(3).lease(Duration::from_secs(3)).build().unwrap()
    };
    let mut brains = vec![make(), make()];
    for brain in &brains {
        brain.recover().await.unwrap();
    }
    let mut ids = Vec::new();
    for number in 0..8 {
        ids.push(brains[number % 2].submit(compute(number as u64), &anyone()).await.unwrap().task_id);
    }
    fail_at_random(&store, &dice, failures);
    let mut watching = Vec::new();
    for _ in 0..30 {
        let (brain, id) = (&brains[dice.below(2) as usize], &ids[dice.below(8) as usize]);
        match dice.below(8) {
            0 => drop(
                timeout(Duration::from_secs(20), brain.cancel(id, &anyone())).await.expect("cancel hangs"),
            ),
            1 => drop(brain.rerun(id, None, &anyone()).await),
            2 => {
                let at = dice.below(2) as usize;
                timeout(Duration::from_secs(20), brains[at].close()).await.expect("close hangs");
                brains[at] = make();
                let _ = brains[at].recover().await;
            }
            3..=5 => {
                if let Ok(mut updates) = brain.watch(id, Some(dice.below(9)), &anyone()).await {
                    watching.push(tokio::spawn(async move { while updates.next().await.is_some() {} }));
                }
            }
            _ => dice.pause(1_500).await,
        }
    }
    store.fails(|_, _| None);
    let ended = async {
        let mut ended = Vec::new();
        for id in &ids {
            ended.push(end_of(&brains[0], id).await);
        }
        for watching in watching {
            watching.await.unwrap();
        }
        ended
    };
    let ended = timeout(Duration::from_secs(300), ended).await.expect("a task or a watcher never ends");
    check(&ended, failures, seed);
    sleep(Duration::from_secs(60)).await;
    for task in &ended {
        assert_eq!(brains[1].get(&task.task_id, &anyone()).await.unwrap().status, task.status, "seed {seed}");
    }
    if failures == 0 {
        assert_eq!(*watched.overlaps.lock().unwrap(), 0, "seed {seed}");
    }
}

/// Each ended with the right sum, or by what was done to it.
fn check(ended: &[Task], failures: u64, seed: u64) {
    for (number, task) in ended.iter().enumerate() {
        let sum = 8 * (number as u64 + 1) + 12;
        match task.status {
            TaskStatus::Completed => assert_eq!(task.result.as_ref().unwrap().output, sum, "seed {seed}"),
            TaskStatus::Cancelled => {}
            _ => assert!(failures > 0, "seed {seed}: {task:?}"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn every_task_ends_once_whatever_is_done_to_it() {
    for seed in 0..40 {
        storm(seed, 0).await;
    }
}

#[tokio::test(start_paused = true)]
async fn every_task_ends_once_with_a_store_that_fails() {
    for seed in 0..40 {
        storm(seed, 20).await;
    }
}
