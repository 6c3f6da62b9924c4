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

fn main() {}
