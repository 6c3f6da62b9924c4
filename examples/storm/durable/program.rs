//! The program that survives: its steps, and the arms that count how often each is executed.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use octollm::{http::BoundServer, prelude::*, sql::SqlIdempotencyStore};
use tokio::time::sleep;

use crate::Result;

/// Looks at a number, as often as it is asked.
#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "storm.look", output = u64, idempotent, timeout = "20s")]
struct Look {
    number: u64,
}

/// Pays a number, and must not do so twice. Its arm keeps the keys of calls.
#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "storm.pay", output = u64, timeout = "20s")]
struct Pay {
    number: u64,
}

/// Posts a number, and must not do so twice. Its arm ignores the keys of calls.
#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "storm.post", output = u64, timeout = "20s")]
struct Post {
    number: u64,
}

/// Adds the numbers below `steps`, each by a step of its own.
#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "storm.program", output = Outcome, timeout = "10m")]
pub(super) struct Program {
    pub(super) steps: u64,
}

/// The number of steps of a program.
pub(super) const STEPS: u64 = 30;

/// What a program comes to.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(super) struct Outcome {
    pub(super) sum: u64,
    /// Steps that are not idempotent, were called by a brain that was killed, and of which nothing more is known.
    pub(super) unknown: Vec<u64>,
}

/// How a step may be repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    Idempotent,
    /// Not idempotent, at an arm that keeps keys.
    Keyed,
    /// Not idempotent, at an arm that does not.
    Unkeyed,
}

impl Kind {
    pub(super) fn of(number: u64) -> Self {
        match number % 3 {
            0 => Self::Idempotent,
            1 => Self::Keyed,
            _ => Self::Unkeyed,
        }
    }
}

pub(super) struct Runner;

#[async_trait]
impl Arm<Program> for Runner {
    async fn execute(&self, input: Program, cx: &Context) -> std::result::Result<Outcome, ArmError> {
        let mut outcome = Outcome { sum: 0, unknown: Vec::new() };
        for number in 0..input.steps {
            let answer = match Kind::of(number) {
                Kind::Idempotent => cx.call(Look { number }).await,
                Kind::Keyed => cx.call(Pay { number }).await,
                Kind::Unkeyed => cx.call(Post { number }).await,
            };
            outcome.sum += match answer {
                Ok(answer) => answer,
                Err(error) if error.kind() == ErrorKind::OutcomeUnknown => {
                    outcome.unknown.push(number);
                    number
                }
                Err(error) => return Err(error.into()),
            };
        }
        Ok(outcome)
    }
}

/// How often each step of each task was executed. The process of the arms is never killed.
#[derive(Clone, Default)]
pub(super) struct Ledger(Arc<Mutex<HashMap<(String, u64), u32>>>);

/// The time that a step works, unless it is keyed.
const WORK: Duration = Duration::from_millis(10);

impl Ledger {
    fn counts(&self) -> MutexGuard<'_, HashMap<(String, u64), u32>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, number: u64, cx: &Context) {
        let task = cx.task_id().map(ToString::to_string).unwrap_or_default();
        *self.counts().entry((task, number)).or_default() += 1;
    }

    pub(super) fn executions(&self, task: &str, number: u64) -> u32 {
        self.counts().get(&(task.to_owned(), number)).copied().unwrap_or_default()
    }

    /// Starts the arms, and returns the environment of a brain that calls them.
    pub(super) async fn serve(&self, keys: SqlIdempotencyStore) -> Result<Vec<(&'static str, String)>> {
        let keyed = Server::new("bank").arm::<Look>(self.clone()).arm::<Pay>(self.clone()).idempotency(keys);
        let unkeyed = Server::new("mail").arm::<Post>(self.clone()).idempotency(());
        Ok(vec![
            ("OCTOLLM_ARM_BANK", spawn(keyed.bind("127.0.0.1:0").await?)),
            ("OCTOLLM_ARM_MAIL", spawn(unkeyed.bind("127.0.0.1:0").await?)),
        ])
    }
}

fn spawn(server: BoundServer) -> String {
    let url = server.url();
    tokio::spawn(server.run());
    url
}

#[async_trait]
impl Arm<Look> for Ledger {
    async fn execute(&self, input: Look, cx: &Context) -> std::result::Result<u64, ArmError> {
        self.add(input.number, cx);
        sleep(WORK).await;
        Ok(input.number)
    }
}

#[async_trait]
impl Arm<Pay> for Ledger {
    async fn execute(&self, input: Pay, cx: &Context) -> std::result::Result<u64, ArmError> {
        self.add(input.number, cx);
        Ok(input.number)
    }
}

#[async_trait]
impl Arm<Post> for Ledger {
    async fn execute(&self, input: Post, cx: &Context) -> std::result::Result<u64, ArmError> {
        self.add(input.number, cx);
        sleep(WORK).await;
        Ok(input.number)
    }
}
