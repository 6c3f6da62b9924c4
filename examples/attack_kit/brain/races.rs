//! Races: cancellations, takeovers, stores and buses that fail.

use std::{sync::Arc, time::Duration};

use octollm::{brain::Brain, bus::MemoryBus, id::TaskId, prelude::*, task::Submission};
use tokio::{task::JoinSet, time::sleep};

use super::{
    faulty::{Dice, Faults, Faulty, FullBus},
    scene::{Journey, Scene, last_status},
};
use crate::frame::{Broken, Outcome, Size, ensure};

const LEASE: Duration = Duration::from_millis(300);

fn anyone() -> Context {
    Context::detached()
}

async fn submitted(brain: &Brain, number: u64) -> Result<TaskId, Broken> {
    let task = brain.submit(Submission::of(&Journey { number })?, &anyone()).await;
    Ok(task.map_err(|failure| failure.to_string())?.task_id)
}

/// Cancels each task at another moment, also twice at once and together with a rerun; calls fail now and then.
pub(super) async fn cancel(seed: u64, size: Size) -> Outcome {
    let (dice, bus) = (Dice::new(seed), MemoryBus::new());
    let mut scene = Scene::new(&dice, &bus, 4).await?;
    let brain = scene.brain(scene.store.clone(), bus, Duration::from_secs(30))?;
    let count = size.pick(100, 2500);
    let (mut ids, mut watching) = (Vec::new(), JoinSet::new());
    let mut running = JoinSet::new();
    for number in 0..count {
        let id = submitted(&brain, number).await?;
        let updates = brain.watch(&id, None, &anyone()).await.map_err(|failure| failure.to_string())?;
        let watched = id.clone();
        watching.spawn(async move { (watched, last_status(updates).await) });
        let does = dice.below(4);
        if does == 3 {
            scene.note_rerun(&id);
        }
        let (brain, moment, cancelled) = (brain.clone(), dice.clone(), id.clone());
        running.spawn(async move {
            moment.pause(120).await;
            let cx = anyone();
            let cancel = || async { drop(brain.cancel(&cancelled, &anyone()).await) };
            match does {
                0 => {}
                1 => cancel().await,
                2 => drop(tokio::join!(cancel(), cancel())),
                _ => drop(tokio::join!(cancel(), brain.rerun(&cancelled, None, &cx))),
            }
        });
        ids.push(id);
        if number % 16 == 0 {
            dice.pause(8).await;
        }
    }
    while running.join_next().await.transpose()?.is_some() {}
    let words = scene.ended(&ids).await?;
    while let Some(watched) = watching.join_next().await {
        let (id, status) = watched?;
        let end = brain.get(&id, &anyone()).await.map_err(|failure| failure.to_string())?.status;
        let fits = status == Some(end) || scene.was_rerun(&id) && status.is_some();
        ensure!(fits, "the watcher of {id} saw {status:?}, the store says {end}");
    }
    brain.close().await;
    Ok(format!("{count} tasks cancelled at random moments: {words}"))
}

/// Two brains on one store. Each in turn stalls for three leases, loses its tasks to the other one, and goes on.
pub(super) async fn takeover(seed: u64, size: Size) -> Outcome {
    let (dice, bus) = (Dice::new(seed), MemoryBus::new());
    let mut scene = Scene::new(&dice, &bus, 0).await?;
    let stores = [0, 1].map(|_| Faulty::new(scene.store.clone(), dice.clone()));
    let mut brains = Vec::new();
    for store in &stores {
        let brain = scene.brain(store.clone(), bus.clone(), LEASE)?;
        brain.recover().await.map_err(|failure| failure.to_string())?;
        brains.push(brain);
    }
    let (rounds, each) = (size.pick(2, 16), size.pick(30, 100));
    let mut ids = Vec::new();
    for round in 0..rounds {
        for number in 0..each {
            ids.push(submitted(&brains[number as usize % 2], number).await?);
        }
        dice.pause(40).await;
        let ms = u64::try_from(LEASE.as_millis())? * 3;
        stores[round % 2].set(Faults { late: 100, ms, ..Faults::default() });
        dice.pause(100).await;
        sleep(LEASE * 2).await;
        stores[round % 2].set(Faults::default());
    }
    let words = scene.ended(&ids).await?;
    for brain in &brains {
        brain.close().await;
    }
    let late: u64 = stores.iter().map(Faulty::count).sum();
    Ok(format!("{} tasks, {rounds} stalls, {late} operations late: {words}", ids.len()))
}

/// A store each of whose operations fails at random, before it takes effect or after it.
pub(super) async fn faulty(seed: u64, size: Size) -> Outcome {
    troubled(seed, size, Faults { before: 8, after: 8, late: 0, ms: 0 }).await
}

/// A store each of whose operations hangs at random, for longer than a lease.
pub(super) async fn hangs(seed: u64, size: Size) -> Outcome {
    let ms = u64::try_from(LEASE.as_millis())? * 4;
    troubled(seed, size, Faults { before: 0, after: 2, late: 3, ms }).await
}

async fn troubled(seed: u64, size: Size, faults: Faults) -> Outcome {
    let (dice, bus) = (Dice::new(seed), MemoryBus::new());
    let mut scene = Scene::new(&dice, &bus, 2).await?;
    let store = Faulty::new(scene.store.clone(), dice.clone());
    let brains = [0, 1].map(|_| scene.brain(store.clone(), bus.clone(), LEASE));
    let brains: Vec<Brain> = brains.into_iter().collect::<Result<_, _>>()?;
    let (rounds, each) = (size.pick(1, 30), 30);
    let (mut ids, mut refused) = (Vec::new(), 0);
    for _ in 0..rounds {
        store.set(faults);
        for number in 0..each {
            // What fails may be stored all the same: it ends too, as the count of what is left shows.
            match submitted(&brains[number as usize % 2], number).await {
                Ok(id) => ids.push(id),
                Err(_) => refused += 1,
            }
        }
        for _ in 0..10 {
            let (brain, id) = (&brains[dice.below(2) as usize], &ids[dice.below(ids.len() as u64) as usize]);
            match dice.below(2) {
                0 => drop(brain.cancel(id, &anyone()).await),
                _ => scene.rerun(brain, id).await,
            }
        }
        dice.pause(300).await;
        store.set(Faults::default());
        sleep(Duration::from_millis(100)).await;
    }
    scene.ledger.heal();
    let words = scene.ended(&ids).await?;
    for brain in &brains {
        brain.close().await;
    }
    let count = store.count();
    Ok(format!("{} tasks, {refused} submissions failed, {count} operations went wrong: {words}", ids.len()))
}

/// A bus that refuses two of three events, and then none: every end is published, and no task waits for it.
pub(super) async fn full_bus(seed: u64, size: Size) -> Outcome {
    let dice = Dice::new(seed);
    let bus = FullBus::new(dice.clone());
    let mut scene = Scene::new(&dice, &bus.inner, 3).await?;
    let brain = scene.brain(scene.store.clone(), bus.clone(), Duration::from_secs(30))?;
    let count = size.pick(50, 1500);
    let mut ids = Vec::new();
    for number in 0..count {
        ids.push(submitted(&brain, number).await?);
    }
    let brain = Arc::new(brain);
    let ended = async {
        for id in &ids {
            let mut updates =
                brain.watch(id, None, &anyone()).await.map_err(|failure| failure.to_string())?;
            while updates.next().await.is_some() {}
        }
        Ok::<_, Broken>(())
    };
    let limit = Duration::from_secs(60);
    tokio::time::timeout(limit, ended).await.map_err(|_| "tasks wait for the bus")??;
    bus.open();
    let words = scene.ended(&ids).await?;
    brain.close().await;
    Ok(format!("{count} tasks beside a bus that is full: {words}"))
}
