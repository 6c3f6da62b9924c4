//! How the program ends: its exit codes, and the problem that goes with each.

use std::process::ExitCode;

use octollm::{
    error::{CallError, ConfigError, ErrorKind, Failure},
    id::TaskId,
    task::{Task, TaskStatus},
};
use serde_json::{Map, Value, json};

/// An exit code other than 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Code {
    Failed = 1,
    Usage = 2,
    NoAnswer = 3,
    Refused = 4,
    NotFound = 5,
    Interrupted = 130,
}

impl From<Code> for ExitCode {
    fn from(code: Code) -> Self {
        Self::from(code as u8)
    }
}

/// An exit code, and the problem.
#[derive(Debug)]
pub(crate) struct Exit {
    pub(crate) code: Code,
    /// `code` and `message`, and what else is known.
    pub(crate) problem: Map<String, Value>,
    /// What the user can do.
    pub(crate) hint: Option<String>,
}

impl Exit {
    fn new(code: Code, kind: &str, message: impl Into<String>) -> Self {
        let mut problem = Map::new();
        problem.insert("code".into(), kind.into());
        problem.insert("message".into(), message.into().into());
        problem.insert("exit".into(), (code as u8).into());
        Self { code, problem, hint: None }
    }

    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(Code::Usage, "usage", message)
    }

    pub(crate) fn interrupted(message: impl Into<String>) -> Self {
        Self::new(Code::Interrupted, "interrupted", message)
    }

    /// An answer that is none of octollm.
    pub(crate) fn unreadable(message: impl Into<String>) -> Self {
        Self::new(Code::Failed, ErrorKind::BadResponse.code(), message)
    }

    /// The end of a task that is not completed.
    pub(crate) fn of_task(task: &Task) -> Self {
        let exit = match (&task.error, task.status) {
            (Some(error), TaskStatus::Failed) => {
                let mut exit = Self::new(Code::Failed, error.kind.code(), &error.message);
                exit.add("retryable", error.retryable.into());
                exit.add("may_have_executed", error.may_have_executed.into());
                if let Some(details) = &error.details {
                    exit.add("details", details.clone());
                }
                if let Some(step) = &error.step {
                    exit.add("step", step.to_string().into());
                }
                exit.hint(format!("to go on from the step that failed: octo rerun {}", task.task_id))
            }
            (_, TaskStatus::Cancelled) => {
                Self::new(Code::Failed, ErrorKind::Cancelled.code(), "the task was cancelled")
            }
            (_, status) => Self::unreadable(format!("a task that is {status} has no error")),
        };
        exit.task(&task.task_id)
    }

    pub(crate) fn task(mut self, id: &TaskId) -> Self {
        self.add("task_id", id.as_str().into());
        self
    }

    /// Adds the number of the last update that has arrived.
    pub(crate) fn after(mut self, seq: Option<u64>) -> Self {
        if let Some(seq) = seq {
            self.add("after", seq.into());
        }
        self
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    fn add(&mut self, name: &str, value: Value) {
        self.problem.insert(name.into(), value);
    }

    pub(crate) fn message(&self) -> &str {
        self.problem.get("message").and_then(Value::as_str).unwrap_or_default()
    }
}

/// The exit code of a request or a call that has failed.
fn code_of(kind: ErrorKind) -> Code {
    match kind {
        ErrorKind::NotFound | ErrorKind::TaskNotFound | ErrorKind::ContractNotOffered => Code::NotFound,
        ErrorKind::BadRequest
        | ErrorKind::Unauthenticated
        | ErrorKind::InsufficientScope
        | ErrorKind::Refused
        | ErrorKind::MethodNotAllowed
        | ErrorKind::NotAcceptable
        | ErrorKind::Conflict
        | ErrorKind::PayloadTooLarge
        | ErrorKind::UriTooLong
        | ErrorKind::UnsupportedMediaType
        | ErrorKind::ExpectationFailed
        | ErrorKind::ValidationFailed
        | ErrorKind::HeadersTooLarge
        | ErrorKind::NotImplemented => Code::Refused,
        ErrorKind::RequestTimeout
        | ErrorKind::RateLimited
        | ErrorKind::ConnectionLost
        | ErrorKind::Unavailable
        | ErrorKind::Overloaded
        | ErrorKind::CircuitOpen
        | ErrorKind::Unreachable
        | ErrorKind::DeadlineExceeded
        | ErrorKind::Timeout => Code::NoAnswer,
        _ => Code::Failed,
    }
}

impl From<&Failure> for Exit {
    fn from(failure: &Failure) -> Self {
        let mut exit = Self::new(code_of(failure.kind), failure.kind.code(), &failure.message);
        exit.add("retryable", failure.retryable.into());
        exit.add("retry_after", json!(failure.retry_after.map(|wait| wait.as_secs_f64())));
        exit.add("may_have_executed", failure.may_have_executed.into());
        if let Some(details) = &failure.details {
            exit.add("details", details.clone());
        }
        if !failure.violations.is_empty() {
            exit.add("violations", json!(failure.violations));
        }
        match failure.kind {
            ErrorKind::Unauthenticated => exit.hint("set OCTOLLM_TOKEN, --token-file or --token"),
            ErrorKind::Unreachable => exit.hint("is the server at that URL? Set OCTOLLM_URL or --url"),
            _ => exit,
        }
    }
}

impl From<Failure> for Exit {
    fn from(failure: Failure) -> Self {
        Self::from(&failure)
    }
}

impl From<CallError> for Exit {
    fn from(error: CallError) -> Self {
        let mut exit = Self::from(error.failure());
        exit.add("message", error.to_string().into());
        exit.add("arm", json!(error.arm()));
        exit
    }
}

impl From<ConfigError> for Exit {
    /// The options have other names than the settings of the library that they are.
    fn from(error: ConfigError) -> Self {
        let message = error.to_string().replace("set `cleartext()`", "set --cleartext");
        // What a library sets in the environment of its program is none of octo.
        let message = message.split(", in the environment").next().unwrap_or_default();
        match error.setting() {
            setting @ ("orchestrator" | "url") => {
                let message = message.replacen(&format!("`{setting}`"), "--url", 1);
                Self::usage(message).hint("see --url and --cleartext")
            }
            setting @ "bearer" => Self::usage(message.replacen(&format!("`{setting}`"), "the token", 1)),
            _ => Self::usage(message),
        }
    }
}
