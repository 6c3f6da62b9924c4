//! A program with everything that a journal has to get right, and the arms that it calls.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    Arm, Context,
    card::ArmCard,
    contract::{ContractSpec, Keys, TaskContract},
    dispatcher::Dispatcher,
    error::{ArmError, CallError, ErrorKind},
    id::{IdempotencyKey, StepKey},
    task::{Task, TaskStatus},
    transport::{Call, Reply, Transport},
};

/// What an arm does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(super) enum How {
    Well,
    Never,
    AtTheSecondAttempt,
    /// It does not answer.
    Hangs,
    /// It fails until it is repaired.
    Repaired,
}

/// Doubles a number.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub(super) struct Double {
    number: u64,
    how: How,
}

/// Books an amount, which must not happen twice.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
struct Book {
    amount: u64,
}

/// Settles an account. Each lane has a contract of its own, so that brains of several lanes share a store.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub(super) struct Settle<const LANE: u32> {
    pub(super) number: u64,
}

/// Audits an account, by a brain of its own on the same store.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub(super) struct Audit<const LANE: u32> {
    number: u64,
}

const TIMEOUT: Duration = Duration::from_secs(60);

impl TaskContract for Double {
    type Output = u64;
    type Chunk = ();
    const SPEC: ContractSpec =
        ContractSpec::new("ledger.double", "/double", "ledger:double").idempotent().timeout(TIMEOUT);
}

impl TaskContract for Book {
    type Output = u64;
    type Chunk = ();
    const SPEC: ContractSpec = ContractSpec::new("ledger.book", "/book", "ledger:book").timeout(TIMEOUT);
}

impl<const LANE: u32> TaskContract for Settle<LANE> {
    type Output = Vec<u64>;
    type Chunk = ();
    const SPEC: ContractSpec =
        ContractSpec::new("ledger.settle", "/settle", "ledger:settle").version(LANE).timeout(TIMEOUT);
}

impl<const LANE: u32> TaskContract for Audit<LANE> {
    type Output = u64;
    type Chunk = ();
    const SPEC: ContractSpec = ContractSpec::new("ledger.audit", "/audit", "ledger:audit")
        .idempotent()
        .version(LANE)
        .timeout(TIMEOUT);
}

/// The number of the step that books.
const BOOKING: u32 = 11;
/// The step that fails until it is repaired.
const REPAIRED: &str = "repaired";
/// The limit of calls that do not answer.
const LIMIT: Duration = Duration::from_millis(300);

/// A failure that the program survives, a step of two attempts, a limit that expires, a race, a batch whose limit expires in the
/// middle, a batch, a name, a call that must not be made twice, a brain as an arm, and a failure that ends the task until a rerun.
#[derive(Clone)]
pub(super) struct Accountant;

#[async_trait]
impl<const LANE: u32> Arm<Settle<LANE>> for Accountant {
    async fn execute(&self, input: Settle<LANE>, cx: &Context) -> Result<Vec<u64>, ArmError> {
        let double = |number, how| cx.call(Double { number, how });
        let failed = double(input.number, How::Never).await.unwrap_err();
        cx.progress(10, failed.to_string());
        let mut numbers = vec![double(7, How::AtTheSecondAttempt).retry(2).await?];
        let late = double(8, How::Hangs).within(LIMIT).await.unwrap_err();
        assert_eq!(late.kind(), ErrorKind::DeadlineExceeded, "a call that hangs ends by its limit");
        numbers.push(tokio::select! {
            biased;
            slow = double(300, How::Hangs) => slow?,
            fast = double(100, How::Well) => fast?,
        });
        let batch = |first| [first, How::Well, How::Well].map(|how| Double { number: 200, how });
        let each = cx.call_all(batch(How::Hangs)).at_once(1).within(LIMIT).each().await;
        numbers.extend(each.into_iter().map(|answer| answer.unwrap_or(0)));
        numbers.extend(cx.call_all(batch(How::Well)).at_once(2).await?);
        numbers.push(double(9, How::Well).named("last but one").await?);
        numbers.push(cx.call(Book { amount: numbers.iter().sum() }).await?);
        numbers.push(cx.call(Audit::<LANE> { number: 30 }).named("audit").await?);
        numbers.push(double(6, How::Repaired).named(REPAIRED).await?);
        Ok(numbers)
    }
}

#[async_trait]
impl<const LANE: u32> Arm<Audit<LANE>> for Accountant {
    async fn execute(&self, input: Audit<LANE>, cx: &Context) -> Result<u64, ArmError> {
        Ok(cx.call(Double { number: input.number, how: How::Well }).await? + 1)
    }
}

#[derive(Clone)]
struct Ledger(Arc<AtomicBool>);

#[async_trait]
impl Arm<Double> for Ledger {
    async fn execute(&self, input: Double, cx: &Context) -> Result<u64, ArmError> {
        match input.how {
            How::Never => return Err(ArmError::failed("never")),
            How::AtTheSecondAttempt if cx.attempt() == 1 => {
                return Err(ArmError::unavailable("not yet").retryable());
            }
            How::Hangs => std::future::pending().await,
            How::Repaired if !self.0.load(Ordering::SeqCst) => return Err(ArmError::failed("it is broken")),
            How::Well | How::AtTheSecondAttempt | How::Repaired => {}
        }
        tokio::task::yield_now().await;
        Ok(input.number * 2)
    }
}

#[async_trait]
impl Arm<Book> for Ledger {
    async fn execute(&self, input: Book, _: &Context) -> Result<u64, ArmError> {
        Ok(input.amount)
    }
}

/// The arms of one task. They outlive its brains.
#[derive(Clone)]
pub(super) struct Bookkeeping {
    arms: Arc<Dispatcher>,
    keys: Keys,
    repaired: Arc<AtomicBool>,
    booked: Arc<Mutex<usize>>,
    answers: Arc<Mutex<HashMap<IdempotencyKey, Reply>>>,
}

impl Bookkeeping {
    /// The arms, of which `auditor` audits.
    pub(super) fn new<const LANE: u32>(keys: Keys, auditor: impl Arm<Audit<LANE>>) -> Self {
        let (repaired, mut arms) = (Arc::new(AtomicBool::new(false)), Dispatcher::new("ledger"));
        // The records of keys are below.
        arms.idempotency(());
        arms.serve::<Double>(Ledger(repaired.clone()));
        arms.serve::<Book>(Ledger(repaired.clone()));
        arms.serve::<Audit<LANE>>(auditor);
        for card in &mut arms.card_mut().contracts {
            (card.keys, card.keys_retained_s) = (keys, Some(86_400));
        }
        let (booked, answers) = Default::default();
        Self { arms: Arc::new(arms), keys, repaired, booked, answers }
    }

    /// The arms that an auditor calls.
    pub(super) fn of_auditor() -> Self {
        let mut arms = Dispatcher::new("ledger");
        arms.serve::<Double>(Ledger(Arc::default()));
        let (repaired, booked, answers) = Default::default();
        Self { arms: Arc::new(arms), keys: Keys::None, repaired, booked, answers }
    }

    /// Repairs the step that ended the task, and returns it. `None` where the task waits for no repair.
    pub(super) fn repair(&self, task: &Task) -> Option<StepKey> {
        let step = task.error.as_ref()?.step.clone();
        let broken =
            step.filter(|step| task.status == TaskStatus::Failed && *step == StepKey::from(REPAIRED))?;
        self.repaired.store(true, Ordering::SeqCst);
        Some(broken)
    }

    /// Asserts the end that a task must have.
    pub(super) fn check(&self, task: &Task) {
        let booked = *self.booked.lock().unwrap_or_else(PoisonError::into_inner);
        if task.status == TaskStatus::Completed {
            let output = task.result.as_ref().map(|result| result.output.read::<Vec<u64>>());
            let Some(Ok(numbers)) = output else { panic!("a completed task has its output: {task:?}") };
            // A limit that was not recorded as expired counts anew: a call in it may be made after all.
            let after_all = [numbers[3], numbers[4]];
            assert!(after_all.iter().all(|number| [0, 400].contains(number)), "{numbers:?}");
            let parts = [14, 200, 0, after_all[0], after_all[1], 400, 400, 400, 18];
            assert_eq!(numbers[..9], parts, "each step has its result");
            assert_eq!(numbers[9..], [parts.iter().sum(), 61, 12], "each step has its result");
            assert_eq!(booked, 1, "the step that is not idempotent was executed once");
            return;
        }
        let Some(error) = &task.error else { panic!("the task completes or fails: {task:?}") };
        assert_eq!(error.kind, ErrorKind::OutcomeUnknown, "a task fails where it may have booked: {error:?}");
        assert_eq!(error.step, Some(BOOKING.into()), "a task fails at the booking: {error:?}");
        assert!(
            error.may_have_executed && self.keys == Keys::None && booked <= 1,
            "it was executed at most once: {booked} times, {error:?}"
        );
    }
}

#[async_trait]
impl Transport for Bookkeeping {
    async fn call(&self, call: Call) -> Result<Reply, CallError> {
        let answers = || self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        let (contract, key, books) =
            (call.contract.clone(), call.parts.key.clone(), call.contract.name() == "ledger.book");
        if books {
            if self.keys == Keys::Shared
                && let Some(reply) = key.as_ref().and_then(|key| answers().get(key).cloned())
            {
                return Ok(reply);
            }
            *self.booked.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        }
        let mut parts = call.parts;
        // The answers are complete: a call without one has not run.
        parts.repeated &= self.keys != Keys::Shared;
        let mut cx = Context::from_parts(parts, Arc::new(()));
        match self.arms.execute(&contract, &call.input, &mut cx).await {
            Ok(output) => {
                let reply = Reply::new(output, "ledger", "in-process/ledger");
                answers().extend(key.map(|key| (key, reply.clone())));
                Ok(reply)
            }
            Err(error) => Err(CallError::new(contract, error.into_failure()).with_arm("ledger")),
        }
    }

    async fn cards(&self) -> Vec<ArmCard> {
        vec![self.arms.card().clone()]
    }
}
