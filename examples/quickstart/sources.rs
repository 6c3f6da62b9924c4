//! The Rust sources of a crate: which there are, and the text of each.

use std::{fs, io, path::Path};

use ignore::WalkBuilder;

/// The largest source that is read, in bytes.
const MAX_BYTES: u64 = 256 << 10;

/// Lists the Rust sources in a folder, which depend on the folder alone: files that end in `.rs` and that no `.gitignore` in it
/// excludes. Hidden files, links, and folders that Cargo marks as a cache (`target` is one) are left out. The error is one
/// clause.
pub(crate) fn list(root: &Path) -> Result<Vec<String>, String> {
    match fs::metadata(root) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(format!("{} does not exist", root.display()));
        }
        Ok(metadata) if !metadata.is_dir() => return Err(format!("{} is not a folder", root.display())),
        _ => {}
    }
    let mut walk = WalkBuilder::new(root);
    walk.require_git(false).parents(false).git_global(false).git_exclude(false).ignore(false);
    walk.filter_entry(|entry| entry.depth() == 0 || !entry.path().join("CACHEDIR.TAG").exists());
    let mut files = Vec::new();
    for entry in walk.build() {
        let entry = entry.map_err(|error| format!("{} cannot be read: {error}", root.display()))?;
        let is_file = entry.file_type().is_some_and(|kind| kind.is_file());
        if is_file && entry.path().extension().is_some_and(|extension| extension == "rs") {
            let parts = entry.path().strip_prefix(root).into_iter().flatten();
            files.push(parts.map(|part| part.to_string_lossy()).collect::<Vec<_>>().join("/"));
        }
    }
    if files.is_empty() {
        return Err(format!("{} has no Rust file", root.display()));
    }
    files.sort();
    Ok(files)
}

/// Reads a source by the path that [`list`] returned, without a byte order mark. The error is one clause.
pub(crate) fn read(root: &Path, path: &str) -> Result<String, String> {
    let unreadable = |error: io::Error| format!("it cannot be read: {error}");
    let root = fs::canonicalize(root).map_err(unreadable)?;
    let file = fs::canonicalize(root.join(path)).map_err(unreadable)?;
    let metadata = fs::metadata(&file).map_err(unreadable)?;
    if !file.starts_with(&root) || !metadata.is_file() {
        return Err("it is not a file in the folder".into());
    }
    if metadata.len() > MAX_BYTES {
        return Err(format!("it is larger than {MAX_BYTES} bytes"));
    }
    let text = String::from_utf8(fs::read(file).map_err(unreadable)?).map_err(|_| "it is not UTF-8")?;
    Ok(text.trim_start_matches('\u{feff}').to_owned())
}
