//! What the derive makes of a contract, seen from a program that has the facade alone.

use std::{collections::HashMap, time::Duration};

use octollm::{
    contract::{ContractCard, ContractRef, Effects, Spec},
    prelude::*,
};

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
    title = "Translate a text",
    tags = ["text", "rust"],
    examples = ["Translate this into Rust."],
    effects = "additive",
    crate = octollm,
)]
struct Translate {
    text: String,
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
    assert!(same::<<ValidateCode as TaskContract>::Chunk, ()>());
}

#[test]
fn what_is_given_stands() {
    #[derive(Serialize, Deserialize, JsonSchema, TaskContract)]
    #[task(name = "word.look", idempotent, cache = "2m")]
    struct Look {}
    assert_eq!(Look::SPEC.cache, Some(Duration::from_secs(120)));
    let spec = Translate::SPEC;
    assert_eq!(spec.cache, None);
    assert_eq!(spec.to_string(), "text.rust.translate@2");
    assert_eq!(spec.path, "/texts/translate");
    assert_eq!(spec.scope, "text:write");
    assert_eq!(spec.timeout, Duration::from_secs(120));
    assert!(spec.idempotent);
    assert_eq!(spec.summary, "Translates.");
    assert_eq!((spec.title, spec.tags), ("Translate a text", &["text", "rust"][..]));
    assert_eq!((spec.examples, spec.effects), (&["Translate this into Rust."][..], Some(Effects::Additive)));
    assert!(same::<<Translate as TaskContract>::Output, HashMap<String, Vec<String>>>());
    assert!(same::<<Translate as TaskContract>::Chunk, String>());
}

#[test]
fn what_is_for_people_is_on_the_card_and_not_in_the_fingerprint() {
    #[derive(Serialize, Deserialize, JsonSchema, TaskContract)]
    #[task(name = "text.count")]
    struct Plain {
        text: String,
    }
    #[derive(Serialize, Deserialize, JsonSchema, TaskContract)]
    #[task(name = "text.count", title = "Count", tags = ["text"], examples = ["How long is it?"], effects = "none")]
    struct Described {
        text: String,
    }
    let (plain, described) = (ContractCard::of::<Plain>(), ContractCard::of::<Described>());
    assert_eq!(plain.fingerprint, described.fingerprint);
    assert_eq!(Spec::of::<Plain>().fingerprint(), Some(plain.fingerprint.clone()));
    let json = serde_json::to_value(&described).unwrap();
    assert_eq!((&json["title"], &json["effects"]), (&"Count".into(), &"none".into()));
    assert_eq!((&json["tags"][0], &json["examples"][0]), (&"text".into(), &"How long is it?".into()));
    let json = serde_json::to_value(&plain).unwrap();
    for absent in ["title", "tags", "examples", "effects"] {
        assert_eq!(json.get(absent), None);
    }
}

#[test]
fn the_runtime_agrees_with_every_name() {
    for spec in [ValidateCode::SPEC, Translate::SPEC, Sort::<u8>::SPEC] {
        assert_eq!(ContractRef::new(spec.name, spec.version), Ok(spec.reference()));
    }
}

#[test]
fn a_generic_contract_holds_for_the_types_that_json_can_tell() {
    assert!(same::<<Sort<u8> as TaskContract>::Output, Vec<u8>>());
    assert!(same::<<Sort<u8> as TaskContract>::Chunk, u8>());
    assert_eq!(Sort { items: vec![2, 1] }.check(), Ok(()));
}

/// Counts lines. It derives no `Validate`, and only one of its fields has a rule.
#[derive(Serialize, Deserialize, JsonSchema, TaskContract)]
#[serde(rename_all = "camelCase")]
struct CountLines {
    #[garde(length(min = 1, max = 3))]
    whole_text: String,
    filters: Vec<Filter>,
    #[garde(length(max = 2))]
    more_filters: Option<Vec<Filter>>,
    #[garde(skip)]
    unchecked: Option<Filter>,
    language: String,
    #[serde(flatten)]
    page: Page,
}

#[derive(Clone, Serialize, Deserialize, JsonSchema, Validate)]
struct Filter {
    #[garde(range(min = 1))]
    #[serde(rename = "minLength")]
    length: u32,
    inner: Vec<Filter>,
}

#[derive(Serialize, Deserialize, JsonSchema, Validate)]
struct Page {
    #[garde(range(max = 9))]
    limit: u32,
}

fn filter(length: u32) -> Filter {
    Filter { length, inner: Vec::new() }
}

/// Its rules are written by hand, and no others are run.
#[derive(Serialize, Deserialize, JsonSchema, TaskContract)]
struct CountWords {
    filter: Filter,
}

impl Validate for CountWords {
    type Context = ();

    fn validate_into(&self, _: &(), parent: &mut dyn FnMut() -> garde::Path, report: &mut garde::Report) {
        report.append(parent(), garde::Error::new("by hand"));
    }
}

/// With a `Validate` of its own, as it was written before.
#[derive(Serialize, Deserialize, JsonSchema, Validate, TaskContract)]
struct CountBoth {
    #[garde(length(max = 3))]
    text: String,
}

/// The rules that an input breaks, each as text.
fn broken(input: &impl TaskContract) -> Vec<String> {
    input.check().unwrap_err().iter().map(ToString::to_string).collect()
}

#[test]
fn the_check_runs_the_rules_of_the_fields_and_of_their_types() {
    let nested = Filter { length: 1, inner: vec![filter(1), filter(0)] };
    let task = CountLines {
        whole_text: "four".into(),
        filters: vec![filter(1), filter(0)],
        more_filters: Some(vec![nested.clone(), nested.clone(), nested]),
        unchecked: Some(filter(0)),
        language: String::new(),
        page: Page { limit: 10 },
    };
    let violations = broken(&task);
    let expected = [
        "wholeText: length is greater than 3",
        "filters[1].minLength: lower than 1",
        "moreFilters: length is greater than 2",
        "moreFilters[0].inner[1].minLength: lower than 1",
        "moreFilters[1].inner[1].minLength: lower than 1",
        "moreFilters[2].inner[1].minLength: lower than 1",
        "unchecked.minLength: lower than 1",
        "limit: greater than 9",
    ];
    assert_eq!(violations, expected);
    let task = CountLines {
        whole_text: "abc".into(),
        filters: vec![filter(7)],
        more_filters: None,
        unchecked: None,
        language: String::new(),
        page: Page { limit: 9 },
    };
    assert_eq!(task.check(), Ok(()));
}

#[test]
fn a_violation_is_at_the_path_that_json_has() {
    let task = CountLines {
        whole_text: "four".into(),
        filters: vec![filter(0)],
        more_filters: None,
        unchecked: None,
        language: String::new(),
        page: Page { limit: 10 },
    };
    let json = serde_json::to_value(&task).unwrap();
    for violation in task.check().unwrap_err().iter() {
        let pointer = format!("/{}", violation.path.replace(['.', '['], "/").replace(']', ""));
        assert!(json.pointer(&pointer).is_some(), "{pointer} in {json}");
    }
}

#[test]
fn a_validate_of_ones_own_is_what_is_run() {
    assert_eq!(broken(&CountWords { filter: filter(0) }), ["by hand"]);
    assert_eq!(broken(&CountBoth { text: "four".into() }), ["text: length is greater than 3"]);
}

/// A unit struct is an input without members.
#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
struct Ping;

#[test]
fn a_contract_without_fields_checks_nothing() {
    assert_eq!((Ping::SPEC.name, Ping.check()), ("ping.run", Ok(())));
}

#[test]
fn a_contract_without_rules_lets_everything_pass() {
    assert_eq!(ValidateCode { code: String::new() }.check(), Ok(()));
}

#[test]
fn the_schema_says_the_same_rules() {
    let schema = schemars::schema_for!(CountLines).to_value();
    assert_eq!(schema["properties"]["wholeText"]["maxLength"], 3);
}

/// A shape in each form that serde has for enums, and a newtype.
#[derive(Serialize, Deserialize, JsonSchema, TaskContract)]
#[serde(rename_all = "camelCase")]
struct DrawShapes {
    by_name: Vec<ByName>,
    by_tag: ByTag,
    beside_tag: BesideTag,
    any_shape: AnyShape,
    newtype: Limited,
}

#[derive(Serialize, Deserialize, JsonSchema, Validate)]
#[serde(rename_all = "snake_case", rename_all_fields = "camelCase")]
enum ByName {
    AllPages { first_page: Page },
    OnePage(Page),
    TwoPages(u8, Page),
    NoPage,
}

#[derive(Serialize, Deserialize, JsonSchema, Validate)]
#[serde(tag = "kind")]
enum ByTag {
    AllPages { page: Page },
}

#[derive(Serialize, Deserialize, JsonSchema, Validate)]
#[serde(tag = "kind", content = "body")]
enum BesideTag {
    OnePage(Page),
}

#[derive(Serialize, Deserialize, JsonSchema, Validate)]
#[serde(untagged)]
enum AnyShape {
    AllPages { page: Page },
}

#[derive(Serialize, Deserialize, JsonSchema, Validate)]
struct Limited(#[garde(range(max = 9))] u32);

#[test]
fn a_violation_in_an_enum_or_a_newtype_is_at_the_path_that_json_has() {
    let page = || Page { limit: 10 };
    let task = DrawShapes {
        by_name: vec![
            ByName::AllPages { first_page: page() },
            ByName::OnePage(page()),
            ByName::TwoPages(0, page()),
            ByName::NoPage,
        ],
        by_tag: ByTag::AllPages { page: page() },
        beside_tag: BesideTag::OnePage(page()),
        any_shape: AnyShape::AllPages { page: page() },
        newtype: Limited(10),
    };
    let json = serde_json::to_value(&task).unwrap();
    let violations = task.check().unwrap_err();
    let paths: Vec<_> = violations.iter().map(|violation| violation.path.as_str()).collect();
    let expected = [
        "byName[0].all_pages.firstPage.limit",
        "byName[1].one_page.limit",
        "byName[2].two_pages[1].limit",
        "byTag.page.limit",
        "besideTag.body.limit",
        "anyShape.page.limit",
        "newtype",
    ];
    assert_eq!(paths, expected);
    for path in paths {
        let pointer = format!("/{}", path.replace(['.', '['], "/").replace(']', ""));
        assert_eq!(json.pointer(&pointer), Some(&10.into()), "{pointer} in {json}");
    }
}

/// garde runs the pattern, and the schema has it.
#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract, garde::Validate)]
struct FindWord {
    #[serde(rename = "theWord")]
    #[garde(pattern(r"^[a-zä]+(-[0-9]{1,3})?$"))]
    word: String,
    #[serde(default)]
    #[garde(inner(pattern(r"^(\*|\[[^\]]\])$")))]
    others: Vec<String>,
}

#[test]
fn a_pattern_is_run_and_published() {
    let find = |word: &str, other: &str| FindWord { word: word.into(), others: vec![other.into()] };
    for (input, is_valid) in [
        (find("abc-12", "[x]"), true),
        (find("äbc", "*"), true),
        (find("abc-1234", "*"), false),
        (find("abc\n", "*"), false),
        (find("abc", "[]]"), false),
        (find("abc", "**"), false),
    ] {
        assert_eq!(input.check().is_ok(), is_valid, "{input:?}");
    }
    let schema = ContractCard::checked::<FindWord>().unwrap().input_schema;
    let at = |pointer: &str| schema.pointer(pointer).cloned().unwrap_or_default();
    assert_eq!(at("/properties/theWord/pattern"), r"^[a-zä]+(-[0-9]{1,3})?$");
    assert_eq!(at("/properties/others/items/pattern"), r"^(\*|\[[^\]]\])$");
}
