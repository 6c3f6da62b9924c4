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
mod tasks;
mod arms;

use std::{env, process::ExitCode, sync::Arc, time::Duration};

use clap::Parser;
use octollm::{Context, http::OrchestratorClient};
use tokio::sync::Notify;

use crate::{
    args::{Args, Command, Common},
    exit::{Code, Exit},
    print::{Printer, plain},
};

/// What the commands share.
struct Octo {
    common: Common,
    client: OrchestratorClient,
    cx: Context,
    print: Printer,
    /// The first Ctrl-C.
    interrupt: Arc<Notify>,
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
    let mut client = OrchestratorClient::builder(&common.url);
    if let Some(token) = common.token()? {
        client = client.bearer(token);
    }
    if common.cleartext {
        client = client.cleartext();
    }
    let octo = Octo { client: client.build()?, cx: Context::detached(), common, print, interrupt };
    match command {
        Command::Submit(submit) => octo.submit(submit).await,
        Command::Watch { id, after, cancel_on_interrupt } => {
            octo.watch(&id, after, cancel_on_interrupt).await
        }
        Command::List(list) => octo.list(list).await,
        Command::Cancel { id } => octo.cancel(&id).await,
        Command::Rerun { id, from, detach } => octo.rerun(&id, from.as_deref(), detach).await,
        Command::Arms => octo.arms().await,
        Command::Call { contract, input, within } => octo.call(&contract, &input, within).await,
        Command::Events { pattern, count } => octo.events(&pattern, count).await,
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
