//! The main job, as a user runs it.

use std::{
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::examples::example;

fn write(root: &Path, path: &str, text: impl AsRef<[u8]>) {
    let path = root.join(path);
    std::fs::create_dir_all(path.parent().expect("it has one")).expect("it can be made");
    std::fs::write(path, text).expect("it can be written");
}

/// A crate with one of each.
fn sample() -> tempfile::TempDir {
    let root = tempfile::tempdir().expect("a temporary folder");
    let token = format!("ghp_{}", "a1B2".repeat(9));
    write(
        root.path(),
        "src/lib.rs",
        "pub fn bare() {}\n// TODO: more\nfn risky() { None::<u8>.unwrap(); }\n",
    );
    write(root.path(), "src/leak.rs", format!("const TOKEN: &str = \"{token}\";\n"));
    write(root.path(), "src/broken.rs", "fn broken( {\n");
    write(root.path(), "src/latin.rs", b"// caf\xe9\n");
    write(root.path(), "target/ignored.rs", "fn x() { y.unwrap() }\n");
    write(root.path(), ".gitignore", "/target\n");
    root
}

#[test]
fn the_report_is_true() {
    let root = sample();
    let output = example("quickstart").arg(root.path()).arg("--json").output().expect("it runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON and nothing else");
    assert_eq!(report["files"], 3);
    assert_eq!(report["totals"]["missing-docs"], 1);
    assert_eq!(report["totals"]["may-panic"], 1);
    assert_eq!(report["totals"]["todo"], 1);
    assert_eq!(report["totals"]["does-not-parse"], 1);
    assert_eq!(report["secrets"].as_array().map(Vec::len), Some(1));
    assert_eq!(report["skipped"].as_array().map(Vec::len), Some(1));
    let page = String::from_utf8_lossy(&output.stdout);
    assert!(!page.contains("a1B2a1B2a1B2"), "a secret is never printed whole");
    assert!(!page.contains("ignored.rs"));
}

/// The report on a crate of these files.
fn review(files: &[(&str, &str)]) -> Value {
    let root = tempfile::tempdir().expect("a temporary folder");
    files.iter().for_each(|(path, text)| write(root.path(), path, text));
    let output = example("quickstart").arg(root.path()).arg("--json").output().expect("it runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// Where a rule does not hold in a file.
fn lines(report: &Value, path: &str, rule: &str) -> Vec<u64> {
    let findings = report["findings"].as_array().expect("a list").iter();
    let of_rule = findings.filter(|finding| finding["path"] == path && finding["rule"] == rule);
    of_rule.filter_map(|finding| finding["line"].as_u64()).collect()
}

#[test]
fn code_that_may_panic_is_found_in_macros_and_not_in_tests() {
    let files = [
        ("a.rs", "fn a() { b.unwrap(); c . expect (\"d\"); }\nfn e() { std::panic! {}; vec![f.unwrap()]; }"),
        (
            "b.rs",
            "fn a() { unwrap(); b.unwrap_or(c); d.unwrap(e); f.expect(); 0..unwrap(); \".unwrap()\"; } // g.unwrap()",
        ),
        (
            "c.rs",
            "#[cfg(test)]\nmod tests { fn a() { b.unwrap() }\n }\n#[tokio::test]\nasync fn c() { d.unwrap() }\n\
             impl A { #[cfg(test)] fn e() { f.unwrap() } fn g() {\n h.unwrap() } }\n\
             fn i() { #[cfg(test)] j.unwrap(); #[cfg(test)] { k.unwrap() } #[cfg(test)] let l = m.unwrap();\n\
             match n { #[cfg(test)] O => p.unwrap(), _ => q } S { #[cfg(test)] r: s.unwrap(), t }; }",
        ),
        ("d.rs", "#![cfg(all(unix, any(test, doctest)))]\nfn a() { b.unwrap() }"),
        (
            "e.rs",
            "#[cfg(not(test))] fn a() { b.unwrap() }\n#[cfg(any(test, unix))] mod c { fn d() { panic!() } }",
        ),
        (
            "f.rs",
            "wrap! { #[cfg(test)] mod a { fn b() { c.unwrap() } } fn d() {\n e.unwrap() } }\n\
             cases! { #[test] fn f(x in 0..9) { g.unwrap() } fn h(x in 0..9) {\n i.unwrap() } }\n\
             fn j() { cfg_if! { if #[cfg(test)] { k.unwrap() } else {\n l.unwrap() } } }",
        ),
        ("tests/g.rs", "pub fn a() { b.unwrap() }"),
    ];
    let report = review(&files);
    let found = files.map(|(path, _)| lines(&report, path, "may-panic"));
    assert_eq!(found, [vec![1, 1, 2, 2], vec![], vec![7], vec![], vec![1, 2], vec![2, 4, 6], vec![]]);
    assert_eq!(report["totals"]["does-not-parse"], 0);
}

#[test]
fn unsafe_code_needs_a_reason_of_its_own() {
    let files = [
        (
            "a.rs",
            "fn f() {\n unsafe { g() }\n}\nunsafe impl Send for A {}\nunsafe fn h() {} unsafe trait T {}",
        ),
        (
            "b.rs",
            "fn f() {\n // SAFETY: a\n // b\n unsafe { c() }\n}\n/* Safety: a\n b */\nunsafe impl A for B {}",
        ),
        ("c.rs", "fn f() { unsafe { c() } // safety: a\n}\nfn g() { unsafe {\n // SAFETY: a\n b() } }"),
        (
            "d.rs",
            "fn f() { unsafe {\n b();\n // SAFETY: a\n c() } }\n// SAFETY: a\nfn g() {\n unsafe { b() } }",
        ),
        ("e.rs", "fn f() {\n// SAFETY: a\n#[inline]\nlet x: [u8; 2] =\n  b(c, [A { d: unsafe { e() } }]); }"),
        (
            "f.rs",
            "fn f() {\n// SAFETY: a\nunsafe { b() }\nunsafe { c() }\n}\nfn g() { \"// SAFETY: a\";\n unsafe {} }",
        ),
        ("g.rs", "fn f() { m!{ // SAFETY: a\n unsafe { b() };\n unsafe { c() } } }\n// unsafe { d() }"),
        ("h.rs", "fn f() { match x {\n A { .. } => {}\n // SAFETY: a\n B => unsafe { c() }, } }"),
    ];
    let report = review(&files);
    let found = files.map(|(path, _)| lines(&report, path, "unsafe-without-safety"));
    assert_eq!(found, [vec![2, 4], vec![], vec![], vec![1, 7], vec![], vec![4, 7], vec![3], vec![]]);
}

#[test]
fn what_is_public_needs_documentation() {
    let files = [
        (
            "a.rs",
            "pub fn a() {}\npub struct B { pub c: u8, d: u8 }\npub enum E { F { g: u8 } }\npub trait H { fn i(); }\n\
             pub mod j {}\nextern \"C\" { pub fn k(); }\n#[macro_export(x)] macro_rules! l { () => {} }\n\
             impl Elsewhere { pub const M: u8 = 0; }",
        ),
        (
            "b.rs",
            "fn a() { pub fn b() {} }\npub(crate) fn c() {}\nstruct D { pub e: u8 }\nimpl D { pub fn f() {} }\npub mod g;",
        ),
        (
            "c.rs",
            "/// a\npub fn a() {}\n#[doc = \"b\"] pub fn b() {}\npub mod d { //! d\n }\n/** e */ pub fn e() {}\n\
             #[cfg_attr(x, doc = \"f\")] pub fn f() {}\n#[doc(hidden)] pub mod g { pub fn h() {} }",
        ),
        ("d.rs", "#[doc(alias = \"x\")] pub fn a() {}\n// b\npub fn b() {}\n#[cfg(not(test))] pub fn c() {}"),
        ("e.rs", "cfg_x! { #![cfg(x)]\n pub fn a() {}\n cfg_y! { pub fn b() {} } }\nflags! { pub a b c }"),
        ("f.rs", "impl A { cfg_x! {\n pub fn b(&self) {} } }\n#[doc(hidden)] cfg_y! { pub fn c() {} }"),
        (
            "src/lib.rs",
            "#[cfg(test)] mod checks;\n#[doc(hidden)] pub mod inner;\nmod m { #[cfg(test)] mod n; }",
        ),
        ("src/checks.rs", "pub fn a() { b.unwrap() }"),
        ("src/checks/more.rs", "pub fn a() { b.unwrap() }"),
        ("src/inner.rs", "pub fn a() {}"),
        ("src/m/n.rs", "pub fn a() { b.unwrap() }"),
    ];
    let report = review(&files);
    let found = files.map(|(path, _)| lines(&report, path, "missing-docs"));
    assert_eq!(found[0], [1, 2, 2, 3, 3, 3, 4, 4, 5, 6, 7, 8]);
    assert_eq!(found[1..6], [vec![], vec![], vec![1, 3, 4], vec![2, 3], vec![2]]);
    assert_eq!(found[6..], [const { Vec::<u64>::new() }; 5]);
    assert_eq!((&report["public_items"], &report["totals"]["may-panic"]), (&23.into(), &0.into()));
}

#[test]
fn functions_and_marks_are_counted_where_they_are_written() {
    let long = |lines| format!("#[inline]\npub fn f() {{\n{}}}", "x();\n".repeat(lines));
    let (short, long) = (long(58), long(59));
    let functions = "fn a() {} trait T { fn b(); fn c() { fn d() {} } } wrap! { fn e() {} } type P = fn(u8); // fn f() {}\n\
        macro_rules! m { (fn $fn:ident() { }) => { fn $fn() { } }; }";
    let marks = "// TODO\nfn f() { x /* a\n é FIXME(me): b */; y(\"// TODO\") }\n/// see TODO, TODO.\n// TODOS todo éTODO";
    let report = review(&[("a.rs", &short), ("b.rs", &long), ("c.rs", functions), ("d.rs", marks)]);
    assert_eq!(lines(&report, "a.rs", "long-function"), [0; 0]);
    assert_eq!(lines(&report, "b.rs", "long-function"), [2]);
    assert_eq!(lines(&report, "d.rs", "todo"), [1, 3, 4]);
    assert_eq!(report["functions"], 2 + 5 + 1);
}

#[test]
fn any_edition_is_rust_and_other_texts_say_where_they_are_not() {
    let report = review(&[
        ("a.rs", "fn f() { let r#gen = 1; g.gen(); async {}; }"),
        ("b.rs", "type A = Fn(u8) + Send; fn async() {}"),
        ("c.rs", "\u{feff}#!/usr/bin/env run\r\nfn a() {}\r\n"),
        ("d.rs", "fn a() {}\nfn é() { let = 1; } // TODO"),
        ("e.rs", "fn f() { \""),
    ]);
    let found = ["a.rs", "b.rs", "c.rs", "d.rs", "e.rs"].map(|path| lines(&report, path, "does-not-parse"));
    assert_eq!(found, [vec![], vec![], vec![], vec![2], vec![1]]);
    assert_eq!(lines(&report, "d.rs", "todo"), [2]);
}

/// Each would take a parser that calls itself through its stack.
#[test]
fn hostile_sources_are_refused_alive() {
    let parts =
        ["(", "{", "!", "&", "A<B, ", "A<<B as C<D, ", "if a {} else ", "return ", "|| ", "x = ", "m!["];
    let texts = parts.map(|part| format!("fn f() {{ let x = {}", part.repeat(50_000)));
    let names = parts.map(|part| format!("{}.rs", part.len() * 1_000 + usize::from(part.as_bytes()[0])));
    let files: Vec<_> = names.iter().zip(&texts).map(|(name, text)| (name.as_str(), text.as_str())).collect();
    let deep = format!("fn f() {{ {}x{} }}", "f(".repeat(190), ")".repeat(190));
    let many = "#[case(1, 2)]\n".repeat(2_000) + "fn f() {}";
    let report = review(&[files, vec![("deep.rs", &deep), ("many.rs", &many)]].concat());
    assert_eq!(report["totals"]["does-not-parse"], parts.len());
    assert_eq!(lines(&report, "deep.rs", "does-not-parse"), [0; 0]);
}

/// No secret stands in this file, so that nobody takes it for a leak.
#[test]
fn secrets_are_found_by_their_form_and_never_shown() {
    let body = |length: usize| "aB34".repeat(64)[..length].to_owned();
    let key = [
        "-----BEGIN",
        " RSA PRIVATE KEY-----\\nMIIEvQIBADANBgkqhkiG9w0B\\n-----END",
        " RSA PRIVATE KEY-----",
    ];
    let samples = [
        ("private-key", key.concat()),
        ("aws-access-key", format!("AKIA{}", "Q7".repeat(8))),
        ("github-token", format!("ghp_{}", body(36))),
        ("github-token", format!("github_pat_{}", body(82))),
        ("gitlab-token", format!("glpat-{}", body(20))),
        ("slack-token", format!("xoxb-{}", body(24))),
        ("stripe-key", format!("sk_live_{}", body(24))),
        ("google-api-key", format!("AIza{}", body(35))),
        ("openai-key", format!("sk-proj-{}", body(40))),
        ("openai-key", format!("sk-{}", body(48))),
        ("anthropic-key", format!("sk-ant-{}", body(40))),
        ("npm-token", format!("npm_{}", body(36))),
        ("json-web-token", format!("eyJ{}.eyJ{}.{}", body(18), body(18), body(27))),
    ];
    let found: String = samples.iter().map(|(_, token)| format!("//\\n{token}\\n\n")).collect();
    let longer: String =
        samples[1..].iter().map(|(_, token)| format!("// x{token} -{token} {token}é\n")).collect();
    let url = |password: &str| format!("// é http:{}admin:{password}@host/\n", "//");
    let none = ["$PASSWORD", "{password}", "xxxx", "pass"].map(url).concat()
        + "// http://host:80?a@b AKIAIOSFODNN7EXAMPLE";
    let urls = url("hunter22");
    let report = review(&[("a.rs", &found), ("b.rs", &longer), ("c.rs", &none), ("d.rs", &urls)]);
    let secrets = report["secrets"].as_array().expect("a list");
    let kinds: Vec<_> = secrets.iter().filter_map(|secret| secret["kind"].as_str()).collect();
    assert_eq!(kinds[..13], samples.each_ref().map(|(kind, _)| *kind));
    assert_eq!(secrets[1]["masked"], "AKIA… (20 characters)");
    let password = serde_json::json!({
        "path": "d.rs", "kind": "url-password", "line": 1, "column": 19, "masked": "… (8 characters)"
    });
    assert_eq!(secrets[13..], [password]);
}

#[test]
fn the_page_names_places_and_explains_its_calls() {
    let root = sample();
    let output = example("quickstart").arg(root.path()).arg("--explain").output().expect("it runs");
    let page = String::from_utf8(output.stdout).expect("UTF-8");
    assert!(page.contains("src/lib.rs:3"), "{page}");
    for arm in ["planner", "retriever", "judge", "guardian"] {
        assert!(page.contains(arm), "{page}");
    }
    assert!(page.contains("http://127.0.0.1:") && page.contains("tokens=10000"), "{page}");
}

#[test]
fn what_cannot_be_reviewed_is_reported_in_one_line() {
    let empty = tempfile::tempdir().expect("a temporary folder");
    let missing = empty.path().join("not-there");
    for path in [empty.path(), &missing] {
        let output = example("quickstart").arg(path).output().expect("it runs");
        assert_eq!(output.status.code(), Some(2));
        assert!(output.stdout.is_empty());
        assert_eq!(String::from_utf8_lossy(&output.stderr).lines().count(), 1);
    }
}

#[test]
fn a_reader_that_has_seen_enough_is_no_failure() {
    let root = sample();
    let mut child = example("quickstart")
        .arg(root.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    drop(child.stdout.take()); // as `head` does
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn help_is_no_mistake() {
    let output = example("quickstart").arg("--help").output().expect("it runs");
    assert!(output.status.success());
    assert!(String::from_utf8_lossy(&output.stdout).starts_with("usage: quickstart"));
}

/// Whether a process handles SIGINT itself: the quickstart does once its task is submitted.
fn takes_interrupts(process: u32) -> bool {
    const SIGINT: u64 = 1 << 1;
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
    caught.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & SIGINT != 0)
}

#[test]
fn ctrl_c_ends_it_within_a_second() {
    let root = tempfile::tempdir().expect("a temporary folder");
    // More than can be judged before it is interrupted.
    for number in 0..400 {
        write(root.path(), &format!("src/f{number}.rs"), "/// Docs.\npub fn f() { 1 + 1; }\n".repeat(3_000));
    }
    let mut child = example("quickstart")
        .arg(root.path())
        .arg("--json")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    let until = Instant::now() + Duration::from_secs(20);
    while !takes_interrupts(child.id()) {
        assert!(Instant::now() < until, "it does not follow its task");
        std::thread::yield_now();
    }
    assert!(child.try_wait().expect("it can be asked").is_none(), "it ended before it was interrupted");
    let interrupted = Instant::now();
    let sent = Command::new("kill").args(["-INT", &child.id().to_string()]).status().expect("kill runs");
    assert!(sent.success());
    let status = child.wait().expect("it ends");
    // It takes some hundredths of a second; a machine that is busy with other tests is given more than one.
    assert!(interrupted.elapsed() < Duration::from_secs(3), "{:?}", interrupted.elapsed());
    assert_eq!(status.code(), Some(130));
}
