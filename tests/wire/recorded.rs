//! The decision record's own bodies, written by hand: they are taken as they are.

use http::StatusCode;
use octollm::{
    card::{ArmCard, ArmStatus},
    task::{Priority, Submission},
};

use crate::{
    golden::{read, read_json},
    screened,
    served::{ask, judge},
};

#[test]
fn its_task() {
    let task = Submission::from_json(read("decision_record_task.json").as_bytes()).unwrap();
    assert_eq!(task.priority, Priority::Medium);
    assert_eq!((task.budget.max_tokens, task.budget.max_cost_dollars), (Some(10_000), Some(1.0)));
    assert_eq!(task.contract.to_string(), "task.run");
}

#[test]
fn its_card() {
    let card: ArmCard = read_json("decision_record_card.json");
    assert_eq!((&*card.arm_id, card.cost_tier, card.status), ("judge", 2, ArmStatus::Healthy));
    assert_eq!(card.capabilities, ["code.validate"]);
}

#[tokio::test(start_paused = true)]
async fn its_envelope() {
    let answer = ask(&judge(), "POST", "/execute", read("decision_record_execute.json")).await;
    assert_eq!(answer.status, StatusCode::OK, "{:?}", answer.body);
}

#[tokio::test(start_paused = true)]
async fn its_question_to_the_reflex() {
    let body = read("decision_record_preprocess.json");
    let answer = ask(&screened::server(), "POST", "/preprocess", body).await;
    assert_eq!(answer.status, StatusCode::OK, "{:?}", answer.body);
}
