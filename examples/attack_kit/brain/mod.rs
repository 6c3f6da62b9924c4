//! Attacks against brains: races, stores and buses that fail, and more work than there is room for. They run in the attacked
//! process, which is the brain's.

mod faulty;
mod load;
mod races;
mod scene;

use std::{env, process, time::SystemTime};

use crate::{
    frame::{Arena, Attack, Outcome, Size, ensure},
    process::Figures,
};

pub(crate) fn attacks() -> Vec<Attack> {
    let attack = |name, run| Attack::new("brain", name, run);
    // The stores of a round hold at most 2500 finished tasks of 20 KiB, or 3000 pairs of nested ones of 15 KiB together, as
    // measured (their own limits are 10 000 tasks and 256 MiB), and 40 000 watchers have 45 MiB of updates and places.
    // All is dropped with its round, but the allocator keeps the pages: a second round shows that nothing else is held.
    let race = |name, run| attack(name, run).memory(96, 96);
    vec![
        race("cancel-at-any-moment", |arena| Box::pin(run(arena, "cancel"))),
        race("takeover-while-the-old-one-runs", |arena| Box::pin(run(arena, "takeover"))),
        race("faulty-store", |arena| Box::pin(run(arena, "faulty"))),
        race("store-that-hangs", |arena| Box::pin(run(arena, "hangs"))),
        race("full-bus", |arena| Box::pin(run(arena, "bus"))),
        attack("submit-storm", |arena| Box::pin(run(arena, "storm"))),
        attack("giant-values", |arena| Box::pin(run(arena, "giant"))).memory(320, 160),
        race("watchers-that-leave", |arena| Box::pin(run(arena, "watchers"))),
        attack("large-batches", |arena| Box::pin(run(arena, "batches"))).memory(160, 96),
        race("nested-brains", |arena| Box::pin(run(arena, "nested"))),
    ]
}

/// Has the attacked process run one of them, with a seed: `ATTACK_KIT_SEED`, or one of its own.
async fn run(arena: &Arena, name: &str) -> Outcome {
    let given = env::var("ATTACK_KIT_SEED").ok().and_then(|seed| seed.parse().ok());
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let seed: u64 = given.unwrap_or(now.as_micros() as u64 % 1_000_000);
    let answer = arena.child.ask(&format!("{name} {seed} {}", arena.size.word())).await?;
    match answer.split_once(' ') {
        Some(("ok", words)) => Ok(format!("{words} (seed {seed})")),
        _ => Err(format!("{answer} (seed {seed})").into()),
    }
}

/// The attacked side: `NAME SEED SIZE`.
pub(crate) async fn command(command: String) -> String {
    let words: Vec<_> = command.split(' ').collect();
    let [name, seed, size] = words[..] else { return "no such command".into() };
    let seed = seed.parse().unwrap_or_default();
    let size = if size == "short" { Size::Short } else { Size::Full };
    // A panic in it ends no more than this task.
    let name = name.to_owned();
    let attack = tokio::spawn(async move {
        match &*name {
            "cancel" => rounds(size, seed, |seed| races::cancel(seed, size)).await,
            "takeover" => rounds(size, seed, |seed| races::takeover(seed, size)).await,
            "faulty" => rounds(size, seed, |seed| races::faulty(seed, size)).await,
            "hangs" => rounds(size, seed, |seed| races::hangs(seed, size)).await,
            "bus" => rounds(size, seed, |seed| races::full_bus(seed, size)).await,
            "storm" => load::storm(size).await,
            "giant" => load::giant(size).await,
            "watchers" => rounds(size, seed, |seed| load::watchers(seed, size)).await,
            "batches" => load::batches(size).await,
            "nested" => rounds(size, seed, |seed| load::nested(seed, size)).await,
            other => Err(format!("there is no attack {other}").into()),
        }
    });
    match attack.await {
        Ok(Ok(words)) => format!("ok {words}"),
        Ok(Err(error)) => error.to_string().replace('\n', " "),
        Err(panic) => format!("panicked: {panic}"),
    }
}

/// How many MiB the memory may grow in a second round: far below what the tasks of one round need.
const GROWTH: u64 = 16;

/// Runs an attack in two rounds with a store of its own each. The second one finds room in what the first one left. In the
/// short form there is one: a round of it needs less than the allowed growth.
async fn rounds<F: Future<Output = Outcome>>(size: Size, seed: u64, attack: impl Fn(u64) -> F) -> Outcome {
    let kib = || Figures::of(process::id()).kib;
    let (words, first) = (attack(seed).await?, kib());
    if size == Size::Short {
        return Ok(words);
    }
    let again = attack(seed.wrapping_add(1)).await?;
    let grown = kib().saturating_sub(first) / 1024;
    ensure!(
        grown <= GROWTH,
        "memory grew by {grown} MiB in a second round, more than {GROWTH}; {words}; {again}"
    );
    Ok(format!("{words}; again: {again}; memory grew by {grown} MiB in the second round"))
}
