//! Workers and queued calls, as cases of any durable bus. The tests of other crates include this file by its path.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use octollm_core::{
    Arm, Context,
    budget::{Budget, Usage},
    bus::{BusError, DurableBus, EventBus},
    contract::TaskContract,
    error::{ArmError, CallError, ErrorKind, Failure},
    event::Event,
    idempotency::MemoryIdempotencyStore,
    parts::{Caller, ContextParts},
    update::{Update, UpdateSink},
    worker::{QueuedArms, QueuedArmsBuilder, Worker, group},
};
use octollm_macros::TaskContract;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::{
    sync::{Semaphore, oneshot},
    task::JoinHandle,
    time::{sleep, timeout},
};

/// How long a case waits for what has to come.
const LIMIT: Duration = Duration::from_secs(30);

/// Does what its text says.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "work.repeat", output = Done, chunk = u32, idempotent, scope = "work:do", timeout = "1m")]
struct Repeatable {
    text: String,
    id: u32,
}

/// The same, and may run once only.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "work.once", output = Done, scope = "work:do", timeout = "1m")]
struct Once {
    text: String,
    id: u32,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
struct Done {
    attempt: u32,
    worker: u32,
    subject: Option<String>,
}

/// Counts what has happened, for those that wait for it.
struct Count(Semaphore);

impl Default for Count {
    fn default() -> Self {
        Self(Semaphore::new(0))
    }
}

impl Count {
    fn add(&self, count: usize) {
        self.0.add_permits(count);
    }

    async fn take(&self) {
        self.0.acquire().await.unwrap().forget();
    }
}

/// What the arms of a case have in common.
#[derive(Clone, Default)]
struct Hands {
    worker: u32,
    runs: Arc<Mutex<HashMap<u32, u32>>>,
    /// The runs that wait and have begun, that were dropped, and that may go on.
    begun: Arc<Count>,
    dropped: Arc<Count>,
    released: Arc<Count>,
}

struct Dropped(Arc<Count>);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.add(1);
    }
}

impl Hands {
    fn of(&self, worker: u32) -> Self {
        Self { worker, ..self.clone() }
    }

    fn runs(&self, id: u32) -> u32 {
        self.runs.lock().unwrap().get(&id).copied().unwrap_or_default()
    }

    async fn act(&self, text: &str, id: u32, cx: &Context) -> Result<Done, ArmError> {
        let run = {
            let mut runs = self.runs.lock().unwrap();
            let run = runs.entry(id).or_default();
            *run += 1;
            *run
        };
        match text {
            "fails twice" if run < 3 => return Err(ArmError::unavailable("not now")),
            "fails once" if run < 2 => return Err(ArmError::unavailable("not now")),
            "is unavailable" => return Err(ArmError::unavailable("not now")),
            "is away for long" => {
                return Err(ArmError::unavailable("not now").retry_after(Duration::from_secs(20)));
            }
            "refuses" => return Err(ArmError::invalid("text", "is refused")),
            "panics" => panic!("as its input says"),
            "waits" => {
                let _dropped = Dropped(self.dropped.clone());
                self.begun.add(1);
                self.released.take().await;
            }
            "takes a while" => sleep(Duration::from_millis(20)).await,
            "spends" => {
                cx.progress(40, "half");
                cx.chunk::<Repeatable>(&7).await;
                cx.spend(Usage::tokens(30))?;
                assert_eq!(cx.budget().tokens, Some(70));
            }
            _ => {}
        }
        let subject = cx.caller().subject().map(str::to_owned);
        Ok(Done { attempt: cx.attempt(), worker: self.worker, subject })
    }
}

#[async_trait]
impl Arm<Repeatable> for Hands {
    async fn execute(&self, input: Repeatable, cx: &Context) -> Result<Done, ArmError> {
        self.act(&input.text, input.id, cx).await
    }
}

#[async_trait]
impl Arm<Once> for Hands {
    async fn execute(&self, input: Once, cx: &Context) -> Result<Done, ArmError> {
        self.act(&input.text, input.id, cx).await
    }
}

fn repeatable(text: &str, id: u32) -> Repeatable {
    Repeatable { text: text.into(), id }
}

fn worker(bus: &(impl DurableBus + Clone), hands: &Hands) -> Worker {
    Worker::new(bus.clone())
        .id("hands")
        .arm::<Repeatable>(hands.clone())
        .arm::<Once>(hands.clone())
        .backoff(Duration::from_millis(10), Duration::from_millis(50))
        .lease(Duration::from_secs(2))
}

/// A worker that runs. It stops when this is dropped or stopped.
struct Serving {
    stop: oneshot::Sender<()>,
    task: JoinHandle<Result<(), BusError>>,
}

impl Serving {
    fn start(worker: Worker) -> Self {
        let (stop, stopped) = oneshot::channel::<()>();
        let task = tokio::spawn(worker.run_until(async { drop(stopped.await) }));
        Self { stop, task }
    }

    async fn stop(self) {
        drop(self.stop);
        timeout(LIMIT, self.task).await.unwrap().unwrap().unwrap();
    }

    /// As if its process had ended.
    async fn kill(self) {
        self.task.abort();
        assert!(self.task.await.unwrap_err().is_cancelled());
    }
}

fn builder(bus: &(impl DurableBus + Clone)) -> QueuedArmsBuilder {
    static CALLERS: AtomicU64 = AtomicU64::new(0);
    let name = format!("caller-{}-{}", std::process::id(), CALLERS.fetch_add(1, Ordering::Relaxed));
    QueuedArms::builder(name, bus.clone()).contract::<Repeatable>("hands").contract::<Once>("hands")
}

async fn context(bus: &(impl DurableBus + Clone)) -> Context {
    Context::root(Arc::new(builder(bus).connect().await.unwrap()))
}

async fn within<T>(work: impl Future<Output = T>) -> T {
    timeout(LIMIT, work).await.expect("it takes too long")
}

/// The reasons of the dead letters of a contract, once there are so many.
async fn dead_letters<C: TaskContract>(bus: &impl DurableBus, count: usize) -> Vec<(String, u32)> {
    let group = group(&C::SPEC.reference());
    within(async {
        loop {
            let letters = bus.dead_letters(&group, None, 100).await.unwrap();
            if letters.len() >= count {
                return letters.into_iter().map(|letter| (letter.reason, letter.attempts)).collect();
            }
            sleep(Duration::from_millis(10)).await;
        }
    })
    .await
}

/// Waits until no job of a contract waits or runs.
async fn settled<C: TaskContract>(bus: &impl DurableBus) {
    let group = group(&C::SPEC.reference());
    within(async {
        loop {
            let status = bus.group(&group).await.unwrap();
            if (status.pending, status.waiting) == (0, 0) {
                return;
            }
            sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

#[derive(Default)]
struct Seen(Mutex<Vec<Update>>);

#[async_trait]
impl UpdateSink for Seen {
    fn update(&self, update: Update) {
        self.0.lock().unwrap().push(update);
    }
}

pub(crate) async fn a_job_has_the_context_of_its_call(bus: impl DurableBus + Clone) {
    let (hands, seen) = (Hands::default(), Arc::new(Seen::default()));
    let serving = Serving::start(worker(&bus, &hands));
    let cx = context(&bus).await;
    let call = cx.call(repeatable("spends", 1)).budget(Budget::tokens(100)).updates(seen.clone());
    let done = within(call).await.unwrap();
    assert_eq!((done.attempt, hands.runs(1)), (1, 1));
    assert_eq!(cx.used().tokens, 30, "its usage comes back");
    let updates = seen.0.lock().unwrap().clone();
    assert_eq!(updates, [Update::Progress(40, "half".into()), Update::Chunk(json!(7))]);
    serving.stop().await;
}

pub(crate) async fn a_job_waits_for_a_worker_that_is_away(bus: impl DurableBus + Clone) {
    let (hands, cx) = (Hands::default(), context(&bus).await);
    let call = tokio::spawn(cx.call(repeatable("works", 1)));
    let group = group(&Repeatable::SPEC.reference());
    within(async {
        while bus.group(&group).await.unwrap().waiting == 0 {
            sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    let serving = Serving::start(worker(&bus, &hands));
    assert_eq!(within(call).await.unwrap().unwrap().attempt, 1);
    serving.stop().await;
}

pub(crate) async fn a_retry_goes_on_after_a_restart_of_the_worker(bus: impl DurableBus + Clone) {
    let (hands, cx) = (Hands::default(), context(&bus).await);
    let slow = Duration::from_secs(1);
    let serving = Serving::start(worker(&bus, &hands.of(1)).backoff(slow, slow));
    let call = tokio::spawn(cx.call(repeatable("fails once", 1)));
    within(async {
        while hands.runs(1) == 0 {
            sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    serving.stop().await;
    let serving = Serving::start(worker(&bus, &hands.of(2)));
    let done = within(call).await.unwrap().unwrap();
    assert_eq!((done.attempt, done.worker), (2, 2));
    settled::<Repeatable>(&bus).await;
    serving.stop().await;
}

pub(crate) async fn failures_are_retried_or_dead_letters(bus: impl DurableBus + Clone) {
    let (hands, cx) = (Hands::default(), context(&bus).await);
    let serving = Serving::start(worker(&bus, &hands).max_attempts(3));
    // Also where the contract is not idempotent: the arm says that nothing was done.
    let once = Once { text: "fails twice".into(), id: 1 };
    assert_eq!(within(cx.call(once)).await.unwrap().attempt, 3);
    let exhausted = within(cx.call(repeatable("is unavailable", 2))).await.unwrap_err();
    assert_eq!((exhausted.kind(), exhausted.attempts(), hands.runs(2)), (ErrorKind::Unavailable, 3, 3));
    let refused = within(cx.call(repeatable("refuses", 3))).await.unwrap_err();
    assert_eq!(
        (refused.kind(), refused.arm(), hands.runs(3)),
        (ErrorKind::ValidationFailed, Some("hands"), 1)
    );
    assert_eq!(refused.failure().violations[0].path, "text");
    let letters = dead_letters::<Repeatable>(&bus, 2).await;
    assert!(letters[0].0.starts_with("unavailable: not now") && letters[0].1 == 3, "{letters:?}");
    assert!(letters[1].0.starts_with("validation_failed: ") && letters[1].1 == 1, "{letters:?}");
    serving.stop().await;
}

pub(crate) async fn a_poison_job_stops_no_good_one(bus: impl DurableBus + Clone) {
    let (hands, cx) = (Hands::default(), context(&bus).await);
    let serving = Serving::start(worker(&bus, &hands).concurrency(2));
    let poison = Event::on("jobs:work__repeat:queued".parse().unwrap(), "stranger", json!({ "no": "job" }));
    bus.publish(poison.unwrap()).await.unwrap();
    let calls = (1..=10).map(|id| cx.call(repeatable(if id % 5 == 0 { "panics" } else { "works" }, id)));
    let answers = within(futures_util::future::join_all(calls)).await;
    let failed: Vec<_> =
        answers.iter().filter_map(|answer| answer.as_ref().err().map(CallError::kind)).collect();
    assert_eq!(failed, [ErrorKind::ArmPanicked; 2]);
    let letters = dead_letters::<Repeatable>(&bus, 3).await;
    let of = |code: &str| letters.iter().filter(|(reason, _)| reason.starts_with(code)).count();
    assert_eq!((of("bad_request: "), of("arm_panicked: ")), (1, 2), "{letters:?}");
    settled::<Repeatable>(&bus).await;
    serving.stop().await;
}

pub(crate) async fn a_job_whose_deadline_has_passed_is_not_begun(bus: impl DurableBus + Clone) {
    let (hands, cx) = (Hands::default(), context(&bus).await);
    let late = within(cx.call(repeatable("works", 1)).within(Duration::from_millis(200))).await.unwrap_err();
    assert_eq!(late.kind(), ErrorKind::DeadlineExceeded);
    let serving = Serving::start(worker(&bus, &hands));
    within(cx.call(repeatable("works", 2))).await.unwrap();
    settled::<Repeatable>(&bus).await;
    assert_eq!((hands.runs(1), hands.runs(2)), (0, 1));
    serving.stop().await;
}

pub(crate) async fn a_retry_that_would_begin_after_the_deadline_is_not_waited_for(
    bus: impl DurableBus + Clone,
) {
    let (hands, cx) = (Hands::default(), context(&bus).await);
    let serving = Serving::start(worker(&bus, &hands));
    let call = cx.call(repeatable("is away for long", 1)).within(Duration::from_secs(10));
    let away = timeout(Duration::from_secs(9), call).await.expect("before its deadline").unwrap_err();
    assert_eq!((away.kind(), hands.runs(1)), (ErrorKind::Unavailable, 1));
    dead_letters::<Repeatable>(&bus, 1).await;
    serving.stop().await;
}

pub(crate) async fn a_key_runs_once_over_redelivery_and_restarts(bus: impl DurableBus + Clone) {
    let (hands, keys) = (Hands::default(), Arc::new(MemoryIdempotencyStore::new()));
    let cx = Context::root(Arc::new(builder(&bus).detached().connect().await.unwrap()));
    let once = Once { text: "waits".into(), id: 1 };
    let serving = Serving::start(worker(&bus, &hands.of(1)).idempotency(keys.clone()));
    let call = tokio::spawn(cx.call(once.clone()).key("order-1"));
    within(hands.begun.take()).await;
    // The program that called ends, and calls again after a restart: first while the job runs, then after its end.
    call.abort();
    let call = tokio::spawn(context(&bus).await.call(once.clone()).key("order-1"));
    hands.released.add(10);
    let first = within(call).await.unwrap().unwrap();
    serving.stop().await;
    let serving = Serving::start(worker(&bus, &hands.of(2)).idempotency(keys));
    let again = within(context(&bus).await.call(once).key("order-1").repeated()).await.unwrap();
    assert_eq!((&again, again.worker, hands.runs(1)), (&first, 1, 1));
    let other = Once { text: "works".into(), id: 1 };
    let other = within(context(&bus).await.call(other).key("order-1")).await.unwrap_err();
    assert_eq!(other.kind(), ErrorKind::ValidationFailed);
    settled::<Once>(&bus).await;
    serving.stop().await;
}

pub(crate) async fn a_killed_worker_is_replaced(bus: impl DurableBus + Clone) {
    let (hands, cx) = (Hands::default(), context(&bus).await);
    let keys = Arc::new(MemoryIdempotencyStore::new());
    let lease = Duration::from_millis(500);
    let serving = Serving::start(worker(&bus, &hands.of(1)).lease(lease).idempotency(keys.clone()));
    let repeatable = tokio::spawn(cx.call(repeatable("waits", 1)));
    within(hands.begun.take()).await;
    let once = tokio::spawn(cx.call(Once { text: "waits".into(), id: 2 }));
    within(hands.begun.take()).await;
    serving.kill().await;
    within(async { tokio::join!(hands.dropped.take(), hands.dropped.take()) }).await;
    hands.released.add(10);
    let serving = Serving::start(worker(&bus, &hands.of(2)).lease(lease).idempotency(keys));
    let done = within(repeatable).await.unwrap().unwrap();
    assert_eq!((done.worker, hands.runs(1)), (2, 2));
    assert!(done.attempt > 1);
    let unknown = within(once).await.unwrap().unwrap_err();
    assert_eq!((unknown.kind(), hands.runs(2)), (ErrorKind::OutcomeUnknown, 1), "it may have had its effect");
    serving.stop().await;
}

pub(crate) async fn a_worker_that_stops_under_load_hands_jobs_back(bus: impl DurableBus + Clone) {
    const JOBS: u32 = 60;
    let (hands, cx) = (Hands::default(), context(&bus).await);
    let first = Serving::start(worker(&bus, &hands.of(1)).concurrency(2));
    let call = |id| cx.call(Once { text: "takes a while".into(), id });
    let calls: Vec<_> = (0..JOBS).map(|id| tokio::spawn(call(id))).collect();
    within(async {
        while (0..JOBS).all(|id| hands.runs(id) == 0) {
            sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    let second = Serving::start(worker(&bus, &hands.of(2)).concurrency(4));
    first.stop().await;
    let mut done = Vec::new();
    for call in calls {
        done.push(within(call).await.unwrap().unwrap());
    }
    assert!((0..JOBS).all(|id| hands.runs(id) == 1), "each runs once");
    assert!(done.iter().all(|done| done.attempt == 1), "what was handed back is no attempt");
    assert!(done.iter().any(|done| done.worker == 2), "the other worker got the rest");
    settled::<Once>(&bus).await;
    second.stop().await;
}

pub(crate) async fn what_outlives_the_grace_period_goes_to_another_worker(bus: impl DurableBus + Clone) {
    let (hands, cx) = (Hands::default(), context(&bus).await);
    let first = Serving::start(worker(&bus, &hands.of(1)).grace(Duration::from_millis(100)));
    let call = tokio::spawn(cx.call(repeatable("waits", 1)));
    within(hands.begun.take()).await;
    first.stop().await;
    within(hands.dropped.take()).await;
    hands.released.add(1);
    let second = Serving::start(worker(&bus, &hands.of(2)));
    let done = within(call).await.unwrap().unwrap();
    assert_eq!((done.worker, done.attempt, hands.runs(1)), (2, 2, 2));
    settled::<Repeatable>(&bus).await;
    second.stop().await;
}

pub(crate) async fn a_run_beyond_the_time_limit_is_tried_again(bus: impl DurableBus + Clone) {
    let (hands, cx) = (Hands::default(), context(&bus).await);
    let limit = Duration::from_millis(200);
    let serving = Serving::start(worker(&bus, &hands).time_limit(limit).max_attempts(2));
    let slow = within(cx.call(repeatable("waits", 1))).await.unwrap_err();
    assert_eq!((slow.kind(), slow.attempts(), hands.runs(1)), (ErrorKind::Timeout, 2, 2));
    let once = within(cx.call(Once { text: "waits".into(), id: 2 })).await.unwrap_err();
    assert_eq!(
        (once.kind(), once.attempts(), hands.runs(2)),
        (ErrorKind::Timeout, 1, 1),
        "it may have had its effect"
    );
    serving.stop().await;
}

pub(crate) async fn a_dropped_call_cancels_its_job(bus: impl DurableBus + Clone) {
    let (hands, cx) = (Hands::default(), context(&bus).await);
    let serving = Serving::start(worker(&bus, &hands).concurrency(1));
    let running = tokio::spawn(cx.call(repeatable("waits", 1)));
    within(hands.begun.take()).await;
    let queued = tokio::spawn(cx.call(repeatable("works", 2)));
    let group = group(&Repeatable::SPEC.reference());
    within(async {
        while bus.group(&group).await.unwrap().waiting == 0 {
            sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    queued.abort();
    assert!(queued.await.unwrap_err().is_cancelled());
    running.abort();
    within(hands.dropped.take()).await;
    settled::<Repeatable>(&bus).await;
    assert_eq!(hands.runs(2), 0, "it was cancelled before it began");
    assert!(bus.dead_letters(&group, None, 10).await.unwrap().is_empty());
    serving.stop().await;
}

pub(crate) async fn a_replayed_job_runs_although_its_call_was_dropped(bus: impl DurableBus + Clone) {
    use octollm_core::bus::{Overflow, Signal};
    let (hands, cx) = (Hands::default(), context(&bus).await);
    let mut jobs =
        bus.subscribe("jobs:work__repeat:queued".parse().unwrap(), Overflow::DropOldest(16)).await.unwrap();
    let serving = Serving::start(worker(&bus, &hands));
    within(cx.call(repeatable("refuses", 1))).await.unwrap_err();
    let Some(Signal::Event(job)) = within(jobs.next()).await else { panic!("a job") };
    dead_letters::<Repeatable>(&bus, 1).await;
    // As by a caller that is dropped before it receives the failure.
    let cancelled =
        Event::on("jobs:work__repeat:cancelled".parse().unwrap(), "desk", json!({ "event": job.id() }));
    bus.publish(cancelled.unwrap().with_expires_at(job.expires_at().unwrap())).await.unwrap();
    // Cancellations are applied in order.
    let running = tokio::spawn(cx.call(repeatable("waits", 2)));
    within(hands.begun.take()).await;
    running.abort();
    within(hands.dropped.take()).await;
    let group = group(&Repeatable::SPEC.reference());
    let letters = bus.dead_letters(&group, None, 10).await.unwrap();
    bus.replay(&group, &letters[0].entry).await.unwrap();
    settled::<Repeatable>(&bus).await;
    assert_eq!(hands.runs(1), 2);
    serving.stop().await;
}

pub(crate) async fn a_job_that_outlasts_its_deadline_is_a_dead_letter(bus: impl DurableBus + Clone) {
    const JOBS: u32 = 10;
    let (hands, cx) = (Hands::default(), context(&bus).await);
    let serving = Serving::start(worker(&bus, &hands));
    let calls = (0..JOBS).map(|id| cx.call(repeatable("waits", id)).within(Duration::from_millis(500)));
    for answer in within(futures_util::future::join_all(calls)).await {
        assert_eq!(answer.unwrap_err().kind(), ErrorKind::DeadlineExceeded);
    }
    settled::<Repeatable>(&bus).await;
    let letters = dead_letters::<Repeatable>(&bus, JOBS as usize).await;
    assert!(letters.iter().all(|(reason, _)| reason.starts_with("deadline_exceeded")), "{letters:?}");
    // Without their expiry they run.
    hands.released.add(JOBS as usize);
    let group = group(&Repeatable::SPEC.reference());
    for letter in bus.dead_letters(&group, None, 100).await.unwrap() {
        bus.replay(&group, &letter.entry).await.unwrap();
    }
    settled::<Repeatable>(&bus).await;
    assert_eq!((0..JOBS).map(|id| hands.runs(id)).collect::<Vec<_>>(), [2; JOBS as usize]);
    assert!(bus.dead_letters(&group, None, 10).await.unwrap().is_empty());
    serving.stop().await;
}

pub(crate) async fn a_replay_ends_by_the_record_of_its_key(bus: impl DurableBus + Clone) {
    let (hands, cx) = (Hands::default(), context(&bus).await);
    let serving = Serving::start(worker(&bus, &hands));
    let once = |text: &str, id| cx.call(Once { text: text.into(), id });
    within(once("panics", 1)).await.unwrap_err();
    within(once("refuses", 2)).await.unwrap_err();
    let before = dead_letters::<Once>(&bus, 2).await;
    let group = group(&Once::SPEC.reference());
    for letter in bus.dead_letters(&group, None, 10).await.unwrap() {
        bus.replay(&group, &letter.entry).await.unwrap();
    }
    settled::<Once>(&bus).await;
    assert_eq!((hands.runs(1), hands.runs(2)), (1, 2), "only one of them may have had an effect");
    let mut after = dead_letters::<Once>(&bus, 2).await;
    after.sort();
    assert_eq!(after, before);
    serving.stop().await;
}

pub(crate) async fn replies_are_for_one_name(bus: impl DurableBus + Clone) {
    for name in ["*", "a,replies:b", "a:b", "a b", ""] {
        let refused = QueuedArms::builder(name, bus.clone()).contract::<Repeatable>("hands").connect().await;
        let refused = refused.unwrap_err();
        assert!(matches!(&refused, BusError::InvalidSetting { source } if source.setting() == "name"));
    }
    let hands = Hands::default();
    let serving = Serving::start(worker(&bus, &hands));
    drop(context(&bus).await);
    for to in ["*", "a,replies:b"] {
        let data = json!({ "input": { "text": "works", "id": 1 }, "reply_to": to });
        let job = Event::on("jobs:work__repeat:queued".parse().unwrap(), "stranger", data);
        bus.publish(job.unwrap()).await.unwrap();
    }
    let letters = dead_letters::<Repeatable>(&bus, 2).await;
    assert!(letters.iter().all(|(reason, _)| reason.starts_with("bad_request: ")), "{letters:?}");
    assert_eq!(hands.runs(1), 0);
    serving.stop().await;
}

pub(crate) async fn a_token_says_who_calls(bus: impl DurableBus + Clone) {
    let hands = Hands::default();
    let verify = |token: Option<&str>| match token {
        Some("ann's") => Ok(Caller::known("ann", ["work:do"])),
        Some("bob's") => Ok(Caller::known("bob", ["work:look"])),
        Some(_) => Err(Failure::new(ErrorKind::Unauthenticated, "the token is not valid")),
        None => Ok(Caller::Anonymous),
    };
    let serving = Serving::start(worker(&bus, &hands).authenticate(verify));
    let call = async |caller: Caller, id| {
        let tokens = |caller: &Caller, _: Option<&[&str]>, callee: &octollm_core::card::ArmCard| {
            assert_eq!(callee.arm_id, "hands");
            Ok(caller.subject().map(|subject| format!("{subject}'s")))
        };
        let arms = builder(&bus).tokens(tokens).connect().await.unwrap();
        let mut parts = ContextParts::new();
        parts.caller = caller;
        let answer = within(Context::from_parts(parts, Arc::new(arms)).call(repeatable("works", id))).await;
        answer.map(|done| done.subject).map_err(|error| error.kind())
    };
    assert_eq!(call(Caller::known("ann", ["work:do"]), 1).await, Ok(Some("ann".into())));
    // What this program takes for granted, the worker does not.
    assert_eq!(call(Caller::known("bob", ["work:do"]), 2).await, Err(ErrorKind::InsufficientScope));
    assert_eq!(call(Caller::known("eve", ["work:do"]), 3).await, Err(ErrorKind::Unauthenticated));
    assert_eq!(call(Caller::Unchecked, 4).await, Err(ErrorKind::Unauthenticated));
    dead_letters::<Repeatable>(&bus, 3).await;
    // And what the caller may not do is not queued.
    assert_eq!(call(Caller::known("ann", ["work:look"]), 5).await, Err(ErrorKind::InsufficientScope));
    settled::<Repeatable>(&bus).await;
    let (letters, runs) = (dead_letters::<Repeatable>(&bus, 3).await, (1..=5).map(|id| hands.runs(id)));
    assert_eq!((letters.len(), runs.sum::<u32>()), (3, 1));
    serving.stop().await;
}

pub(crate) async fn an_input_that_is_too_large_is_not_queued(bus: impl DurableBus + Clone) {
    let cx = context(&bus).await;
    let text = "x".repeat(bus.max_event_bytes());
    let error = within(cx.call(repeatable(&text, 1))).await.unwrap_err();
    assert_eq!((error.kind(), error.may_have_executed()), (ErrorKind::PayloadTooLarge, false));
    settled::<Repeatable>(&bus).await;
}

pub(crate) async fn a_result_that_may_be_lost_is_asked_for_again(bus: impl DurableBus + Clone) {
    let hands = Hands::default();
    let keys = Arc::new(MemoryIdempotencyStore::new());
    let serving = Serving::start(worker(&bus, &hands).idempotency(keys));
    let hides = HidesReplies { bus: bus.clone(), hidden: Arc::default() };
    let arms = QueuedArms::builder("forgetful", hides).contract::<Once>("hands").connect().await.unwrap();
    let cx = Context::root(Arc::new(arms));
    let done = within(cx.call(Once { text: "works".into(), id: 1 }).key("order-1")).await.unwrap();
    assert_eq!((done.attempt, hands.runs(1)), (1, 1));
    settled::<Once>(&bus).await;
    serving.stop().await;
}

/// A bus that loses the first reply to each subscription, and says so.
#[derive(Clone)]
struct HidesReplies<B> {
    bus: B,
    hidden: Arc<AtomicU64>,
}

#[async_trait]
impl<B: DurableBus> EventBus for HidesReplies<B> {
    async fn publish(&self, event: Event) -> Result<(), BusError> {
        self.bus.publish(event).await
    }

    async fn subscribe(
        &self,
        pattern: octollm_core::event::Pattern,
        overflow: octollm_core::bus::Overflow,
    ) -> Result<octollm_core::bus::Subscription, BusError> {
        use octollm_core::bus::{Gap, Signal, engine::Feed};
        let mut events = self.bus.subscribe(pattern, overflow).await?;
        let (feed, subscription) = Feed::new(overflow, LIMIT)?;
        let hidden = self.hidden.clone();
        tokio::spawn(async move {
            while let Some(signal) = events.next().await {
                match signal {
                    Signal::Event(_) if hidden.fetch_add(1, Ordering::Relaxed) == 0 => {
                        feed.gap(Gap::ConnectionLost);
                    }
                    Signal::Event(event) => drop(feed.send(&event).await),
                    _ => {}
                }
            }
        });
        Ok(subscription)
    }

    fn capabilities(&self) -> &[octollm_core::bus::Capability] {
        self.bus.capabilities()
    }

    fn max_event_bytes(&self) -> usize {
        self.bus.max_event_bytes()
    }
}

#[async_trait]
impl<B: DurableBus> DurableBus for HidesReplies<B> {
    async fn consume(
        &self,
        group: &str,
        pattern: octollm_core::event::Pattern,
        options: octollm_core::bus::ConsumeOptions,
    ) -> Result<octollm_core::bus::Consumer, BusError> {
        self.bus.consume(group, pattern, options).await
    }

    async fn group(&self, group: &str) -> Result<octollm_core::bus::GroupStatus, BusError> {
        self.bus.group(group).await
    }

    async fn remove_group(&self, group: &str) -> Result<bool, BusError> {
        self.bus.remove_group(group).await
    }

    async fn dead_letters(
        &self,
        group: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<octollm_core::bus::DeadLetter>, BusError> {
        self.bus.dead_letters(group, after, limit).await
    }

    async fn replay(&self, group: &str, entry: &str) -> Result<(), BusError> {
        self.bus.replay(group, entry).await
    }
}

pub(crate) async fn a_job_is_json_that_any_program_can_write(bus: impl DurableBus + Clone) {
    use octollm_core::bus::{Overflow, Signal};
    let hands = Hands::default();
    drop(context(&bus).await);
    let mut replies =
        bus.subscribe("replies:desk:*".parse().unwrap(), Overflow::DropOldest(16)).await.unwrap();
    let data = json!({ "input": { "text": "works", "id": 1 }, "reply_to": "desk" });
    let job = Event::on("jobs:work__repeat:queued".parse().unwrap(), "desk", data).unwrap();
    bus.publish(job.clone().with_subject("job-1")).await.unwrap();
    let serving = Serving::start(worker(&bus, &hands));
    let Some(Signal::Event(reply)) = within(replies.next()).await else { panic!("a reply") };
    assert_eq!(reply.channel().as_str(), "replies:desk:completed");
    assert_eq!((reply.subject(), reply.causation_id()), (Some("job-1"), Some(job.id())));
    let data: Value = reply.data().clone();
    assert_eq!(data["output"], json!({ "attempt": 1, "worker": 0, "subject": null }));
    assert_eq!((&data["arm"], &data["attempt"]), (&json!("hands"), &json!(1)));
    serving.stop().await;
}

pub(crate) async fn a_job_has_the_form_of_the_wire(bus: impl DurableBus + Clone) {
    use octollm_core::bus::{Overflow, Signal};
    let arms = builder(&bus)
        .tokens(|_: &Caller, _: Option<&[&str]>, _: &octollm_core::card::ArmCard| Ok(Some("a token".into())));
    let mut parts = ContextParts::of("request-1".parse().unwrap(), "work-1".parse().unwrap());
    parts.task_id = Some("task_3fK9aZ0qLw81bXyT".parse().unwrap());
    let cx = Context::from_parts(parts, Arc::new(arms.connect().await.unwrap()));
    let mut jobs =
        bus.subscribe("jobs:work__once:*".parse().unwrap(), Overflow::DropOldest(16)).await.unwrap();
    let call = cx.call(Once { text: "works".into(), id: 1 }).key("order-7").repeated();
    let call = call.budget(Budget::tokens(1000)).updates(Arc::new(Seen::default()));
    let call = tokio::spawn(call);
    let Some(Signal::Event(job)) = within(jobs.next()).await else { panic!("a job") };
    let data = json!({
        "input": { "text": "works", "id": 1 },
        "reply_to": job.source(),
        "request_id": job.data()["request_id"],
        "task_id": "task_3fK9aZ0qLw81bXyT",
        "budget": { "tokens": 1000, "cost": null },
        "key": "order-7",
        "repeated": true,
        "updates": true,
        "token": "a token",
    });
    assert_eq!((job.channel().as_str(), job.data()), ("jobs:work__once:queued", &data));
    assert_eq!(job.correlation_id(), Some("work-1"));
    assert_eq!(job.subject().map(str::len), Some(64), "the digest of caller, task, contract and key");
    assert!(job.expires_at().is_some_and(|end| end > job.timestamp()));
    call.abort();
    let Some(Signal::Event(cancelled)) = within(jobs.next()).await else { panic!("its cancellation") };
    assert_eq!(cancelled.channel().as_str(), "jobs:work__once:cancelled");
    assert_eq!(cancelled.data(), &json!({ "event": job.id() }));
    assert_eq!(cancelled.expires_at(), job.expires_at());
}

/// Calls that are made while something happens to the bus, which all of them survive.
#[allow(dead_code, reason = "only a bus over a broker has such a case")]
pub(crate) async fn calls_survive(bus: impl DurableBus + Clone, happens: impl AsyncFnOnce()) {
    const JOBS: u32 = 40;
    let (hands, cx) = (Hands::default(), context(&bus).await);
    let serving = Serving::start(worker(&bus, &hands).concurrency(2));
    let calls: Vec<_> = (0..JOBS).map(|id| tokio::spawn(cx.call(repeatable("takes a while", id)))).collect();
    within(async {
        while (0..JOBS).all(|id| hands.runs(id) == 0) {
            sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    happens().await;
    for (id, call) in calls.into_iter().enumerate() {
        let done = timeout(2 * LIMIT, call).await.expect("it takes too long").unwrap();
        done.unwrap_or_else(|error| panic!("{id}: {error:?}"));
    }
    settled::<Repeatable>(&bus).await;
    serving.stop().await;
}

/// Writes a test for each case, on the bus of a new subject.
macro_rules! job_tests {
    ($($case:ident)*; $subject:expr) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                let subject = $subject;
                cases::$case(subject.bus().await).await;
            }
        )*
    };
    ($subject:expr) => {
        job_tests! {
            a_job_has_the_context_of_its_call
            a_job_waits_for_a_worker_that_is_away
            a_retry_goes_on_after_a_restart_of_the_worker
            failures_are_retried_or_dead_letters
            a_poison_job_stops_no_good_one
            a_job_whose_deadline_has_passed_is_not_begun
            a_retry_that_would_begin_after_the_deadline_is_not_waited_for
            a_key_runs_once_over_redelivery_and_restarts
            a_killed_worker_is_replaced
            a_worker_that_stops_under_load_hands_jobs_back
            what_outlives_the_grace_period_goes_to_another_worker
            a_run_beyond_the_time_limit_is_tried_again
            a_dropped_call_cancels_its_job
            a_replayed_job_runs_although_its_call_was_dropped
            a_job_that_outlasts_its_deadline_is_a_dead_letter
            a_replay_ends_by_the_record_of_its_key
            replies_are_for_one_name
            a_token_says_who_calls
            an_input_that_is_too_large_is_not_queued
            a_result_that_may_be_lost_is_asked_for_again
            a_job_is_json_that_any_program_can_write
            a_job_has_the_form_of_the_wire;
            $subject
        }
    };
}
pub(crate) use job_tests;
