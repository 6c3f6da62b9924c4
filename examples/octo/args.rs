//! The arguments, and where the token comes from.

use std::{env, fs, path::PathBuf, time::Duration};

use clap::{Parser, Subcommand, ValueEnum};
use http::HeaderValue;
use octollm::{
    contract::ContractRef,
    event::Pattern,
    id::TaskId,
    task::{Priority, TaskStatus},
};

use crate::exit::Exit;

/// Submits tasks to an orchestrator and follows them, calls arms, and prints events.
#[derive(Parser)]
#[command(name = "octo", after_help = EXIT_CODES)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) common: Common,
    #[command(subcommand)]
    pub(crate) command: Command,
}

const EXIT_CODES: &str = "\
Environment:
  OCTOLLM_URL    in place of --url
  OCTOLLM_TOKEN  in place of --token
  NO_COLOR       no colors

Exit codes:
    0  done; a reader that closes the pipe ends octo so too
    1  the task failed or was cancelled, the call failed, or the answer cannot be read
    2  the arguments cannot be used
    3  no answer: not reachable, lost, too busy or too late; a later attempt can help
    4  refused: no valid token, a missing scope, an invalid input, or a state that does not allow it
    5  no such task, contract or route
  130  interrupted by Ctrl-C

With --json each line of the standard output is one JSON object, and an exit code other than 0 comes with one on the
standard error: {\"code\", \"message\", \"exit\", \"retryable\", ..}.";

#[derive(clap::Args)]
pub(crate) struct Common {
    /// URL of the orchestrator or of the reflex before it; for `arms` and `call` also of an arm
    #[arg(
        long,
        global = true,
        env = "OCTOLLM_URL",
        hide_env = true,
        default_value = "http://127.0.0.1:8000"
    )]
    pub(crate) url: String,
    /// Token for the server at the URL. Other users of this machine can read it in the list of processes
    #[arg(long, global = true, conflicts_with = "token_file")]
    token: Option<String>,
    /// File with the token
    #[arg(long, global = true, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Allow the token to be sent over http to another machine
    #[arg(long, global = true)]
    pub(crate) cleartext: bool,
    /// Print JSON, one object a line
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Print no progress
    #[arg(long, short, global = true)]
    pub(crate) quiet: bool,
}

impl Common {
    /// The token, if there is one.
    pub(crate) fn token(&self) -> Result<Option<String>, Exit> {
        let (source, text) = match (&self.token, &self.token_file) {
            (Some(token), _) => ("--token".to_owned(), token.clone()),
            (None, Some(file)) => {
                let (source, read) = (format!("--token-file {}", file.display()), fs::read_to_string(file));
                let read = read.map_err(|error| Exit::usage(format!("{source}: {error}")))?;
                (source, read)
            }
            (None, None) => ("OCTOLLM_TOKEN".to_owned(), env::var("OCTOLLM_TOKEN").unwrap_or_default()),
        };
        let token = text.trim();
        if HeaderValue::from_bytes(token.as_bytes()).is_err() {
            let words = "is no token: it has a line break or another character that no header field can have";
            return Err(Exit::usage(format!("{source} {words}")));
        }
        Ok(Some(token.to_owned()).filter(|token| !token.is_empty()))
    }
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Submit a goal in words, or the input of a contract, and print the output
    Submit(Submit),
    /// Follow a task to its end, and print its output
    Watch {
        id: TaskId,
        /// Begin after the update of this number
        #[arg(long, value_name = "SEQ")]
        after: Option<u64>,
        /// Cancel the task at Ctrl-C
        #[arg(long)]
        cancel_on_interrupt: bool,
    },
    /// List tasks, newest first
    List(List),
    /// Cancel a task
    Cancel { id: TaskId },
    /// Run a failed task again from the step that failed, and follow it
    Rerun {
        id: TaskId,
        /// Discard the journal from this step on
        #[arg(long, value_name = "STEP")]
        from: Option<String>,
        /// Do not follow the task
        #[arg(long)]
        detach: bool,
    },
    /// List the arms that the orchestrator knows
    Arms,
    /// Call an arm, and print its chunks and its output
    Call {
        contract: ContractRef,
        /// Input as JSON; `-` reads the standard input
        input: String,
        /// Time limit, such as `0.5`; by default that of the contract
        #[arg(long, value_name = "SECONDS", value_parser = time_limit)]
        within: Option<Duration>,
    },
    /// Print the events of the bus of the orchestrator until Ctrl-C
    Events {
        /// `events:task:*`, or several with commas between them
        #[arg(default_value = "events:*:*")]
        pattern: Pattern,
        /// End after so many events
        #[arg(long, value_name = "EVENTS", value_parser = one_or_more)]
        count: Option<usize>,
    },
}

#[derive(clap::Args)]
pub(crate) struct Submit {
    /// Goal in words, or the name of a contract that is followed by its input; `-` reads the goal from the standard input
    #[arg(value_name = "GOAL|CONTRACT")]
    pub(crate) what: String,
    /// Input of the contract as JSON; `-` reads the standard input
    #[arg(value_name = "JSON")]
    pub(crate) input: Option<String>,
    /// Priority of the task
    #[arg(long, value_enum)]
    pub(crate) priority: Option<Urgency>,
    /// While a task with this key is not finished, follow that one
    #[arg(long, value_name = "KEY")]
    pub(crate) unique: Option<String>,
    /// Attempts of the whole task
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) attempts: u32,
    /// Start the task after so many seconds, such as `0.5`
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub(crate) run_in: Option<Duration>,
    /// Budget of tokens
    #[arg(long, value_name = "TOKENS")]
    pub(crate) max_tokens: Option<u64>,
    /// Print the task, and do not follow it
    #[arg(long)]
    pub(crate) detach: bool,
    /// Cancel the task at Ctrl-C
    #[arg(long)]
    pub(crate) cancel_on_interrupt: bool,
}

#[derive(clap::Args)]
pub(crate) struct List {
    /// Only tasks of this status: queued, processing, completed, failed or cancelled
    #[arg(long)]
    pub(crate) status: Option<TaskStatus>,
    /// At most so many tasks
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = one_or_more)]
    pub(crate) limit: usize,
    /// Only tasks that are older than this one
    #[arg(long, value_name = "ID")]
    pub(crate) after: Option<TaskId>,
}

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum Urgency {
    Low,
    Medium,
    High,
    Critical,
}

impl From<Urgency> for Priority {
    fn from(urgency: Urgency) -> Self {
        match urgency {
            Urgency::Low => Self::Low,
            Urgency::Medium => Self::Medium,
            Urgency::High => Self::High,
            Urgency::Critical => Self::Critical,
        }
    }
}

fn one_or_more(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|number| *number > 0).ok_or_else(|| "it is a number from 1 on".to_owned())
}

fn time_limit(text: &str) -> Result<Duration, String> {
    seconds(text)
        .ok()
        .filter(|time| !time.is_zero())
        .ok_or_else(|| "it is a number of seconds above 0".to_owned())
}

/// At most 100 years, so that the end of the time is one that a clock can show.
fn seconds(text: &str) -> Result<Duration, String> {
    let time = text.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    time.filter(|time| time.as_secs() < 100 * 365 * 86_400)
        .ok_or_else(|| "it is a number of seconds from 0 on".to_owned())
}
