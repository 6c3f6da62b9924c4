//! Listings and readings of folders that are made for them.

use std::fs;
use std::path::Path;

use tempfile::TempDir;

use super::{ListError, Listing, ReadError, list, read};

const LIMIT: u64 = 1000;

fn folder(files: &[(&str, &[u8])]) -> TempDir {
    let folder = TempDir::new().unwrap();
    for (path, bytes) in files {
        let path = folder.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    folder
}

fn paths(listing: &Listing) -> Vec<&str> {
    listing.files.iter().map(|file| file.path.as_str()).collect()
}

fn skipped(listing: &Listing) -> Vec<(&str, &str)> {
    listing.skipped.iter().map(|file| (file.path.as_str(), file.reason.as_str())).collect()
}

#[test]
fn sources_are_listed_by_path() {
    let folder = folder(&[("src/b.rs", b"12"), ("src/a/c.rs", b""), ("build.rs", b""), ("src/d.txt", b"")]);
    let listing = list(folder.path(), LIMIT).unwrap();
    assert_eq!(paths(&listing), ["build.rs", "src/a/c.rs", "src/b.rs"]);
    assert_eq!(listing.files[2].bytes, 2);
}

#[test]
fn what_is_ignored_hidden_or_a_cache_is_passed_over() {
    let folder = folder(&[
        (".gitignore", b"/out\n*.gen.rs\n!keep.gen.rs\n"),
        (".ignore", b"a.rs\n"),
        ("src/.gitignore", b"no.rs\n"),
        ("src/a.rs", b""),
        ("src/no.rs", b""),
        ("src/b.gen.rs", b""),
        ("src/keep.gen.rs", b""),
        ("out/c.rs", b""),
        (".hidden/d.rs", b""),
        ("target/CACHEDIR.TAG", b""),
        ("target/debug/e.rs", b""),
    ]);
    assert_eq!(paths(&list(folder.path(), LIMIT).unwrap()), ["src/a.rs", "src/keep.gen.rs"]);
}

#[test]
fn the_folders_above_ignore_only_in_their_checkout() {
    let folder = folder(&[(".gitignore", b"gone.rs\n"), ("a/gone.rs", b""), ("a/b.rs", b"")]);
    assert_eq!(paths(&list(&folder.path().join("a"), LIMIT).unwrap()), ["b.rs", "gone.rs"]);
    fs::create_dir(folder.path().join(".git")).unwrap();
    assert_eq!(paths(&list(&folder.path().join("a"), LIMIT).unwrap()), ["b.rs"]);
}

#[test]
fn what_cannot_be_read_is_skipped_with_a_reason() {
    let folder = folder(&[("a.rs", b""), ("b.rs", &[b' '; 1001]), ("c.rs", b"\xff"), ("d.rs/e.txt", b"")]);
    let listing = list(folder.path(), LIMIT).unwrap();
    assert_eq!(paths(&listing), ["a.rs"]);
    assert_eq!(skipped(&listing), [("b.rs", "it is larger than 1000 bytes"), ("c.rs", "it is not UTF-8")]);
}

#[cfg(unix)]
#[test]
fn links_are_skipped() {
    use std::os::unix::fs::symlink;
    let folder = folder(&[("a/b.rs", b"")]);
    symlink("b.rs", folder.path().join("a/c.rs")).unwrap();
    symlink("..", folder.path().join("a/loop")).unwrap();
    symlink("nowhere", folder.path().join("a/text")).unwrap();
    let listing = list(folder.path(), LIMIT).unwrap();
    assert_eq!(paths(&listing), ["a/b.rs"]);
    assert_eq!(skipped(&listing), [("a/c.rs", "it is a symbolic link"), ("a/loop", "it is a symbolic link")]);
}

#[cfg(unix)]
#[test]
fn a_link_to_the_folder_is_the_folder() {
    let folder = folder(&[("real/a.rs", b"")]);
    let link = folder.path().join("link");
    std::os::unix::fs::symlink("real", &link).unwrap();
    let listing = list(&link, LIMIT).unwrap();
    assert_eq!(paths(&listing), ["a.rs"]);
    assert_eq!(skipped(&listing), []);
}

#[test]
fn one_file_is_a_listing_of_its_own() {
    let folder = folder(&[(".gitignore", b"*\n"), ("a/b.rs", b"1"), ("a/c.rs", b"2"), ("a/d.txt", b"")]);
    let root = folder.path().join("a/b.rs");
    assert_eq!(paths(&list(&root, LIMIT).unwrap()), ["b.rs"]);
    assert_eq!(read(&root, "b.rs", LIMIT).unwrap(), "1");
    assert!(matches!(read(&root, "c.rs", LIMIT), Err(ReadError::Outside)));
    assert!(matches!(list(&folder.path().join("a/d.txt"), LIMIT), Err(ListError::NoRust(_))));
}

#[test]
fn nothing_to_review_is_said_in_one_line() {
    let folder = folder(&[("a.txt", b"")]);
    let error = list(folder.path(), LIMIT).unwrap_err().to_string();
    assert_eq!(error, format!("{} has no Rust file", folder.path().display()));
    let error = list(Path::new("no/such"), LIMIT).unwrap_err().to_string();
    assert_eq!(error, "no/such does not exist");
}

#[test]
fn a_file_that_only_is_skipped_is_not_nothing() {
    let folder = folder(&[("a.rs", b"\xff")]);
    assert_eq!(list(folder.path(), LIMIT).unwrap().files, []);
}

#[test]
fn reading_stays_in_the_folder() {
    let folder = folder(&[("secret.rs", b"s"), ("in/a.rs", b"a"), ("in/b.txt", b"b")]);
    let root = folder.path().join("in");
    assert_eq!(read(&root, "a.rs", LIMIT).unwrap(), "a");
    let absolute = folder.path().join("secret.rs").display().to_string();
    for path in ["../secret.rs", "x/../../secret.rs", "./a.rs", "/secret.rs", &absolute] {
        assert!(matches!(read(&root, path, LIMIT), Err(ReadError::Outside)), "{path}");
    }
    for path in ["b.txt", "a", ""] {
        assert!(matches!(read(&root, path, LIMIT), Err(ReadError::NotRust)), "{path}");
    }
    for path in ["c.rs", "a\0.rs"] {
        assert!(matches!(read(&root, path, LIMIT), Err(ReadError::Unreadable(_))), "{path}");
    }
    assert!(matches!(read(&root, "a.rs", 0), Err(ReadError::TooLarge { limit: 0 })));
}

#[cfg(unix)]
#[test]
fn reading_follows_no_link_out() {
    use std::os::unix::fs::symlink;
    let folder = folder(&[("out/secret.rs", b"s"), ("in/a.rs", b"a")]);
    let root = folder.path().join("in");
    symlink("../out/secret.rs", root.join("b.rs")).unwrap();
    symlink("../out", root.join("c")).unwrap();
    symlink("a.rs", root.join("d.rs")).unwrap();
    assert!(matches!(read(&root, "b.rs", LIMIT), Err(ReadError::Outside)));
    assert!(matches!(read(&root, "c/secret.rs", LIMIT), Err(ReadError::Outside)));
    assert_eq!(read(&root, "d.rs", LIMIT).unwrap(), "a");
}
