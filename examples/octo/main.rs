//! The command line of a system: submits tasks and follows them, calls arms, and prints events.
//!
//! ```text
//! cargo run --example octo -- [--url URL] submit "Review this crate."
//! cargo run --example octo -- submit story.tell '{"about":"an octopus"}'
//! cargo run --example octo -- watch ID | list | cancel ID | rerun ID [--from STEP]
//! cargo run --example octo -- arms | call CONTRACT JSON | events [PATTERN]
//! ```
//!
//! `octo --help` lists the options and the exit codes. With `--json` it prints one JSON object a line. The guide has a
//! chapter about it, `docs/guide/octo.md`.

mod args;
mod exit;
mod print;
mod screen;
mod tasks;
mod arms;
mod events;

use std::{cell::Cell, env, process::ExitCode, sync::Arc, time::Duration};

use clap::Parser;
use octollm::{Context, http::OrchestratorClient, id::TaskId, orchestrator::Orchestrator};
use tokio::sync::Notify;

use crate::{
    args::{Args, Command, Common},
    exit::{Code, Exit},
    print::{Printer, plain},
    tasks::watch_again,
};

/// What the commands share.
struct Octo {
    common: Common,
    client: OrchestratorClient,
    cx: Context,
    print: Printer,
    /// What a Ctrl-C would interrupt.
    step: Cell<Step>,
}

/// What a command does, as far as it matters where that is interrupted.
#[derive(Default)]
enum Step {
    /// Reads, and changes nothing.
    #[default]
    Read,
    /// Submits a task that has no id yet.
    Submit,
    /// Cancels a task, or runs it again.
    Change(TaskId),
    Call,
    /// Follows a task. `after` is the last update.
    Follow {
        id: TaskId,
        after: Option<u64>,
        cancels: bool,
    },
}

#[tokio::main]
async fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => return refused(&error),
    };
    let print = Printer::new(args.common.json, args.common.quiet);
    match run(args, print.clone()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(exit) => {
            print.problem(&exit);
            exit.code.into()
        }
    }
}

/// Help, or arguments that cannot be read.
fn refused(error: &clap::Error) -> ExitCode {
    let is_json = env::args().any(|argument| argument == "--json");
    let text = error.render().to_string();
    if !error.use_stderr() {
        Printer::new(false, false).out(&text);
        return ExitCode::SUCCESS;
    }
    if is_json {
        let message = text.trim().trim_start_matches("error: ").replace('\n', " ");
        Printer::new(true, false).problem(&Exit::usage(message));
    } else {
        Printer::new(false, false).err(&plain(&text));
    }
    Code::Usage.into()
}

async fn run(args: Args, print: Printer) -> Result<(), Exit> {
    let Args { common, command } = args;
    let interrupt = Arc::new(Notify::new());
    tokio::spawn(signals(interrupt.clone()));
    // It says itself that it tries again.
    let mut client = OrchestratorClient::builder(&common.url).resume_timeout(Duration::from_secs(1));
    if let Some(token) = common.token()? {
        client = client.bearer(token);
    }
    if common.cleartext {
        client = client.cleartext();
    }
    let octo =
        Octo { client: client.build()?, cx: Context::detached(), common, print, step: Cell::default() };
    tokio::select! {
        ended = octo.run(command) => ended,
        () = interrupt.notified() => Err(octo.interrupted().await),
    }
}

impl Octo {
    async fn run(&self, command: Command) -> Result<(), Exit> {
        match command {
            Command::Submit(submit) => self.submit(submit).await,
            Command::Watch { id, after, cancel_on_interrupt } => {
                self.watch(&id, after, cancel_on_interrupt).await
            }
            Command::List(list) => self.list(list).await,
            Command::Cancel { id } => self.cancel(&id).await,
            Command::Rerun { id, from, detach } => self.rerun(&id, from.as_deref(), detach).await,
            Command::Arms => self.arms().await,
            Command::Call { contract, input, within } => self.call(&contract, &input, within).await,
            Command::Events { pattern, count } => self.events(&pattern, count).await,
        }
    }

    /// What the first Ctrl-C means for the command that it has ended.
    async fn interrupted(&self) -> Exit {
        match self.step.take() {
            Step::Read => Exit::interrupted("interrupted"),
            Step::Call => Exit::interrupted("interrupted; the call is cancelled"),
            Step::Submit => Exit::interrupted("interrupted; the task may have been submitted")
                .hint("to see whether it was: octo list"),
            Step::Change(id) => Exit::interrupted("interrupted; the server may do it all the same")
                .task(&id)
                .hint(format!("to see what became of it: octo watch {id}")),
            Step::Follow { id, after, cancels: true } => match self.client.cancel(&id, &self.cx).await {
                Ok(task) => {
                    Exit::interrupted(format!("interrupted; {id} is {}", task.status)).task(&id).after(after)
                }
                Err(failure) => Exit::from(failure).task(&id).after(after),
            },
            Step::Follow { id, after, cancels: false } => {
                let exit = Exit::interrupted(format!("interrupted; {id} goes on")).task(&id).after(after);
                exit.hint(format!("to follow it: {}", watch_again(&id, after)))
            }
        }
    }
}

/// Time that a command has to end after a Ctrl-C.
const GRACE: Duration = Duration::from_secs(5);

/// Passes the first Ctrl-C on, and ends the process at the second, or where the command does not end.
async fn signals(interrupt: Arc<Notify>) {
    if tokio::signal::ctrl_c().await.is_err() {
        return;
    }
    interrupt.notify_one();
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        () = tokio::time::sleep(GRACE) => {}
    }
    std::process::exit(i32::from(Code::Interrupted as u8));
}
