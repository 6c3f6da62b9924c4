//! What a journal replays, after a crash and in a rerun.

use std::time::Duration;

use futures_util::{StreamExt, stream::FuturesUnordered};
use octollm_core::{
    Context,
    brain::Brain,
    budget::Usage,
    error::{ArmError, CallError, ErrorKind, Failure},
    id::StepKey,
    orchestrator::{Orchestrator, StepOutcome, whole_journal},
    task::TaskStatus,
    transport::Call,
};
use tokio::time::{sleep, timeout};

use crate::{
    scripted::{Charge, Does, Measure, Scripted, again, error, interrupted, on, program},
    support::{Compute, Double, Increment, anyone, clock_ahead, compute, end_of, run, shared_store},
};

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn a_rerun_replays_a_failure_that_the_program_survived() {
    for named in [false, true] {
        let program = program(move |input: Compute, cx: Context| async move {
            let call = |name: &str| {
                let call = cx.call(Increment { number: input.number });
                if named { call.named(name) } else { call }
            };
            let number = match call("first").await {
                Ok(number) => number,
                Err(_) => call("second").await?,
            };
            Ok(cx.call(Double { number }).await?)
        });
        let mut calls = 0;
        let arms = Scripted::new(move |call| {
            calls += 1;
            if calls == 2 { Does::Answers("2") } else { Does::Fails(error(call, ErrorKind::Unavailable)) }
        });
        let brain = on(&shared_store(), &arms, program);
        let task = run(&brain, compute(1)).await;
        assert_eq!(task.status, TaskStatus::Failed);
        let before = arms.steps();
        for _ in 0..2 {
            assert_eq!(again(&brain, &task.task_id).await.error.unwrap().kind, ErrorKind::Unavailable);
        }
        arms.now(|_| Does::Answers("4"));
        assert_eq!(again(&brain, &task.task_id).await.result.unwrap().output, 4);
        let last = before.last().unwrap().clone();
        assert_eq!(arms.steps(), [before, vec![last; 3]].concat());
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_the_caller_cannot_decode_is_a_failure_that_a_rerun_asks_for_again() {
    let program = program(|input: Compute, cx: Context| async move {
        let number = cx.call(Double { number: input.number }).await?;
        Ok(cx.call(Increment { number }).await?)
    });
    for wrong in [r#""seven""#, "7.5", "seven", "[7", r#"{"number":7}"#] {
        let mut calls = 0;
        let arms = Scripted::new(move |_| {
            calls += 1;
            Does::Answers(if calls == 1 { "2" } else { wrong })
        });
        let brain = on(&shared_store(), &arms, program.clone());
        let task = run(&brain, compute(1)).await;
        let refused = task.error.unwrap();
        assert_eq!(
            (refused.kind, refused.step),
            (ErrorKind::UpstreamFailed, Some(StepKey::Order(1))),
            "{wrong}"
        );
        arms.now(|_| Does::Answers("7"));
        assert_eq!(again(&brain, &task.task_id).await.result.unwrap().output, 7);
        assert_eq!(arms.steps(), ["0", "1", "1"]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_replayed_error_equals_the_original() {
    // Everything that a program can read of an error, down to its last source.
    let program = program(|input: Compute, cx: Context| async move {
        let error = cx.call(Double { number: input.number }).await.unwrap_err();
        let facts = (error.arm(), error.endpoint(), error.usage(), error.attempts(), error.step());
        let mut text = format!("{error} {:?} {facts:?}", error.failure());
        let mut source = std::error::Error::source(&error);
        while let Some(cause) = source {
            text += &cause.to_string();
            source = cause.source();
        }
        Ok(cx.call(Measure { text }).await?)
    });
    let original = |call: &Call, which: usize| match which {
        0 => Does::Fails(CallError::new(call.contract.clone(), Failure::of(ErrorKind::Unavailable))),
        1 => {
            let mut failure = Failure::new(ErrorKind::Overloaded, "later");
            failure.details = Some(serde_json::json!({ "free": 0.1 }));
            failure.retry_after = Some(Duration::from_millis(2_500));
            let error = CallError::new(call.contract.clone(), failure).with_arm("arm").with_attempts(3);
            let error = error.with_endpoint("http://arm:1").with_usage(Usage::tokens(7));
            Does::Fails(error.with_source(std::io::Error::other("the cable")))
        }
        _ => Does::Answers("[]"),
    };
    for which in 0..3 {
        let arms = Scripted::new(move |call| match call.contract.name() {
            "text.measure" => Does::Hangs,
            _ => original(call, which),
        });
        let task = interrupted(&arms, program.clone(), |_| Does::Answers("9")).await;
        assert_eq!(task.error, None);
        assert_eq!(arms.steps(), ["0", "1", "1"]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_that_may_have_charged_is_not_made_again_unless_the_operator_insists() {
    let program =
        program(
            |input: Compute, cx: Context| async move { Ok(cx.call(Charge { amount: input.number }).await?) },
        );
    let arms = Scripted::new(|call| Does::Fails(error(call, ErrorKind::ConnectionLost)));
    let brain = on(&shared_store(), &arms, program.clone());
    let task = run(&brain, compute(1)).await;
    assert!(task.error.unwrap().may_have_executed);
    let key = arms.last().parts.key;
    arms.now(|_| Does::Answers("1"));
    for _ in 0..2 {
        let refused = again(&brain, &task.task_id).await.error.unwrap();
        assert_eq!((refused.kind, refused.may_have_executed), (ErrorKind::OutcomeUnknown, true));
    }
    assert_eq!(arms.steps().len(), 1);
    brain.rerun(&task.task_id, Some(&StepKey::Order(0)), &anyone()).await.unwrap();
    assert_eq!(end_of(&brain, &task.task_id).await.result.unwrap().output, 1);
    assert_eq!(arms.steps().len(), 2);
    assert_ne!(arms.last().parts.key, key, "an arm that remembers the first one must not replay it");

    // One that was refused before it ran is made again.
    let refused = Failure::of(ErrorKind::Overloaded).before_execution();
    let arms = Scripted::new(move |call| Does::Fails(CallError::new(call.contract.clone(), refused.clone())));
    let brain = on(&shared_store(), &arms, program);
    let task = run(&brain, compute(1)).await;
    arms.now(|_| Does::Answers("1"));
    assert_eq!(again(&brain, &task.task_id).await.status, TaskStatus::Completed);
}

#[tokio::test(start_paused = true)]
async fn a_rerun_makes_all_failed_calls_of_a_batch_again_and_no_other() {
    let program = program(|input: Compute, cx: Context| async move {
        let _survived = cx.call(Double { number: 99 }).await;
        let batch = (0..5).map(|number| Increment { number: input.number + number });
        let each = cx.call_all(batch).named("each").each().await;
        Ok(each.into_iter().collect::<Result<Vec<u64>, _>>()?.into_iter().sum())
    });
    let arms = Scripted::new(|call| match call.step.to_string().as_str() {
        "0" | "each[1]" | "each[3]" => Does::Fails(error(call, ErrorKind::Unavailable)),
        _ => Does::Answers("1"),
    });
    let brain = on(&shared_store(), &arms, program);
    let task = run(&brain, compute(1)).await;
    assert_eq!(task.error.unwrap().step, Some(StepKey::Name("each[1]".into())));
    arms.now(|_| Does::Answers("1"));
    let before = arms.steps().len();
    assert_eq!(again(&brain, &task.task_id).await.result.unwrap().output, 5);
    assert_eq!(arms.steps()[before..], ["each[1]", "each[3]"]);
}

#[tokio::test(start_paused = true)]
async fn a_rerun_from_a_step_discards_what_was_recorded_after_it_and_nothing_else() {
    let program = program(|input: Compute, cx: Context| async move {
        let first = cx.call(Increment { number: input.number }).named("first").await?;
        let second = cx.call(Double { number: first }).await?;
        let third = cx.call(Increment { number: second }).named("third").await?;
        Err(ArmError::failed(format!("no use for {third}")))
    });
    let arms = Scripted::new(|_| Does::Answers("1"));
    let brain = on(&shared_store(), &arms, program);
    let id = run(&brain, compute(1)).await.task_id;
    // Twice the same step, by its order, by its text, by a name; and one that is not there.
    for (from, made) in [("0", 2), ("third", 1), ("first", 3)] {
        let before = arms.steps().len();
        brain.rerun(&id, Some(&StepKey::from_text(from)), &anyone()).await.unwrap();
        assert_eq!(end_of(&brain, &id).await.status, TaskStatus::Failed);
        assert_eq!(arms.steps().len() - before, made, "from {from}");
    }
    let missing = brain.rerun(&id, Some(&StepKey::Name("fourth".into())), &anyone()).await.unwrap_err();
    assert_eq!(missing.kind, ErrorKind::ValidationFailed, "{missing:?}");
    assert_eq!(brain.get(&id, &anyone()).await.unwrap().status, TaskStatus::Failed);
}

#[tokio::test(start_paused = true)]
async fn two_reruns_at_once_are_one() {
    let program = program(|input: Compute, cx: Context| async move {
        let number = cx.call(Increment { number: input.number }).await?;
        Ok(cx.call(Double { number }).await?)
    });
    let arms = Scripted::new(|call| Does::Fails(error(call, ErrorKind::Unavailable)));
    let brain = on(&shared_store(), &arms, program);
    let id = run(&brain, compute(1)).await.task_id;
    arms.now(|_| Does::Answers("2"));
    let cx = anyone();
    let (one, two) = tokio::join!(brain.rerun(&id, None, &cx), brain.rerun(&id, None, &cx));
    assert_eq!(
        [one, two].into_iter().filter_map(Result::err).map(|e| e.kind).collect::<Vec<_>>(),
        [ErrorKind::Conflict]
    );
    assert_eq!(end_of(&brain, &id).await.status, TaskStatus::Completed);
    assert_eq!(arms.steps(), ["0", "0", "1"]);
}

#[tokio::test(start_paused = true)]
async fn answers_are_replayed_in_the_order_in_which_they_came() {
    let program = program(|input: Compute, cx: Context| async move {
        let calls = (0..5).map(|number| cx.call(Increment { number: input.number + number }));
        let mut answers = calls.collect::<FuturesUnordered<_>>();
        let (mut text, mut winners) = (String::new(), Vec::new());
        while let Some(answer) = answers.next().await {
            text += &format!("{:?};", answer.map_err(|error| error.to_string()));
            winners.push(text.len());
        }
        Ok(cx.call(Measure { text }).await?)
    });
    let arms = Scripted::new(|call| match call.step.to_string().as_str() {
        "0" => Does::After(SECOND / 2, "10"),
        "1" => Does::After(SECOND / 5, "11"),
        "2" => Does::Fails(error(call, ErrorKind::Unavailable)),
        "3" => Does::After(SECOND / 3, "13"),
        "4" => Does::After(SECOND / 4, "14"),
        _ => Does::Hangs,
    });
    let task = interrupted(&arms, program, |_| Does::Answers("1")).await;
    assert_eq!((task.status, task.error), (TaskStatus::Completed, None));
    assert_eq!(arms.steps().len(), 7);
}

#[tokio::test(start_paused = true)]
async fn answers_keep_their_order_where_the_program_takes_time_of_its_own() {
    let program = program(|input: Compute, cx: Context| async move {
        let (first, second) = (cx.call(Increment { number: input.number }), cx.call(Double { number: 2 }));
        let mut answers = FuturesUnordered::new();
        answers.push(futures_util::future::Either::Left(async {
            sleep(3 * SECOND).await;
            first.await.map(|number| format!("first {number}"))
        }));
        answers.push(futures_util::future::Either::Right(async {
            second.await.map(|number| format!("second {number}"))
        }));
        let mut text = String::new();
        while let Some(answer) = answers.next().await {
            text += &answer?;
        }
        let number = cx.call(Measure { text }).await?;
        Ok(cx.call(Double { number }).await?)
    });
    let arms = Scripted::new(|call| match call.step.to_string().as_str() {
        "0" => Does::Answers("1"),
        "1" => Does::After(4 * SECOND, "2"),
        "2" => Does::Answers("7"),
        _ => Does::Hangs,
    });
    let task = interrupted(&arms, program, |_| Does::Answers("9")).await;
    assert_eq!(task.error, None);
    assert_eq!(arms.steps(), ["1", "0", "2", "3", "3"]);
}

#[tokio::test(start_paused = true)]
async fn a_transport_goes_on_from_the_handle_that_it_reported() {
    let program =
        program(
            |input: Compute, cx: Context| async move { Ok(cx.call(Charge { amount: input.number }).await?) },
        );
    let arms = Scripted::new(|_| Does::Follows("5"));
    let task = interrupted(&arms, program, |_| Does::Follows("5")).await;
    assert_eq!(task.result.unwrap().output, 5);
    assert_eq!(arms.last().handle, Some("job-1".to_owned()));
    assert_eq!(arms.steps().len(), 2);
}

/// The clock of the brain that charged is ahead or behind by a minute and a half; the arm remembers keys for a minute.
#[tokio::test(start_paused = true)]
async fn how_long_a_key_has_been_remembered_is_judged_by_the_stores_clock() {
    let program =
        program(
            |input: Compute, cx: Context| async move { Ok(cx.call(Charge { amount: input.number }).await?) },
        );
    for (away, ahead, made) in [(30, true, 2), (30, false, 2), (75, true, 1), (75, false, 1)] {
        let (store, arms) = (shared_store(), Scripted::new(|_| Does::Hangs));
        arms.remembers_keys(60 * SECOND);
        let brain = |seconds| {
            let builder = Brain::builder().arm::<Compute>(program.clone()).arms(arms.clone());
            builder.store(store.clone()).clock(clock_ahead(seconds)).build().unwrap()
        };
        let (one, two) = if ahead { (brain(90), brain(0)) } else { (brain(0), brain(90)) };
        let mut submission = compute(1);
        submission.budget.max_time_seconds = Some(600.0);
        let id = one.submit(submission, &anyone()).await.unwrap().task_id;
        sleep(SECOND).await;
        one.close().await;
        arms.now(|_| Does::Answers("1"));
        sleep(away * SECOND).await;
        two.recover().await.unwrap();
        let task = timeout(60 * SECOND, end_of(&two, &id)).await.unwrap();
        assert_eq!(arms.steps().len(), made, "{away} s, ahead: {ahead}");
        assert_eq!(task.status == TaskStatus::Completed, made == 2);
        let outcome = whole_journal(&two, &id, &anyone()).await.unwrap()[0].outcome;
        assert_eq!(outcome == StepOutcome::Answered, made == 2);
    }
}
