//! The Rust sources of a crate: which there are, and the text of each.
//!
//! A listing depends on the folder alone: `.gitignore` holds, in a git checkout and out of one, and no
//! setting of the machine does. Hidden files, and folders that Cargo marks as a cache (`target` is one), are
//! passed over.

#[cfg(test)]
mod tests;

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};

use ignore::{DirEntry, WalkBuilder};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What marks a folder as a cache.
const CACHE_TAG: &str = "CACHEDIR.TAG";

/// The sources that were found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Listing {
    /// Those that can be read, by path.
    pub(crate) files: Vec<SourceFile>,
    /// Those that cannot, by path.
    pub(crate) skipped: Vec<Skipped>,
}

/// A source that can be read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct SourceFile {
    /// Where it is in the folder, with `/`.
    pub(crate) path: String,
    /// Its size.
    pub(crate) bytes: u64,
}

/// A source that nobody reads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Skipped {
    /// Where it is in the folder, with `/`.
    pub(crate) path: String,
    /// Why, in one clause.
    pub(crate) reason: String,
}

/// There is nothing to review.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum ListError {
    /// There is nothing at the path.
    #[error("{} does not exist", .0.display())]
    Missing(PathBuf),
    /// The path cannot be read.
    #[error("{} cannot be read: {source}", .path.display())]
    Unreadable {
        /// The path.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// There is no Rust source.
    #[error("{} has no Rust file", .0.display())]
    NoRust(PathBuf),
}

/// A source could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum ReadError {
    /// The path leads out of the folder.
    #[error("it is outside of the folder under review")]
    Outside,
    /// The path is not one of a Rust source.
    #[error("it is not a Rust file")]
    NotRust,
    /// The source is larger than allowed.
    #[error("it is larger than {limit} bytes")]
    TooLarge {
        /// The most bytes allowed.
        limit: u64,
    },
    /// The source is not text.
    #[error("it is not UTF-8")]
    NotText,
    /// The system refused.
    #[error("it cannot be read")]
    Unreadable(#[from] io::Error),
}

/// Lists the Rust sources in a folder, or the one file that `root` is.
///
/// A source that is larger than `max_bytes`, that is not UTF-8, that is a link or that cannot be read is
/// skipped.
pub(crate) fn list(root: &Path, max_bytes: u64) -> Result<Listing, ListError> {
    let metadata = fs::metadata(root).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => ListError::Missing(root.to_owned()),
        _ => ListError::Unreadable { path: root.to_owned(), source },
    })?;
    let mut listing = Listing::default();
    if metadata.is_dir() {
        fs::read_dir(root).map_err(|source| ListError::Unreadable { path: root.to_owned(), source })?;
        list_folder(root, max_bytes, &mut listing);
    } else if let Some(name) = root.file_name().filter(|_| is_rust(root)) {
        // What is named by itself is not skipped. To open a pipe might never end.
        if metadata.is_file() {
            File::open(root).map_err(|source| ListError::Unreadable { path: root.to_owned(), source })?;
        }
        listing.add(root, name.to_string_lossy().into_owned(), max_bytes);
    }
    listing.files.sort_by(|a, b| a.path.cmp(&b.path));
    listing.skipped.sort_by(|a, b| a.path.cmp(&b.path));
    if listing == Listing::default() {
        return Err(ListError::NoRust(root.to_owned()));
    }
    Ok(listing)
}

/// Reads a source by the path that [`list`] gave it. A path that leads out of the folder is refused, by a
/// link as well.
pub(crate) fn read(root: &Path, path: &str, max_bytes: u64) -> Result<String, ReadError> {
    let relative = Path::new(path);
    if !relative.components().all(|part| matches!(part, Component::Normal(_))) {
        return Err(ReadError::Outside);
    }
    if !is_rust(relative) {
        return Err(ReadError::NotRust);
    }
    let root = fs::canonicalize(root)?;
    if root.is_file() {
        let same = root.file_name() == Some(relative.as_os_str());
        return if same { read_file(&root, max_bytes) } else { Err(ReadError::Outside) };
    }
    let file = fs::canonicalize(root.join(relative))?;
    if !file.starts_with(&root) {
        return Err(ReadError::Outside);
    }
    read_file(&file, max_bytes)
}

fn read_file(file: &Path, max_bytes: u64) -> Result<String, ReadError> {
    // What is no file, such as a pipe, might never end.
    if !fs::metadata(file)?.is_file() {
        return Err(ReadError::NotRust);
    }
    let mut bytes = Vec::new();
    File::open(file)?.take(max_bytes.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > max_bytes {
        return Err(ReadError::TooLarge { limit: max_bytes });
    }
    String::from_utf8(bytes).map_err(|_| ReadError::NotText)
}

impl Listing {
    fn add(&mut self, file: &Path, path: String, max_bytes: u64) {
        match read_file(file, max_bytes) {
            Ok(text) => self.files.push(SourceFile { path, bytes: text.len() as u64 }),
            Err(ReadError::Unreadable(error)) => self.skip(path, format!("it cannot be read: {error}")),
            Err(error) => self.skip(path, error),
        }
    }

    fn skip(&mut self, path: String, reason: impl ToString) {
        self.skipped.push(Skipped { path, reason: reason.to_string() });
    }

    fn add_entry(&mut self, root: &Path, entry: &DirEntry, max_bytes: u64) {
        if entry.depth() == 0 {
            return; // the folder itself, which may be a link
        }
        let kind = entry.file_type();
        let link = kind.is_some_and(|kind| kind.is_symlink());
        if !(is_rust(entry.path()) || link && entry.path().is_dir()) || kind.is_some_and(|kind| kind.is_dir())
        {
            return;
        }
        let Some(path) = relative(root, entry.path()) else {
            return self.skip(entry.path().to_string_lossy().into_owned(), "its name is not UTF-8");
        };
        if link {
            return self.skip(path, "it is a symbolic link");
        }
        self.add(entry.path(), path, max_bytes);
    }
}

fn list_folder(root: &Path, max_bytes: u64, listing: &mut Listing) {
    // Outside of a checkout, what the folders above ignore is none of this one's business.
    let checkout =
        fs::canonicalize(root).is_ok_and(|root| root.ancestors().any(|up| up.join(".git").exists()));
    let mut walk = WalkBuilder::new(root);
    walk.require_git(false).parents(checkout).git_global(false).git_exclude(false).ignore(false);
    walk.filter_entry(|entry| entry.depth() == 0 || !entry.path().join(CACHE_TAG).exists());
    for entry in walk.build() {
        match entry {
            Ok(entry) => listing.add_entry(root, &entry, max_bytes),
            Err(error) => {
                let path = failed_path(&error).and_then(|path| relative(root, path));
                listing.skip(path.unwrap_or_default(), io_reason(&error));
            }
        }
    }
}

/// The path that a step of the walk failed at.
fn failed_path(error: &ignore::Error) -> Option<&Path> {
    match error {
        ignore::Error::WithPath { path, .. } => Some(path),
        ignore::Error::WithDepth { err, .. } | ignore::Error::WithLineNumber { err, .. } => failed_path(err),
        _ => None,
    }
}

fn io_reason(error: &ignore::Error) -> String {
    let Some(error) = error.io_error() else { return error.to_string() };
    // The walk wraps what the system said, to add the path, which stands beside the reason here.
    let cause = error.get_ref().and_then(|wrapped| wrapped.source());
    cause.map_or_else(|| format!("it cannot be read: {error}"), |cause| format!("it cannot be read: {cause}"))
}

fn is_rust(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "rs")
}

fn relative(root: &Path, path: &Path) -> Option<String> {
    let parts = path.strip_prefix(root).ok()?.components().map(|part| part.as_os_str().to_str());
    Some(parts.collect::<Option<Vec<_>>>()?.join("/"))
}
