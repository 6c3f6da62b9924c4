//! Attacks against a client: servers that lie. The client runs in the attacked process and calls the URLs that it receives; the
//! servers are here.

mod answers;
mod bodies;
mod cards;
mod liar;

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use octollm::{http::client::ArmsBuilder, prelude::*};
use tokio::time::{Instant, sleep};

use crate::{
    frame::{Arena, Attack, Broken, Size, ensure},
    healthy::{self, Calls},
    target::Echo,
};

pub(crate) fn attacks() -> Vec<Attack> {
    [answers::attacks(), bodies::attacks(), cards::attacks()].concat()
}

/// Not idempotent.
#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "attack.check", output = String, timeout = "20s")]
struct Check {
    text: String,
}

/// Idempotent, so that it may be sent again.
#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "attack.again", output = String, idempotent, timeout = "20s")]
struct Again {
    text: String,
}

/// How one call ended.
#[derive(Debug, Serialize, Deserialize)]
struct Ended {
    output: Option<String>,
    kind: Option<ErrorKind>,
    executed: bool,
    ms: u64,
    words: String,
}

impl Ended {
    /// That the call failed by one of these kinds, and that it says rightly whether the work may have run: of kinds that
    /// come before the work it must not say so, of all others it must.
    fn check(&self, kinds: &[ErrorKind], executed: bool) -> Result<ErrorKind, Broken> {
        let kind = self.kind.ok_or_else(|| format!("answered {:?}", self.output))?;
        ensure!(kinds.contains(&kind), "{kind} in place of {kinds:?}: {}", self.words);
        ensure!(self.executed == executed, "{kind} says that it may have executed: {}", self.executed);
        Ok(kind)
    }
}

/// A client with the limits that it has by default, and in the short form with times of a second or two. Each call is one attempt, and
/// is sent whatever happened to those before it.
fn builder(size: Size) -> ArmsBuilder {
    let builder = Arms::builder().retries(0).breaker_failures(0);
    match size {
        Size::Full => builder,
        Size::Short => builder
            .connect_timeout(Duration::from_secs(2))
            .read_idle(Duration::from_secs(2))
            .write_idle(Duration::from_secs(2))
            .idle_timeout(Duration::from_millis(500))
            .capabilities_timeout(Duration::from_secs(2)),
    }
}

/// How much later than its limit a call may end: as long as a loaded machine may hold up everything.
const MARGIN: Duration = Duration::from_secs(10);

/// Has the client make one call: `call`, `again` with three attempts, `card` where it asks for the card first, or `large`.
async fn made(arena: &Arena, how: &str, url: &str, text: &str) -> Result<Ended, Broken> {
    within(arena, how, url, Duration::from_secs(20), text).await
}

/// The same under a deadline, which holds in any case.
async fn within(arena: &Arena, how: &str, url: &str, limit: Duration, text: &str) -> Result<Ended, Broken> {
    let answer = arena.child.ask(&format!("{how} {url} {} {text}", limit.as_millis())).await?;
    let ended: Ended = serde_json::from_str(&answer).map_err(|error| format!("{answer}: {error}"))?;
    let time = Duration::from_millis(ended.ms);
    ensure!(time <= limit + MARGIN, "a call within {limit:?} ended after {time:?}");
    Ok(ended)
}

/// The attacked side: it makes the calls that its parent asks for.
pub(crate) struct Caller {
    size: Size,
    /// By URL: their connections stay for as long as the process runs.
    arms: Mutex<HashMap<String, Arms>>,
    stopped: AtomicBool,
    made: AtomicU64,
    calls: Mutex<Option<Calls>>,
}

impl Caller {
    pub(crate) fn new(size: Size) -> Self {
        let (arms, stopped, made, calls) = Default::default();
        Self { size, arms, stopped, made, calls }
    }

    /// `start` and `stop` for the healthy calls to `own`, and else `HOW URL MS TEXT`.
    pub(crate) async fn command(self: Arc<Self>, own: std::net::SocketAddr, command: String) -> String {
        let words: Vec<_> = command.splitn(4, ' ').collect();
        let answer = match words[..] {
            ["start"] => self.start(own).await.map(|()| String::new()),
            ["stop"] => self.stop().await,
            [how, url, ms, text] => match self.call(how, url, ms.parse().unwrap_or(1), text).await {
                Ok(ended) => serde_json::to_string(&ended).map_err(Broken::from),
                Err(error) => Err(error),
            },
            _ => Err("no such command".into()),
        };
        answer.unwrap_or_else(|error| format!("error: {error}"))
    }

    async fn start(self: Arc<Self>, own: std::net::SocketAddr) -> Result<(), Broken> {
        let (arms, caller) = (healthy::arms(own)?, self.clone());
        tokio::spawn(async move {
            let calls = healthy::call_until(&arms, &caller.stopped, &caller.made).await;
            *caller.calls.lock().unwrap_or_else(PoisonError::into_inner) = Some(calls);
        });
        while self.made.load(Ordering::Relaxed) == 0 {
            sleep(Duration::from_millis(1)).await;
        }
        Ok(())
    }

    async fn stop(&self) -> Result<String, Broken> {
        self.stopped.store(true, Ordering::Relaxed);
        loop {
            let calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner).take();
            match calls {
                Some(calls) => return Ok(serde_json::to_string(&calls)?),
                None => sleep(Duration::from_millis(1)).await,
            }
        }
    }

    /// The client of this URL. It knows a second arm, whose server is the healthy one where the URL has two.
    fn arms(&self, how: &str, url: &str) -> Result<Arms, Broken> {
        let mut all = self.arms.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(arms) = all.get(url) {
            return Ok(arms.clone());
        }
        let (first, second) = url.split_once('+').unwrap_or((url, ""));
        let builder = builder(self.size);
        let mut builder = match how {
            "card" => builder.endpoint("liar", first),
            _ => builder.endpoint_serving::<Check>("liar", first).endpoint_serving::<Again>("liar", first),
        };
        if !second.is_empty() {
            builder = builder.endpoint_serving::<Echo>("healthy", second);
        }
        Ok(all.entry(url.to_owned()).or_insert(builder.build()?).clone())
    }

    async fn call(&self, how: &str, url: &str, ms: u64, text: &str) -> Result<Ended, Broken> {
        let cx = self.arms(how, url)?.within(Duration::from_millis(ms));
        let begun = Instant::now();
        let text = text.to_owned();
        let answer = match how {
            "again" => cx.call(Again { text }).retry(2).await,
            "large" => cx.call(Check { text: text + &"x".repeat(4 << 20) }).await,
            "second" => cx.call(Echo { text }).await,
            _ => cx.call(Check { text }).await,
        };
        let ms = u64::try_from(begun.elapsed().as_millis())?;
        Ok(match answer {
            Ok(output) => {
                Ended { output: Some(output), kind: None, executed: true, ms, words: String::new() }
            }
            Err(error) => Ended {
                output: None,
                kind: Some(error.kind()),
                executed: error.may_have_executed(),
                ms,
                words: error.to_string().replace(['\n', '\r'], " "),
            },
        })
    }
}
