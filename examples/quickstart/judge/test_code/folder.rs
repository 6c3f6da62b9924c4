//! Where Rust looks for the modules of a file.

use syn::{Attribute, Expr, ExprLit, ItemMod, Lit};

/// Where the modules of a file have their own files.
pub(super) struct Folder {
    /// The folder of the file.
    parent: String,
    /// What the file adds to it: its name, unless it is the file of a folder.
    stem: Option<String>,
    /// The modules that are open.
    modules: Vec<String>,
}

impl Folder {
    pub(super) fn of(path: &str) -> Self {
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        let stem = name.trim_end_matches(".rs");
        // `tests/a.rs` and `src/bin/a.rs` are roots of crates as well, but hold no modules that concern
        // anyone.
        let root = matches!(stem, "mod" | "lib" | "main" | "build");
        Self { parent: parent.to_owned(), stem: (!root).then(|| stem.to_owned()), modules: Vec::new() }
    }

    /// Goes into a module that is in the file.
    pub(super) fn enter(&mut self, item: &ItemMod) {
        self.modules.push(name_of(item));
    }

    /// Comes back out of it.
    pub(super) fn leave(&mut self) {
        self.modules.pop();
    }

    /// The path of a module that has its own file, without `.rs`.
    pub(super) fn module(&self, item: &ItemMod) -> String {
        let (name, named) = (name_of(item), item.attrs.iter().find_map(path_of));
        let inner = self.modules.iter().map(String::as_str);
        let mut parts: Vec<&str> = self.parent.split('/').collect();
        // A named path starts at the folder of the file, unless the module is in another.
        if named.is_none() || !self.modules.is_empty() {
            parts.extend(self.stem.as_deref());
            parts.extend(inner);
        }
        for part in named.as_deref().map_or(name.as_str(), |named| named.trim_end_matches(".rs")).split('/') {
            match part {
                ".." => drop(parts.pop()),
                part => parts.push(part),
            }
        }
        parts.retain(|part| !part.is_empty() && *part != ".");
        parts.join("/").trim_end_matches("/mod").to_owned()
    }
}

fn name_of(item: &ItemMod) -> String {
    item.ident.to_string().trim_start_matches("r#").to_owned()
}

/// The file that `#[path = "…"]` names.
fn path_of(attribute: &Attribute) -> Option<String> {
    let named = attribute.meta.require_name_value().ok().filter(|named| named.path.is_ident("path"))?;
    match &named.value {
        Expr::Lit(ExprLit { lit: Lit::Str(path), .. }) => Some(path.value()),
        _ => None,
    }
}
