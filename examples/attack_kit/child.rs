//! The attacked process: this program once more. It takes commands by its standard input, a line each, and answers each
//! by a line; it ends with its input.

use std::{
    collections::HashMap,
    env,
    future::Future,
    io::{self, BufRead, BufReader, Write},
    net::SocketAddr,
    process::{Child as Process, ChildStdin, Command, Stdio},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use tokio::sync::{mpsc, oneshot};

use crate::{
    brain, client,
    frame::{Broken, Size, ensure},
    target,
};

/// The attacked process, as the attacker has it. It is killed on drop.
pub(crate) struct Child {
    process: Mutex<Process>,
    id: u32,
    input: Mutex<ChildStdin>,
    waiting: Waiting,
    count: AtomicU64,
    /// Where it listens.
    pub(crate) address: SocketAddr,
}

type Waiting = Arc<Mutex<HashMap<String, oneshot::Sender<String>>>>;

impl Child {
    /// Starts a process, and returns once it listens.
    pub(crate) async fn start(
        group: &str,
        size: Size,
        settings: &[(&str, usize)],
        descriptors: Option<usize>,
    ) -> Result<Self, Broken> {
        let limit = descriptors.map_or_else(String::new, |most| format!("ulimit -n {most}; "));
        let mut command = Command::new("sh");
        command.args(["-c", &format!("{limit}exec \"$0\" \"$@\"")]).arg(env::current_exe()?);
        command.args(["child", group, size.word()]);
        command.args(settings.iter().map(|(name, value)| format!("{name}={value}")));
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let (Some(input), Some(output)) = (process.stdin.take(), process.stdout.take()) else {
            return Err("the process has no input or output".into());
        };
        let (first, address) = oneshot::channel();
        let waiting = Waiting::default();
        waiting.lock().unwrap_or_else(PoisonError::into_inner).insert("listens".into(), first);
        let answered = waiting.clone();
        thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                let (word, rest) = line.split_once(' ').unwrap_or((&line, ""));
                let asked = answered.lock().unwrap_or_else(PoisonError::into_inner).remove(word);
                if let Some(asked) = asked {
                    let _ = asked.send(rest.to_owned());
                }
            }
            // Nothing more is answered.
            answered.lock().unwrap_or_else(PoisonError::into_inner).clear();
        });
        let address = address.await.map_err(|_| "the attacked process does not start")?.parse()?;
        let (id, count) = (process.id(), AtomicU64::new(0));
        Ok(Self { process: Mutex::new(process), id, input: Mutex::new(input), waiting, count, address })
    }

    pub(crate) fn id(&self) -> u32 {
        self.id
    }

    pub(crate) fn is_alive(&self) -> bool {
        let mut process = self.process.lock().unwrap_or_else(PoisonError::into_inner);
        matches!(process.try_wait(), Ok(None))
    }

    /// Gives a command, and returns the answer.
    pub(crate) async fn ask(&self, command: &str) -> Result<String, Broken> {
        let number = self.count.fetch_add(1, Ordering::Relaxed).to_string();
        let (asked, answer) = oneshot::channel();
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).insert(number.clone(), asked);
        {
            let mut input = self.input.lock().unwrap_or_else(PoisonError::into_inner);
            writeln!(input, "{number} {command}")?;
        }
        answer.await.map_err(|_| format!("the attacked process ended at `{command}`").into())
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let mut process = self.process.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = process.kill();
        let _ = process.wait();
    }
}

/// Runs the attacked process: its group, its size, and its settings.
pub(crate) async fn run(words: &[String]) -> Result<(), Broken> {
    let [group, size, settings @ ..] = words else { return Err("child GROUP SIZE [NAME=VALUE..]".into()) };
    let size = if size == "short" { Size::Short } else { Size::Full };
    let settings: Vec<_> = settings.iter().filter_map(|word| word.split_once('=')).collect();
    let settings: Vec<_> =
        settings.into_iter().filter_map(|(name, n)| Some((name, n.parse().ok()?))).collect();
    ensure!(["server", "client", "brain"].contains(&&**group), "there is no group {group}");
    let server = target::server(size, &settings).await?;
    let address = server.local_addr();
    tokio::spawn(server.run());
    println!("listens {address}");
    match &**group {
        "client" => {
            let caller = Arc::new(client::Caller::new(size));
            commands(move |command| client::Caller::command(caller.clone(), address, command)).await
        }
        "brain" => commands(brain::command).await,
        _ => commands(|_| async { String::new() }).await,
    }
}

/// Answers commands until the input ends, each on a task of its own.
async fn commands<F>(answer: impl Fn(String) -> F) -> Result<(), Broken>
where
    F: Future<Output = String> + Send + 'static,
{
    let (sent, mut lines) = mpsc::unbounded_channel();
    thread::spawn(move || io::stdin().lines().map_while(Result::ok).try_for_each(|line| sent.send(line)));
    while let Some(line) = lines.recv().await {
        let Some((number, command)) = line.split_once(' ') else { continue };
        let (number, answered) = (number.to_owned(), answer(command.to_owned()));
        tokio::spawn(async move { println!("{number} {}", answered.await) });
    }
    Ok(())
}
