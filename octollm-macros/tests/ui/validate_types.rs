use octollm::prelude::*;

#[derive(Validate)]
union Either {
    number: u8,
    sign: i8,
}

#[derive(Validate)]
#[garde(transparent)]
struct Two(#[garde(ascii)] String, #[garde(ascii)] String);

#[derive(Validate)]
#[garde(allow_unvalidatd, length(min = 1), transparent, transparent)]
struct Options(#[garde(ascii)] String);

#[derive(Validate)]
enum Kinds {
    #[garde(skip)]
    Text(#[garde(ascii)] String),
}

#[derive(Serialize, Deserialize, JsonSchema)]
struct Page {
    limit: u32,
}

#[derive(Serialize, Deserialize, JsonSchema, TaskContract)]
struct ListPages {
    #[serde(flatten)]
    page: Option<Page>,
}

#[derive(Serialize, Deserialize, JsonSchema, Validate)]
struct Filter {
    #[serde(default, flatten)]
    page: std::option::Option<Page>,
}

fn main() {}
