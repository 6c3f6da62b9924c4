//! What the derive makes of a contract, seen from a program that has the facade alone.

use std::{collections::HashMap, time::Duration};

use octollm::{__private::NoChunk, prelude::*};

/// Checks that a piece of code
/// parses.
///
/// Nothing else.
#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(output = Verdict)]
struct ValidateCode {
    code: String,
}

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
struct Verdict {
    is_valid: bool,
}

#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(
    name = "text.rust.translate",
    version = 2,
    output = HashMap<String, Vec<String>>,
    chunk = String,
    path = "/texts/translate",
    scope = "text:write",
    timeout = "2m",
    idempotent,
    summary = "Translates.",
    crate = octollm,
)]
enum Translate {
    Word(String),
    Page { url: String },
    Nothing,
}

#[derive(Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "list.sort", output = Vec<T>, chunk = T)]
struct Sort<T: Clone>
where
    T: Ord,
{
    items: Vec<T>,
}

fn same<T: 'static, U: 'static>() -> bool {
    std::any::TypeId::of::<T>() == std::any::TypeId::of::<U>()
}

#[test]
fn what_is_left_out_follows_from_the_type() {
    let spec = ValidateCode::SPEC;
    assert_eq!(spec.name, "code.validate");
    assert_eq!(spec.version, 1);
    assert_eq!(spec.path, "/validate");
    assert_eq!(spec.scope, "code:validate");
    assert_eq!(spec.timeout, Duration::from_secs(30));
    assert!(!spec.idempotent);
    assert_eq!(spec.summary, "Checks that a piece of code parses.");
    assert!(same::<<ValidateCode as TaskContract>::Output, Verdict>());
    assert!(same::<<ValidateCode as TaskContract>::Chunk, NoChunk>());
}

#[test]
fn what_is_given_stands() {
    let spec = Translate::SPEC;
    assert_eq!(spec.to_string(), "text.rust.translate@2");
    assert_eq!(spec.path, "/texts/translate");
    assert_eq!(spec.scope, "text:write");
    assert_eq!(spec.timeout, Duration::from_secs(120));
    assert!(spec.idempotent);
    assert_eq!(spec.summary, "Translates.");
    assert!(same::<<Translate as TaskContract>::Output, HashMap<String, Vec<String>>>());
    assert!(same::<<Translate as TaskContract>::Chunk, String>());
}

#[test]
fn the_runtime_agrees_with_every_name() {
    for spec in [ValidateCode::SPEC, Translate::SPEC, Sort::<u8>::SPEC] {
        let reference = spec.reference();
        assert_eq!(reference.to_string().parse(), Ok(reference));
    }
}

#[test]
fn a_generic_contract_holds_for_the_types_that_json_can_tell() {
    assert!(same::<<Sort<u8> as TaskContract>::Output, Vec<u8>>());
    assert!(same::<<Sort<u8> as TaskContract>::Chunk, u8>());
    assert_eq!(Sort { items: vec![2, 1] }.check(), Ok(()));
}

/// Counts lines.
#[derive(Serialize, Deserialize, JsonSchema, Validate, TaskContract)]
struct CountLines {
    #[garde(length(min = 1, max = 3))]
    text: String,
    #[garde(dive)]
    filters: Vec<Filter>,
}

#[derive(Serialize, Deserialize, JsonSchema, Validate)]
struct Filter {
    #[garde(range(min = 1))]
    length: u32,
}

/// Its rules are written by hand.
#[derive(Serialize, Deserialize, JsonSchema, TaskContract)]
struct CountWords(Filter);

impl Validate for CountWords {
    type Context = ();

    fn validate_into(&self, cx: &(), parent: &mut dyn FnMut() -> garde::Path, report: &mut garde::Report) {
        self.0.validate_into(cx, parent, report);
    }
}

#[test]
fn the_check_runs_the_rules_of_the_fields() {
    let task = CountLines { text: "four".into(), filters: vec![Filter { length: 1 }, Filter { length: 0 }] };
    let violations = task.check().unwrap_err();
    assert_eq!(violations.to_string(), "text: length is greater than 3; filters[1].length: lower than 1");
    assert_eq!(CountLines { text: "abc".into(), filters: vec![] }.check(), Ok(()));
}

#[test]
fn the_check_runs_rules_written_by_hand() {
    assert_eq!(CountWords(Filter { length: 0 }).check().unwrap_err().to_string(), "length: lower than 1");
}

#[test]
fn a_contract_without_rules_lets_everything_pass() {
    assert_eq!(ValidateCode { code: String::new() }.check(), Ok(()));
}

#[test]
fn the_schema_says_the_same_rules() {
    let schema = schemars::schema_for!(CountLines).to_value();
    assert_eq!(schema["properties"]["text"]["maxLength"], 3);
}
