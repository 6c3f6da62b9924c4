//! What is asked of the syntax tree.

use std::thread;

use proc_macro2::LineColumn;
use syn::parse::ParseStream;
use syn::{Item, ItemMacro};

use super::test_code::{Modules, TestCode};
use super::{docs, finding, test_code};
use crate::finding::{Finding, Rule};
use crate::lexer::{Lexed, Position};

/// The stack for one file. Only what is used of it is ever taken: this is what the deepest source that
/// [`super::nesting`] lets through needs, twice.
const STACK: usize = 128 << 20;

/// What the tree tells.
#[derive(Debug, Default)]
pub(super) struct Syntax {
    /// How many items should be documented.
    pub(super) public_items: usize,
    /// Those that are not.
    pub(super) undocumented: Vec<Finding>,
    /// Where the tests are.
    pub(super) tests: TestCode,
    /// The modules in other files that concern these.
    pub(super) modules: Modules,
}

/// Parses a file, on a thread that has the stack for it; the spans of the file go with the thread.
pub(super) fn read(path: &str, text: &str, lexed: &Lexed<'_>) -> Result<Syntax, Finding> {
    let refuse = |message: String| Err(finding(Rule::DoesNotParse, Position::START, message));
    thread::scope(|scope| {
        let parser = thread::Builder::new().name("parser".to_owned()).stack_size(STACK);
        match parser.spawn_scoped(scope, || parse(path, text, lexed)).map(thread::ScopedJoinHandle::join) {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => refuse("the parser failed".to_owned()),
            Err(error) => refuse(format!("no parser could be started: {error}")),
        }
    })
}

fn parse(path: &str, text: &str, lexed: &Lexed<'_>) -> Result<Syntax, Finding> {
    let file = syn::parse_file(text).map_err(|error| {
        let at = position(error.span().start());
        finding(Rule::DoesNotParse, at, error.to_string())
    })?;
    let (public_items, undocumented) = docs::check(&file);
    let (tests, modules) = test_code::find(path, &file, lexed, text);
    Ok(Syntax { public_items, undocumented, tests, modules })
}

/// The parser counts columns from zero.
pub(super) fn position(place: LineColumn) -> Position {
    Position { line: place.line.max(1), column: place.column + 1 }
}

/// The items that a macro gets, if it gets items: `cfg_unix! { fn f() {} }`.
pub(super) fn wrapped_items(item: &ItemMacro) -> Option<Vec<Item>> {
    let parse = |input: ParseStream<'_>| {
        let mut items = Vec::new();
        while !input.is_empty() {
            items.push(input.parse()?);
        }
        Ok(items)
    };
    if item.ident.is_some() {
        return None;
    }
    item.mac.parse_body_with(parse).ok()
}
