use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use proptest::prelude::*;
use serde_json::json;
use tokio::time::Instant;

use super::*;
use crate::{
    card::ArmCard,
    contract::ContractCard,
    dispatcher::Dispatcher,
    error::{CallError, ErrorKind},
    transport::{Call, Reply, Transport},
    update::{Phase, Update, UpdateSink},
};

/// An arm for every contract `test.*`: returns what its input contains, and records how it was called.
#[derive(Default)]
struct Script {
    called: Mutex<Vec<(String, Value)>>,
    running: AtomicUsize,
    most: AtomicUsize,
    dropped: AtomicUsize,
}

struct Running<'a>(&'a Script, bool);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::Relaxed);
        self.0.dropped.fetch_add(usize::from(!self.1), Ordering::Relaxed);
    }
}

#[async_trait]
impl Transport for Script {
    /// Waits `ms`, fails with `fail`, answers `say`, or else the whole input.
    async fn call(&self, call: Call) -> Result<Reply, CallError> {
        let input: Value = serde_json::from_slice(&call.input).unwrap();
        self.called.lock().unwrap().push((call.step.to_string(), input.clone()));
        self.most.fetch_max(self.running.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
        let mut running = Running(self, false);
        tokio::time::sleep(Duration::from_millis(input["ms"].as_u64().unwrap_or(0))).await;
        running.1 = true;
        if let Some(message) = input["fail"].as_str() {
            let failure = Failure::new(ErrorKind::ArmFailed, message);
            return Err(CallError::new(call.contract, failure));
        }
        let output = input.get("say").unwrap_or(&input).to_string();
        Ok(Reply::new(output.into(), "script", "here"))
    }

    async fn cards(&self) -> Vec<ArmCard> {
        let card = |name: &str, required: Value| -> ContractCard {
            serde_json::from_value(json!({
                "name": name, "path": "/", "timeout_ms": 1000,
                "input_schema": { "type": "object", "required": required },
            }))
            .unwrap()
        };
        let mut arm = ArmCard::new("script");
        arm.contracts = vec![card("test.any", json!([])), card("test.file", json!(["root", "file"]))];
        vec![arm]
    }
}

fn steps(steps: Value) -> Plan {
    serde_json::from_value(json!({ "steps": steps })).unwrap()
}

async fn run(plan: Value) -> (Result<PlanOutput, ArmError>, Arc<Script>) {
    let script = Arc::new(Script::default());
    let cx = Context::root(script.clone());
    (PlanRunner::new().run(&steps(plan), &cx).await, script)
}

/// The faults of a plan, each as `path: message`.
async fn faults(plan: Value) -> Vec<String> {
    let (answer, script) = run(plan).await;
    let error = answer.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ValidationFailed);
    assert!(script.called.lock().unwrap().is_empty());
    let violations = error.failure().violations.iter();
    violations.map(|violation| format!("{}: {}", violation.path, violation.message)).collect()
}

#[tokio::test(start_paused = true)]
async fn an_output_that_is_used_many_times_does_not_fill_the_memory() {
    let reference = |id: &str| json!({ "$output": id });
    let wide = json!([
        { "id": "a", "contract": "test.any", "input": { "say": "x".repeat(100_000) } },
        { "id": "b", "contract": "test.any", "input": { "all": vec![reference("a"); 1_000] } },
    ]);
    let mut doubling =
        vec![json!({ "id": "s0", "contract": "test.any", "input": { "say": "x".repeat(1_000) } })];
    for step in 1..40 {
        let before = reference(&format!("s{}", step - 1));
        doubling.push(
            json!({ "id": format!("s{step}"), "contract": "test.any", "input": { "say": [before, before] } }),
        );
    }
    let each = json!([
        { "id": "a", "contract": "test.any", "input": { "say": "x".repeat(100_000) } },
        { "id": "b", "contract": "test.any", "each": vec![reference("a"); 900], "input": {} },
    ]);
    for plan in [wide, json!(doubling), each] {
        let error = run(plan).await.0.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BadResponse);
        assert!(error.to_string().ends_with("the values of the plan are too large"), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn outputs_become_inputs_and_lists_fan_out_in_order() {
    let (answer, script) = run(json!([
        { "id": "join", "contract": "test.any", "input": { "reports": { "$output": "judge" } }, "after": ["guard"] },
        { "id": "list", "contract": "test.any", "input": { "say": { "files": [
            { "path": "a", "ms": 30 }, { "path": "b", "ms": 10 }, { "path": "c", "ms": 20 } ] } } },
        { "id": "judge", "contract": "test.file", "each": { "$output": "list", "pointer": "/files" },
          "input": { "root": ".", "file": { "$item": "/path" }, "ms": { "$item": "/ms" } } },
        { "id": "guard", "contract": "test.any", "input": { "ms": 100 } },
    ]))
    .await;
    let output = answer.unwrap();
    assert_eq!(output.ran, ["join", "list", "judge", "guard"]);
    let file = |path: &str, ms| json!({ "root": ".", "file": path, "ms": ms });
    let judged = json!([file("a", 30), file("b", 10), file("c", 20)]);
    assert_eq!(output.outputs["judge"], judged);
    assert_eq!(output.outputs["join"], json!({ "reports": judged }));
    let called: Vec<_> = script.called.lock().unwrap().iter().map(|(step, _)| step.clone()).collect();
    assert_eq!(called, ["list", "guard", "judge[0]", "judge[1]", "judge[2]", "join"]);
}

#[tokio::test]
async fn every_fault_is_reported_before_the_first_call() {
    assert_eq!(faults(json!([])).await, ["steps: is empty"]);
    assert_eq!(
        faults(json!([
            { "id": "a", "contract": "test.any" },
            { "id": "a b", "contract": "test.any" },
            { "id": "a", "contract": "test.file", "input": { "root": { "$item": "" } } },
            { "id": "b", "contract": "test.none", "input": [{ "$output": "nobody" }], "after": ["no"] },
            { "id": "c", "contract": "test.any", "each": 7, "input": { "x": { "$item": "x" } } },
            { "id": "d", "contract": "test.any", "input": { "$output": "f" } },
            { "id": "e", "contract": "test.any", "after": ["d"] },
            { "id": "f", "contract": "test.any", "each": [{ "$output": "e" }] },
            { "id": "g", "contract": "test.any", "after": ["g"] },
        ]))
        .await,
        [
            "steps[1].id: is not 1 to 64 of letters, digits, `_`, `.` and `-`",
            "steps[2].id: `a` is the id of steps[0] too",
            "steps[2].input.root: refers to an item, but the step has no `each`",
            "steps[2].input.file: missing field",
            "steps[3].contract: test.none is not offered; offered: test.any, test.file",
            "steps[3].input[0]: there is no step `nobody`",
            "steps[3].after[0]: there is no step `no`",
            "steps[4].each: is neither a list nor an object that stands for one",
            "steps[4].input.x.$item: is not a JSON pointer such as `/files/0`",
            "steps[5]: is part of a cycle: d → f → e → d",
            "steps[8]: is part of a cycle: g → g",
        ]
    );
}

#[test]
fn limits_apply_and_are_at_least_1() {
    let step = |id| json!({ "id": id, "contract": "test.any" });
    let runner = PlanRunner::new().max_steps(1).unwrap();
    let faults = runner.check(&steps(json!([step("a"), step("b")])), &[]);
    assert_eq!(faults.unwrap_err()[0].to_string(), "steps: has 2 steps; at most 1 are allowed");
    let refused = [PlanRunner::new().max_steps(0), PlanRunner::new().calls_at_once(0)];
    let refused = refused.map(|refused| refused.unwrap_err().to_string());
    assert_eq!(refused, ["`max_steps` is 0", "`calls_at_once` is 0"]);
    let refused = [0, 100_001].map(|calls| PlanRunner::new().max_calls(calls).unwrap_err().to_string());
    assert_eq!(refused, ["`max_calls` is 0", "`max_calls` is 100001; at most 100000 are allowed"]);
    assert!(PlanRunner::new().max_calls(100_000).is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_plan_makes_at_most_so_many_calls() {
    let many = |count: usize| json!({ "id": "many", "contract": "test.any", "each": vec![1; count] });
    assert!(run(json!([many(1_000)])).await.0.is_ok());
    let one = json!({ "id": "one", "contract": "test.any", "input": { "say": vec![1; 600] } });
    assert_eq!(faults(json!([many(1_000), one])).await, ["steps: make 1001 calls; at most 1000 are allowed"]);
    let next = |id: &str| json!({ "id": id, "contract": "test.any", "each": { "$output": "one" }, "after": ["one"] });
    let (answer, script) = run(json!([one, next("a"), next("b")])).await;
    let error = answer.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BadResponse);
    assert_eq!(error.to_string(), "step b: `each` has 600 items, and a plan makes at most 1000 calls");
    assert_eq!(script.called.lock().unwrap().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_output_that_lacks_what_is_taken_from_it_fails_the_step() {
    let (answer, _) = run(json!([
        { "id": "list", "contract": "test.any", "input": { "say": { "files": 3 } } },
        { "id": "next", "contract": "test.any", "input": { "file": { "$output": "list", "pointer": "/path" } } },
    ]))
    .await;
    let error = answer.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BadResponse);
    assert_eq!(error.to_string(), "step next: the output of list has no `/path`");
    let (answer, _) = run(json!([
        { "id": "list", "contract": "test.any", "input": { "say": { "files": 3 } } },
        { "id": "next", "contract": "test.any", "each": { "$output": "list", "pointer": "/files" } },
    ]))
    .await;
    assert_eq!(answer.unwrap_err().to_string(), "step next: `each` stands for a value that is not a list");
    let (answer, script) = run(json!([
        { "id": "none", "contract": "test.any", "each": [] },
        { "id": "last", "contract": "test.any", "each": { "$output": "none" } },
    ]))
    .await;
    assert_eq!(answer.unwrap().outputs["last"], json!([]));
    assert!(script.called.lock().unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn the_first_failure_gives_the_others_up() {
    let started = Instant::now();
    let plan = steps(json!([
        { "id": "slow", "contract": "test.any", "input": { "ms": 1000 } },
        { "id": "bad", "contract": "test.any", "each": [5, 50, 70], "input": { "ms": { "$item": "" }, "fail": "no luck" } },
        { "id": "never", "contract": "test.any", "after": ["bad"] },
    ]));
    let script = Arc::new(Script::default());
    let runner = PlanRunner::new().spec(Spec::new("test.any".parse().unwrap()).idempotent());
    let error = runner.run(&plan, &Context::root(script.clone())).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::UpstreamFailed);
    assert_eq!(error.to_string(), "step bad[0]: test.any: no luck");
    assert_eq!(error.failure().details, Some(json!({ "step": "bad[0]" })));
    assert_eq!(started.elapsed(), Duration::from_millis(5));
    assert_eq!((script.dropped.load(Ordering::Relaxed), script.running.load(Ordering::Relaxed)), (3, 0));
}

#[tokio::test(start_paused = true)]
async fn independent_calls_run_together_up_to_the_bound() {
    let plan = steps(json!([
        { "id": "a", "contract": "test.any", "each": [1, 2, 3, 4, 5], "input": { "ms": 10 } },
        { "id": "b", "contract": "test.any", "each": [1, 2, 3, 4, 5], "input": { "ms": 10 } },
    ]));
    for (bound, takes) in [(1, 100), (4, 30), (16, 10)] {
        let script = Arc::new(Script::default());
        let started = Instant::now();
        let cx = Context::root(script.clone());
        PlanRunner::new().calls_at_once(bound).unwrap().run(&plan, &cx).await.unwrap();
        assert_eq!(started.elapsed(), Duration::from_millis(takes));
        assert_eq!(script.most.load(Ordering::Relaxed), bound.min(10));
    }
}

#[tokio::test]
async fn progress_is_reported() {
    #[derive(Default)]
    struct Updates(Mutex<Vec<Update>>);
    impl UpdateSink for Updates {
        fn update(&self, update: Update) {
            self.0.lock().unwrap().push(update);
        }
    }

    let mut dispatcher = Dispatcher::new("plan");
    dispatcher.serve::<Plan>(PlanRunner::new());
    let updates = Arc::new(Updates::default());
    let mut cx = Context::root(Arc::new(Script::default())).with_updates(updates.clone());
    let plan = json!({ "steps": [
        { "id": "a", "contract": "test.any" }, { "id": "b", "contract": "test.any", "after": ["a"] } ] });
    let contract = Plan::SPEC.reference();
    let output = dispatcher.execute(&contract, plan.to_string().as_bytes(), &mut cx).await.unwrap();
    let output: PlanOutput = serde_json::from_slice(&output).unwrap();
    assert_eq!(output.ran, ["a", "b"]);
    let expected =
        [Update::Phase(Phase::Execution), Update::Steps(0, 2), Update::Steps(1, 2), Update::Steps(2, 2)];
    assert_eq!(*updates.0.lock().unwrap(), expected);
}

#[tokio::test]
async fn a_plan_is_refused_where_there_are_no_arms() {
    let plan = steps(json!([{ "id": "a", "contract": "test.any" }]));
    let error = PlanRunner::new().run(&plan, &Context::root(Arc::new(()))).await.unwrap_err();
    assert_eq!(error.to_string(), "steps[0].contract: test.any is not offered; offered: nothing");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_plan_without_circles_runs_each_step_once_behind_what_it_needs(
        needs in prop::collection::vec((prop::collection::vec(any::<prop::sample::Index>(), 0..3), 0_u64..50), 1..20),
        bound in 1_usize..6,
    ) {
        let plan = Plan::new(needs.iter().enumerate().map(|(position, (needs, ms))| {
            let earlier: Vec<_> = needs.iter().filter(|_| position > 0).map(|need| need.index(position)).collect();
            let after: Vec<_> = earlier.iter().map(|step| json!({ "$output": format!("s{step}"), "pointer": "/at" })).collect();
            PlanStep::new(
                format!("s{position}"),
                "test.any".parse().unwrap(),
                json!({ "at": position, "ms": ms, "after": after }),
            )
        }));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let script = Arc::new(Script::default());
        let cx = Context::root(script.clone());
        let output = runtime.block_on(PlanRunner::new().calls_at_once(bound).unwrap().run(&plan, &cx)).unwrap();
        prop_assert_eq!(output.outputs.len(), needs.len());
        prop_assert!(script.most.load(Ordering::Relaxed) <= bound);
        let called = script.called.lock().unwrap();
        prop_assert_eq!(called.len(), needs.len());
        for (position, (_, input)) in called.iter().enumerate() {
            for need in input["after"].as_array().unwrap() {
                prop_assert!(called[..position].iter().any(|(_, input)| input["at"] == *need));
            }
        }
    }
}

#[test]
fn an_integer_that_a_plan_would_round_is_refused_where_the_plan_is_read() {
    let plan = |step: &str| {
        let text = format!(r#"{{"steps":[{{"id":"a","contract":"test.a",{step}}}]}}"#);
        crate::json::read_input::<Plan>(text.as_bytes()).map_err(|failure| failure.to_string())
    };
    for step in [r#""input":{"n":18446744073709551616}"#, r#""each":[1,-9223372036854775809]"#] {
        let refused = plan(step).unwrap_err();
        assert!(refused.starts_with("steps[0].") && refused.contains("is beyond the integers"), "{refused}");
    }
    let read = plan(r#""input":{"n":18446744073709551615},"each":null"#).unwrap();
    assert_eq!((&read.steps[0].input, &read.steps[0].each), (&json!({ "n": u64::MAX }), &None));
    assert!(plan(r#""input":{"n":1,"n":2}"#).unwrap_err().contains("not valid JSON"));
}
