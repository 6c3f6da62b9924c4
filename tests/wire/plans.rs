//! Plans: steps given as data.

use octollm::{
    contract::TaskContract,
    plan::{Plan, PlanOutput, PlanStep},
};
use serde_json::json;

use crate::golden::{hold_json, parsed, read};

#[test]
fn a_plan_and_what_came_of_it() {
    let list = PlanStep::new("list", parsed("crate.list_sources"), json!({ "path": "." }));
    let input = json!({ "code": { "$item": "/code" }, "language": { "$literal": "rust" } });
    let judge = PlanStep::new("judge", parsed("code.validate"), input)
        .each(json!({ "$output": "list", "pointer": "/files" }))
        .after("list");
    let join = PlanStep::new("join", parsed("report.join@2"), json!({ "verdicts": { "$output": "judge" } }));
    hold_json("plan.json", &Plan::new([list, judge, join]));
    let plan: Plan = octollm::json::read_input(read("plan.json").as_bytes()).unwrap();
    plan.check().unwrap();

    let mut output = PlanOutput::default();
    let files = json!({ "files": [{ "code": "fn main() {}" }] });
    output.outputs.insert("list".into(), files);
    output.outputs.insert("judge".into(), json!([{ "is_valid": true, "issues": [] }]));
    output.outputs.insert("join".into(), json!("Nothing was found."));
    output.ran = ["list", "judge", "join"].map(str::to_owned).into();
    hold_json("plan_output.json", &output);
}
