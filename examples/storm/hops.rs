//! A storm at the client: a call makes three hops, and one of the three leaves fails.

use std::{
    fmt,
    future::pending,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU8, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::Request;
use octollm::{http::client::Target, metrics, prelude::*};
use tokio::{
    task::{JoinHandle, JoinSet},
    time::{Instant, sleep_until},
};
use tower::util::MapRequestLayer;

use crate::{Result, picture};

/// The first hop.
#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "storm.front", output = usize, idempotent, timeout = "20s")]
struct Front {
    text: String,
}

/// The second hop.
#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "storm.middle", output = usize, idempotent, timeout = "15s")]
struct Middle {
    text: String,
}

/// The last hop.
#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "storm.leaf", output = usize, idempotent, timeout = "10s")]
struct Leaf {
    text: String,
}

struct Relay;

#[async_trait]
impl Arm<Front> for Relay {
    async fn execute(&self, input: Front, cx: &Context) -> std::result::Result<usize, ArmError> {
        Ok(cx.call(Middle { text: input.text }).await?)
    }
}

#[async_trait]
impl Arm<Middle> for Relay {
    async fn execute(&self, input: Middle, cx: &Context) -> std::result::Result<usize, ArmError> {
        Ok(cx.call(Leaf { text: input.text }).await?)
    }
}

/// How a leaf fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Well,
    /// Nobody listens.
    Refuse,
    /// It never answers.
    Hang,
    /// It answers 503 at once.
    Busy,
    /// It answers 500 at once, as a failure that may be tried again.
    Fail,
    /// It takes 200 ms.
    Slow,
}

const MODES: [Mode; 5] = [Mode::Refuse, Mode::Hang, Mode::Busy, Mode::Fail, Mode::Slow];

#[derive(Clone)]
struct Worker {
    mode: Arc<AtomicU8>,
    answered: Arc<AtomicU64>,
}

#[async_trait]
impl Arm<Leaf> for Worker {
    async fn execute(&self, input: Leaf, _: &Context) -> std::result::Result<usize, ArmError> {
        let is = |mode: Mode| self.mode.load(Ordering::Relaxed) == mode as u8;
        if is(Mode::Hang) {
            return pending().await;
        } else if is(Mode::Busy) {
            return Err(ArmError::unavailable("busy"));
        } else if is(Mode::Fail) {
            return Err(ArmError::new(ErrorKind::Internal, "out of order").retryable());
        } else if is(Mode::Slow) {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        self.answered.fetch_add(1, Ordering::Relaxed);
        Ok(input.text.split_whitespace().count())
    }
}

/// A server that runs until it is dropped.
struct Running {
    url: String,
    address: std::net::SocketAddr,
    task: JoinHandle<()>,
}

impl Running {
    async fn start(server: Server, address: std::net::SocketAddr) -> Result<Self> {
        let server = server.bind(address).await?;
        let (url, address) = (server.url(), server.local_addr());
        Ok(Self { url, address, task: tokio::spawn(server.run()) })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn any_port() -> std::net::SocketAddr {
    ([127, 0, 0, 1], 0).into()
}

/// How many calls, and for how long.
pub(crate) struct Size {
    per_second: u32,
    before: Duration,
    failing: Duration,
    after: Duration,
    /// Whether all modes run at once, which is quicker, and measures no latency.
    at_once: bool,
}

impl Size {
    pub(crate) const FULL: Self = Self {
        per_second: 500,
        before: Duration::from_secs(5),
        failing: Duration::from_secs(60),
        after: Duration::from_secs(10),
        at_once: false,
    };
    pub(crate) const SHORT: Self = Self {
        per_second: 40,
        before: Duration::from_secs(2),
        failing: Duration::from_secs(6),
        after: Duration::from_secs(6),
        at_once: true,
    };

    fn calls(&self) -> u32 {
        ((self.before + self.failing + self.after).as_secs_f64() * f64::from(self.per_second)) as u32
    }
}

/// The time between two rows of a series.
const STEP: Duration = Duration::from_millis(500);

/// What happened in a [`STEP`].
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Row {
    pub(crate) calls: u64,
    pub(crate) failed: u64,
    /// Calls that were sent to the leaf.
    pub(crate) sent: u64,
    /// Calls that it answered.
    answered: u64,
    /// Whether its breaker was open or half-open at the end.
    pub(crate) is_open: bool,
}

/// Counts from the begin.
#[derive(Clone, Default)]
struct Counts {
    calls: Arc<AtomicU64>,
    failed: Arc<AtomicU64>,
    sent: Arc<AtomicU64>,
    answered: Arc<AtomicU64>,
}

impl Counts {
    fn read(&self) -> Row {
        let [calls, failed, sent, answered] = [&self.calls, &self.failed, &self.sent, &self.answered]
            .map(|count| count.load(Ordering::Relaxed));
        Row { calls, failed, sent, answered, is_open: false }
    }
}

/// What came of one mode.
pub(crate) struct Report {
    pub(crate) mode: Mode,
    pub(crate) rows: Vec<Row>,
    pub(crate) fails_at: Duration,
    pub(crate) heals_at: Duration,
    /// Calls to the leaf while it failed, and the most that are allowed.
    load: (u64, u64),
    recovery: Option<Duration>,
    total: Row,
    p99: Duration,
}

/// Runs all modes.
///
/// # Errors
/// A figure is not what it has to be.
pub(crate) async fn storm(size: &'static Size, picture: Option<&str>) -> Result<()> {
    let two = two_hops(size).await?;
    println!("storm hops=2 mode=well per_second={} p99_ms={:.2}", size.per_second, two.as_secs_f64() * 1e3);
    let mut reports = Vec::new();
    if size.at_once {
        let mut running = JoinSet::new();
        MODES.into_iter().for_each(|mode| drop(running.spawn(run(mode, size))));
        while let Some(report) = running.join_next().await {
            reports.push(report??);
            println!("{}", reports[reports.len() - 1]);
        }
    } else {
        for mode in MODES {
            reports.push(run(mode, size).await?);
            println!("{}", reports[reports.len() - 1]);
        }
    }
    if let Some(file) = picture {
        std::fs::write(file, picture::draw(&reports, STEP))?;
    }
    if !size.at_once && two >= Duration::from_millis(100) {
        return Err(format!("two hops take {two:?}").into());
    }
    let problems: Vec<_> = reports.iter().filter_map(Report::problem).collect();
    if problems.is_empty() { Ok(()) } else { Err(problems.join("; ").into()) }
}

/// The servers of all hops, and a client of the first.
struct System {
    arms: Arms,
    worker: Worker,
    counts: Counts,
    leaf: Option<Running>,
    _others: Vec<Running>,
}

impl System {
    async fn start(mode: Mode) -> Result<Self> {
        let (counts, id) = (Counts::default(), leaf_id(mode));
        let worker = Worker { mode: Arc::default(), answered: counts.answered.clone() };
        let leaf = Running::start(leaf(mode, &worker), any_port()).await?;
        let mut others = Vec::new();
        for _ in 0..2 {
            let well = Worker { mode: Arc::default(), answered: Arc::default() };
            others.push(Running::start(self::leaf(mode, &well), any_port()).await?);
        }
        let urls = format!("{},{},{}", others[0].url, leaf.url, others[1].url);
        let (failing, sent) = (leaf.url.clone(), counts.sent.clone());
        let count = MapRequestLayer::new(move |request: Request<Bytes>| {
            let target = request.extensions().get::<Target>();
            if target.is_some_and(|to| to.contract.is_some() && *to.endpoint == *failing) {
                sent.fetch_add(1, Ordering::Relaxed);
            }
            request
        });
        let limit = Duration::from_millis(300);
        let to_leaves = Arms::builder().endpoint(id, urls).request_layer(count);
        let to_leaves = to_leaves.connect_timeout(limit).read_idle(limit).build()?;
        let middle = Server::new("middle").arm::<Middle>(Relay).arms(to_leaves);
        let middle = Running::start(middle, any_port()).await?;
        let to_middle = Arms::builder().endpoint("middle", &middle.url).build()?;
        let front = Server::new("front").arm::<Front>(Relay).arms(to_middle);
        let front = Running::start(front, any_port()).await?;
        let arms = Arms::builder().endpoint("front", &front.url).endpoint("middle", &middle.url).build()?;
        others.extend([middle, front]);
        Ok(Self { arms, worker, counts, leaf: Some(leaf), _others: others })
    }

    /// Makes the leaf fail.
    fn fail(&mut self, mode: Mode) {
        self.worker.mode.store(mode as u8, Ordering::Relaxed);
        if mode == Mode::Refuse {
            // With its connections.
            if let Some(leaf) = &self.leaf {
                leaf.task.abort();
            }
        }
    }

    async fn heal(&mut self, mode: Mode) -> Result<()> {
        self.worker.mode.store(Mode::Well as u8, Ordering::Relaxed);
        if mode == Mode::Refuse
            && let Some(leaf) = self.leaf.take()
        {
            let address = leaf.address;
            drop(leaf);
            self.leaf = Some(Running::start(self::leaf(mode, &self.worker), address).await?);
        }
        Ok(())
    }
}

fn leaf_id(mode: Mode) -> String {
    format!("leaf-{}", mode.name())
}

fn leaf(mode: Mode, worker: &Worker) -> Server {
    Server::new(leaf_id(mode)).arm::<Leaf>(worker.clone())
}

/// Makes the calls of a mode at an even rate, and returns how long each took that was answered.
async fn load(arms: Arms, counts: Counts, size: &'static Size) -> Vec<Duration> {
    let (began, interval) = (Instant::now(), Duration::from_secs(1) / size.per_second);
    let (mut running, times) = (JoinSet::new(), Arc::new(Mutex::new(Vec::new())));
    for number in 0..size.calls() {
        let due = began + interval * number;
        sleep_until(due).await;
        let (arms, counts, times) = (arms.clone(), counts.clone(), times.clone());
        running.spawn(async move {
            let answer = arms.call(Front { text: "the words of a text ".repeat(24) }).await;
            counts.calls.fetch_add(1, Ordering::Relaxed);
            match answer {
                Ok(_) => times.lock().unwrap_or_else(PoisonError::into_inner).push(due.elapsed()),
                Err(error) => {
                    if counts.failed.fetch_add(1, Ordering::Relaxed) == 0 {
                        eprintln!("the first call that failed: {error}");
                    }
                }
            }
        });
        while running.try_join_next().is_some() {}
    }
    while running.join_next().await.is_some() {}
    let mut times = std::mem::take(&mut *times.lock().unwrap_or_else(PoisonError::into_inner));
    times.sort_unstable();
    times
}

fn p99(times: &[Duration]) -> Duration {
    times.get(times.len() * 99 / 100).copied().unwrap_or_default()
}

/// Runs one mode.
async fn run(mode: Mode, size: &'static Size) -> Result<Report> {
    let mut system = System::start(mode).await?;
    for _ in 0..20 {
        system.arms.call(Front { text: "warm".into() }).await?;
    }
    let base = system.counts.read();
    let (began, counts) = (Instant::now(), system.counts.clone());
    let loading = tokio::spawn(load(system.arms.clone(), counts.clone(), size));
    let (fails_at, heals_at) = (size.before, size.before + size.failing);
    let (mut rows, mut last, mut at_failure, mut recovery) = (Vec::new(), base, None, None);
    let mut load_then = None;
    let steps = (heals_at + size.after).as_millis() / STEP.as_millis();
    for step in 1..=steps as u32 {
        sleep_until(began + STEP * step).await;
        let now = counts.read();
        let row = Row {
            calls: now.calls - last.calls,
            failed: now.failed - last.failed,
            sent: now.sent - last.sent,
            answered: now.answered - last.answered,
            is_open: is_open(mode),
        };
        last = now;
        rows.push(row);
        let time = STEP * step;
        let half = f64::from(size.per_second) * STEP.as_secs_f64() / 6.0;
        if time > heals_at && recovery.is_none() && row.answered as f64 >= half {
            recovery = Some(time - heals_at);
        }
        if time >= fails_at && at_failure.is_none() {
            at_failure = Some(now.sent);
            system.fail(mode);
        } else if time >= heals_at && load_then.is_none() {
            load_then = Some(now.sent - at_failure.unwrap_or_default());
            system.heal(mode).await?;
        }
    }
    let times = loading.await?;
    let seconds = size.failing.as_secs_f64();
    let most = 1.2 * f64::from(size.per_second) * seconds / 3.0 + 10.0 * seconds;
    let load = (load_then.unwrap_or_default(), most as u64);
    Ok(Report { mode, rows, fails_at, heals_at, load, recovery, total: counts.read(), p99: p99(&times) })
}

/// Whether a breaker of the leaves of this mode is open or half-open, as the metrics of the process have it.
fn is_open(mode: Mode) -> bool {
    let (page, arm) = (metrics::page(), format!("arm=\"{}\"", leaf_id(mode)));
    page.lines()
        .filter(|line| line.starts_with("octollm_breaker_endpoints") && line.contains(&arm))
        .any(|line| !line.contains("\"closed\"") && line.rsplit(' ').next().is_some_and(|value| value != "0"))
}

/// The time within which 99 % of the calls over two hops are answered, where nothing fails.
async fn two_hops(size: &'static Size) -> Result<Duration> {
    let system = System::start(Mode::Well).await?;
    let (began, mut times) = (Instant::now(), Vec::new());
    let mut running = JoinSet::new();
    // A tenth warms up.
    let seconds = size.after.as_secs_f64().min(10.0);
    for number in 0..(seconds * f64::from(size.per_second)) as u32 {
        let due = began + Duration::from_secs(1) * number / size.per_second;
        sleep_until(due).await;
        let arms = system.arms.clone();
        running.spawn(async move {
            arms.call(Middle { text: "the words of a text ".repeat(24) })
                .await
                .map(|_| (number, due.elapsed()))
        });
    }
    while let Some(ended) = running.join_next().await {
        times.push(ended??);
    }
    times.sort_unstable();
    let mut times: Vec<_> = times.split_off(times.len() / 10).into_iter().map(|(_, time)| time).collect();
    times.sort_unstable();
    Ok(p99(&times))
}

impl Mode {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Well => "well",
            Self::Refuse => "refuse",
            Self::Hang => "hang",
            Self::Busy => "busy",
            Self::Fail => "fail",
            Self::Slow => "slow",
        }
    }
}

impl Report {
    fn success(&self) -> f64 {
        1.0 - self.total.failed as f64 / self.total.calls.max(1) as f64
    }

    /// What is not as it has to be.
    fn problem(&self) -> Option<String> {
        let mode = self.mode.name();
        if self.load.0 > self.load.1 {
            return Some(format!(
                "{mode}: {} calls were sent to the leaf, and {} are allowed",
                self.load.0, self.load.1
            ));
        }
        if self.success() < 0.999 {
            return Some(format!("{mode}: {} of {} calls have failed", self.total.failed, self.total.calls));
        }
        // A slow leaf works all the time.
        if self.mode != Mode::Slow && self.recovery.is_none_or(|time| time > Duration::from_secs(5)) {
            return Some(format!("{mode}: the leaf has half of its share after {:?}", self.recovery));
        }
        None
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Row { calls, failed, .. } = self.total;
        let recovery = self.recovery.map_or("none".into(), |time| format!("{:.1}", time.as_secs_f64()));
        write!(
            f,
            "storm hops=3 mode={} calls={calls} failed={failed} success={:.3}% leaf_calls={} allowed={} recovery_s={recovery} p99_ms={:.1}",
            self.mode.name(),
            self.success() * 100.0,
            self.load.0,
            self.load.1,
            self.p99.as_secs_f64() * 1e3
        )
    }
}
