//! The rule on `.unwrap()`, `.expect(…)` and `panic!` outside tests.

use super::finding;
use super::test_code::TestCode;
use crate::finding::{Finding, Rule};
use crate::lexer::{Kind, Lexed, Token};

/// Finds the calls. A method is told by its name alone, whatever its receiver is.
pub(super) fn check(lexed: &Lexed<'_>, tests: &TestCode) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (index, token) in lexed.tokens.iter().enumerate() {
        let Some(call) = call(lexed, index, token) else { continue };
        if !tests.contains(token.at) {
            findings.push(finding(Rule::MayPanic, token.at, format!("`{call}` may panic")));
        }
    }
    findings
}

fn call(lexed: &Lexed<'_>, index: usize, token: &Token<'_>) -> Option<&'static str> {
    if token.kind != Kind::Ident {
        return None;
    }
    match token.text {
        "unwrap" => (is_method(lexed, index) && !has_arguments(lexed, index)).then_some(".unwrap()"),
        "expect" => (is_method(lexed, index) && has_arguments(lexed, index)).then_some(".expect(…)"),
        "panic" => {
            let called = lexed.is(index + 1, Kind::Punct, "!");
            let opens = lexed.tokens.get(index + 2).is_some_and(|token| token.kind == Kind::Open);
            (called && opens).then_some("panic!")
        }
        _ => None,
    }
}

/// Whether a call follows one dot. Two are a range, whose end is a function.
fn is_method(lexed: &Lexed<'_>, index: usize) -> bool {
    let dot = index.checked_sub(1).filter(|&dot| lexed.is(dot, Kind::Punct, "."));
    let range = dot.and_then(|dot| dot.checked_sub(1)).is_some_and(|first| lexed.is_operator(first, ".."));
    dot.is_some() && !range && lexed.is(index + 1, Kind::Open, "(")
}

fn has_arguments(lexed: &Lexed<'_>, index: usize) -> bool {
    !lexed.is(index + 2, Kind::Close, ")")
}

#[cfg(test)]
mod tests {
    use super::check;
    use crate::judge::test_code::TestCode;
    use crate::lexer::lex;

    fn columns(text: &str) -> Vec<usize> {
        check(&lex(text), &TestCode::default()).iter().map(|finding| finding.column).collect()
    }

    #[test]
    fn calls_are_found_in_macros_as_well() {
        assert_eq!(
            columns("a.unwrap(); b . expect (\"c\"); panic!(); std::panic! {}; vec![d.unwrap()]"),
            [3, 17, 31, 46, 64]
        );
    }

    #[test]
    fn names_alone_are_no_calls() {
        assert!(
            columns("unwrap(); a.unwrap; a.unwrap_or(b); fn expect() {} use std::panic; panic != b")
                .is_empty()
        );
        assert!(columns("Option::unwrap(a); a.unwrap(b); a.expect(); 0..unwrap(); a.r#unwrap()").is_empty());
        assert!(
            columns("macro_rules! panic { () => {} } #[expect(x)] #[panic_handler] fn f() {}").is_empty()
        );
    }

    #[test]
    fn text_is_no_code() {
        assert!(
            columns("\".unwrap()\"; r#\"a.unwrap() \"panic!()\"\"# // b.unwrap()\n/* panic!() */").is_empty()
        );
    }
}
