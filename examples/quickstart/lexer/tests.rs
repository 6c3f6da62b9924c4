//! What the lexer must not be fooled by.

use super::{Kind, Lexed, Position, lex};

fn names<'a>(lexed: &Lexed<'a>) -> Vec<&'a str> {
    lexed.tokens.iter().filter(|token| token.kind == Kind::Ident).map(|token| token.text).collect()
}

fn literals<'a>(lexed: &Lexed<'a>) -> Vec<&'a str> {
    lexed.tokens.iter().filter(|token| token.kind == Kind::Literal).map(|token| token.text).collect()
}

fn comments<'a>(lexed: &Lexed<'a>) -> Vec<&'a str> {
    lexed.comments.iter().map(|comment| comment.text).collect()
}

#[test]
fn comments_nest_and_strings_do_not_hold_them() {
    let lexed = lex("a /* 1 /* 2 */ \" */ b // c \"\n\"// no /* no\" d /**/ e");
    assert_eq!(comments(&lexed), ["/* 1 /* 2 */ \" */", "// c \"", "/**/"]);
    assert_eq!(names(&lexed), ["a", "b", "d", "e"]);
}

#[test]
fn a_comment_keeps_its_place_and_loses_the_line_end() {
    let lexed = lex("é // x\r\n\t/* y */");
    assert_eq!(comments(&lexed), ["// x", "/* y */"]);
    assert_eq!(lexed.comments[0].at, Position { line: 1, column: 3 });
    assert_eq!(lexed.comments[1].at, Position { line: 2, column: 2 });
}

#[test]
fn raw_strings_end_at_as_many_hashes() {
    let lexed = lex(r####"r"\" x r#"a " // "# y br##"b "# c"## z cr"//" r###"open "## //"####);
    assert_eq!(names(&lexed), ["x", "y", "z"]);
    assert!(lexed.comments.is_empty());
    assert_eq!(literals(&lexed).len(), 5);
}

#[test]
fn raw_names_are_names() {
    let lexed = lex("r#unsafe { r#\"s\"# } 'r#a r # b");
    assert_eq!(names(&lexed), ["r#unsafe", "r", "b"]);
    assert!(lexed.is(4, Kind::Lifetime, "'r#a"));
}

#[test]
fn characters_are_told_from_lifetimes() {
    let lexed = lex(r#"'a' 'b '\'' '"' '\u{1F600}' b'\\' b'"' b'\'' '_ 'static: 'é' '/' '/' //"#);
    assert_eq!(
        literals(&lexed),
        ["'a'", r"'\''", "'\"'", r"'\u{1F600}'", r"b'\\'", "b'\"'", r"b'\''", "'é'", "'/'", "'/'"]
    );
    let lifetimes = lexed.tokens.iter().filter(|token| token.kind == Kind::Lifetime);
    assert_eq!(lifetimes.map(|token| token.text).collect::<Vec<_>>(), ["'b", "'_", "'static"]);
    assert_eq!(comments(&lexed), ["//"]);
}

#[test]
fn strings_may_hold_quotes_and_line_ends() {
    let lexed = lex("\"a\\\"// \n \\\\\" x b\"\\\"\" c\"//\" y");
    assert_eq!(names(&lexed), ["x", "y"]);
    assert_eq!(lexed.tokens[1].at, Position { line: 2, column: 6 });
}

#[test]
fn numbers_leave_ranges_and_methods_alone() {
    let lexed = lex("1.5e-3 0..9 1.max(2) 0xe-1 1_000u32 2. x.0.unwrap() 1usize-1");
    assert_eq!(
        literals(&lexed),
        ["1.5e-3", "0", "9", "1", "2", "0xe", "1", "1_000u32", "2.", "0", "1usize", "1"]
    );
    assert_eq!(names(&lexed), ["max", "x", "unwrap"]);
}

#[test]
fn brackets_know_their_partner_and_their_parent() {
    let lexed = lex("a(b[c]{d}) e");
    assert_eq!(lexed.tokens[1].partner, Some(9));
    assert_eq!(lexed.tokens[9].partner, Some(1));
    assert_eq!(lexed.tokens[4].parent, Some(3));
    assert_eq!(lexed.tokens[9].parent, None);
    assert_eq!(lexed.after(1), 10);
    assert_eq!(lexed.after(0), 1);
}

#[test]
fn brackets_that_fit_nothing_are_kept() {
    let lexed = lex(") ( ] }");
    assert_eq!(lexed.tokens.len(), 4);
    assert!(lexed.tokens.iter().all(|token| token.partner.is_none()));
    assert_eq!(lexed.after(1), 4);
}

#[test]
fn operators_are_marks_without_a_gap() {
    let lexed = lex("=> = >");
    assert!(lexed.is_operator(0, "=>"));
    assert!(!lexed.is_operator(2, "=>"));
    assert!(!lexed.is_operator(3, "=>"));
}

#[test]
fn what_comes_before_the_source_is_passed() {
    assert_eq!(names(&lex("\u{feff}#!/usr/bin/env run\nx")), ["x"]);
    assert_eq!(lex("\u{feff}x").tokens[0].at, Position::START);
    assert_eq!(names(&lex("#![allow(y)] x")), ["allow", "y", "x"]);
}

#[test]
fn what_is_left_open_ends_with_the_text() {
    for text in ["\"a", "/* /* */ a", "r#\"a\"", "'", "'\\", "b'", "b\"\\", "r#", "0x", "1.", "{"] {
        let lexed = lex(text);
        assert!(lexed.tokens.len() + lexed.comments.len() <= 2, "{text}");
    }
}
