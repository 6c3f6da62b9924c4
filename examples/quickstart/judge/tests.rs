//! The judge as a whole, on sources that are hard to read.

use super::judge;
use crate::finding::Rule;

fn lines(text: &str, rule: Rule) -> Vec<usize> {
    let report = judge("src/a.rs", text);
    report.findings.iter().filter(|finding| finding.rule == rule).map(|finding| finding.line).collect()
}

#[test]
fn what_does_not_parse_says_where() {
    let report = judge("src/a.rs", "fn a() {}\nfn é() { let = 1; } // TODO\nx.unwrap()");
    let places: Vec<_> = report.findings.iter().map(|f| (f.rule, f.line, f.column)).collect();
    assert_eq!(places, [(Rule::DoesNotParse, 2, 14), (Rule::Todo, 2, 24)]);
    assert_eq!((report.lines, report.functions, report.public_items), (3, 0, 0));
}

#[test]
fn what_cannot_be_lexed_does_not_parse() {
    for text in ["fn f() { \"", "/*", "fn f() {", "}", "'", "\u{0}"] {
        assert_eq!(lines(text, Rule::DoesNotParse).len(), 1, "{text:?}");
    }
}

#[test]
fn findings_come_by_line() {
    let text = "pub fn a() { b.unwrap() } // TODO\n/* FIXME */ pub fn c() { unsafe { d() } }";
    let report = judge("src/a.rs", text);
    let rules: Vec<_> = report.findings.iter().map(|finding| finding.rule).collect();
    use Rule::*;
    assert_eq!(rules, [MissingDocs, MayPanic, Todo, Todo, MissingDocs, UnsafeWithoutSafety]);
    assert_eq!((report.lines, report.functions, report.public_items), (2, 2, 2));
}

#[test]
fn tests_may_panic() {
    let text = "#[cfg(test)]\nmod tests { fn a() { b.unwrap() }\n }\n#[tokio::test]\nasync fn c() { d.unwrap() }\n\
        impl A { #[cfg(test)] fn e() { f.unwrap() } fn g() {\n h.unwrap() } }\n\
        fn i() { #[cfg(test)] j.unwrap(); #[cfg(test)] { k.unwrap() } #[cfg(test)] let l = m.unwrap();\n\
        match n { #[cfg(test)] O => p.unwrap(), _ => q } S { #[cfg(test)] r: s.unwrap(), t }; }";
    assert_eq!(lines(text, Rule::MayPanic), [7]);
    assert_eq!(lines("#![cfg(test)]\nfn a() { b.unwrap() }", Rule::MayPanic), [0; 0]);
}

#[test]
fn what_is_not_only_for_tests_may_not() {
    let text =
        "#[cfg(not(test))] fn a() { b.unwrap() }\n#[cfg(any(test, unix))] mod c { fn d() { panic!() } }";
    assert_eq!(lines(text, Rule::MayPanic), [1, 2]);
}

#[test]
fn macros_may_hold_tests() {
    let text = "wrap! { #[cfg(test)] mod a { fn b() { c.unwrap() } } fn d() {\n e.unwrap() } }\n\
        cases! { #[test] fn f(x in 0..9) { g.unwrap() } fn h(x in 0..9) {\n i.unwrap() } }\n\
        fn j() { cfg_if! { if #[cfg(test)] { k.unwrap() } else {\n l.unwrap() } } }";
    assert_eq!(lines(text, Rule::MayPanic), [2, 4, 6]);
}

#[test]
fn files_of_tests_may_panic_and_need_no_documentation() {
    let text = "pub fn a() { b.unwrap() } // TODO";
    assert_eq!(judge("tests/a.rs", text).findings.len(), 1);
    assert_eq!(judge("benches/a.rs", text).public_items, 0);
    assert_eq!(judge("examples/a.rs", text).findings.len(), 3);
}

#[test]
fn modules_of_tests_in_other_files_are_named() {
    let text = "#[cfg(test)] mod tests; mod b { #[cfg(test)] mod c; } mod f; #[doc(hidden)] pub mod g; \
        #[cfg(test)] #[path = \"../x/d.rs\"] mod e; #[cfg(test)] mod h { mod i; }";
    let modules = |path| judge(path, text).test_modules;
    assert_eq!(modules("src/lib.rs"), ["src/tests", "src/b/c", "x/d", "src/h/i"]);
    assert_eq!(modules("src/a.rs"), ["src/a/tests", "src/a/b/c", "x/d", "src/a/h/i"]);
    assert_eq!(modules("src/a/mod.rs"), ["src/a/tests", "src/a/b/c", "src/x/d", "src/a/h/i"]);
    assert_eq!(judge("src/lib.rs", text).hidden_modules, ["src/g"]);
    assert_eq!(judge("src/a.rs", "#![cfg(test)] mod b;").test_modules, ["src/a/b"]);
}

#[test]
fn a_preamble_moves_nothing() {
    let text =
        "\u{feff}#!/usr/bin/env run\r\npub fn a() {\r\n\tb.unwrap() }\r\n#[cfg(test)] fn c() { d.unwrap() }";
    assert_eq!(lines(text, Rule::MissingDocs), [2]);
    assert_eq!(lines(text, Rule::MayPanic), [3]);
    assert_eq!(judge("a.rs", "\u{feff}pub fn a() {}").findings[0].column, 8);
}

/// Each would take a parser through its stack.
#[test]
fn hostile_sources_are_refused_alive() {
    for part in [
        "(",
        "[",
        "{",
        "!",
        "-",
        "&",
        "a.b().",
        "a + ",
        "A<",
        "Vec<u8, A<",
        "if a {} else ",
        "return ",
        "|| ",
    ] {
        let text = format!("fn f() {{ let x = {}", part.repeat(100_000));
        assert_eq!(lines(&text, Rule::DoesNotParse).len(), 1, "{part}");
    }
}

/// Each goes as deep as is let through, and must fit the stack.
#[test]
fn the_deepest_sources_are_read() {
    let deepest = super::nesting::TOKENS - 50;
    for (part, tokens, last) in
        [("!", 1, "x"), ("x + ", 2, "x"), ("x.y.", 4, "z"), ("&", 1, "x"), ("x = ", 2, "x")]
    {
        let text = format!("fn f() {{ let _ = {}{last}; }}", part.repeat(deepest / tokens));
        assert_eq!(lines(&text, Rule::DoesNotParse), [0; 0], "{part}");
    }
    for (part, tokens, last) in
        [("if a {} else ", 4, "{}"), ("|| ", 2, "x"), ("return ", 1, "x"), ("*", 1, "x")]
    {
        let text = format!("fn f() {{ {}{last} }}", part.repeat(deepest / tokens));
        assert_eq!(lines(&text, Rule::DoesNotParse), [0; 0], "{part}");
    }
    for (open, close) in [("(", ")"), ("[", "]"), ("{", "}"), ("f(", ")"), ("|| {", "}"), ("m![", "]")] {
        let text = format!("fn f() {{ {}x{} }}", open.repeat(190), close.repeat(190));
        assert_eq!(lines(&text, Rule::DoesNotParse), [0; 0], "{open}");
    }
    let text = format!("type T = {}u8{};", "A<".repeat(deepest / 4), ">".repeat(deepest / 4));
    assert_eq!(lines(&text, Rule::DoesNotParse), [0; 0]);
}
