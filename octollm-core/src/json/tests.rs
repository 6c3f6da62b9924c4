use std::collections::{BTreeMap, HashMap};

use proptest::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json, value::RawValue};

use super::*;

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Item {
    name: String,
    #[serde(default)]
    size: Option<f64>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Order {
    code: String,
    #[serde(default)]
    items: Vec<Item>,
    #[serde(default)]
    extra: Value,
}

fn kind<T: serde::de::DeserializeOwned>(text: impl AsRef<[u8]>) -> Option<ErrorKind> {
    read_input::<T>(text.as_ref()).err().map(|failure| failure.kind)
}

/// `path: message` of all violations.
fn broken<T: serde::de::DeserializeOwned>(text: &str) -> String {
    match read_input::<T>(text.as_bytes()) {
        Ok(_) => String::new(),
        Err(failure) => {
            assert_eq!(failure.kind, ErrorKind::ValidationFailed, "{failure}");
            failure.message.clone()
        }
    }
}

#[test]
fn what_is_no_json_is_a_bad_request_whatever_the_type() {
    let deep = |depth: usize| format!(r#"{{"code":"","extra":{}{}}}"#, "[".repeat(depth), "]".repeat(depth));
    let texts = [
        "".to_owned(),
        " \n".to_owned(),
        "{".to_owned(),
        r#"{"code":"x"} {}"#.to_owned(),
        r#"{"code":"x",}"#.to_owned(),
        r#"{"code":"x","code":"y"}"#.to_owned(),
        r#"{"code":"x","c\u006fde":"y"}"#.to_owned(),
        r#"{"code":"x","extra":{"a":1,"b":{"c":1,"c":2}}}"#.to_owned(),
        r#"{"code":"x","extra":{"a\/":1,"a/":2}}"#.to_owned(),
        r#"{"code":"x","items":[{"name":"a","name":"b"}]}"#.to_owned(),
        r#"{"code":"x","unknown":{"a":1,"a":2}}"#.to_owned(),
        r#"{"code":"x","extra":NaN}"#.to_owned(),
        r#"{"code":"x","extra":-Infinity}"#.to_owned(),
        r#"{"code":"x","extra":1e999}"#.to_owned(),
        r#"{"code":"x","unknown":[-1e999]}"#.to_owned(),
        format!(r#"{{"code":"x","unknown":{}}}"#, "9".repeat(400)),
        r#"{"code":"\ud800"}"#.to_owned(),
        r#"{"code":"x","extra":"\ud83d\u0020"}"#.to_owned(),
        r#"{"code":"x","unknown":"\udc00"}"#.to_owned(),
        r#"{"code":"x","unknown":"\ud83d\n"}"#.to_owned(),
        r#"{"code":7,"unknown":nul}"#.to_owned(),
        "{\"code\":\"a\nb\"}".to_owned(),
        "\u{feff}{}".to_owned(),
        deep(128),
        deep(100_000),
    ];
    for text in texts {
        let shown: String = text.chars().take(80).collect();
        assert_eq!(kind::<Order>(&text), Some(ErrorKind::BadRequest), "{shown}");
        assert_eq!(kind::<Value>(&text), Some(ErrorKind::BadRequest), "{shown}");
        assert_eq!(kind::<Box<RawValue>>(&text), Some(ErrorKind::BadRequest), "{shown}");
        assert_eq!(kind::<u8>(&text), Some(ErrorKind::BadRequest), "{shown}");
    }
    assert_eq!(kind::<Order>(b"{\"code\":\"\xff\"}"), Some(ErrorKind::BadRequest));
    assert_eq!(kind::<Order>(b"{\"code\":\"\",\"unknown\":\"\xed\xa0\x80\"}"), Some(ErrorKind::BadRequest));
    assert_eq!(kind::<Order>(deep(127)), None);
}

#[test]
fn a_bad_request_says_what_is_wrong() {
    let message = |text: &str| read_input::<Order>(text.as_bytes()).unwrap_err().message;
    assert_eq!(message(" "), "not valid JSON: nothing there");
    assert_eq!(
        message(r#"{"code":"x","code":"y"}"#),
        "not valid JSON: duplicate key `code` at line 1 column 18"
    );
    assert_eq!(
        message(r#"{"code":"\ud800"}"#),
        "not valid JSON: unexpected end of hex escape at line 1 column 16"
    );
    assert_eq!(message("\u{feff}{}"), "not valid JSON: it begins with a byte order mark");
}

#[test]
fn another_shape_is_told_by_the_path_of_its_field() {
    assert_eq!(broken::<Order>("{}"), "code: missing field");
    assert_eq!(broken::<Order>(r#"{"code":7}"#), "code: invalid type: integer `7`, expected a string");
    assert_eq!(broken::<Order>(r#"{"code":"","items":[{"name":""},{}]}"#), "items[1].name: missing field");
    assert_eq!(
        broken::<Order>(r#"{"code":"","items":[{"name":"","size":"big"}]}"#),
        "items[0].size: invalid type: string \"big\", expected f64"
    );
    assert_eq!(
        broken::<Order>(r#"{"code":"","x":1,"items":[{"name":"","y":{"z":1}}]}"#),
        "x: unknown field; items[0].y: unknown field"
    );
    assert_eq!(broken::<Order>(r#"{"x":1}"#), "x: unknown field; code: missing field");
    assert_eq!(broken::<Order>("[]"), "invalid type: sequence, expected struct Order");
    assert_eq!(
        broken::<HashMap<String, Item>>(r#"{"a":{"name":1}}"#),
        "a.name: invalid type: integer `1`, expected a string"
    );
}

#[test]
fn a_message_repeats_at_most_100_characters_of_the_input() {
    #[derive(Debug, Deserialize)]
    #[serde(rename_all = "snake_case", tag = "type")]
    enum Tagged {
        Some {
            #[serde(rename = "number")]
            _number: u8,
        },
        Other,
    }
    let (long, cut) = ("ü".repeat(300_000), format!("{}…", "ü".repeat(100)));
    assert_eq!(broken::<f64>(&format!("{long:?}")), format!("invalid type: string \"{cut}\", expected f64"));
    let tagged = |json: String| broken::<Tagged>(&json);
    assert_eq!(
        tagged(format!("{long:?}")),
        format!("invalid type: string \"{cut}\", expected internally tagged enum Tagged")
    );
    assert_eq!(
        tagged(format!(r#"{{"type":"{long}"}}"#)),
        format!("type: unknown variant `{cut}`, expected `some` or `other`")
    );
    // What the input has in quotes is no end of it.
    let tricky = format!(r#"{{"type":"some","number":"`, expected \" {}"}}"#, "x".repeat(200));
    assert_eq!(
        tagged(tricky),
        format!("invalid type: string \"`, expected \\\" {}…\", expected u8", "x".repeat(85))
    );
    let twice = format!(r#"{{"{long}":1,"{long}":1}}"#);
    let refused = read_input::<HashMap<String, u8>>(twice.as_bytes()).unwrap_err();
    assert!(
        refused.message.starts_with(&format!("not valid JSON: duplicate key `{cut}`")),
        "{}",
        refused.message
    );
}

#[test]
fn types_that_buffer_their_input_work_as_ever() {
    #[derive(Debug, PartialEq, Deserialize)]
    struct Flat {
        id: u8,
        #[serde(flatten)]
        rest: BTreeMap<String, Value>,
    }
    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(untagged)]
    enum Either {
        Number(u8),
        Text { text: String },
    }
    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(tag = "kind")]
    enum Tagged {
        Item(Item),
    }
    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Closed {
        #[serde(default)]
        inner: Vec<Item>,
    }
    #[derive(Debug, PartialEq, Deserialize)]
    enum Plain {
        Unit,
        Pair(u8, u8),
        Struct { name: String },
    }

    let read = read_input::<Flat>(br#"{"id":1,"b":{"c":2}}"#).unwrap();
    assert_eq!(read, Flat { id: 1, rest: [("b".to_owned(), json!({"c": 2}))].into() });
    assert_eq!(kind::<Flat>(r#"{"id":1,"b":1,"b":2}"#), Some(ErrorKind::BadRequest));
    assert_eq!(read_input::<Either>(br#"{"text":"a"}"#).unwrap(), Either::Text { text: "a".into() });
    assert_eq!(read_input::<Either>(b"3").unwrap(), Either::Number(3));
    assert_eq!(
        read_input::<Tagged>(br#"{"name":"a","kind":"Item"}"#).unwrap(),
        Tagged::Item(Item { name: "a".into(), size: None })
    );
    for twice in [r#"{"text":"a","text":"b"}"#, r#"{"kind":"Item","name":"a","n\u0061me":"b"}"#] {
        assert_eq!(kind::<Either>(twice), Some(ErrorKind::BadRequest), "{twice}");
        assert_eq!(kind::<Tagged>(twice), Some(ErrorKind::BadRequest), "{twice}");
    }
    assert_eq!(broken::<Closed>(r#"{"other":1}"#), "other: unknown field, expected `inner`");
    assert_eq!(read_input::<Plain>(br#""Unit""#).unwrap(), Plain::Unit);
    assert_eq!(read_input::<Plain>(br#"{"Pair":[1,2]}"#).unwrap(), Plain::Pair(1, 2));
    assert_eq!(broken::<Plain>(r#"{"Struct":{"name":"a","x":1}}"#), "x: unknown field");
    let raw = read_input::<Box<RawValue>>(br#"{ "a" : 1.50 }"#).unwrap();
    assert_eq!(raw.get(), r#"{ "a" : 1.50 }"#);
    assert_eq!(kind::<Vec<Box<RawValue>>>(r#"[{"a":1,"a":2}]"#), Some(ErrorKind::BadRequest));
}

#[test]
fn many_keys_are_told_apart_too() {
    let object = |keys: usize| {
        let mut text = String::from("{");
        for key in 0..keys {
            text += &format!(r#""key{key}":{{"a":{key},"b":[]}},"#);
        }
        text + r#""last":0}"#
    };
    for keys in [1, 62, 63, 64, 65, 300] {
        assert_eq!(kind::<Value>(object(keys)), None, "{keys}");
        let twice = object(keys).replace(r#""last":0"#, r#""last":0,"key0":1"#);
        assert_eq!(kind::<Value>(twice), Some(ErrorKind::BadRequest), "{keys}");
    }
}

/// JSON that keeps its entries as written.
#[derive(Debug, Clone)]
enum Node {
    Scalar(String),
    Array(Vec<Node>),
    Object(Vec<(String, Node)>),
}

impl Node {
    fn write(&self, text: &mut String) {
        match self {
            Self::Scalar(scalar) => text.push_str(scalar),
            Self::Array(items) => {
                let written: Vec<_> = items.iter().map(Self::to_text).collect();
                *text += &format!("[{}]", written.join(" , "));
            }
            Self::Object(entries) => {
                let written: Vec<_> =
                    entries.iter().map(|(key, node)| format!("\"{key}\" : {}", node.to_text())).collect();
                *text += &format!("{{ {} }}", written.join(","));
            }
        }
    }

    fn to_text(&self) -> String {
        let mut text = String::new();
        self.write(&mut text);
        text
    }

    /// The naive oracle: sorts the keys as they read without escapes.
    fn repeats(&self) -> bool {
        match self {
            Self::Scalar(_) => false,
            Self::Array(items) => items.iter().any(Self::repeats),
            Self::Object(entries) => {
                let mut keys: Vec<String> = entries
                    .iter()
                    .map(|(key, _)| serde_json::from_str(&format!("\"{key}\"")).unwrap())
                    .collect();
                keys.sort();
                keys.windows(2).any(|pair| pair[0] == pair[1])
                    || entries.iter().any(|(_, node)| node.repeats())
            }
        }
    }
}

fn nodes() -> impl Strategy<Value = Node> {
    let scalar = prop_oneof![
        Just("null".to_owned()),
        Just("true".to_owned()),
        any::<i64>().prop_map(|number| number.to_string()),
        "-?[1-9][0-9]{0,3}(\\.[0-9]{1,3})?([eE][+-]?[0-9]{1,2})?",
        "\"([a-z ,:{}\\[\\]é]|\\\\[\"\\\\nt/]|\\\\u00[0-9a-f]{2}|\\\\ud83d\\\\ude00){0,30}\"",
    ];
    let key = prop_oneof![
        8 => "[ab]{0,2}",
        2 => "(a|\\\\u0061|\\\\u0062|\\\\n|\\\\\"){0,2}",
        2 => "long key of the same ending [a-d]{8}",
    ];
    scalar.prop_map(Node::Scalar).prop_recursive(5, 60, 8, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Node::Array),
            prop::collection::vec((key.clone(), inner), 0..8).prop_map(Node::Object),
        ]
    })
}

proptest! {
    #[test]
    fn a_key_twice_is_found_wherever_it_is(node in nodes()) {
        let text = node.to_text();
        prop_assert!(serde_json::from_str::<Value>(&text).is_ok(), "{}", text);
        let expected = node.repeats().then_some(ErrorKind::BadRequest);
        prop_assert_eq!(kind::<Value>(&text), expected, "{}", text);
        prop_assert_eq!(kind::<Box<RawValue>>(&text), expected, "{}", text);
    }

    #[test]
    fn agrees_with_serde_json_on_what_is_json(
        node in nodes(),
        edits in prop::collection::vec((any::<prop::sample::Index>(), "[{}\\[\\],:\"\\\\0-9eE.+\\-u dnt\n]"), 0..3),
    ) {
        let mut bytes = node.to_text().into_bytes();
        for (place, byte) in edits {
            let place = place.index(bytes.len());
            bytes[place] = byte.as_bytes()[0];
        }
        let plain = serde_json::from_slice::<Value>(&bytes);
        let ours = read_input::<Value>(&bytes);
        match (plain, ours) {
            (Ok(plain), Ok(ours)) => prop_assert_eq!(plain, ours),
            (Err(_), Err(failure)) => prop_assert_eq!(failure.kind, ErrorKind::BadRequest),
            (Ok(_), Err(failure)) => {
                prop_assert!(failure.message.contains("duplicate key"), "{}", failure);
            }
            (Err(error), Ok(_)) => prop_assert!(false, "{}", error),
        }
    }

    #[test]
    fn bytes_of_any_kind_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
        let _ = read_input::<Order>(&bytes);
        let _ = read_input::<Value>(&bytes);
    }

    #[test]
    fn what_is_written_is_read(code in ".{0,40}", names in prop::collection::vec(".{0,10}", 0..5), size in any::<Option<i32>>()) {
        let items = names.into_iter().map(|name| Item { name, size: size.map(f64::from) }).collect();
        let order = Order { code, items, extra: json!({ "a": size }) };
        prop_assert_eq!(read_input::<Order>(&serde_json::to_vec(&order).unwrap()).unwrap(), order);
    }
}

#[test]
fn a_struct_is_an_object_and_no_array() {
    #[derive(Debug, serde::Deserialize)]
    struct Inner {
        #[allow(dead_code, reason = "only read")]
        a: u8,
    }
    #[derive(Debug, serde::Deserialize)]
    struct Outer {
        #[allow(dead_code, reason = "only read")]
        items: Vec<Inner>,
    }
    let kind = |text: &str| read_input::<Outer>(text.as_bytes()).map(drop).map_err(|failure| failure.kind);
    assert_eq!(kind(r#"{"items":[{"a":1}]}"#), Ok(()));
    assert_eq!(kind(r#"[[{"a":1}]]"#), Err(ErrorKind::ValidationFailed));
    assert_eq!(kind(r#"{"items":[[1]]}"#), Err(ErrorKind::ValidationFailed));
    let failure = read_input::<Outer>(br#"{"items":[{"a":1},[1]]}"#).unwrap_err();
    assert_eq!(failure.violations[0].path, "items[1]");
}
