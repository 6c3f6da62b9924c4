//! The rule on the length of functions.

use super::finding;
use crate::finding::{Finding, Rule};
use crate::lexer::{Kind, Lexed, Position};

/// The most lines a function may have, from its `fn` to its closing brace, both included.
const LIMIT: usize = 60;

/// A function that has a body, wherever it is written: a method, a trait's default, a template in a macro.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Function<'a> {
    name: &'a str,
    at: Position,
    last_line: usize,
}

impl Function<'_> {
    /// The finding, if it is too long.
    pub(super) fn check(&self) -> Option<Finding> {
        let lines = self.last_line - self.at.line + 1;
        let message = || format!("the function `{}` is {lines} lines long, {LIMIT} at most", self.name);
        (lines > LIMIT).then(|| finding(Rule::LongFunction, self.at, message()))
    }
}

/// Finds the functions, in the order in which they start.
pub(super) fn find<'a>(lexed: &Lexed<'a>) -> Vec<Function<'a>> {
    let starts = (0..lexed.tokens.len()).filter(|&index| lexed.is(index, Kind::Ident, "fn"));
    starts.filter_map(|index| read(lexed, index)).collect()
}

fn read<'a>(lexed: &Lexed<'a>, start: usize) -> Option<Function<'a>> {
    // In templates the name is `$name` or `#name`. A pointer type has none.
    let marked = ["$", "#"].iter().any(|mark| lexed.is(start + 1, Kind::Punct, mark));
    let name = lexed.tokens.get(start + 1 + usize::from(marked)).filter(|name| name.kind == Kind::Ident)?;
    if is_matched(lexed, start) {
        return None;
    }
    let body = lexed.tokens.get(find_body(lexed, start)?)?;
    let end = lexed.tokens.get(body.partner?)?;
    Some(Function { name: name.text, at: lexed.tokens.get(start)?.at, last_line: end.at.line })
}

/// The brace that opens the body: the first one outside the brackets and the angles of the signature.
fn find_body(lexed: &Lexed<'_>, start: usize) -> Option<usize> {
    let mut angles = 0usize;
    let mut index = start;
    loop {
        let token = lexed.tokens.get(index)?;
        match (token.kind, token.text) {
            (Kind::Open, "{") if angles == 0 => return Some(index),
            (Kind::Punct, ";") | (Kind::Close, _) => return None,
            (Kind::Punct, "<") => angles += 1,
            (Kind::Punct, ">") => angles = angles.saturating_sub(1),
            (Kind::Punct, "-" | "=") if lexed.is(index + 1, Kind::Punct, ">") => index += 1,
            _ => {}
        }
        index = lexed.after(index);
    }
}

/// Whether a token stands in what a macro's arm matches, `(…) => `: that is a pattern.
fn is_matched(lexed: &Lexed<'_>, index: usize) -> bool {
    let mut parent = lexed.tokens.get(index).and_then(|token| token.parent);
    while let Some(open) = parent {
        if lexed.is_operator(lexed.after(open), "=>") {
            return true;
        }
        parent = lexed.tokens.get(open).and_then(|token| token.parent);
    }
    false
}

#[cfg(test)]
mod tests {
    use super::find;
    use crate::lexer::lex;

    fn names(text: &str) -> Vec<&str> {
        find(&lex(text)).iter().map(|function| function.name).collect()
    }

    fn body(lines: usize) -> String {
        format!("#[inline]\npub fn f() {{\n{}}}", "x();\n".repeat(lines))
    }

    #[test]
    fn functions_with_a_body_are_found_wherever_they_are() {
        let text = "fn a() {} trait T { fn b(); fn c() { fn d() {} } } extern { fn e(); } \
            impl X { const fn f() {} } wrap! { fn g() {} } type P = fn(u8) -> u8; \"fn h() {}\" // fn i() {}";
        assert_eq!(names(text), ["a", "c", "d", "f", "g"]);
    }

    #[test]
    fn a_signature_may_hold_braces() {
        assert_eq!(names("fn a<T: Fn(A) -> B>(x: [u8; {1}]) -> W<{ 2 }> where [(); {3}]: Y, { }"), ["a"]);
        assert_eq!(names("fn a() -> W<{ 2 }>;"), [""; 0]);
    }

    #[test]
    fn templates_count_and_matchers_do_not() {
        let text =
            "macro_rules! m { ($v:vis fn $n:ident() { }) => { $v fn $n() { } }; } quote! { fn #name() {} }";
        assert_eq!(names(text), ["n", "name"]);
    }

    #[test]
    fn sixty_lines_are_not_too_long() {
        let text = body(58);
        assert_eq!(find(&lex(&text))[0].check(), None);
    }

    #[test]
    fn sixty_one_lines_are() {
        let text = body(59);
        let finding = find(&lex(&text))[0].check().unwrap();
        assert_eq!((finding.line, finding.column), (2, 5));
        assert_eq!(finding.message, "the function `f` is 61 lines long, 60 at most");
    }
}
