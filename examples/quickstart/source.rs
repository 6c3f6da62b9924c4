//! The Rust sources of a crate: which there are, and the text of each.
//!
//! A listing depends on the folder alone: `.gitignore` applies, in a git checkout and out of one, and no setting of the
//! machine does. Hidden files, and folders that Cargo marks as a cache (`target` is one), are left out.

use std::{
    fs::{self, File},
    io::{self, Read},
    path::{Component, Path},
};

use ignore::WalkBuilder;

use crate::contracts::{Listing, Skipped};

/// The largest source that is read, in bytes.
const MAX_BYTES: u64 = 1 << 20;

/// Lists the Rust sources in a folder, or the one file that `root` is. The error says in one clause why there is nothing
/// to review. A source is skipped if it is larger than 1 MiB, not UTF-8, a link, or not readable.
pub(crate) fn list(root: &Path) -> Result<Listing, String> {
    let unreadable = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => format!("{} does not exist", root.display()),
        _ => format!("{} cannot be read: {error}", root.display()),
    };
    let mut listing = Listing::default();
    if fs::metadata(root).map_err(unreadable)?.is_dir() {
        fs::read_dir(root).map_err(unreadable)?;
        list_folder(root, &mut listing);
    } else if let Some(name) = root.file_name().filter(|_| is_rust(root)) {
        add(&mut listing, name.to_string_lossy().into_owned(), read_file(root));
    }
    if listing.files.is_empty() && listing.skipped.is_empty() {
        return Err(format!("{} has no Rust file", root.display()));
    }
    listing.files.sort();
    listing.skipped.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(listing)
}

fn list_folder(root: &Path, listing: &mut Listing) {
    // What the folders above ignore matters in their own checkout only.
    let in_checkout = |root: &Path| root.ancestors().any(|up| up.join(".git").exists());
    let checkout = fs::canonicalize(root).is_ok_and(|root| in_checkout(&root));
    let mut walk = WalkBuilder::new(root);
    walk.require_git(false).parents(checkout).git_global(false).git_exclude(false).ignore(false);
    walk.filter_entry(|entry| entry.depth() == 0 || !entry.path().join("CACHEDIR.TAG").exists());
    for entry in walk.build() {
        let entry = match entry {
            Ok(entry) => entry,
            Err(error) => {
                add(listing, String::new(), Err(error.to_string()));
                continue;
            }
        };
        let (file, link) = (entry.path(), entry.path_is_symlink());
        let is_source = if file.is_dir() { link } else { is_rust(file) };
        if entry.depth() == 0 || !is_source {
            continue;
        }
        let parts = file.strip_prefix(root).into_iter().flat_map(Path::components);
        let path = parts.map(|part| part.as_os_str().to_string_lossy()).collect::<Vec<_>>().join("/");
        let text = match file.to_str() {
            None => Err("its name is not UTF-8".into()),
            Some(_) if link => Err("it is a symbolic link".into()),
            Some(_) => read_file(file),
        };
        add(listing, path, text);
    }
}

fn add(listing: &mut Listing, path: String, text: Result<String, String>) {
    match text {
        Ok(_) => listing.files.push(path),
        Err(reason) => listing.skipped.push(Skipped { path, reason }),
    }
}

/// Reads a source by the path that [`list`] returned, without a byte order mark. A path that leads out of the folder,
/// also through a link, is refused.
pub(crate) fn read(root: &Path, path: &str) -> Result<String, String> {
    let root = fs::canonicalize(root).map_err(unreadable)?;
    let whole = if root.is_file() { root.with_file_name(path) } else { root.join(path) };
    let inside = Path::new(path).components().all(|part| matches!(part, Component::Normal(_)));
    let file = fs::canonicalize(whole).map_err(unreadable)?;
    if !inside || !file.starts_with(&root) {
        return Err("it is outside of the folder under review".into());
    }
    read_file(&file)
}

fn read_file(file: &Path) -> Result<String, String> {
    // What is not a file, such as a pipe, might never end.
    if !is_rust(file) || !fs::metadata(file).map_err(unreadable)?.is_file() {
        return Err("it is not a Rust file".into());
    }
    let mut bytes = Vec::new();
    let file = File::open(file).map_err(unreadable)?;
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(format!("it is larger than {MAX_BYTES} bytes"));
    }
    let text = String::from_utf8(bytes).map_err(|_| "it is not UTF-8")?;
    Ok(text.trim_start_matches('\u{feff}').to_owned())
}

fn is_rust(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "rs")
}

fn unreadable(error: io::Error) -> String {
    format!("it cannot be read: {error}")
}
