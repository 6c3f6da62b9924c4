//! What was answered once is not asked again.

use std::time::Duration;

use async_trait::async_trait;
use octollm_core::{
    Arm, Context,
    brain::Brain,
    error::{ArmError, CallError, ErrorKind, Failure},
    orchestrator::{Orchestrator, whole_journal},
    store::StoreError,
    task::TaskStatus,
};

use crate::support::{
    Compute, Computer, Double, Increment, Local, anyone, brain, brain_on, compute, end_of, run, shared_store,
};
use crate::{
    scripted::{Does, Scripted, on},
    trouble::Trouble,
};

#[tokio::test(start_paused = true)]
async fn a_task_run_again_does_not_repeat_finished_steps() {
    let arms = Local::new();
    let brain = brain(&arms);
    arms.fail("number.double");
    let task = run(&brain, compute(4)).await;
    assert_eq!(task.status, TaskStatus::Failed);
    assert_eq!(task.error.as_ref().unwrap().kind, ErrorKind::Unavailable);
    arms.heal();
    brain.rerun(&task.task_id, None, &anyone()).await.unwrap();
    let task = end_of(&brain, &task.task_id).await;
    assert_eq!(task.result.unwrap().output, 11);
    assert_eq!(arms.calls(), ["number.increment", "number.double", "number.double", "number.increment"]);
    // What the first run used up counts as well.
    assert_eq!(task.metadata.tokens_used, 20);
    let journal = whole_journal(&brain, &task.task_id, &anyone()).await.unwrap();
    assert_eq!(journal.len(), 3);
}

#[tokio::test(start_paused = true)]
async fn only_a_failed_task_is_run_again() {
    let arms = Local::new();
    let brain = brain(&arms);
    let task = run(&brain, compute(4)).await;
    assert_eq!(brain.rerun(&task.task_id, None, &anyone()).await.unwrap_err().kind, ErrorKind::Conflict);
}

/// Asks something else at the second step.
struct Changed;

#[async_trait]
impl Arm<Compute> for Changed {
    async fn execute(&self, input: Compute, cx: &Context) -> Result<u64, ArmError> {
        let number = cx.call(Increment { number: input.number }).await?;
        // The arm goes on as if nothing had happened: the task fails all the same.
        Ok(cx.call(Increment { number }).await.unwrap_or(number))
    }
}

/// Asks the same with another input.
struct OtherInput;

#[async_trait]
impl Arm<Compute> for OtherInput {
    async fn execute(&self, input: Compute, cx: &Context) -> Result<u64, ArmError> {
        Ok(cx.call(Increment { number: input.number + 1 }).await?)
    }
}

/// Takes fewer steps.
struct Shorter;

#[async_trait]
impl Arm<Compute> for Shorter {
    async fn execute(&self, input: Compute, cx: &Context) -> Result<u64, ArmError> {
        Ok(cx.call(Increment { number: input.number }).await?)
    }
}

async fn mismatch_of(program: impl Arm<Compute>) -> String {
    let (arms, store) = (Local::new(), shared_store());
    // Two steps are answered, and then the program changes.
    let before = Brain::builder()
        .arm::<Compute>(StopsAfterTwo)
        .arms(arms.clone())
        .store(store.clone())
        .build()
        .unwrap();
    let id = run(&before, compute(4)).await.task_id;
    before.close().await;
    let after = Brain::builder().arm::<Compute>(program).arms(arms.clone()).store(store).build().unwrap();
    after.rerun(&id, None, &anyone()).await.unwrap();
    let calls = arms.calls().len();
    let error = end_of(&after, &id).await.error.unwrap();
    assert_eq!(error.kind, ErrorKind::JournalMismatch);
    assert_eq!(arms.calls().len(), calls, "nothing is called on a guess");
    error.message
}

struct StopsAfterTwo;

#[async_trait]
impl Arm<Compute> for StopsAfterTwo {
    async fn execute(&self, input: Compute, cx: &Context) -> Result<u64, ArmError> {
        let number = cx.call(Increment { number: input.number }).await?;
        cx.call(Double { number }).await?;
        Err(ArmError::failed("half way"))
    }
}

#[tokio::test(start_paused = true)]
async fn a_changed_program_is_an_error() {
    assert!(mismatch_of(Changed).await.contains("step 1 was number.double and is now number.increment"));
    assert!(mismatch_of(OtherInput).await.contains("step 0 calls number.increment with another input"));
    assert!(mismatch_of(Shorter).await.contains("step 1 was number.double and is no longer taken"));
}

#[tokio::test(start_paused = true)]
async fn another_brain_goes_on_where_one_was_closed() {
    let (arms, store) = (Local::new(), shared_store());
    let one = brain_on(&arms, store.clone());
    arms.hang("number.double");
    let id = one.submit(compute(4), &anyone()).await.unwrap().task_id;
    tokio::time::sleep(Duration::from_secs(1)).await;
    one.close().await;
    assert_eq!(one.get(&id, &anyone()).await.unwrap().status, TaskStatus::Queued);
    assert_eq!(one.submit(compute(4), &anyone()).await.unwrap_err().kind, ErrorKind::Unavailable);
    arms.heal();
    let two = brain_on(&arms, store);
    assert_eq!(two.recover().await.unwrap(), 1);
    assert_eq!(end_of(&two, &id).await.result.unwrap().output, 11);
    assert_eq!(arms.calls(), ["number.increment", "number.double", "number.double", "number.increment"]);
}

#[tokio::test(start_paused = true)]
async fn a_brain_that_dies_loses_its_lease_and_then_its_tasks() {
    let (arms, store) = (Local::new(), shared_store());
    arms.hang("number.double");
    // A runtime of its own, so that it can die with all that runs on it.
    let dying = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_time().build().unwrap();
    let one =
        Brain::builder().arm::<Compute>(Computer).arms(arms.clone()).store(store.clone()).build().unwrap();
    let (handle, submitter) = (dying.handle().clone(), one.clone());
    let id = handle
        .spawn(async move { submitter.submit(compute(4), &anyone()).await.unwrap().task_id })
        .await
        .unwrap();
    while arms.calls().len() < 2 {
        tokio::task::yield_now().await;
    }
    dying.shutdown_background();
    arms.heal();
    let two = brain_on(&arms, store);
    assert_eq!(two.recover().await.unwrap(), 0, "it is still held");
    let task = end_of(&two, &id).await;
    assert_eq!(task.status, TaskStatus::Completed);
    assert_eq!(arms.calls(), ["number.increment", "number.double", "number.double", "number.increment"]);
}

/// Names its steps, and so may reorder them.
struct Named {
    double_first: bool,
}

#[async_trait]
impl Arm<Compute> for Named {
    async fn execute(&self, input: Compute, cx: &Context) -> Result<u64, ArmError> {
        let number = input.number;
        let double = cx.call(Double { number }).named("double");
        let increment = cx.call(Increment { number }).named("increment");
        let (double, increment) = if self.double_first {
            (double.await?, increment.await?)
        } else {
            let increment = increment.await?;
            (double.await?, increment)
        };
        Ok(double + increment)
    }
}

#[tokio::test(start_paused = true)]
async fn named_steps_may_change_their_order() {
    let (arms, store) = (Local::new(), shared_store());
    let with =
        |arm| Brain::builder().arm::<Compute>(arm).arms(arms.clone()).store(store.clone()).build().unwrap();
    arms.fail("number.double");
    let task = run(&with(Named { double_first: false }), compute(3)).await;
    assert_eq!(task.status, TaskStatus::Failed);
    arms.heal();
    let other = with(Named { double_first: true });
    other.rerun(&task.task_id, None, &anyone()).await.unwrap();
    assert_eq!(end_of(&other, &task.task_id).await.result.unwrap().output, 10);
    assert_eq!(arms.calls(), ["number.increment", "number.double", "number.double"]);
}

/// Takes one name twice.
struct NamedTwice;

#[async_trait]
impl Arm<Compute> for NamedTwice {
    async fn execute(&self, input: Compute, cx: &Context) -> Result<u64, ArmError> {
        let number = cx.call(Increment { number: input.number }).named("same").await?;
        Ok(cx.call(Increment { number }).named("same").await?)
    }
}

#[tokio::test(start_paused = true)]
async fn a_name_is_good_for_one_step() {
    let brain = Brain::builder().arm::<Compute>(NamedTwice).arms(Local::new()).build().unwrap();
    let error = run(&brain, compute(1)).await.error.unwrap();
    assert_eq!(error.kind, ErrorKind::JournalMismatch);
    assert!(error.message.contains("same is called twice"), "{}", error.message);
}

/// Falls back on doubling when adding takes too long.
struct FallsBack;

#[async_trait]
impl Arm<Compute> for FallsBack {
    async fn execute(&self, input: Compute, cx: &Context) -> Result<u64, ArmError> {
        let number = input.number;
        let added = cx.call(Increment { number }).await;
        let number = match added {
            Ok(number) => number,
            Err(_) => cx.call(Double { number }).await?,
        };
        Ok(cx.call(Double { number }).await?)
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_that_ran_out_of_time_is_written_down_as_such() {
    let (arms, store) = (Local::new(), Trouble::new());
    store.slow(Duration::from_millis(5));
    let brain = Brain::builder().arm::<Compute>(FallsBack).arms(arms.clone()).store(store).build().unwrap();
    arms.hang("number.increment");
    let task = run(&brain, compute(4)).await;
    assert_eq!(task.result.unwrap().output, 16);
    let journal = whole_journal(&brain, &task.task_id, &anyone()).await.unwrap();
    let steps: Vec<_> = journal.iter().map(|entry| entry.contract.to_string()).collect();
    assert_eq!(steps, ["number.increment", "number.double", "number.double"]);
}

#[tokio::test(start_paused = true)]
async fn a_run_that_has_lost_its_task_calls_nothing_any_more() {
    let (arms, store) = (Local::new(), Trouble::new());
    let mut times = 0..1;
    store.fails(move |operation, _| {
        (operation == "append" && times.next().is_some()).then_some(StoreError::Conflict)
    });
    let brain = Brain::builder().arm::<Compute>(FallsBack).arms(arms.clone()).store(store).build().unwrap();
    let task = run(&brain, compute(4)).await;
    // The first run made one call and no other; the second one began when the lease had expired.
    assert_eq!(task.result.unwrap().output, 10);
    assert_eq!(arms.calls(), ["number.increment", "number.increment", "number.double"]);
}

/// Calls as often as its number, and survives each failure.
struct Repeats;

#[async_trait]
impl Arm<Compute> for Repeats {
    async fn execute(&self, input: Compute, cx: &Context) -> Result<u64, ArmError> {
        for number in 0..input.number {
            let _ = cx.call(Increment { number }).await;
        }
        Ok(input.number)
    }
}

#[tokio::test(start_paused = true)]
async fn a_long_journal_is_read_in_pages() {
    let arms = Scripted::new(|_| Does::Answers("1"));
    let brain = on(&shared_store(), &arms, Repeats);
    let id = run(&brain, compute(2_300)).await.task_id;
    let whole = whole_journal(&brain, &id, &anyone()).await.unwrap();
    assert_eq!(whole.len(), 2_300);
    for (limit, length) in [(None, 100), (Some(0), 1), (Some(7), 7), (Some(usize::MAX), 1_000)] {
        let (mut steps, mut after, mut pages) = (Vec::new(), None, 0);
        while pages == 0 || after.is_some() && pages < 30 {
            let (page, next) = brain.journal(&id, after, limit, &anyone()).await.unwrap();
            assert!(page.len() == length || next.is_none());
            steps.extend(page);
            (after, pages) = (next, pages + 1);
        }
        assert_eq!(steps, whole[..steps.len()], "at most {limit:?}");
        assert_eq!(steps.len(), 2_300.min(30 * length));
    }
    assert_eq!(brain.journal(&id, Some(u64::MAX), None, &anyone()).await.unwrap(), (vec![], None));
}

#[tokio::test(start_paused = true)]
async fn a_page_of_long_errors_has_fewer_of_them() {
    let arms = Scripted::new(|call| {
        let failure = Failure::new(ErrorKind::ArmFailed, "x".repeat(100_000));
        Does::Fails(CallError::new(call.contract.clone(), failure))
    });
    let brain = on(&shared_store(), &arms, Repeats);
    let id = run(&brain, compute(5)).await.task_id;
    let (page, next) = brain.journal(&id, None, None, &anyone()).await.unwrap();
    assert_eq!((page.len(), next.is_some()), (2, true));
    assert_eq!(whole_journal(&brain, &id, &anyone()).await.unwrap().len(), 5);
}
