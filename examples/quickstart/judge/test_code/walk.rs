//! The walk over a tree that finds its tests.

use proc_macro2::Span;
use syn::parse::Parser;
use syn::spanned::Spanned;
use syn::visit::{self, Visit};
use syn::{
    Arm, Attribute, Expr, FieldValue, File, ForeignItem, ImplItem, Item, ItemMacro, ItemMod, Macro, Stmt,
    TraitItem,
};

use super::folder::Folder;
use super::{TestCode, is_test};
use crate::judge::docs::is_hidden;
use crate::judge::syntax::{position, wrapped_items};
use crate::lexer::{Kind, Lexed, Position};

/// The modules that a file leaves to other files and that concern these: their paths, without `.rs`.
#[derive(Debug, Default)]
pub(in crate::judge) struct Modules {
    /// Those that only tests compile.
    pub(in crate::judge) tests: Vec<String>,
    /// Those that the documentation leaves out.
    pub(in crate::judge) hidden: Vec<String>,
}

/// Finds the tests of a file, and such modules.
pub(in crate::judge) fn find(path: &str, file: &File, lexed: &Lexed<'_>, text: &str) -> (TestCode, Modules) {
    let (parts, modules) = (Vec::new(), Modules::default());
    let mut walk = Walk { text, lexed, parts, modules, folder: Folder::of(path) };
    if is_test(&file.attrs) {
        let end = Position { line: usize::MAX, column: 1 };
        walk.parts.push((Position::START, end));
        walk.test_modules(&file.items);
    } else {
        walk.visit_file(file);
    }
    (TestCode::new(walk.parts), walk.modules)
}

struct Walk<'a> {
    text: &'a str,
    lexed: &'a Lexed<'a>,
    parts: Vec<(Position, Position)>,
    modules: Modules,
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

    /// Notes the tests among tokens that are no tree. What an attribute is for ends with a semicolon or a
    /// brace.
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
        let Some((_, items)) = &item.content else {
            if test {
                self.modules.tests.push(self.folder.module(item));
            } else if is_hidden(&item.attrs) {
                self.modules.hidden.push(self.folder.module(item));
            }
            return;
        };
        self.folder.enter(item);
        if test {
            self.test_modules(items);
        } else {
            visit::visit_item_mod(self, item);
        }
        self.folder.leave();
    }

    /// Notes the modules of what is a test as a whole.
    fn test_modules(&mut self, items: &[Item]) {
        for item in items {
            if let Item::Mod(item) = item {
                self.module(item, true);
            }
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
