use octollm::prelude::*;

#[derive(Clone, Copy, TaskContract)]
union Either {
    number: u8,
    sign: i8,
}

#[derive(Serialize, Deserialize, JsonSchema, TaskContract)]
struct Borrowed<'a> {
    text: &'a str,
}

#[derive(Serialize, Deserialize, JsonSchema, TaskContract)]
enum Chosen {
    One { number: u8 },
}

#[derive(Serialize, Deserialize, JsonSchema, TaskContract)]
struct Newtype(String);

#[derive(Serialize, Deserialize, JsonSchema, TaskContract)]
struct Pair(u8, u8);

#[derive(Serialize, Deserialize, JsonSchema, TaskContract)]
#[serde(tag = "kind", rename_all(serialize = "camelCase"))]
struct SortText {
    #[serde(rename(serialize = "a", deserialize = "b"))]
    renamed: u8,
    #[serde(rename(serialize = "c", deserialize = "c"))]
    same: u8,
    #[serde(skip_serializing)]
    unwritten: u8,
    #[serde(default, skip_deserializing)]
    unread: u8,
}

fn main() {}
