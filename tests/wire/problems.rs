//! Problems: the body of every error answer.

use std::{fmt::Write, time::Duration};

use octollm::{
    contract::Violation,
    dispatcher::not_offered,
    error::{ErrorKind, Failure},
    http::wire::Problem,
};

use crate::golden::{TASK, hold, hold_json, parsed, read_json};

fn problem(failure: &Failure) -> Problem {
    Problem::new(failure, Some(parsed("req-1")), None)
}

/// What is usual for each kind; a failure may say otherwise of itself.
#[test]
fn every_kind() {
    let mut table = String::from("code                   status retryable may_have_executed title\n");
    for kind in ErrorKind::ALL {
        let Problem { code, status, title, retryable, may_have_executed, .. } = problem(&Failure::of(*kind));
        writeln!(table, "{:22} {status:<6} {retryable:<9} {may_have_executed:<17} {title}", code.code())
            .unwrap();
    }
    hold("problem_kinds.txt", &table);
}

#[test]
fn a_problem_with_all_it_can_have() {
    let mut violations = vec![Violation::new("code", "length is lower than 1")];
    violations.push(Violation::new("items[2].name", "unknown field"));
    let mut failure = Failure::invalid(violations).retryable_after(Duration::from_millis(1500));
    let full = Problem::new(&failure, Some(parsed("req-1")), Some(parsed(TASK)));
    hold_json("problem_full.json", &full);
    // Seconds are whole on the wire: waiting less than was asked would be in vain.
    failure.retry_after = Some(Duration::from_secs(2));
    assert_eq!(full.into_failure(), failure);
}

#[test]
fn problems_of_some_kinds() {
    let violations = vec![Violation::new("code", "length is lower than 1")];
    hold_json("problem_validation_failed.json", &problem(&Failure::invalid(violations)));
    let busy = Failure::new(ErrorKind::Unavailable, "the parser is being updated");
    let busy = busy.retryable_after(Duration::from_secs(30));
    hold_json("problem_unavailable.json", &problem(&busy));
    let contract = parsed("code.validate@2");
    let not_offered = not_offered("judge", &contract, &["code.validate".into()]);
    hold_json("problem_contract_not_offered.json", &problem(&not_offered));
}

/// What a service must tell at least for its errors to be read as ours.
#[test]
fn the_least_problem() {
    let failure = read_json::<Problem>("foreign_problem_least.json").into_failure();
    assert_eq!(failure.kind, ErrorKind::Unavailable);
    // Nothing says that a retry helps; that it was not executed is usual for its code.
    assert!(!failure.retryable && !failure.may_have_executed);
}
