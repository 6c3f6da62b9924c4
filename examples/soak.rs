//! Runs many tasks through a whole system in one process and measures its memory.
//!
//! ```text
//! cargo run --release --example soak [TASKS [AT_ONCE]]
//! ```
//!
//! Submits TASKS tasks (default 10 000) to the brain of a mesh, AT_ONCE (default 1 000) at a time. Each makes two calls, and its result
//! is checked. Every tenth of the tasks a line reports the resident memory. The last line reports its growth since the middle.

use std::time::Instant;

use octollm::{mesh::Mesh, prelude::*, task::Task};
use tokio::task::JoinSet;

/// Adds one.
#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "number.increment", output = u64, idempotent)]
struct Increment {
    number: u64,
}

struct Adder;

#[async_trait]
impl Arm<Increment> for Adder {
    async fn execute(&self, input: Increment, _: &Context) -> Result<u64, ArmError> {
        Ok(input.number + 1)
    }
}

struct PlusTwo;

#[async_trait]
impl Arm<TaskRequest> for PlusTwo {
    async fn execute(&self, request: TaskRequest, cx: &Context) -> Result<TaskResult, ArmError> {
        let number = cx.call(Increment { number: request.goal.parse()? }).await?;
        Ok(TaskResult::new(cx.call(Increment { number }).await?))
    }
}

#[tokio::main]
async fn main() -> Result<(), octollm::Error> {
    let mut numbers = std::env::args().skip(1).map(|text| text.parse::<u64>());
    let total = numbers.next().transpose()?.unwrap_or(10_000);
    let at_once = numbers.next().transpose()?.unwrap_or(1_000).clamp(1, total);
    let mesh =
        std::sync::Arc::new(Mesh::builder().arm::<Increment>("adder", Adder).brain(PlusTwo).start().await);

    let started = Instant::now();
    let (mut running, mut wrong, mut resident) = (JoinSet::new(), 0_u64, Vec::new());
    for number in 0..total {
        if running.len() as u64 == at_once {
            wrong += u64::from(!matches!(running.join_next().await, Some(Ok(true))));
        }
        let system = mesh.clone();
        running.spawn(async move {
            let task = system.run(TaskRequest::new(number.to_string())).await;
            let right = |task: &Task| task.result.as_ref().is_some_and(|result| result.output == number + 2);
            if !task.as_ref().is_ok_and(right) {
                eprintln!("task {number}: {task:?}");
            }
            task.as_ref().is_ok_and(right)
        });
        if (number + 1) % (total / 10).max(1) == 0 {
            mesh.forget_calls();
            resident.push(resident_mib());
            println!("tasks={} resident_mib={:.1}", number + 1, resident_mib());
        }
    }
    while let Some(answer) = running.join_next().await {
        wrong += u64::from(!matches!(answer, Ok(true)));
    }
    // In the first half the store fills with finished tasks, up to its limit.
    let middle = resident.get(resident.len() / 2).copied().unwrap_or_default();
    let grown = resident.last().copied().unwrap_or_default() - middle;
    let rate = total as f64 / started.elapsed().as_secs_f64();
    println!("soak tasks={total} at_once={at_once} wrong={wrong} rate={rate:.0}/s grown_mib={grown:.1}");
    std::process::exit(i32::from(wrong > 0));
}

/// Resident memory of this process in MiB; 0 where the system does not report it (Linux does).
fn resident_mib() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib =
        line.and_then(|line| line.trim().strip_suffix("kB")).and_then(|kib| kib.trim().parse::<f64>().ok());
    kib.unwrap_or_default() / 1024.0
}
