//! Running a failed task again: which calls are made, and what the others wait for.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use octollm_core::{
    Arm, Context,
    error::{ArmError, ErrorKind},
    id::StepKey,
    orchestrator::Orchestrator,
    task::TaskStatus,
};
use tokio::time::{Instant, sleep};

use crate::{
    scripted::{Charge, Does, Scripted, again, error, on, program},
    support::{Compute, Double, Increment, anyone, compute, end_of, run, shared_store},
};

const SECOND: Duration = Duration::from_secs(1);

/// Calls for each of forty numbers, goes on after a failure, and returns the first one at the end.
fn returns_its_first_failure_at_the_end() -> Arc<dyn Arm<Compute>> {
    program(|_, cx: Context| async move {
        let (mut sum, mut failure) = (0, None);
        for number in 0..40 {
            sleep(SECOND / 10).await;
            match cx.call(Increment { number }).await {
                Ok(number) => sum += number,
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        sum += cx.call(Double { number: 1 }).await?;
        failure.map_or(Ok(sum), |error| Err(error.into()))
    })
}

#[tokio::test(start_paused = true)]
async fn a_call_that_is_made_again_takes_the_place_of_its_failure_also_after_a_crash() {
    let (store, arms) = (
        shared_store(),
        Scripted::new(|call| match call.step.to_string().as_str() {
            "3" | "5" => Does::Fails(error(call, ErrorKind::Unavailable)),
            _ => Does::Answers("1"),
        }),
    );
    let brain = on(&store, &arms, returns_its_first_failure_at_the_end());
    let id = run(&brain, compute(1)).await.task_id;
    arms.now(|call| if call.step == StepKey::Order(5) { Does::Hangs } else { Does::Answers("1") });
    // The first failure alone is made again; the other one is replayed, and then it is the one that is returned.
    let begun = Instant::now();
    assert_eq!(again(&brain, &id).await.error.unwrap().step, Some(StepKey::Order(5)));
    assert!(begun.elapsed() < 5 * SECOND, "{:?}", begun.elapsed());
    brain.rerun(&id, None, &anyone()).await.unwrap();
    sleep(5 * SECOND).await;
    brain.close().await;
    arms.now(|_| Does::Answers("1"));
    let (two, begun) = (on(&store, &arms, returns_its_first_failure_at_the_end()), Instant::now());
    two.recover().await.unwrap();
    assert_eq!(end_of(&two, &id).await.result.unwrap().output, 41);
    assert!(begun.elapsed() < 5 * SECOND, "{:?}", begun.elapsed());
    assert_eq!(arms.steps()[41..], ["3", "5", "5"]);
}

#[tokio::test(start_paused = true)]
async fn named_steps_that_are_left_out_are_waited_for_once() {
    let runs = Arc::new(AtomicU32::new(0));
    let program = program(move |_, cx: Context| {
        let first = runs.fetch_add(1, Ordering::Relaxed) == 0;
        async move {
            for number in (0..40).filter(|_| first) {
                cx.call(Increment { number }).named(format!("old-{number}")).await?;
            }
            let number = if first { Err(ArmError::failed("a bug")) } else { Ok(1) }?;
            Ok(cx.call(Double { number }).named("new").await?)
        }
    });
    let brain = on(&shared_store(), &Scripted::new(|_| Does::Answers("1")), program);
    let (id, begun) = (run(&brain, compute(1)).await.task_id, Instant::now());
    assert_eq!(again(&brain, &id).await.status, TaskStatus::Completed);
    assert!(begun.elapsed() < 2 * SECOND, "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_rerun_may_leave_out_what_the_program_did_because_a_call_failed() {
    // It reports the failure of a call, and returns it. Where the call succeeds it goes another way.
    let program = |other_way: bool| {
        program(move |input: Compute, cx: Context| async move {
            match cx.call(Increment { number: input.number }).await {
                Ok(number) if other_way => Ok(cx.call(Double { number }).await?),
                Ok(number) => Ok(number),
                Err(error) => {
                    cx.call(Charge { amount: 1 }).await?;
                    Err(error.into())
                }
            }
        })
    };
    for other_way in [false, true] {
        let arms = Scripted::new(|call| match call.contract.name() {
            "card.charge" => Does::Answers("1"),
            _ => Does::Fails(error(call, ErrorKind::Unavailable)),
        });
        let brain = on(&shared_store(), &arms, program(other_way));
        let id = run(&brain, compute(1)).await.task_id;
        arms.now(|_| Does::Answers("2"));
        let task = again(&brain, &id).await;
        if other_way {
            // Another call in the place of one that was made is never a guess.
            assert_eq!(task.error.unwrap().kind, ErrorKind::JournalMismatch);
            brain.rerun(&id, Some(&StepKey::Order(1)), &anyone()).await.unwrap();
        }
        assert_eq!(end_of(&brain, &id).await.result.unwrap().output, 2);
        assert_eq!(arms.steps().len(), if other_way { 4 } else { 3 });
    }
}

#[tokio::test(start_paused = true)]
async fn a_closed_brain_refuses_a_rerun_as_it_refuses_a_submission() {
    let (store, arms) =
        (shared_store(), Scripted::new(|call| Does::Fails(error(call, ErrorKind::Unavailable))));
    let program = || program(|_, cx: Context| async move { Ok(cx.call(Increment { number: 1 }).await?) });
    let one = on(&store, &arms, program());
    let id = run(&one, compute(1)).await.task_id;
    one.close().await;
    let submitted = one.submit(compute(1), &anyone()).await.unwrap_err();
    assert_eq!((submitted.kind, submitted.may_have_executed), (ErrorKind::Unavailable, false));
    for from in [None, Some(&StepKey::Order(0))] {
        assert_eq!(one.rerun(&id, from, &anyone()).await.unwrap_err(), submitted);
    }
    assert_eq!(one.get(&id, &anyone()).await.unwrap().status, TaskStatus::Failed);
    arms.now(|_| Does::Answers("2"));
    assert_eq!(again(&on(&store, &arms, program()), &id).await.status, TaskStatus::Completed);
}
