//! The walk over a tree that finds its tests.

use proc_macro2::Span;
use syn::parse::Parser;
use syn::spanned::Spanned;
use syn::visit::{self, Visit};
use syn::{
    Arm, Attribute, Expr, FieldValue, File, ForeignItem, ImplItem, Item, ItemMacro, ItemMod, Macro, Stmt,
    TraitItem,
};

use super::{TestCode, is_test};
use crate::judge::syntax::{position, wrapped_items};
use crate::lexer::{Kind, Lexed, Position};

/// Finds the tests of a file, and the modules of tests that it leaves to other files.
pub(in crate::judge) fn find(
    path: &str,
    file: &File,
    text: &str,
    lexed: &Lexed<'_>,
) -> (TestCode, Vec<String>) {
    if is_test(&file.attrs) {
        let end = Position { line: usize::MAX, column: 1 };
        return (TestCode::new(vec![(Position::START, end)]), Vec::new());
    }
    let mut walk = Walk { text, lexed, parts: Vec::new(), modules: Vec::new(), folder: Folder::of(path) };
    walk.visit_file(file);
    (TestCode::new(walk.parts), walk.modules)
}

struct Walk<'a> {
    text: &'a str,
    lexed: &'a Lexed<'a>,
    parts: Vec<(Position, Position)>,
    modules: Vec<String>,
    folder: Folder,
}

impl Walk<'_> {
    /// Notes a test; returns whether it is one.
    fn note(&mut self, attrs: &[Attribute], node: &impl Spanned) -> bool {
        let test = is_test(attrs);
        if test {
            let span = node.span();
            self.parts.push((position(span.start()), position(span.end())));
        }
        test
    }

    /// Notes the tests among tokens that are no tree. What follows an attribute goes up to a semicolon or through a brace.
    fn note_tokens(&mut self, open: Span, close: Span) {
        let tokens = &self.lexed.tokens;
        let (start, end) = (position(open.start()), position(close.start()));
        let first = tokens.partition_point(|token| token.at <= start);
        let last = tokens.partition_point(|token| token.at < end);
        let mut index = first;
        while index < last {
            let after = self.lexed.after(index + 1);
            if self.is_test_attribute(index, after) {
                let stop = self.end_of_item(after);
                let part = (tokens.get(index), tokens.get(stop));
                if let (Some(from), Some(to)) = part {
                    self.parts.push((from.at, to.at));
                }
                index = stop;
            }
            index += 1;
        }
    }

    fn is_test_attribute(&self, index: usize, after: usize) -> bool {
        if !self.lexed.is(index, Kind::Punct, "#") || !self.lexed.is(index + 1, Kind::Open, "[") {
            return false;
        }
        let (Some(hash), Some(close)) = (self.lexed.tokens.get(index), self.lexed.tokens.get(after - 1))
        else {
            return false;
        };
        let attribute = self.text.get(hash.offset..=close.offset).unwrap_or_default();
        Attribute::parse_outer.parse_str(attribute).is_ok_and(|attrs| is_test(&attrs))
    }

    /// The token that ends an item, by a guess.
    fn end_of_item(&self, mut index: usize) -> usize {
        while let Some(token) = self.lexed.tokens.get(index) {
            match (token.kind, token.text) {
                (Kind::Punct, ";") | (Kind::Close, _) => return index,
                (Kind::Open, "{") => return self.lexed.after(index) - 1,
                _ => index = self.lexed.after(index),
            }
        }
        index
    }

    fn module(&mut self, item: &ItemMod, test: bool) {
        let name = item.ident.to_string();
        if item.content.is_none() && test {
            let named = item.attrs.iter().find_map(path_of);
            self.modules.push(self.folder.module(name.trim_start_matches("r#"), named.as_deref()));
        } else if !test {
            self.folder.modules.push(name);
            visit::visit_item_mod(self, item);
            self.folder.modules.pop();
        }
    }

    fn item_macro(&mut self, item: &ItemMacro) {
        match wrapped_items(item) {
            Some(items) => items.iter().for_each(|item| self.visit_item(item)),
            None => visit::visit_item_macro(self, item),
        }
    }
}

impl<'ast> Visit<'ast> for Walk<'_> {
    fn visit_item(&mut self, item: &'ast Item) {
        let test = self.note(item_attrs(item), item);
        match item {
            Item::Mod(item) => self.module(item, test),
            Item::Macro(item) if !test => self.item_macro(item),
            _ if !test => visit::visit_item(self, item),
            _ => {}
        }
    }

    fn visit_impl_item(&mut self, item: &'ast ImplItem) {
        let attrs: &[Attribute] = match item {
            ImplItem::Const(item) => &item.attrs,
            ImplItem::Fn(item) => &item.attrs,
            ImplItem::Type(item) => &item.attrs,
            ImplItem::Macro(item) => &item.attrs,
            _ => &[],
        };
        if !self.note(attrs, item) {
            visit::visit_impl_item(self, item);
        }
    }

    fn visit_trait_item(&mut self, item: &'ast TraitItem) {
        let attrs: &[Attribute] = match item {
            TraitItem::Const(item) => &item.attrs,
            TraitItem::Fn(item) => &item.attrs,
            TraitItem::Type(item) => &item.attrs,
            TraitItem::Macro(item) => &item.attrs,
            _ => &[],
        };
        if !self.note(attrs, item) {
            visit::visit_trait_item(self, item);
        }
    }

    /// Nothing of it runs.
    fn visit_foreign_item(&mut self, _: &'ast ForeignItem) {}

    fn visit_stmt(&mut self, statement: &'ast Stmt) {
        let attrs = match statement {
            Stmt::Local(local) => &local.attrs,
            Stmt::Macro(call) => &call.attrs,
            Stmt::Expr(expr, _) => leading_attrs(expr),
            Stmt::Item(_) => &[],
        };
        if !self.note(attrs, statement) {
            visit::visit_stmt(self, statement);
        }
    }

    fn visit_arm(&mut self, arm: &'ast Arm) {
        if !self.note(&arm.attrs, arm) {
            visit::visit_arm(self, arm);
        }
    }

    fn visit_field_value(&mut self, field: &'ast FieldValue) {
        if !self.note(&field.attrs, field) {
            visit::visit_field_value(self, field);
        }
    }

    fn visit_macro(&mut self, call: &'ast Macro) {
        let span = call.delimiter.span();
        self.note_tokens(span.open(), span.close());
    }
}

fn item_attrs(item: &Item) -> &[Attribute] {
    match item {
        Item::Const(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::ExternCrate(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::ForeignMod(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Macro(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Static(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Trait(item) => &item.attrs,
        Item::TraitAlias(item) => &item.attrs,
        Item::Type(item) => &item.attrs,
        Item::Union(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => &[],
    }
}

/// The attributes of a statement that is an expression: they stand on what comes first in it.
fn leading_attrs(expr: &Expr) -> &[Attribute] {
    match expr {
        Expr::Assign(expr) => leading_attrs(&expr.left),
        Expr::Binary(expr) => leading_attrs(&expr.left),
        Expr::Cast(expr) => leading_attrs(&expr.expr),
        Expr::Async(expr) => &expr.attrs,
        Expr::Await(expr) => &expr.attrs,
        Expr::Block(expr) => &expr.attrs,
        Expr::Call(expr) => &expr.attrs,
        Expr::ForLoop(expr) => &expr.attrs,
        Expr::If(expr) => &expr.attrs,
        Expr::Loop(expr) => &expr.attrs,
        Expr::Macro(expr) => &expr.attrs,
        Expr::Match(expr) => &expr.attrs,
        Expr::MethodCall(expr) => &expr.attrs,
        Expr::Return(expr) => &expr.attrs,
        Expr::Try(expr) => &expr.attrs,
        Expr::Unsafe(expr) => &expr.attrs,
        Expr::While(expr) => &expr.attrs,
        _ => &[],
    }
}

/// The file that `#[path = "…"]` names.
fn path_of(attribute: &Attribute) -> Option<String> {
    let named = attribute.meta.require_name_value().ok().filter(|named| named.path.is_ident("path"))?;
    match &named.value {
        Expr::Lit(syn::ExprLit { lit: syn::Lit::Str(path), .. }) => Some(path.value()),
        _ => None,
    }
}

/// Where the modules of a file have their own files.
struct Folder {
    /// The folder of the file.
    parent: String,
    /// What the file adds to it: its name, unless it is the file of a folder.
    stem: Option<String>,
    /// The modules that are open.
    modules: Vec<String>,
}

impl Folder {
    fn of(path: &str) -> Self {
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        let stem = name.trim_end_matches(".rs");
        // The roots of a crate, which `tests/a.rs` and `src/bin/a.rs` are as well; those hold no such modules in practice.
        let root = matches!(stem, "mod" | "lib" | "main" | "build");
        Self { parent: parent.to_owned(), stem: (!root).then(|| stem.to_owned()), modules: Vec::new() }
    }

    /// The path of a module, without `.rs`.
    fn module(&self, name: &str, named: Option<&str>) -> String {
        let inner = self.modules.iter().map(String::as_str);
        let mut parts: Vec<&str> = self.parent.split('/').collect();
        // A named path starts at the folder of the file, unless the module is in another.
        if named.is_none() || !self.modules.is_empty() {
            parts.extend(self.stem.as_deref());
            parts.extend(inner);
        }
        for part in named.map_or(name, |named| named.trim_end_matches(".rs")).split('/') {
            match part {
                ".." => drop(parts.pop()),
                part => parts.push(part),
            }
        }
        parts.retain(|part| !part.is_empty() && *part != ".");
        parts.join("/").trim_end_matches("/mod").to_owned()
    }
}
