//! The main job, as a user runs it.

use std::{
    path::Path,
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use proc_macro2::{TokenStream, TokenTree};
use serde_json::Value;

use crate::examples::example;

/// A crate of these files.
fn files<'a>(files: impl IntoIterator<Item = (&'a str, &'a str)>) -> tempfile::TempDir {
    let root = tempfile::tempdir().expect("a temporary folder");
    for (path, text) in files {
        let path = root.path().join(path);
        std::fs::create_dir_all(path.parent().expect("it has one")).expect("it can be made");
        std::fs::write(path, text).expect("it can be written");
    }
    root
}

/// A crate with one of each.
fn sample() -> tempfile::TempDir {
    let leak = format!("const TOKEN: &str = \"ghp_{}\";\n", "a1B2".repeat(9));
    let root = files([
        ("src/lib.rs", "pub fn bare() {}\n// TODO: more\nfn risky() { None::<u8>.unwrap(); }\n"),
        ("src/leak.rs", &leak),
        ("src/broken.rs", "fn broken( {\n"),
        ("target/ignored.rs", "fn x() { y.unwrap() }\n"),
        (".gitignore", "/target\n"),
    ]);
    std::fs::write(root.path().join("src/latin.rs"), b"// caf\xe9\n").expect("it can be written");
    root
}

fn run(root: &Path, option: &str) -> Output {
    let output = example("quickstart").arg(root).arg(option).output().expect("it runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output
}

fn review(root: &Path) -> Value {
    serde_json::from_slice(&run(root, "--json").stdout).expect("JSON and nothing else")
}

/// Where a rule does not hold: `a.rs:1 a.rs:2 b.rs:1`.
fn places(report: &Value, rule: &str) -> String {
    let findings = report["findings"].as_array().expect("a list").iter();
    let of_rule = findings.filter(|finding| finding["rule"] == rule);
    let places: Vec<_> = of_rule
        .map(|found| format!("{}:{}", found["path"].as_str().unwrap_or_default(), found["line"]))
        .collect();
    places.join(" ")
}

#[test]
fn the_report_is_true_and_shows_no_secret() {
    let output = run(sample().path(), "--json");
    let page = String::from_utf8(output.stdout).expect("UTF-8");
    let report: Value = serde_json::from_str(&page).expect("JSON and nothing else");
    assert_eq!(report["files"], 3);
    let totals = serde_json::json!({
        "does-not-parse": 1, "unsafe-without-safety": 0, "may-panic": 1, "long-function": 0, "missing-docs": 1, "todo": 1
    });
    assert_eq!(report["totals"], totals);
    assert_eq!(
        (report["secrets"].as_array().map(Vec::len), report["skipped"].as_array().map(Vec::len)),
        (Some(1), Some(1))
    );
    assert!(!page.contains("a1B2a1B2a1B2") && !page.contains("ignored.rs"), "{page}");
}

/// Counts functions with a body, and `.unwrap()`, with another lexer.
fn count(tokens: TokenStream) -> [usize; 2] {
    let tokens: Vec<_> = tokens.into_iter().collect();
    let mut counts = [0, 0];
    for (at, token) in tokens.iter().enumerate() {
        let next: Vec<_> = tokens[at..].iter().take(3).map(ToString::to_string).collect();
        let mut after = tokens[at..].iter().map(ToString::to_string);
        let end = after.find(|text| text == ";" || text.starts_with('{')).unwrap_or_default();
        let is_function = next[0] == "fn" && matches!(tokens.get(at + 1), Some(TokenTree::Ident(_)));
        counts[0] += usize::from(is_function && end != ";");
        counts[1] += usize::from(next == [".", "unwrap", "()"]);
        if let TokenTree::Group(group) = token {
            let inner = count(group.stream());
            counts = [counts[0] + inner[0], counts[1] + inner[1]];
        }
    }
    counts
}

#[test]
fn the_figures_agree_with_another_count() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/quickstart");
    let mut figures = [0; 4];
    for entry in std::fs::read_dir(&root).expect("it is there") {
        let text = std::fs::read_to_string(entry.expect("it is there").path()).expect("it is a text");
        let [functions, panics] = count(text.parse().expect("it is Rust"));
        figures
            .iter_mut()
            .zip([1, text.lines().count(), functions, panics])
            .for_each(|(sum, next)| *sum += next);
    }
    let report = review(&root);
    let found = [&report["files"], &report["lines"], &report["functions"], &report["totals"]["may-panic"]];
    assert_eq!(found.map(|figure| figure.as_u64()), figures.map(|figure| Some(figure as u64)));
}

/// Files after `//-` and their path.
const RULES: &str = r#"
//- p1.rs
fn a() { b.unwrap(); c . expect ("d"); 0..unwrap(); unwrap(); b.unwrap_or(c); d.unwrap(e); ".unwrap()"; } // g.unwrap()
fn e() { std::panic! {}; vec![f.unwrap()]; f.expect(); }
#[tokio::test] async fn c() { d.unwrap() }
impl A { #[cfg(test)] fn e() { f.unwrap() } fn g() {
    h.unwrap() } }
fn i() { #[cfg(test)] { k.unwrap() } match n { #[cfg(test)] O => p.unwrap(), _ => q } }
wrap! { #[cfg(test)] mod a { fn b() { c.unwrap() } } fn d() {
    e.unwrap() } }
#[cfg(any(test, unix))] mod c { fn d() { panic!() } }
//- p2.rs
#![cfg(all(unix, any(test, doctest)))]
fn a() { b.unwrap() }
//- tests/p3.rs
pub fn a() { b.unwrap() }
//- d1.rs
pub fn a() {} pub struct B { pub c: u8, d: u8 }
pub enum E { F { g: u8 } } pub trait H { fn i(); }
pub mod j {} extern "C" { pub fn k(); } #[macro_export(x)] macro_rules! l { () => {} }
impl Elsewhere { pub const M: u8 = 0; }
cfg_x! { #![cfg(x)]
    pub fn a() {} cfg_y! { pub fn b() {} } } flags! { pub a b c }
//- d2.rs
fn a() { pub fn b() {} } pub(crate) fn c() {} struct D { pub e: u8 } impl D { pub fn f() {} } pub mod g;
/// a
pub fn a() {}
#[doc = "b"] pub fn b() {} pub mod d { //! d
} /** e */ pub fn e() {} #[cfg_attr(x, doc = "f")] pub fn f() {} #[doc(hidden)] pub mod g { pub fn h() {} }
//- lib.rs
#[cfg(test)] mod checks; #[doc(hidden)] pub mod inner; mod m { #[cfg(test)] mod n; }
//- checks/more.rs
pub fn a() { b.unwrap() }
//- inner.rs
pub fn a() {}
//- m/n.rs
pub fn a() { b.unwrap() }
//- u1.rs
fn f() {
    unsafe { g() }
    // SAFETY: a
    // b
    unsafe { c() }
}
unsafe impl Send for A {} unsafe fn h() {} unsafe trait T {}
/* Safety: a
b */ unsafe impl A for B {}
fn g() { unsafe { c() } // safety: a
    unsafe { // SAFETY: a
    b() } }
//- u2.rs
// SAFETY: a
fn f() { unsafe {
    // SAFETY: a
    c() } m!{ // SAFETY: a
    unsafe { b() };
    unsafe { c() } } match x {
    // SAFETY: a
    B => unsafe { c() }, }
    // SAFETY: a
    let x: [u8; 2] =
        b(c, [A { d: unsafe { e() } }]);
    unsafe { c() } }
//- x1.rs
// TODO
fn f() { x /* a
é FIXME(me): b */; y("// TODO") }
/// see TODO, TODO.
// TODOS todo éTODO
//- x2.rs
fn f() { let r#gen = 1; async {}; }
//- x3.rs
type A = Fn(u8) + Send; fn async() {}
//- x4.rs
fn a() {}
fn é() { let = 1; } // TODO
"#;

#[test]
fn each_rule_reads_code_where_it_is_written() {
    let long = |name, lines| format!("#[inline]\nfn {name}() {{\n{}}}\n", "x();\n".repeat(lines));
    let (long, marked) = (long("f", 58) + &long("g", 59), "\u{feff}#!/usr/bin/env run\r\nfn a() {}\r\n");
    let texts = RULES.split("//- ").skip(1).filter_map(|file| file.split_once('\n'));
    let report = review(files(texts.chain([("long.rs", long.as_str()), ("marked.rs", marked)])).path());
    let panics = "p1.rs:1 p1.rs:1 p1.rs:2 p1.rs:2 p1.rs:5 p1.rs:8 p1.rs:9";
    let docs = "d1.rs:1 d1.rs:1 d1.rs:1 d1.rs:2 d1.rs:2 d1.rs:2 d1.rs:2 d1.rs:2 d1.rs:3 d1.rs:3 d1.rs:3 d1.rs:4 d1.rs:6 d1.rs:6";
    assert_eq!(places(&report, "may-panic"), panics);
    assert_eq!(places(&report, "missing-docs"), docs);
    assert_eq!(places(&report, "unsafe-without-safety"), "u1.rs:2 u1.rs:7 u2.rs:6 u2.rs:12");
    assert_eq!(places(&report, "long-function"), "long.rs:63");
    assert_eq!(places(&report, "todo"), "x1.rs:1 x1.rs:3 x1.rs:4 x4.rs:2");
    assert_eq!(places(&report, "does-not-parse"), "x4.rs:2");
}

/// Each would take a parser that calls itself through its stack.
#[test]
fn hostile_sources_are_refused_alive() {
    let parts =
        ["(", "{", "!", "&", "A<B, ", "A<<B as C<D, ", "if a {} else ", "return ", "|| ", "x = ", "m!["];
    let texts = parts.map(|part| format!("fn f() {{ let x = {}", part.repeat(50_000)));
    let names: Vec<_> = (0..parts.len()).map(|number| format!("{number}.rs")).collect();
    let deep = format!("fn f() {{ {}x{} }}", "f(".repeat(190), ")".repeat(190));
    let many = "#[case(1, 2)]\n".repeat(2_000) + "fn f() {}";
    let hostile = names.iter().map(String::as_str).zip(texts.iter().map(String::as_str));
    let report = review(files(hostile.chain([("deep.rs", deep.as_str()), ("many.rs", &many)])).path());
    assert_eq!(report["totals"]["does-not-parse"], parts.len());
    assert_eq!(report["functions"], 2);
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
    let texts = [("a.rs", &*found), ("b.rs", &*longer), ("c.rs", &*none), ("d.rs", &*urls)];
    let report = review(files(texts).path());
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
    let page = String::from_utf8(run(sample().path(), "--explain").stdout).expect("UTF-8");
    for part in
        ["src/lib.rs:3", "planner", "retriever", "judge", "guardian", "http://127.0.0.1:", "tokens=10000"]
    {
        assert!(page.contains(part), "{page}");
    }
}

#[test]
fn what_cannot_be_reviewed_is_reported_in_one_line() {
    let empty = files([]);
    let missing = empty.path().join("not-there");
    for path in [empty.path(), &missing, Path::new("--unknown")] {
        let output = example("quickstart").arg(path).output().expect("it runs");
        assert_eq!(output.status.code(), Some(2));
        assert!(output.stdout.is_empty());
        assert_eq!(String::from_utf8_lossy(&output.stderr).lines().count(), 1);
    }
    assert!(String::from_utf8_lossy(&run(empty.path(), "--help").stdout).starts_with("usage: quickstart"));
}

#[test]
fn a_reader_that_has_seen_enough_is_no_failure() {
    let root = sample();
    let mut program = example("quickstart");
    program.arg(root.path()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = program.spawn().expect("it starts");
    drop(child.stdout.take()); // as `head` does
    let output = child.wait_with_output().expect("it ends");
    assert!(
        output.status.success() && output.stderr.is_empty(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
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
    // More than can be judged before it is interrupted.
    let names: Vec<_> = (0..400).map(|number| format!("src/f{number}.rs")).collect();
    let text = "/// Docs.\npub fn f() { 1 + 1; }\n".repeat(3_000);
    let root = files(names.iter().map(|name| (name.as_str(), text.as_str())));
    let mut program = example("quickstart");
    program.arg(root.path()).arg("--json").stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = program.spawn().expect("it starts");
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
