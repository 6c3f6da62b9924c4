//! Calls whose outcome is unknown: what a rerun makes of them, and their usage.

use std::{sync::Arc, time::Duration};

use octollm_core::{
    Arm, Context,
    brain::Brain,
    budget::Usage,
    error::{CallError, ErrorKind},
    id::{StepKey, TaskId},
    orchestrator::{Orchestrator, StepOutcome, whole_journal},
    store::{MemoryStore, TaskStore},
    task::{Task, TaskStatus},
    transport::Call,
};
use tokio::time::sleep;

use crate::{
    scripted::{Charge, Does, Scripted, again, error, on, program},
    support::{Compute, Double, Increment, anyone, compute, end_of, run, shared_store},
    trouble::{Trouble, away},
};

const SECOND: Duration = Duration::from_secs(1);

/// Pays and increments at once and goes on with the increment, then doubles and increments.
fn goes_on_without_its_payment(named: bool) -> Arc<dyn Arm<Compute>> {
    program(move |input: Compute, cx: Context| async move {
        let pay = cx.call(Charge { amount: input.number });
        let pay = if named { pay.named("pay") } else { pay };
        let number = tokio::select! {
            biased;
            Ok(paid) = pay => paid,
            number = cx.call(Increment { number: input.number }).named("inc") => number?,
        };
        let number = cx.call(Double { number }).named("b").await?;
        Ok(cx.call(Increment { number }).named("c").await?)
    })
}

fn hangs_and_fails(call: &Call) -> Does {
    match (&*call.contract.to_string(), &*call.step.to_string()) {
        ("card.charge", _) => Does::Hangs,
        (_, "c") => Does::Fails(error(call, ErrorKind::Unavailable)),
        _ => Does::After(SECOND, "1"),
    }
}

async fn rerun_from(brain: &Brain, id: &TaskId, step: &str) -> Task {
    brain.rerun(id, Some(&StepKey::from_text(step)), &anyone()).await.unwrap();
    end_of(brain, id).await
}

/// The steps that a rerun from this one calls.
async fn made(arms: &Scripted, brain: &Brain, id: &TaskId, from: &str) -> Vec<String> {
    let before = arms.steps().len();
    let task = rerun_from(brain, id, from).await;
    assert_eq!(task.error.unwrap().kind, ErrorKind::Unavailable, "from {from}");
    arms.steps().split_off(before)
}

#[tokio::test(start_paused = true)]
async fn a_rerun_from_a_step_leaves_an_unknown_call_before_it_alone() {
    for (named, pay) in [(true, "pay"), (false, "0")] {
        let arms = Scripted::new(hangs_and_fails);
        let brain = on(&shared_store(), &arms, goes_on_without_its_payment(named));
        let task = run(&brain, compute(1)).await;
        let journal = whole_journal(&brain, &task.task_id, &anyone()).await.unwrap();
        assert_eq!((journal[0].step.to_string(), journal[0].outcome), (pay.to_owned(), StepOutcome::Unknown));
        for (from, expected) in
            [("c", &["c"][..]), ("c", &["c"]), ("b", &["b", "c"]), ("inc", &["inc", "b", "c"])]
        {
            assert_eq!(made(&arms, &brain, &task.task_id, from).await, expected, "from {from}");
        }
        assert_eq!(made(&arms, &brain, &task.task_id, pay).await, [pay, "inc", "b", "c"]);
    }
}

#[tokio::test(start_paused = true)]
async fn an_unknown_call_stays_unknown_over_a_crash_between_two_reruns() {
    let (store, arms) = (shared_store(), Scripted::new(hangs_and_fails));
    let dies = Trouble::over(store.clone());
    let program = goes_on_without_its_payment(true);
    let builder = Brain::builder().arm::<Compute>(program.clone()).arms(arms.clone()).store(dies.clone());
    let one = builder.build().unwrap();
    let id = run(&one, compute(1)).await.task_id;
    one.rerun(&id, Some(&StepKey::Name("b".into())), &anyone()).await.unwrap();
    sleep(SECOND / 2).await;
    dies.fails(|_, _| Some(away()));
    sleep(35 * SECOND).await;
    let two = on(&store, &arms, program);
    two.recover().await.unwrap();
    assert_eq!(end_of(&two, &id).await.status, TaskStatus::Failed);
    assert_eq!(made(&arms, &two, &id, "b").await, ["b", "c"]);
    assert_eq!(arms.steps().iter().filter(|step| *step == "pay").count(), 1, "{:?}", arms.steps());
}

#[tokio::test(start_paused = true)]
async fn an_unknown_call_that_a_rerun_makes_again_has_the_key_that_it_had() {
    let arms = Scripted::new(hangs_and_fails);
    arms.remembers_keys(600 * SECOND);
    let brain = on(&shared_store(), &arms, goes_on_without_its_payment(true));
    let id = run(&brain, compute(1)).await.task_id;
    for from in ["c", "b", "c"] {
        assert!(made(&arms, &brain, &id, from).await.contains(&"pay".to_owned()));
    }
    let keys = arms.keys("pay");
    assert!(keys.len() == 4 && keys.iter().all(|key| *key == keys[0]), "{keys:?}");
    made(&arms, &brain, &id, "pay").await;
    assert_ne!(arms.keys("pay").pop(), keys.into_iter().next());
    let keys = arms.keys("c");
    assert!(keys.iter().skip(1).all(|key| *key != keys[0]), "{keys:?}");
}

#[tokio::test(start_paused = true)]
async fn a_call_that_is_followed_by_its_handle_counts_as_recorded_when_it_was_begun() {
    let program = program(|input: Compute, cx: Context| async move {
        let pay = cx.call(Charge { amount: input.number }).named("pay");
        let chain = async {
            let number = cx.call(Increment { number: input.number }).named("inc").await?;
            cx.call(Increment { number }).named("c").await
        };
        let (paid, number) = futures_util::future::try_join(pay, chain).await?;
        Ok(paid + number)
    });
    // The handle is reported when the answer of the first increment is recorded.
    let script = |call: &Call| match hangs_and_fails(call) {
        Does::Hangs => Does::FollowsAfter(SECOND + SECOND / 2, "5"),
        Does::Fails(_) => Does::After(2 * SECOND, "wrong"),
        does => does,
    };
    let arms = Scripted::new(script);
    let brain = on(&shared_store(), &arms, program);
    let id = run(&brain, compute(1)).await.task_id;
    let mended =
        move |call: &Call| if &*call.step.to_string() == "c" { Does::Answers("2") } else { script(call) };
    arms.now(mended);
    assert_eq!(rerun_from(&brain, &id, "inc").await.result.unwrap().output, 7);
    assert_eq!(arms.steps(), ["pay", "inc", "c", "pay", "inc", "c"]);
}

#[tokio::test(start_paused = true)]
async fn a_rerun_from_a_call_of_a_batch_repeats_what_was_begun_after_it() {
    let program = program(|input: Compute, cx: Context| async move {
        let first = cx.call(Increment { number: input.number }).named("first").await?;
        let batch = (0..3).map(|amount| Charge { amount: first + amount });
        let each = cx.call_all(batch).named("each").each().await;
        Ok(each.into_iter().collect::<Result<Vec<u64>, _>>()?.into_iter().sum())
    });
    let (store, arms) = (
        shared_store(),
        Scripted::new(|call| match call.contract.name() {
            "card.charge" => Does::Hangs,
            _ => Does::Answers("1"),
        }),
    );
    let brain = on(&store, &arms, program.clone());
    let id = brain.submit(compute(1), &anyone()).await.unwrap().task_id;
    sleep(SECOND).await;
    brain.close().await;
    arms.now(|_| Does::Answers("1"));
    let brain = on(&store, &arms, program);
    brain.recover().await.unwrap();
    for _ in 0..2 {
        assert_eq!(end_of(&brain, &id).await.error.unwrap().kind, ErrorKind::OutcomeUnknown);
        assert_eq!(arms.steps(), ["first", "each[0]", "each[1]", "each[2]"]);
        brain.rerun(&id, None, &anyone()).await.unwrap();
    }
    end_of(&brain, &id).await;
    // The first one was begun before it, and stays unknown.
    assert_eq!(rerun_from(&brain, &id, "each[1]").await.error.unwrap().kind, ErrorKind::OutcomeUnknown);
    assert_eq!(arms.steps()[4..], ["each[1]", "each[2]"]);
    assert_eq!(rerun_from(&brain, &id, "each[0]").await.status, TaskStatus::Completed);
    assert_eq!(arms.steps()[6..7], ["each[0]"]);
}

/// Spends 300 tokens itself, pays, which is allowed to fail, and increments for 80.
fn pays() -> Arc<dyn Arm<Compute>> {
    program(|input: Compute, cx: Context| async move {
        cx.spend(Usage::tokens(300))?;
        let _ = cx.call(Charge { amount: input.number }).await;
        Ok(cx.call(Increment { number: input.number }).await?)
    })
}

fn charges_hang(call: &Call) -> Does {
    match call.contract.name() {
        "card.charge" => Does::Hangs,
        _ => Does::Fails(error_that_used(call, 80)),
    }
}

fn error_that_used(call: &Call, tokens: u64) -> CallError {
    error(call, ErrorKind::Unavailable).with_usage(Usage::tokens(tokens))
}

async fn usage(store: &Arc<MemoryStore>, id: &TaskId) -> (u64, u64) {
    let used = store.get(id).await.unwrap().unwrap().usage().unwrap();
    (used.tokens, used.unmetered)
}

#[tokio::test(start_paused = true)]
async fn a_call_that_a_crash_interrupts_is_unmetered() {
    let (store, arms) = (shared_store(), Scripted::new(charges_hang));
    let dies = Trouble::over(store.clone());
    let one = Brain::builder().arm::<Compute>(pays()).arms(arms.clone()).store(dies.clone()).build().unwrap();
    let id = one.submit(compute(1), &anyone()).await.unwrap().task_id;
    sleep(SECOND).await;
    dies.fails(|_, _| Some(away()));
    sleep(35 * SECOND).await;
    let two = on(&store, &arms, pays());
    two.recover().await.unwrap();
    assert_eq!(end_of(&two, &id).await.status, TaskStatus::Failed);
    // What the program spent itself before the crash is lost.
    assert_eq!(usage(&store, &id).await, (380, 1));
    // Reruns count it once.
    for tokens in [760, 1_140] {
        assert_eq!(again(&two, &id).await.status, TaskStatus::Failed);
        assert_eq!(usage(&store, &id).await, (tokens, 1));
    }
    // The call itself once more: its usage is known, that of the first one is not.
    arms.now(|call| Does::Fails(error_that_used(call, 80)));
    rerun_from(&two, &id, "0").await;
    assert_eq!(usage(&store, &id).await, (1_140 + 300 + 160, 1));
}

#[tokio::test(start_paused = true)]
async fn a_run_that_a_brain_hands_back_has_used_what_it_used() {
    let (store, arms) = (shared_store(), Scripted::new(charges_hang));
    let one = on(&store, &arms, pays());
    let id = one.submit(compute(1), &anyone()).await.unwrap().task_id;
    sleep(SECOND).await;
    one.close().await;
    let task = store.get(&id).await.unwrap().unwrap();
    assert_eq!((task.status(), task.used_before().tokens), (TaskStatus::Queued, 300));
    let two = on(&store, &arms, pays());
    two.recover().await.unwrap();
    assert_eq!(end_of(&two, &id).await.status, TaskStatus::Failed);
    assert_eq!(usage(&store, &id).await, (680, 1));
}
