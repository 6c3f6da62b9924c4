use octollm::prelude::*;

const ANY: &str = ".*";

#[derive(Validate)]
struct Patterns {
    #[garde(pattern(ANY))]
    expression: String,
    #[garde(pattern(r"a.b"))]
    dot: String,
    #[garde(pattern(r"(?i)a"))]
    flag: String,
    #[garde(pattern(r"(?=a)b"))]
    lookaround: String,
    #[garde(pattern(r"^\d+$"))]
    digits: String,
    #[garde(pattern(r"\w[\W]"))]
    words: String,
    #[garde(pattern(r"\s"))]
    spaces: String,
    #[garde(pattern(r"\D"))]
    no_digits: String,
    #[garde(pattern(r"\W"))]
    no_words: String,
    #[garde(pattern(r"\S"))]
    no_spaces: String,
    #[garde(pattern(r"\p{L}"))]
    letters: String,
    #[garde(pattern(r"\bfn"))]
    edge: String,
    #[garde(pattern(r"\Aa"))]
    begin: String,
    #[garde(pattern(r"a\z"))]
    end: String,
    #[garde(pattern(r"\#"))]
    hash: String,
    #[garde(pattern(r"\x41"))]
    hex: String,
    #[garde(pattern(r"a\"))]
    cut: String,
    #[garde(pattern(r"*a"))]
    nothing: String,
    #[garde(pattern(r"^*"))]
    anchor: String,
    #[garde(pattern(r"a}"))]
    brace: String,
    #[garde(pattern(r"a]"))]
    bracket: String,
    #[garde(pattern(r"a{,2}"))]
    repetition: String,
    #[garde(pattern(r"a+*"))]
    twice: String,
    #[garde(pattern(r"(a{100}){100}"))]
    often: String,
    #[garde(pattern(r"(a"))]
    open: String,
    #[garde(pattern(r"a)"))]
    close: String,
    #[garde(pattern(r"[a"))]
    no_end: String,
    #[garde(pattern(r"[]a]"))]
    empty: String,
    #[garde(pattern(r"[[:alpha:]]"))]
    nested: String,
    #[garde(pattern(r"[a&&b]"))]
    intersection: String,
    #[garde(pattern(r"[a--b]"))]
    difference: String,
    #[garde(pattern(r"[a-z-9]"))]
    hyphen: String,
    #[garde(pattern(r"[z-a]"))]
    backwards: String,
    #[garde(pattern, inner(pattern(r"\d")))]
    inside: Vec<String>,
    #[garde(pattern("^[a-z]+$"))]
    right: String,
}

/// A pattern that differs is reported where garde's own derive runs the rest.
#[derive(Serialize, Deserialize, JsonSchema, TaskContract)]
struct TakePattern {
    #[garde(email)]
    address: String,
    #[garde(pattern(r"\d"))]
    digits: String,
}

fn main() {}
