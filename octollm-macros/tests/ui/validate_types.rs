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

fn main() {}
