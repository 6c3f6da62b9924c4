//! What the schema of an input calls valid is what is accepted: rules and integers.

use std::{
    collections::{BTreeMap, HashMap},
    num::NonZeroU8,
};

use octollm_core::{
    contract::{ContractCard, TaskContract},
    error::ErrorKind,
    json,
};
use octollm_macros::{TaskContract, Validate};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

const LONGEST: usize = 3;

#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
#[serde(rename_all = "camelCase")]
struct TakeText {
    #[garde(length(min = 1, max = LONGEST))]
    short_text: String,
    #[garde(ascii, prefix("a.b"), suffix("/c"))]
    #[serde(default)]
    path: Option<String>,
    #[serde(rename = "has-a", default)]
    #[garde(contains("a-b"))]
    has_part: Option<String>,
    #[garde(inner(ascii, length(max = 2)), length(max = 1))]
    #[serde(default)]
    words: Option<Vec<Option<String>>>,
    #[garde(length(max = 1), inner(length(min = 1), inner(range(max = 3))))]
    #[serde(default)]
    map: BTreeMap<String, Vec<u8>>,
    #[garde(ip)]
    #[serde(default)]
    any: Option<String>,
    #[garde(custom(|_: &Option<String>, _: &()| Ok::<_, &str>(())))]
    #[serde(default)]
    odd: Option<String>,
    #[serde(default)]
    named: Option<Name>,
    #[serde(default)]
    boxed: Option<Box<Name>>,
    #[serde(default)]
    kinds: Vec<Kind>,
    #[serde(default)]
    beside: Option<Beside>,
    #[serde(default)]
    bare: Option<Bare>,
    #[serde(default)]
    tree: Option<Tree>,
    #[serde(flatten)]
    page: Page,
}

#[derive(Debug, Serialize, Deserialize, JsonSchema, Validate)]
struct Name(#[garde(ascii, length(min = 2))] String);

#[derive(Debug, Serialize, Deserialize, JsonSchema, Validate)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum Kind {
    LongOne {
        #[garde(prefix("x"))]
        text: String,
    },
    Other(Named),
    Nothing,
}

#[derive(Debug, Serialize, Deserialize, JsonSchema, Validate)]
struct Named {
    #[garde(suffix("y"))]
    text: String,
}

#[derive(Debug, Serialize, Deserialize, JsonSchema, Validate)]
#[serde(tag = "t", content = "c")]
enum Beside {
    Pair(#[garde(ascii)] String, #[garde(length(max = 1))] String),
    #[serde(rename = "only")]
    One(#[garde(ascii)] String),
}

#[derive(Debug, Serialize, Deserialize, JsonSchema, Validate)]
#[serde(untagged)]
enum Bare {
    Text(#[garde(ascii)] String),
    Named(Named),
}

#[derive(Debug, Serialize, Deserialize, JsonSchema, Validate)]
struct Tree {
    #[garde(ascii)]
    label: String,
    #[serde(default)]
    children: Vec<Tree>,
}

#[derive(Debug, Serialize, Deserialize, JsonSchema, Validate)]
struct Page {
    #[serde(default)]
    #[garde(ascii, length(max = 4))]
    cursor: Option<String>,
}

fn refused<C: TaskContract + std::fmt::Debug>(input: &Value) -> Option<String> {
    let failure = json::read_contract::<C>(input.to_string().as_bytes()).err()?;
    assert_eq!(failure.kind, ErrorKind::ValidationFailed, "{input}: {failure:?}");
    Some(failure.violations.iter().map(|violation| violation.path.clone()).collect::<Vec<_>>().join(" "))
}

#[test]
fn every_rule_is_in_the_schema_where_it_is_checked() {
    let card = ContractCard::checked::<TakeText>().unwrap();
    let at = |pointer: &str| card.input_schema.pointer(pointer).cloned().unwrap_or_default();
    let ascii = json!(r"^[\x00-\x7f]*$");
    for (pointer, expected) in [
        ("/properties/shortText/minLength", json!(1)),
        ("/properties/shortText/maxLength", json!(3)),
        ("/properties/path/pattern", ascii.clone()),
        ("/properties/path/allOf", json!([{ "pattern": r"^a\.b" }, { "pattern": r"\/c$" }])),
        ("/properties/has-a/pattern", json!("a-b")),
        ("/properties/words/maxItems", json!(1)),
        ("/properties/words/items/pattern", ascii.clone()),
        ("/properties/words/items/maxLength", json!(2)),
        ("/properties/map/maxProperties", json!(1)),
        ("/properties/map/additionalProperties/minItems", json!(1)),
        ("/properties/map/additionalProperties/items/maximum", json!(3)),
        ("/properties/cursor/pattern", ascii.clone()),
        ("/properties/cursor/maxLength", json!(4)),
        ("/$defs/Name/pattern", ascii.clone()),
        ("/$defs/Name/minLength", json!(2)),
        ("/$defs/Kind/oneOf/0/properties/text/pattern", json!("^x")),
        ("/$defs/Named/properties/text/pattern", json!("y$")),
        ("/$defs/Beside/oneOf/0/properties/c/prefixItems/0/pattern", ascii.clone()),
        ("/$defs/Beside/oneOf/0/properties/c/prefixItems/1/maxLength", json!(1)),
        ("/$defs/Beside/oneOf/1/properties/c/pattern", ascii.clone()),
        ("/$defs/Bare/anyOf/0/pattern", ascii.clone()),
        ("/$defs/Tree/properties/label/pattern", ascii),
    ] {
        assert_eq!(at(pointer), expected, "{pointer}\n{:#}", card.input_schema);
    }
    assert!(at("/properties/any/format").is_null());
    assert!(at("/properties/odd/description").as_str().unwrap().contains("A further rule applies"));
    // A pattern is for a text: it does not make a string an object with parts.
    assert!(at("/properties/path/unevaluatedProperties").is_null());
}

#[test]
fn what_breaks_a_rule_is_refused_at_its_place() {
    let with = |member: &str, value: Value| json!({ "shortText": "äöü", member: value });
    for (input, paths) in [
        (json!({ "shortText": "äöüß" }), "shortText"),
        (with("path", json!("a.b/d")), "path"),
        (with("has-a", json!("ab")), "has-a"),
        (with("words", json!(["ä"])), "words[0]"),
        (with("map", json!({ "k": [4] })), "map.k[0]"),
        (with("map", json!({ "k": [] })), "map.k"),
        (with("any", json!("1.2.3.04")), "any"),
        (with("named", json!("a")), "named"),
        (with("boxed", json!("ä1")), "boxed"),
        (with("kinds", json!([{ "kind": "long_one", "text": "y" }])), "kinds[0].text"),
        (with("kinds", json!([{ "kind": "other", "text": "x" }])), "kinds[0].text"),
        (with("beside", json!({ "t": "Pair", "c": ["a", "bc"] })), "beside.c[1]"),
        (with("beside", json!({ "t": "only", "c": "ä" })), "beside.c"),
        (with("bare", json!("ä")), "bare"),
        (with("bare", json!({ "text": "x" })), "bare.text"),
        (with("tree", json!({ "label": "a", "children": [{ "label": "ä" }] })), "tree.children[0].label"),
        (with("cursor", json!("äa")), "cursor"),
    ] {
        assert_eq!(refused::<TakeText>(&input).as_deref(), Some(paths), "{input}");
    }
    for input in [
        with("path", json!("a.b/c")),
        with("has-a", json!("xa-bx")),
        with("words", json!([null])),
        with("any", json!("::ffff:1.2.3.4")),
        with("kinds", json!([{ "kind": "nothing" }, { "kind": "other", "text": "y" }])),
        with("bare", json!({ "text": "y" })),
        with("cursor", Value::Null),
    ] {
        assert_eq!(refused::<TakeText>(&input), None, "{input}");
    }
}

/// Has a rule, and no `Validate` that runs it.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
struct Forgotten {
    #[garde(length(max = 3))]
    word: String,
}

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
struct Between {
    forgotten: Vec<Forgotten>,
}

#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
struct ForgetRules {
    between: Between,
}

#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
struct AllowForgotten {
    #[garde(skip)]
    between: Between,
}

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
struct Holder {
    name: Option<Name>,
}

/// Runs the rules of a type in one of two places.
#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
struct RunHalf {
    name: Name,
    named: Vec<Holder>,
}

#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
struct PairNames {
    name: Name,
    pairs: Option<Vec<(Name, u32)>>,
}

#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
struct TryName {
    name: Name,
    tried: Result<Name, String>,
}

#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
struct PairTogether {
    name: Name,
    #[garde(skip)]
    pair: (Name, u32),
}

#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
struct PairRuled {
    pair: (Name, Named),
    plain: (String, u32),
    tried: Result<u32, String>,
    #[serde(flatten)]
    bare: Beside,
    #[serde(flatten)]
    plain_page: PlainPage,
}

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
struct PlainPage {
    from: u32,
}

/// A type parameter has to be asked for.
#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
struct TakeAny<T> {
    any: T,
}

#[test]
fn a_rule_in_a_type_that_runs_none_is_refused_at_registration() {
    let place = |refused: octollm_core::error::ConfigError| {
        refused.to_string().split('`').nth(3).unwrap_or_default().to_owned()
    };
    assert_eq!(place(ContractCard::checked::<PairNames>().unwrap_err()), "pairs");
    assert_eq!(place(ContractCard::checked::<TryName>().unwrap_err()), "Result_of_Name_or_string.Ok");
    assert_eq!(place(ContractCard::checked::<TakeAny<Name>>().unwrap_err()), "any");
    assert!(ContractCard::checked::<TakeAny<u32>>().is_ok());
    assert!(ContractCard::checked::<PairTogether>().is_ok(), "`skip` states that the type checks itself");
    assert!(ContractCard::checked::<PairRuled>().is_ok(), "what has rules runs them");
}

#[test]
fn a_rule_that_nobody_runs_is_refused_at_registration() {
    let refused = ContractCard::checked::<ForgetRules>().unwrap_err();
    assert!(refused.to_string().contains("rules at `Forgotten.word`"), "{refused}");
    assert!(refused.to_string().contains("derive `Validate`"), "{refused}");
    let refused = ContractCard::checked::<RunHalf>().unwrap_err();
    assert!(refused.to_string().contains("rules at `Holder.name`"), "{refused}");
    // `skip` says that the type takes care of it.
    assert!(ContractCard::checked::<AllowForgotten>().is_ok());
}

#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
struct Weigh {
    weight: f32,
    each: Vec<Option<f32>>,
}

#[test]
fn a_number_beyond_an_f32_is_refused_and_not_infinite() {
    let read = |text: &str| json::read_contract::<Weigh>(text.as_bytes());
    let weigh = read(r#"{"weight": 3.4028234663852886e38, "each": [-3.4e38, null, 1e-300, 7]}"#).unwrap();
    assert_eq!((weigh.weight, weigh.each.len()), (f32::MAX, 4));
    for (text, path) in [
        (r#"{"weight": 1e39, "each": []}"#, "weight"),
        (r#"{"weight": 1, "each": [null, -1e39]}"#, "each[1]"),
    ] {
        let failure = read(text).unwrap_err();
        assert_eq!(failure.kind, ErrorKind::ValidationFailed, "{text}");
        assert_eq!(failure.violations[0].path, path);
    }
    let schema = &ContractCard::of::<Weigh>().input_schema;
    assert_eq!(schema["properties"]["weight"]["maximum"], json!(f32::MAX));
}

#[derive(Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema, TaskContract)]
#[serde(default)]
struct CountAll {
    byte: u8,
    signed: i64,
    #[garde(range(max = 9_007_199_254_740_993_u64))]
    large: u64,
    huge: u128,
    part: f64,
    positive: Option<NonZeroU8>,
    list: Vec<i32>,
    map: HashMap<String, u16>,
    raw: Value,
    tagged: Option<Tagged>,
    letter: char,
}

#[derive(Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind")]
enum Tagged {
    Count { number: u64, part: f64 },
}

#[test]
fn a_number_without_a_fraction_is_an_integer_however_it_is_written() {
    let read = |text: &str| json::read_contract::<CountAll>(text.as_bytes()).map_err(|failure| failure.kind);
    for (text, expected) in [
        (r#"{"byte": 3.0}"#, CountAll { byte: 3, ..Default::default() }),
        (r#"{"byte": 1e2, "signed": -0.0}"#, CountAll { byte: 100, ..Default::default() }),
        (r#"{"byte": 2550e-1}"#, CountAll { byte: 255, ..Default::default() }),
        (r#"{"signed": -9223372036854775808.0}"#, CountAll { signed: i64::MIN, ..Default::default() }),
        (r#"{"large": 9007199254740992.0}"#, CountAll { large: 1 << 53, ..Default::default() }),
        (r#"{"huge": 1e22}"#, CountAll { huge: 10_u128.pow(22), ..Default::default() }),
        (r#"{"positive": 1.0}"#, CountAll { positive: NonZeroU8::new(1), ..Default::default() }),
        (
            r#"{"list": [1.0, -2], "part": 2}"#,
            CountAll { list: vec![1, -2], part: 2.0, ..Default::default() },
        ),
        (
            r#"{"map": {"a": 1.0}, "raw": 1.0}"#,
            CountAll { map: [("a".into(), 1)].into(), raw: json!(1.0), ..Default::default() },
        ),
        (
            r#"{"tagged": {"kind": "Count", "number": 3.0, "part": 3.0}}"#,
            CountAll { tagged: Some(Tagged::Count { number: 3, part: 3.0 }), ..Default::default() },
        ),
        // What another value rounds to is no obstacle.
        (r#"{"byte": 3.0, "part": 2.5e25}"#, CountAll { byte: 3, part: 2.5e25, ..Default::default() }),
    ] {
        assert_eq!(read(text).as_ref(), Ok(&expected), "{text}");
    }
    for text in [
        r#"{"byte": 256.0}"#,
        r#"{"byte": -1.0}"#,
        r#"{"byte": 2.5}"#,
        r#"{"byte": 0.99999999999999999}"#,
        r#"{"byte": 1e300}"#,
        r#"{"byte": 1e-400}"#,
        r#"{"signed": 9223372036854775808.0}"#,
        r#"{"large": 9007199254740993.0}"#,
        r#"{"large": 9007199254740994.0}"#,
        r#"{"positive": 0.0}"#,
        r#"{"list": [1.5]}"#,
        r#"{"tagged": {"kind": "Count", "number": 9007199254740993.0, "part": 1}}"#,
        r#"{"tagged": {"kind": "Count", "number": 3.0, "part": 3.0, "more": 1}}"#,
    ] {
        assert_eq!(read(text), Err(ErrorKind::ValidationFailed), "{text}");
    }
}

#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "edits.apply")]
struct ApplyEdits {
    files: BTreeMap<String, Vec<Edit>>,
}

#[derive(Debug, Serialize, Deserialize, JsonSchema, Validate)]
struct Edit {
    #[garde(range(min = 1))]
    line: u32,
}

#[test]
fn broken_rules_below_a_long_key_are_bounded() {
    let lines = vec![json!({ "line": 0 }); 5_000];
    for (key, expected) in [("k".to_owned(), 100), ("k".repeat(100_000), 1), ("k".repeat(1_000), 65)] {
        let input = json!({ "files": { key: lines } }).to_string();
        let failure = octollm_core::json::read_contract::<ApplyEdits>(input.as_bytes()).unwrap_err();
        assert_eq!(failure.violations.len(), expected);
    }
}

/// Two variants that fit the same values.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
enum Overlapping {
    Leaf(u8),
    Short {
        a: Box<Overlapping>,
    },
    Long {
        a: Box<Overlapping>,
        #[serde(default)]
        b: u8,
    },
}

#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "tree.read")]
struct ReadTree {
    tree: Overlapping,
}

#[test]
fn a_value_that_fits_several_variants_at_each_level_is_checked_within_bounds() {
    let nested = |depth: usize| format!("{{\"tree\":{}1{}}}", "{\"a\":".repeat(depth), "}".repeat(depth));
    let read = |depth| octollm_core::json::read_contract::<ReadTree>(nested(depth).as_bytes());
    assert!(read(3).is_ok());
    let failure = read(60).unwrap_err();
    assert_eq!(failure.kind, octollm_core::error::ErrorKind::ValidationFailed);
    assert!(failure.message.contains("several variants"), "{}", failure.message);
}
