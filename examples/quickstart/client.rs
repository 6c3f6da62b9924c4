//! The client: submits the review to the reflex server like any other, follows it, and cancels it on Ctrl-C.

use std::{io::IsTerminal, time::Duration};

use indicatif::{ProgressBar, ProgressStyle};
use octollm::{
    orchestrator::{JournalStep, follow},
    prelude::*,
    task::{Task, TaskBudget, TaskUpdate},
};

/// How the review ended.
pub(crate) enum End {
    Finished(Box<Task>),
    Interrupted,
}

/// Submits the review and follows it to its end.
pub(crate) async fn review(reflex_url: &str) -> Result<End, octollm::Error> {
    let reflex = OrchestratorClient::new(reflex_url)?;
    let cx = Context::detached();
    let budget =
        TaskBudget { max_tokens: Some(10_000), max_time_seconds: Some(300.0), max_cost_dollars: None };
    let request = TaskRequest { budget, ..TaskRequest::new("Review this crate, and look for secrets.") };
    let bar = bar();
    let task = Orchestrator::submit(&reflex, request.into(), &cx).await?;
    let followed = follow(&reflex, &task.task_id, &cx, |update| show(&bar, update));
    let end = tokio::select! {
        task = followed => End::Finished(Box::new(task?)),
        _ = tokio::signal::ctrl_c() => {
            // What runs three hops away stops with the task.
            let _ = tokio::time::timeout(Duration::from_millis(500), reflex.cancel(&task.task_id, &cx)).await;
            End::Interrupted
        }
    };
    bar.finish_and_clear();
    Ok(end)
}

/// Drawn on standard error, and only where that is a terminal.
fn bar() -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{spinner} {bar:30} {percent:>3}% {elapsed} {wide_msg}");
    let bar = ProgressBar::new(100).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}

fn show(bar: &ProgressBar, update: &TaskUpdate) {
    if let TaskUpdate::Progress { progress, phase, message, .. } = update {
        bar.set_position(u64::from(*progress));
        bar.set_message(if message.is_empty() { format!("{phase:?}") } else { message.clone() });
    }
}

/// How each call of the brain travelled, a line each.
pub(crate) fn explain(journal: &[JournalStep]) -> String {
    let mut lines = vec![format!(
        "{:<12} {:<14} {:<10} {:<24} {:>5} {:>9}  {}",
        "step", "contract", "arm", "endpoint", "tries", "ms", "budget left"
    )];
    for entry in journal {
        let seconds =
            entry.time_left_ms.map_or_else(|| "no limit".into(), |ms| format!("{:.1} s", ms as f64 / 1e3));
        lines.push(format!(
            "{:<12} {:<14} {:<10} {:<24} {:>5} {:>9.2}  {}, {seconds}",
            entry.step.to_string(),
            entry.contract.to_string(),
            entry.arm,
            entry.endpoint,
            entry.attempts,
            entry.duration_ms,
            entry.budget_left,
        ));
    }
    lines.join("\n") + "\n"
}
