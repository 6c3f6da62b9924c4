//! Files, and what is held to them.

use std::{env, fmt::Debug, fs, path::PathBuf, str::FromStr};

use serde::{Serialize, de::DeserializeOwned};

/// The task of every example.
pub(crate) const TASK: &str = "task_3fK9aZ0qLw81bXyT";
/// When it was submitted.
pub(crate) const NOW: &str = "2025-11-10T10:30:00Z";

pub(crate) fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/wire/golden")
}

#[track_caller]
pub(crate) fn read(name: &str) -> String {
    let path = folder().join(name);
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{name}: {error}; `BLESS=1` writes it"))
}

/// Holds a text to its file.
#[track_caller]
pub(crate) fn hold(name: &str, written: &str) {
    if env::var_os("BLESS").is_some() {
        fs::write(folder().join(name), written).unwrap();
    }
    let expected = read(name);
    assert!(written == expected, "{name} is now\n{written}\nand was\n{expected}");
}

/// Holds a value to its file, both ways.
#[track_caller]
pub(crate) fn hold_json<T: Serialize + DeserializeOwned + PartialEq + Debug>(name: &str, value: &T) {
    hold(name, &pretty(value));
    assert_eq!(&read_json::<T>(name), value, "{name}");
}

/// Holds a value of a type without equality to its file: what is read is written the same again.
#[track_caller]
pub(crate) fn hold_again<T: Serialize + DeserializeOwned>(name: &str, value: &T) {
    let written = pretty(value);
    hold(name, &written);
    assert_eq!(pretty(&read_json::<T>(name)), written, "{name}");
}

#[track_caller]
pub(crate) fn read_json<T: DeserializeOwned>(name: &str) -> T {
    serde_json::from_str(&read(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

pub(crate) fn pretty(value: &impl Serialize) -> String {
    serde_json::to_string_pretty(value).unwrap() + "\n"
}

/// An id, a time, a budget from its text.
#[track_caller]
pub(crate) fn parsed<T: FromStr<Err: Debug>>(text: &str) -> T {
    text.parse().unwrap()
}
