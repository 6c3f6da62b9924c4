//! A brain in a process of its own.

use std::{
    collections::BTreeSet,
    env,
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdin, Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use octollm::{
    prelude::*,
    sql::{SqlBus, SqlDatabase, SqlStore},
    store::TaskStore,
    task::{Submission, TaskQuery, Timestamp},
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
    time::sleep,
};

use super::program::{Program, Runner, STEPS};
use crate::Result;

/// The tasks that brains have accepted.
pub(super) type Accepted = Arc<Mutex<BTreeSet<String>>>;

/// The process. It is killed on drop.
pub(super) struct Process {
    pub(super) name: String,
    child: Child,
    input: Option<ChildStdin>,
}

impl Process {
    /// Starts a brain, which submits tasks while fewer than `slots` are unfinished in the store.
    pub(super) fn start(
        name: String,
        url: &str,
        lease: Option<Duration>,
        slots: usize,
        arms: &[(&'static str, String)],
        accepted: &Accepted,
    ) -> Result<Self> {
        let lease = lease.map_or("default".into(), |lease| lease.as_millis().to_string());
        let mut command = Command::new(env::current_exe()?);
        command.args(["brain", &name, url, &lease, &slots.to_string()]);
        command.envs(arms.iter().map(|(name, value)| (*name, value)));
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        if let Some(output) = child.stdout.take() {
            let accepted = accepted.clone();
            std::thread::spawn(move || {
                for line in BufReader::new(output).lines().map_while(std::io::Result::ok) {
                    accepted.lock().unwrap_or_else(PoisonError::into_inner).insert(line);
                }
            });
        }
        let input = child.stdin.take();
        Ok(Self { name, child, input })
    }

    /// Kills it, and returns when.
    pub(super) fn kill(mut self) -> Result<(String, Timestamp)> {
        self.child.kill()?;
        let at = Timestamp::now();
        self.child.wait()?;
        Ok((std::mem::take(&mut self.name), at))
    }

    /// Tells it to stop in order, and returns when. It ends in the background.
    pub(super) fn stop(mut self) -> Result<(String, Timestamp)> {
        let at = Timestamp::now();
        kill(Pid::from_raw(i32::try_from(self.child.id())?), Signal::SIGTERM)?;
        let name = std::mem::take(&mut self.name);
        std::thread::spawn(move || self.child.wait());
        Ok((name, at))
    }

    /// Ends its submissions.
    pub(super) fn drain(&mut self) -> Result<()> {
        if let Some(input) = &mut self.input {
            input.write_all(b"drain\n")?;
        }
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !self.name.is_empty() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// The brain itself, until it is killed, stopped, or alone.
pub(super) async fn run(name: &str, url: &str, lease: &str, slots: &str) -> Result<()> {
    let mut stopped = signal(SignalKind::terminate())?;
    let database = SqlDatabase::open(url).await?;
    let store = SqlStore::builder().open(&database).await?;
    let bus = SqlBus::open(&database).await?;
    let builder = Brain::builder().name(name).arm(Runner).arms(Arms::from_env()?);
    let mut builder = builder.store(store.clone()).bus(bus);
    if lease != "default" {
        builder = builder.lease(Duration::from_millis(lease.parse()?));
    }
    let brain = builder.build()?;
    // It tries again by itself.
    let _ = brain.recover().await;
    let mut input = input();
    let slots = slots.parse()?;
    tokio::select! {
        never = fill(&brain, &store, slots, input.clone()) => never,
        _ = stopped.recv() => brain.close().await,
        _ = input.wait_for(|input| *input == Input::Closed) => {}
    }
    // A blocked read of the input does not hold it up.
    std::process::exit(0)
}

/// What its parent has said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Input {
    Open,
    Drain,
    Closed,
}

fn input() -> watch::Receiver<Input> {
    let (sender, receiver) = watch::channel(Input::Open);
    std::thread::spawn(move || {
        for _ in std::io::stdin().lock().lines().map_while(std::io::Result::ok) {
            sender.send_replace(Input::Drain);
        }
        sender.send_replace(Input::Closed);
    });
    receiver
}

/// How often unfinished tasks are counted.
const COUNTING: Duration = Duration::from_millis(50);

async fn fill(brain: &Brain, store: &SqlStore, slots: usize, input: watch::Receiver<Input>) {
    loop {
        if *input.borrow() == Input::Open {
            let mut unfinished = 0;
            for status in [TaskStatus::Queued, TaskStatus::Processing] {
                let query = TaskQuery::default().status(status).limit(slots);
                unfinished += store.list(&query, None).await.map_or(slots, |tasks| tasks.len());
            }
            for _ in unfinished..slots {
                let Ok(submission) = Submission::of(&Program { steps: STEPS }) else { break };
                let Ok(task) = brain.submit(submission, &Context::detached()).await else { break };
                println!("{}", task.task_id);
            }
        }
        sleep(COUNTING).await;
    }
}
