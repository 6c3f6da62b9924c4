//! The derives as other people's programs meet them: what compiles, what does not, and what is said then.
//!
//! - `fixtures/`: packages with the dependencies that users have, one for each way to reach the runtime crate.
//! - `ui/`: programs that compile, and programs with mistakes beside the `.stderr` that they get. After a change of
//!   words, `BLESS=1 cargo test -p octollm-macros --test users` writes those anew; only messages of our own stand
//!   there, which are the same from compiler to compiler.
//!
//! All of them are one workspace and one run of cargo, so that the dependencies are compiled once.

use std::{
    collections::BTreeMap,
    env, fs, io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde_json::Value;

/// What a package must be told, where not each of its words is ours.
const TOLD: [(&str, &[&str]); 2] = [
    (
        "fixture-forgotten",
        &["`WriteTo` has `#[garde(..)]` rules that need a feature of garde", "main.rs:5:8"],
    ),
    ("fixture-without", &["this derive needs octollm: add `octollm` to the dependencies", "main.rs:3:8"]),
];

#[test]
fn users_get_what_they_wrote_or_are_told_why_not() -> io::Result<()> {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let mut said = check(&lay_out(&tests)?)?;
    for (program, words) in TOLD {
        let said = said.remove(program).unwrap_or_default();
        assert!(words.iter().all(|words| said.contains(words)), "{program}: {said}");
    }
    let mut differing = Vec::new();
    for source in files(&tests.join("ui"), "rs")? {
        let program = source.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let said = said.remove(&program).unwrap_or_default();
        let expected = source.with_extension("stderr");
        if env::var_os("BLESS").is_some() && !said.is_empty() {
            fs::write(&expected, &said)?;
        }
        let expected = if expected.exists() { fs::read_to_string(&expected)? } else { String::new() };
        if said != expected {
            differing.push(format!("{program} is told\n{said}\nand not\n{expected}"));
        }
    }
    assert!(differing.is_empty(), "{}", differing.join("\n"));
    assert_eq!(said, BTreeMap::new(), "all others compile without a warning");
    Ok(())
}

/// Compiles everything; gives what each program is told, if it is told something.
fn check(workspace: &Path) -> io::Result<BTreeMap<String, String>> {
    let output = Command::new(env!("CARGO"))
        .args(["check", "--offline", "--workspace", "--keep-going", "--message-format=json"])
        .current_dir(workspace)
        .env("CARGO_TARGET_DIR", workspace.join("target"))
        .env("CARGO_INCREMENTAL", "0")
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .stderr(Stdio::piped())
        .output()?;
    let mut said = BTreeMap::<_, String>::new();
    let mut compiled = 0;
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let event: Value = serde_json::from_str(line)?;
        compiled += usize::from(event["reason"] == "compiler-artifact");
        // Without a place it only counts the others.
        let is_placed = event["message"]["spans"].as_array().is_some_and(|spans| !spans.is_empty());
        if let (Some(program), Some(message), true) =
            (event["target"]["name"].as_str(), event["message"]["rendered"].as_str(), is_placed)
        {
            let message = message.replace('\\', "/").replace("mistakes/src/bin/", "tests/ui/");
            said.entry(program.to_owned()).or_default().push_str(&message);
        }
    }
    assert!(compiled > 0, "{}", String::from_utf8_lossy(&output.stderr));
    Ok(said)
}

/// Copies the programs to where building writes, with the versions that this workspace has.
fn lay_out(tests: &Path) -> io::Result<PathBuf> {
    let root = tests.join("../..").canonicalize()?;
    let workspace = Path::new(env!("CARGO_TARGET_TMPDIR")).join("users");
    copy(&tests.join("fixtures"), &workspace, &root)?;
    let programs = workspace.join("mistakes/src/bin");
    fs::create_dir_all(&programs)?;
    // None stays that has gone.
    for old in files(&programs, "rs")? {
        if !tests.join("ui").join(old.file_name().unwrap_or_default()).exists() {
            fs::remove_file(old)?;
        }
    }
    copy(&tests.join("ui"), &programs, &root)?;
    fs::copy(root.join("Cargo.lock"), workspace.join("Cargo.lock"))?;
    Ok(workspace)
}

/// Copies a folder; manifests find the crates of this workspace in their new place too.
fn copy(from: &Path, to: &Path, root: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if entry.file_type()?.is_dir() {
            copy(&from, &to, root)?;
            continue;
        }
        let root = root.to_string_lossy().replace('\\', "/");
        let text = fs::read_to_string(&from)?.replace("\"../../../..", &format!("\"{root}"));
        // What did not change keeps its time, so that nothing is compiled twice.
        if fs::read_to_string(&to).ok().as_ref() != Some(&text) {
            fs::write(&to, text)?;
        }
    }
    Ok(())
}

fn files(folder: &Path, extension: &str) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|it| it == extension) {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}
