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

fn main() {}
