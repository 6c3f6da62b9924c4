use octollm::prelude::*;

const MOST: usize = 3;

#[derive(Validate)]
struct Rules {
    #[garde(lenght(min = 1), uppercase)]
    unknown: String,
    #[garde(email, length(graphemes, max = 3))]
    left_out: String,
    #[garde(length, range(), contains, prefix())]
    without_arguments: String,
    #[garde(ascii(7), contains("a", "b"), ipv4 = 6)]
    with_too_many: String,
    #[garde(length(min = 5, max = 3), length(bytes, equal = 3, max = MOST), length(chars, least = 3))]
    lengths: String,
    #[garde(range(min = 1, min = 2, bytes), range(min = -1, max = -2))]
    ranges: i8,
    #[garde(length(bytes, chars, min = 1))]
    two_ways: String,
    #[garde(ascii, alphanumeric, ascii)]
    twice: String,
    #[garde(skip, ascii)]
    skipped: String,
    #[garde(dive, inner(ascii))]
    both: Vec<String>,
    #[garde(inner(skip, inner(dive, length(mni = 1))), inner)]
    inside: Vec<Vec<String>>,
    #[garde(inner(skip, inner(dive, adapt(own))))]
    only_outside: Vec<Vec<String>>,
    #[garde(if(ascii), if(cond = true), if(cond, ascii))]
    sometimes: String,
    #[garde(matches(passwrod))]
    again: String,
    #[garde(rename("other"))]
    renamed: String,
    #[garde]
    bare: String,
    #[garde(skip)]
    password: String,
}

fn main() {}
