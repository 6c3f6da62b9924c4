//! What a task tells while it runs.

use octollm::{prelude::*, task::TaskUpdate, update::Phase};
use serde_json::json;

use crate::{
    golden::{TASK, hold_json, parsed},
    tasks::{completed, failed},
};

#[test]
fn updates_of_each_kind() {
    let task_id = || parsed(TASK);
    let progress = TaskUpdate::Progress {
        task_id: task_id(),
        seq: 7,
        progress: 40,
        phase: Phase::Execution,
        message: "judging src/lib.rs".into(),
    };
    hold_json("update_progress.json", &progress);
    let data = json!({ "text": "Once upon a time" });
    hold_json("update_chunk.json", &TaskUpdate::Chunk { task_id: task_id(), seq: 8, data: data.into() });
    let status =
        |status, result, error| TaskUpdate::Status { task_id: task_id(), seq: 9, status, result, error };
    hold_json("update_status.json", &status(TaskStatus::Processing, None, None));
    hold_json("update_completed.json", &status(TaskStatus::Completed, completed().result, None));
    hold_json("update_failed.json", &status(TaskStatus::Failed, None, failed().error));
    hold_json("update_gap.json", &TaskUpdate::Gap { task_id: task_id(), seq: 12, missed: 12 });
}
