//! A contract seen from both ends: what its schema refuses, a server refuses, and what is written is read.

#[cfg(feature = "mesh")]
mod called;
mod rules;

use std::collections::BTreeMap;

use async_trait::async_trait;
use octollm_core::{
    Arm, Context,
    contract::{ContractCard, ContractSpec, TaskContract},
    dispatcher::Dispatcher,
    error::{ArmError, ErrorKind, Failure},
    json,
};
use octollm_macros::{TaskContract, Validate};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
struct Sort {
    by: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
struct Page {
    limit: u32,
    sort: Option<Sort>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind")]
enum Tagged {
    Number { value: u8 },
    Sorted(Sort),
    Nothing,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
enum Untagged {
    Number { value: u8 },
    Sorted(Sort),
    Text(String),
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "t", content = "c")]
enum Adjacent {
    Number { value: u8 },
    Sorted(Sort),
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
enum External {
    Number { value: u8 },
    Sorted(Sort),
    Nothing,
}

/// `Sort` is a whole value here, and a part of one in `Tagged` and `Untagged`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "test.everything")]
struct Everything {
    tagged: Vec<Tagged>,
    untagged: Vec<Untagged>,
    adjacent: Vec<Adjacent>,
    external: Vec<External>,
    named: BTreeMap<String, Sort>,
    pair: (Sort, u8),
    sort: Option<Sort>,
    next: Option<Box<Everything>>,
}

fn everything() -> Everything {
    let sort = || Sort { by: "name".into() };
    Everything {
        tagged: vec![Tagged::Number { value: 1 }, Tagged::Sorted(sort()), Tagged::Nothing],
        untagged: vec![Untagged::Number { value: 1 }, Untagged::Sorted(sort()), Untagged::Text("a".into())],
        adjacent: vec![Adjacent::Number { value: 1 }, Adjacent::Sorted(sort())],
        external: vec![External::Number { value: 1 }, External::Sorted(sort()), External::Nothing],
        named: [("a".into(), sort())].into(),
        pair: (sort(), 1),
        sort: Some(sort()),
        next: None,
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "test.search")]
struct Search {
    query: String,
    #[serde(flatten)]
    page: Page,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "test.find")]
struct Find {
    query: String,
    #[serde(flatten)]
    what: Tagged,
    #[serde(flatten)]
    page: Page,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "test.mix")]
struct Mix {
    #[serde(flatten)]
    what: Untagged,
    #[serde(flatten)]
    how: External,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "test.open")]
struct Open {
    query: String,
    any: Value,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "ping.run")]
struct Ping;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "pong.run")]
struct Pong {}

fn read<C: TaskContract>(input: &Value) -> Result<C, Failure> {
    json::read_contract(input.to_string().as_bytes())
}

fn paths(failure: &Failure) -> Vec<&str> {
    assert_eq!(failure.kind, ErrorKind::ValidationFailed, "{failure}");
    failure.violations.iter().map(|violation| violation.path.as_str()).collect()
}

/// Every object in a value, by its JSON pointer.
fn objects(value: &Value, at: &str, found: &mut Vec<String>) {
    match value {
        Value::Object(members) => {
            found.push(at.to_owned());
            members.iter().for_each(|(name, member)| objects(member, &format!("{at}/{name}"), found));
        }
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(index, item)| objects(item, &format!("{at}/{index}"), found));
        }
        _ => {}
    }
}

/// Adds a member nobody knows to each object in turn, but to those that may have any.
fn refuses_a_stranger_anywhere<C: TaskContract + PartialEq + std::fmt::Debug>(input: &C, open: &[&str]) {
    let written: Value = serde_json::from_slice(&json::write_input(input).unwrap()).unwrap();
    assert_eq!(&read::<C>(&written).unwrap(), input);
    let mut found = Vec::new();
    objects(&written, "", &mut found);
    for pointer in found.iter().filter(|pointer| !open.contains(&pointer.as_str())) {
        let mut changed = written.clone();
        let object = changed.pointer_mut(pointer).and_then(Value::as_object_mut).unwrap();
        object.insert("stranger".into(), json!({ "x": 1 }));
        let failure = read::<C>(&changed).expect_err(&changed.to_string());
        // Where serde reads the one key of a variant, it reports the object itself.
        let path = paths(&failure)[0];
        assert!(path.ends_with("stranger") || path.contains("external["), "{failure} in {changed}");
    }
}

#[test]
fn a_member_nobody_knows_is_refused_wherever_it_is() {
    refuses_a_stranger_anywhere(&everything(), &["/named"]);
    let nested = Everything { next: Some(Box::new(everything())), ..everything() };
    refuses_a_stranger_anywhere(&nested, &["/named", "/next/named"]);
    let page = Page { limit: 5, sort: Some(Sort { by: "name".into() }) };
    refuses_a_stranger_anywhere(&Search { query: "q".into(), page: page.clone() }, &[]);
    for what in [Tagged::Number { value: 1 }, Tagged::Sorted(Sort { by: "name".into() }), Tagged::Nothing] {
        refuses_a_stranger_anywhere(&Find { query: "q".into(), what, page: page.clone() }, &[]);
    }
    refuses_a_stranger_anywhere(&Ping, &[]);
    refuses_a_stranger_anywhere(&Pong {}, &[]);
    let rest = json!({ "a": 1 }).as_object().cloned().unwrap();
    refuses_a_stranger_anywhere(
        &Open { query: "q".into(), any: json!({ "b": {} }), rest },
        &["", "/any", "/any/b"],
    );
}

#[test]
fn a_misspelt_member_of_a_flattened_struct_is_named() {
    let failure = read::<Search>(&json!({ "query": "q", "limit": 1, "limitt": 5 })).unwrap_err();
    assert_eq!(failure.violations[0].to_string(), "limitt: unknown field");
    let input = json!({ "query": "q", "limit": 1, "sort": { "by": "a", "bye": 1 }, "x": 1 });
    assert_eq!(paths(&read::<Search>(&input).unwrap_err()), ["sort.bye", "x"]);
}

#[test]
fn parts_that_lie_beside_each_other_know_each_others_members() {
    let how = External::Number { value: 2 };
    for what in [Untagged::Number { value: 1 }, Untagged::Sorted(Sort { by: "name".into() })] {
        let input = Mix { what, how: how.clone() };
        assert_eq!(read::<Mix>(&serde_json::to_value(&input).unwrap()).unwrap(), input);
        refuses_a_stranger_anywhere(&input, &[]);
    }
}

/// What a validator of JSON Schema would be given.
#[test]
fn a_schema_closes_what_the_server_closes() {
    let schema = ContractCard::of::<Search>().input_schema;
    assert_eq!(schema["additionalProperties"], json!(false));
    let schema = ContractCard::of::<Find>().input_schema;
    assert_eq!(schema["unevaluatedProperties"], json!(false));
    assert_eq!(schema["$defs"]["Sort"].get("additionalProperties"), None, "it is a part of a tagged variant");
    let schema = ContractCard::of::<Everything>().input_schema;
    let sort = json!({ "$ref": "#/$defs/Sort", "unevaluatedProperties": false });
    assert_eq!(schema["properties"]["named"]["additionalProperties"], sort);
    assert_eq!(schema["properties"]["sort"]["anyOf"][0], sort);
    assert_eq!(schema["additionalProperties"], json!(false));
    let schema = ContractCard::of::<Open>().input_schema;
    assert_eq!(schema["additionalProperties"], json!(true));
}

#[test]
fn a_unit_struct_is_an_object_without_members() {
    let empty = json!({ "type": "object", "additionalProperties": false });
    for (schema, fields) in [
        (ContractCard::of::<Ping>().input_schema, json::write_input(&Ping).unwrap()),
        (ContractCard::of::<Pong>().input_schema, json::write_input(&Pong {}).unwrap()),
    ] {
        assert_eq!(
            (&schema["type"], &schema["additionalProperties"]),
            (&empty["type"], &empty["additionalProperties"])
        );
        assert_eq!(fields, b"{}");
    }
    assert_eq!(read::<Ping>(&json!({})).unwrap(), Ping);
    for refused in [json!(null), json!([]), json!("Ping"), json!({ "x": 1 })] {
        assert_eq!(read::<Ping>(&refused).unwrap_err().kind, ErrorKind::ValidationFailed, "{refused}");
    }
    assert_eq!(json::read_contract::<Ping>(b"{} x").unwrap_err().kind, ErrorKind::BadRequest);
}

/// Contracts by hand: one for each thing that the derive would refuse.
macro_rules! by_hand {
    ($input:ident, $name:literal, $version:literal) => {
        impl TaskContract for $input {
            type Output = ();
            type Chunk = ();
            const SPEC: ContractSpec = ContractSpec::new($name, "/x", "x:x").version($version);
        }
    };
}

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
struct Newtype(Vec<u8>);
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
struct Maybe(Option<Sort>);
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
struct Anything(BTreeMap<String, u8>);
by_hand!(Newtype, "test.list", 1);
by_hand!(Maybe, "test.maybe", 1);
by_hand!(Anything, "test.anything", 1);
by_hand!(Sort, "test.v2", 1);
by_hand!(Page, "test.page", 0);
by_hand!(Tagged, "test.tagged", 1);

/// The derive sees a struct with a field, and serde a list.
#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "test.transparent")]
#[serde(transparent)]
struct Transparent {
    items: Vec<u8>,
}

struct Nobody;

#[async_trait]
impl<C: TaskContract<Output = ()>> Arm<C> for Nobody {
    async fn execute(&self, _: C, _: &Context) -> Result<(), ArmError> {
        Ok(())
    }
}

#[test]
fn what_has_no_form_in_other_protocols_is_no_contract() {
    assert!(ContractCard::checked::<Everything>().is_ok());
    assert!(ContractCard::checked::<Find>().is_ok());
    assert!(ContractCard::checked::<Ping>().is_ok());
    assert!(ContractCard::checked::<Anything>().is_ok());
    assert_eq!(ContractCard::checked::<Sort>().unwrap_err().setting(), <Sort as TaskContract>::SPEC.name);
    assert_eq!(ContractCard::checked::<Page>().unwrap_err().setting(), <Page as TaskContract>::SPEC.name);
    let errors = [
        ContractCard::checked::<Newtype>().unwrap_err(),
        ContractCard::checked::<Maybe>().unwrap_err(),
        ContractCard::checked::<Tagged>().unwrap_err(),
        ContractCard::checked::<Transparent>().unwrap_err(),
    ];
    let mut dispatcher = Dispatcher::new("test");
    dispatcher.serve::<Ping>(Nobody);
    dispatcher.serve::<Transparent>(Nobody);
    assert_eq!((dispatcher.specs().count(), dispatcher.card().contracts.len()), (1, 1));
    let refused: Vec<_> = dispatcher.refused().iter().map(ToString::to_string).collect();
    assert_eq!(refused, [ContractCard::checked::<Transparent>().unwrap_err().to_string()]);
    for error in errors {
        assert!(error.to_string().ends_with("is not an object in JSON"));
    }
}

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
struct Blank {}

impl TaskContract for Blank {
    type Output = ();
    type Chunk = ();
    const SPEC: ContractSpec = ContractSpec::new("test.blank", "/x", "test:admin x");
}

#[test]
fn a_contract_has_a_scope() {
    let error = ContractCard::checked::<Blank>().unwrap_err();
    assert_eq!(error.setting(), "test.blank");
    assert!(error.to_string().contains("`entity:verb`"), "{error}");
    let mut dispatcher = Dispatcher::new("test");
    dispatcher.serve::<Blank>(Nobody);
    assert_eq!((dispatcher.specs().count(), dispatcher.refused().len()), (0, 1));
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema, Validate)]
struct Line {
    #[garde(range(max = 9))]
    count: u32,
}

/// It has no rules, and its lines do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "order.place")]
struct PlaceOrder {
    lines: Vec<Line>,
    by_name: BTreeMap<String, Option<Line>>,
}

#[test]
fn rules_of_nested_types_are_run() {
    let input = json!({ "lines": [{ "count": 9 }, { "count": 4000 }], "by_name": { "a": null, "b": { "count": 10 } } });
    assert_eq!(paths(&read::<PlaceOrder>(&input).unwrap_err()), ["lines[1].count", "by_name.b.count"]);
}

#[test]
fn an_input_that_json_cannot_tell_is_not_sent() {
    #[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
    #[task(name = "test.score")]
    struct Score {
        values: Vec<f64>,
    }
    let error = json::write_input(&Score { values: vec![1.0, f64::NAN] }).unwrap_err();
    assert_eq!(error.violations[0].path, "values[1]");
}
