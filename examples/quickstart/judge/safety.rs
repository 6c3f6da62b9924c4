//! The rule on `unsafe` without a reason.
//!
//! An `unsafe` block and an `unsafe impl` make a promise, so each needs a comment with `SAFETY:` that keeps
//! it: on its line, on those of the statement before it, right above that statement, whose attributes are
//! part of it, or as the first thing in the block. An `unsafe fn` asks for a promise instead, which is for
//! its documentation to say.

use std::collections::HashMap;

use super::finding;
use crate::finding::{Finding, Rule};
use crate::lexer::{Kind, Lexed};

/// Finds the blocks and the implementations without such a comment.
pub(super) fn check(lexed: &Lexed<'_>) -> Vec<Finding> {
    let mut lines = None;
    let mut findings = Vec::new();
    for (index, token) in lexed.tokens.iter().enumerate() {
        let Some(what) = what(lexed, index) else { continue };
        let lines = lines.get_or_insert_with(|| Lines::of(lexed));
        let start = statement(lexed, index).and_then(|start| lexed.tokens.get(start));
        let first = start.map_or(token.at.line, |start| start.at.line);
        if !lines.explain(first, last_line(lexed, index)) {
            let message = format!("{what} without a `SAFETY:` comment");
            findings.push(finding(Rule::UnsafeWithoutSafety, token.at, message));
        }
    }
    findings
}

fn what(lexed: &Lexed<'_>, index: usize) -> Option<&'static str> {
    if !lexed.is(index, Kind::Ident, "unsafe") {
        return None;
    }
    let block = lexed.is(index + 1, Kind::Open, "{").then_some("an `unsafe` block");
    block.or_else(|| lexed.is(index + 1, Kind::Ident, "impl").then_some("an `unsafe impl`"))
}

/// The last line that may give the reason: the last one before what is in the block.
fn last_line(lexed: &Lexed<'_>, index: usize) -> usize {
    let line = |index: usize| lexed.tokens.get(index).map_or(0, |token| token.at.line);
    let inner = if lexed.is(index + 1, Kind::Open, "{") { line(index + 2).saturating_sub(1) } else { 0 };
    inner.max(line(index))
}

/// The first token of the statement, the item, the arm or the field that holds a token.
fn statement(lexed: &Lexed<'_>, index: usize) -> Option<usize> {
    let mut parent = lexed.tokens.get(index)?.parent;
    let mut start = index;
    loop {
        // Back over what is at the same level, group by group.
        while let Some(before) = start.checked_sub(1).filter(|&before| Some(before) != parent) {
            if separates(lexed, before, parent) {
                break;
            }
            start = lexed.tokens.get(before)?.partner.unwrap_or(before);
        }
        // A statement may go on outside of the bracket: an argument's does, and a field's of a literal.
        let field = lexed.tokens.get(start)?.kind == Kind::Ident
            && lexed.is(start + 1, Kind::Punct, ":")
            && !lexed.is_operator(start + 1, "::");
        match parent {
            Some(open) if field || !lexed.is(open, Kind::Open, "{") => {
                start = open;
                parent = lexed.tokens.get(open)?.parent;
            }
            _ => return Some(start),
        }
    }
}

/// Whether a token ends what comes before it.
fn separates(lexed: &Lexed<'_>, index: usize, parent: Option<usize>) -> bool {
    let in_braces = parent.is_none_or(|open| lexed.is(open, Kind::Open, "{"));
    match lexed.text(index) {
        ";" => true,
        "," => in_braces,
        "}" => in_braces && !goes_on(lexed, index + 1),
        _ => false,
    }
}

/// Whether a token goes on with the expression that a brace has closed before it.
fn goes_on(lexed: &Lexed<'_>, index: usize) -> bool {
    let operator = ["&", "*", "-", "#", "!", "|"].iter().all(|mark| !lexed.is(index, Kind::Punct, mark));
    let mark = lexed.tokens.get(index).is_some_and(|token| token.kind == Kind::Punct);
    (mark && operator) || matches!(lexed.text(index), "else" | "as")
}

/// What is on each line, where there is anything.
struct Lines(HashMap<usize, Line>);

#[derive(Default)]
struct Line {
    code: bool,
    comment: bool,
    reason: bool,
}

impl Lines {
    fn of(lexed: &Lexed<'_>) -> Self {
        let mut lines: HashMap<usize, Line> = HashMap::new();
        for token in &lexed.tokens {
            for line in token.at.line..=token.at.line + token.text.matches('\n').count() {
                lines.entry(line).or_default().code = true;
            }
        }
        for comment in &lexed.comments {
            let reason = comment.text.to_ascii_uppercase().contains("SAFETY:");
            for line in comment.at.line..=comment.at.line + comment.text.matches('\n').count() {
                let line = lines.entry(line).or_default();
                line.comment = true;
                line.reason |= reason;
            }
        }
        Self(lines)
    }

    /// Whether there is a reason on one of these lines, or in the comments right above them.
    fn explain(&self, first: usize, last: usize) -> bool {
        let reason = |line: usize| self.0.get(&line).is_some_and(|line| line.reason);
        let is_comment = |line: &usize| self.0.get(line).is_some_and(|line| line.comment && !line.code);
        (first..=last).any(reason) || (1..first).rev().take_while(is_comment).any(reason)
    }
}

#[cfg(test)]
mod tests {
    use super::check;
    use crate::lexer::lex;

    fn lines(text: &str) -> Vec<usize> {
        check(&lex(text)).iter().map(|finding| finding.line).collect()
    }

    #[test]
    fn blocks_and_implementations_need_a_reason() {
        assert_eq!(lines("fn f() {\n unsafe { g() }\n}\nunsafe impl Send for A {}"), [2, 4]);
        assert!(
            lines("unsafe fn f() {} unsafe trait T {} unsafe extern \"C\" {} #[unsafe(no_mangle)] fn g() {}")
                .is_empty()
        );
    }

    #[test]
    fn text_is_no_code() {
        assert!(
            lines("r#\"unsafe { \"#; \"unsafe {\"; /* /* */ unsafe { */ r#unsafe { } // unsafe {").is_empty()
        );
    }

    #[test]
    fn a_reason_is_above_or_on_the_line() {
        assert!(lines("{\n // SAFETY: a\n // b\n unsafe { c() }\n}").is_empty());
        assert!(lines("{ unsafe { c() } // safety: a\n}").is_empty());
        assert!(lines("/* Safety: a\n b */\nunsafe impl A for B {}").is_empty());
        assert!(lines("unsafe {\n // SAFETY: a\n b() }").is_empty());
        assert_eq!(lines("unsafe {\n b();\n // SAFETY: a\n c() }"), [1]);
        assert_eq!(lines("// SAFETY: a\nf();\nunsafe { b() }"), [3]);
        assert_eq!(lines("{ // SAFE: a\n unsafe { b() } }"), [2]);
        assert_eq!(lines("\"// SAFETY: a\";\nunsafe { b() }"), [2]);
    }

    #[test]
    fn a_reason_may_be_above_the_statement() {
        assert!(
            lines("f();\n// SAFETY: a\n#[inline]\nlet x: [u8; 2] =\n  b(c, [unsafe { d() }]);").is_empty()
        );
        assert!(lines("g(|| { f() });\n// SAFETY: a\nlet x = A { b: 1, c: unsafe { d() } };").is_empty());
        assert!(lines("match x {\n A { .. } => {}\n // SAFETY: a\n B => unsafe { c() }, }").is_empty());
        assert!(lines("let x =\n // SAFETY: a\n unsafe { d() };").is_empty());
        assert!(lines("// SAFETY: a\nlet x = S {}\n .f(unsafe { d() });").is_empty());
    }

    #[test]
    fn a_reason_is_for_its_own_statement() {
        assert_eq!(lines("// SAFETY: a\nfn f() {\n unsafe { b() } }"), [3]);
        assert_eq!(lines("// SAFETY: a\nunsafe { b() }\nunsafe { c() }"), [3]);
        assert_eq!(lines("// SAFETY: a\nif x {}\nunsafe { c() }"), [3]);
        assert_eq!(lines("// SAFETY: a\n\nuse b;\nm!{ unsafe { c() } }"), [4]);
    }
}
