//! One program, killed at every call that its brain makes to the outside.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use octollm_core::{
    Arm, Context,
    brain::Brain,
    bus::{EventBus, MemoryBus, Overflow, Signal, Subscription},
    card::ArmCard,
    contract::Keys,
    dispatcher::Dispatcher,
    error::{ArmError, CallError, ErrorKind},
    id::StepKey,
    orchestrator::Orchestrator,
    resilience::RetryLayer,
    store::{MemoryStore, TaskStore},
    task::{Submission, Task, TaskQuery, TaskStatus},
    transport::{Call, IdempotencyKey, Reply, Transport, from_service},
};
use octollm_macros::TaskContract;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::time::{sleep, timeout};
use tower::Layer;

use crate::{
    doomed::{Doomed, Fate, Moment, Seen, Sight},
    support::anyone,
};

const SECOND: Duration = Duration::from_secs(1);

/// What an arm does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
enum How {
    Well,
    Never,
    AtTheSecondAttempt,
    Slowly,
}

/// Doubles a number.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "ledger.double", output = u64, idempotent, timeout = "20s")]
struct Double {
    number: u64,
    how: How,
}

/// Books an amount, which must not happen twice.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "ledger.book", output = u64, timeout = "20s")]
struct Book {
    amount: u64,
}

/// Settles an account.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "ledger.settle", output = Vec<u64>, timeout = "10m")]
struct Settle {
    number: u64,
}

#[derive(Clone)]
struct Ledger;

#[async_trait]
impl Arm<Double> for Ledger {
    async fn execute(&self, input: Double, cx: &Context) -> Result<u64, ArmError> {
        match input.how {
            How::Never => return Err(ArmError::failed("never")),
            How::AtTheSecondAttempt if cx.attempt() == 1 => {
                return Err(ArmError::unavailable("not yet").retryable());
            }
            How::Slowly => sleep(10 * SECOND).await,
            How::Well | How::AtTheSecondAttempt => {}
        }
        sleep(Duration::from_millis(input.number)).await;
        Ok(input.number * 2)
    }
}

#[async_trait]
impl Arm<Book> for Ledger {
    async fn execute(&self, input: Book, _: &Context) -> Result<u64, ArmError> {
        Ok(input.amount)
    }
}

/// Everything that a journal has to get right: a failure that the program survives, a step of two attempts, a limit that
/// expires, a race, a batch whose limit expires in the middle, a name, and a call that must not be made twice.
#[derive(Clone)]
struct Accountant;

#[async_trait]
impl Arm<Settle> for Accountant {
    async fn execute(&self, input: Settle, cx: &Context) -> Result<Vec<u64>, ArmError> {
        let double = |number, how| cx.call(Double { number, how });
        let failed = double(input.number, How::Never).await.unwrap_err();
        cx.progress(10, failed.to_string());
        let mut numbers = vec![double(7, How::AtTheSecondAttempt).retry(2).await?];
        let late = double(8, How::Slowly).within(SECOND).await.unwrap_err();
        assert_eq!(late.kind(), ErrorKind::DeadlineExceeded);
        numbers.push(tokio::select! {
            biased;
            slow = double(300, How::Well) => slow?,
            fast = double(100, How::Well) => fast?,
        });
        let batch = |first| [first, How::Well, How::Well].map(|how| Double { number: 200, how });
        let each = cx.call_all(batch(How::Slowly)).at_once(1).within(SECOND).each().await;
        numbers.extend(each.into_iter().map(|answer| answer.unwrap_or(0)));
        numbers.extend(cx.call_all(batch(How::Well)).at_once(2).await?);
        numbers.push(double(9, How::Well).named("last but one").await?);
        numbers.push(cx.call(Book { amount: numbers.iter().sum() }).await?);
        Ok(numbers)
    }
}

/// The arms: they outlive every brain.
#[derive(Clone)]
struct Bookkeeping {
    ledger: Arc<Dispatcher>,
    keys: Keys,
    booked: Arc<Mutex<Vec<Option<IdempotencyKey>>>>,
    answers: Arc<Mutex<HashMap<IdempotencyKey, Reply>>>,
}

impl Bookkeeping {
    fn new(keys: Keys) -> Self {
        let mut ledger = Dispatcher::new("ledger");
        // The records are below.
        ledger.idempotency(());
        ledger.serve::<Double>(Ledger);
        ledger.serve::<Book>(Ledger);
        for card in &mut ledger.card_mut().contracts {
            (card.keys, card.keys_retained_s) = (keys, Some(86_400));
        }
        let (booked, answers) = Default::default();
        Self { ledger: Arc::new(ledger), keys, booked, answers }
    }
}

#[async_trait]
impl Transport for Bookkeeping {
    async fn call(&self, call: Call) -> Result<Reply, CallError> {
        if self.keys == Keys::Shared
            && call.contract.name() == "ledger.book"
            && let Some(reply) =
                call.parts.key.as_ref().and_then(|key| self.answers.lock().unwrap().get(key).cloned())
        {
            return Ok(reply);
        }
        let (contract, key) = (call.contract.clone(), call.parts.key.clone());
        if contract.name() == "ledger.book" {
            self.booked.lock().unwrap().push(key.clone());
        }
        let mut parts = call.parts;
        // The answers are complete: a call without one has not run.
        parts.repeated &= self.keys != Keys::Shared;
        let mut cx = Context::from_parts(parts, Arc::new(()));
        match self.ledger.execute(&contract, &call.input, &mut cx).await {
            Ok(output) => {
                let reply = Reply::new(output, "ledger", "in-process/ledger");
                self.answers.lock().unwrap().extend(key.map(|key| (key, reply.clone())));
                Ok(reply)
            }
            Err(error) => Err(CallError::new(contract, error.into_failure()).with_arm("ledger")),
        }
    }

    async fn cards(&self) -> Vec<ArmCard> {
        vec![self.ledger.card().clone()]
    }
}

/// What is left when brains die.
struct Outside {
    store: Arc<MemoryStore>,
    bus: MemoryBus,
    events: Subscription,
    arms: Bookkeeping,
    sight: Sight,
}

impl Outside {
    async fn new(keys: Keys) -> Self {
        let bus = MemoryBus::new();
        let events =
            bus.subscribe("events:task:*".parse().unwrap(), Overflow::DropOldest(1024)).await.unwrap();
        let (store, sight) = Default::default();
        Self { store, bus, events, arms: Bookkeeping::new(keys), sight }
    }

    fn brain(&self, fate: &Arc<Fate>) -> Brain {
        let arms = Arc::new(self.doomed(fate, self.arms.clone()));
        // Each attempt of a call is a call to the outside.
        let service = RetryLayer::new().retries(0).layer(arms.clone());
        let builder = Brain::builder().arm::<Settle>(Accountant).arms(from_service(service, arms));
        let builder = builder.store(self.doomed(fate, self.store.clone()));
        builder.bus(self.doomed(fate, self.bus.clone())).build().unwrap()
    }

    fn doomed<T>(&self, fate: &Arc<Fate>, inner: T) -> Doomed<T> {
        Doomed { fate: fate.clone(), inner, sight: self.sight.clone() }
    }

    async fn task(&self) -> Option<Task> {
        let query = TaskQuery::default().limit(1);
        self.store.list(&query, None).await.unwrap().pop().map(|record| record.task().clone())
    }

    /// The task once it is finished; `None` when that takes longer than `limit`, or `until`.
    async fn end(&self, limit: Duration, until: impl Fn() -> bool) -> Option<Task> {
        let ended = async {
            loop {
                match self.task().await.filter(|task| task.status.is_finished()) {
                    Some(task) => return Some(task),
                    None if until() => return None,
                    None => sleep(SECOND / 2).await,
                }
            }
        };
        timeout(limit, ended).await.ok().flatten()
    }

    /// The ids of the events of each type.
    async fn published(&mut self) -> BTreeMap<String, Vec<String>> {
        let mut ids: BTreeMap<String, Vec<String>> = BTreeMap::new();
        while let Ok(Some(Signal::Event(event))) = timeout(30 * SECOND, self.events.next()).await {
            ids.entry(event.event_type().to_owned()).or_default().push(event.id().to_owned());
        }
        ids
    }

    /// Answers that were recorded are not asked for again, and a step always has the same key.
    fn check_calls(&self) {
        let (mut answered, mut keys) = (HashSet::new(), HashMap::new());
        for seen in &*self.sight.lock().unwrap() {
            match seen {
                Seen::Answered(step) => assert!(answered.insert(step.clone()), "{step} was answered twice"),
                Seen::Called(step, key) => {
                    assert!(!answered.contains(step), "{step} was called after its answer was recorded");
                    assert_eq!(keys.entry(step.clone()).or_insert_with(|| key.clone()), key, "{step}");
                }
            }
        }
    }

    /// The end that every life but the last-ditch one must come to.
    fn check_task(&self, task: &Task) {
        let booked = self.arms.booked.lock().unwrap().len();
        if task.status == TaskStatus::Completed {
            let numbers: Vec<u64> = task.result.as_ref().unwrap().output.read().unwrap();
            let (amount, parts) = numbers.split_last().unwrap();
            // A limit that was not recorded as expired counts anew: a call in it may be made after all.
            let after_all = [parts[3], parts[4]];
            assert!(after_all.iter().all(|number| [0, 400].contains(number)), "{numbers:?}");
            assert_eq!(parts, [14, 200, 0, after_all[0], after_all[1], 400, 400, 400, 18]);
            assert_eq!(*amount, parts.iter().sum::<u64>());
            assert_eq!(booked, 1);
            return;
        }
        let error = task.error.as_ref().expect("an error");
        assert_eq!(error.kind, ErrorKind::OutcomeUnknown, "{error:?}");
        assert_eq!(error.step, Some(StepKey::Order(11)));
        assert!(error.may_have_executed && self.arms.keys == Keys::None && booked <= 1, "{booked}");
    }

    async fn check_events(&mut self, task: &Task) {
        let published = self.published().await;
        let unique =
            |name: &str| published.get(name).map_or(0, |ids| ids.iter().collect::<HashSet<_>>().len());
        assert_eq!(unique("task.queued"), 1, "{published:?}");
        assert!(unique("task.started") >= 1, "{published:?}");
        assert_eq!(unique(&format!("task.{}", task.status)), 1, "{published:?}");
        let ends = ["task.completed", "task.failed", "task.cancelled"];
        assert_eq!(ends.into_iter().map(unique).sum::<usize>(), 1, "{published:?}");
    }
}

/// What becomes of a brain at its moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    Dies,
    /// For three leases.
    Stalls,
}

/// Runs the program by a brain that meets its fate at this moment, by another one that dies at a moment of its own, and by one
/// that lives. Returns how the task ended, and whether the first moment came; no task where the brain died before it had
/// stored it.
async fn live(moment: Moment, turn: Turn, next: Moment, keys: Keys) -> (Option<Task>, bool) {
    let mut outside = Outside::new(keys).await;
    let fate = Fate::new(moment);
    let first = outside.brain(&fate);
    let submitter = first.clone();
    let submitted = tokio::spawn(async move {
        let submission = Submission::of(&Settle { number: 5 }).unwrap();
        submitter.submit(submission, &anyone()).await
    });
    outside.end(100 * SECOND, || fate.is_met()).await;
    // For the events of the end.
    sleep(2 * SECOND).await;
    if next != Moment::Never {
        let fate = Fate::new(next);
        let second = outside.brain(&fate);
        tokio::spawn(async move { second.recover().await });
        outside.end(100 * SECOND, || fate.is_met()).await;
    }
    let last = outside.brain(&Fate::new(Moment::Never));
    last.recover().await.unwrap();
    let mut task = outside.end(600 * SECOND, || false).await;
    if turn == Turn::Stalls {
        sleep(90 * SECOND).await;
        fate.release();
        sleep(60 * SECOND).await;
        let later = outside.end(600 * SECOND, || false).await;
        assert!(task.is_none() || task == later, "{task:?} became {later:?}");
        task = later;
    }
    outside.check_calls();
    match &task {
        Some(task) => {
            outside.check_task(task);
            outside.check_events(task).await;
        }
        None => assert!(outside.task().await.is_none()),
    }
    submitted.abort();
    (task, fate.is_met())
}

/// Every moment, until a life ends before it has come. Returns how many ended with which status.
fn every_moment(turn: Turn, next: impl Fn(u64) -> Moment, keys: Keys) -> BTreeMap<String, u64> {
    let mut ends = BTreeMap::new();
    for number in 0.. {
        let mut met = false;
        for moment in [Moment::Before(number), Moment::After(number)] {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_time()
                .start_paused(true)
                .build()
                .unwrap();
            let life =
                std::panic::AssertUnwindSafe(|| runtime.block_on(live(moment, turn, next(number), keys)));
            let (task, this) = std::panic::catch_unwind(life)
                .unwrap_or_else(|_| panic!("{turn:?} {moment:?} {:?}", next(number)));
            met |= this;
            let end = task.map_or_else(|| "none".to_owned(), |task| task.status.to_string());
            *ends.entry(end).or_default() += 1;
        }
        if !met {
            assert!(number > 40, "only {number} calls");
            return ends;
        }
    }
    unreachable!()
}

#[test]
fn a_brain_killed_at_any_call_loses_nothing_and_repeats_nothing() {
    let ends = every_moment(Turn::Dies, |_| Moment::Never, Keys::None);
    // Between the record that the booking begins and that of its answer.
    assert!(ends["failed"] > 0 && ends["completed"] > 10 * ends["failed"], "{ends:?}");
}

#[test]
fn a_brain_killed_at_any_call_completes_where_arms_honour_keys() {
    let ends = every_moment(Turn::Dies, |_| Moment::Never, Keys::Shared);
    assert!(!ends.contains_key("failed"), "{ends:?}");
}

#[test]
fn two_brains_killed_one_after_the_other_lose_nothing_and_repeat_nothing() {
    for factor in [3, 7] {
        every_moment(Turn::Dies, |number| Moment::After(number * factor % 50), Keys::None);
        every_moment(Turn::Dies, |number| Moment::Before(number * factor % 50), Keys::Shared);
    }
}

#[test]
fn a_brain_that_stalls_at_any_call_and_goes_on_later_changes_nothing() {
    let ends = every_moment(Turn::Stalls, |_| Moment::Never, Keys::None);
    assert!(ends["failed"] > 0 && ends["completed"] > 10 * ends["failed"], "{ends:?}");
}
