//! What a submission carries, and what of it travels.

use super::*;
use crate::{contract::ContractSpec, task::request::MAX_DOLLARS};

#[test]
fn what_is_set_on_a_submission_travels() {
    let budget = TaskBudget { max_tokens: Some(50), ..TaskBudget::default() };
    let sent = Submission::from(TaskRequest::new("goal")).budget(budget).priority(Priority::High);
    let read = Submission::from_json(sent.to_json().as_str().as_bytes()).unwrap();
    assert_eq!((read.budget, read.priority), (budget, Priority::High));
    assert_eq!(read, sent);

    let mut changed = Submission::from(TaskRequest::new("goal"));
    assert_eq!(changed.to_json(), changed.input);
    (changed.budget, changed.priority) = (budget, Priority::High);
    changed.metadata = RawJson::from_slice(br#"{"for":"ann"}"#).unwrap();
    let read = Submission::from_json(changed.to_json().as_str().as_bytes()).unwrap();
    assert_eq!((read.budget, read.priority), (budget, Priority::High));
    assert_eq!(read.metadata, changed.metadata);
}

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
struct Ping;

impl TaskContract for Ping {
    type Output = ();
    type Chunk = ();
    const SPEC: ContractSpec = ContractSpec::new("ping.run", "/run", "ping:run");
}

#[test]
fn an_input_is_written_as_for_a_call() {
    assert_eq!(Submission::of(&Ping).unwrap().input.as_str(), "{}");
    let budget = TaskBudget { max_cost_dollars: Some(f64::NAN), ..TaskBudget::default() };
    let error = Submission::of(&TaskRequest { budget, ..TaskRequest::new("goal") }).unwrap_err();
    assert_eq!(error.kind, ErrorKind::BadRequest);
    assert!(error.message.ends_with("budget.max_cost_dollars is infinite or not a number"), "{error}");
}

#[test]
fn context_and_metadata_are_objects() {
    for (field, body) in [
        ("context", r#"{"goal":"g","context":[1]}"#),
        ("metadata", r#"{"goal":"g","metadata":null}"#),
        ("metadata", r#"{"contract":"a.b","input":{},"metadata":7}"#),
    ] {
        let failure = Submission::from_json(body.as_bytes()).unwrap_err();
        assert_eq!(failure.violations[0].path, field, "{body}");
    }
}

#[test]
fn amounts_that_are_none_are_refused() {
    for budget in [
        TaskBudget { max_cost_dollars: Some(-1.0), ..TaskBudget::default() },
        TaskBudget { max_cost_dollars: Some(f64::NAN), ..TaskBudget::default() },
        TaskBudget { max_cost_dollars: Some(1e300), ..TaskBudget::default() },
        TaskBudget { max_time_seconds: Some(0.0), ..TaskBudget::default() },
    ] {
        assert!(budget.check().is_err(), "{budget:?}");
    }
}
#[test]
fn the_bounds_in_the_schema_are_the_ones_checked() {
    let costs = |dollars| TaskBudget { max_cost_dollars: Some(dollars), ..TaskBudget::default() }.check();
    assert!(costs(MAX_DOLLARS).is_ok());
    assert!(costs(MAX_DOLLARS + 0.001).is_err());
    let schema = Submission::json_schema().to_string();
    assert!(schema.contains(&format!(r#""maximum":{MAX_DOLLARS}"#)), "{schema}");
}

#[test]
fn a_goal_that_is_named_by_its_contract_keeps_what_it_says() {
    let read = |body: &str| Submission::from_json(body.as_bytes()).unwrap();
    let inside = r#"{"goal":"x","priority":"high","budget":{"max_tokens":5,"max_time_seconds":9.5},"metadata":{"a":1}}"#;
    let plain = read(inside);
    assert_eq!(read(&format!(r#"{{"contract":"task.run","input":{inside}}}"#)), plain);
    let beside = r#""priority":"low","budget":{"max_tokens":7,"max_time_seconds":2},"metadata":{"b":2}"#;
    let both = read(&format!(r#"{{"contract":"task.run","input":{inside},{beside}}}"#));
    let narrower = TaskBudget { max_tokens: Some(5), max_time_seconds: Some(2.0), max_cost_dollars: None };
    assert_eq!((both.budget, both.priority, &*both.goal.clone().unwrap()), (narrower, Priority::Low, "x"));
    assert_eq!(both.metadata, serde_json::json!({ "b": 2 }));
    let sent = read(both.to_json().as_str());
    assert_eq!((sent.budget, sent.priority, sent.metadata), (both.budget, both.priority, both.metadata));
}

#[test]
fn a_contract_without_fields_needs_no_input() {
    let submission = Submission::from_json(br#"{"contract":"ping.run"}"#).unwrap();
    assert_eq!(submission.input.as_str(), "{}");
}
