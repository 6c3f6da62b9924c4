//! From a text to its syntax tree, whose tokens include the comments.

use std::{ops::Range, panic::catch_unwind};

use ra_ap_parser::LexedStr;
use ra_ap_syntax::{
    AstNode, Edition, NodeOrToken, SourceFile, SyntaxKind::*, SyntaxNode, SyntaxToken, T, TextRange, ast,
};

use crate::items::is_exempt;

/// The parser is recursive: the most open brackets, and the most tokens of unfinished expressions around a place.
const MOST_BRACKETS: usize = 200;
const MOST_TOKENS: usize = 1_000;

/// The stack that the deepest source within these limits needs, in bytes. Only what is used of it is allocated.
pub(crate) const STACK: usize = 128 << 20;

/// Where a text is not Rust, in bytes, and why.
type Problem = (usize, String);

/// The nodes and the tokens of a source, in order.
#[derive(Default)]
pub(crate) struct Source {
    pub(crate) nodes: Vec<SyntaxNode>,
    /// With comments, without blanks.
    pub(crate) tokens: Vec<SyntaxToken>,
    pub(crate) error: Option<Problem>,
}

impl Source {
    /// Parses any text.
    pub(crate) fn parse(text: &str) -> Self {
        let failed = |at, why: &str| Self { error: Some((at, why.into())), ..Self::default() };
        if let Some(at) = too_deep(text) {
            return failed(at, "nested too deeply");
        }
        let Ok((root, error)) = catch_unwind(|| parse(text)) else { return failed(0, "the parser failed") };
        let mut source = Self { error, ..Self::default() };
        for element in root.descendants_with_tokens() {
            match element {
                NodeOrToken::Node(node) => source.nodes.push(node),
                NodeOrToken::Token(token) if token.kind() == WHITESPACE => {}
                NodeOrToken::Token(token) => source.tokens.push(token),
            }
        }
        source
    }
}

/// Parses in the edition that fits. A macro that wraps items, `cfg_unix! { pub fn f() {} }`, is replaced by its items,
/// which stay where they are.
fn parse(text: &str) -> (SyntaxNode, Option<Problem>) {
    let (mut root, error) = parse_as(text, Edition::Edition2021);
    if error.is_some() {
        // Keywords, and the types without `dyn`, differ between editions.
        let (older, older_error) = parse_as(text, Edition::Edition2015);
        return if older_error.is_none() { (older, None) } else { (root, error) };
    }
    let mut text = text.to_owned();
    loop {
        let calls = root.descendants().filter_map(ast::MacroCall::cast);
        let ranges: Vec<_> = calls.filter_map(|call| wrapper(&call)).flatten().collect();
        for range in &ranges {
            let blank = |old: char| if old == '\n' { "\n".into() } else { " ".repeat(old.len_utf8()) };
            let blanks: String = text[range.clone()].chars().map(blank).collect();
            text.replace_range(range.clone(), &blanks);
        }
        match parse_as(&text, Edition::Edition2021) {
            (unwrapped, None) if !ranges.is_empty() => root = unwrapped,
            _ => return (root, None),
        }
    }
}

fn parse_as(text: &str, edition: Edition) -> (SyntaxNode, Option<Problem>) {
    let parse = SourceFile::parse(text, edition);
    let first = parse.errors().into_iter().min_by_key(|error| error.range().start());
    (parse.syntax_node(), first.map(|error| (error.range().start().into(), error.to_string())))
}

/// The text before and after the items that a macro is given, if the macro stands where items do.
fn wrapper(call: &ast::MacroCall) -> Option<[Range<usize>; 2]> {
    let holder = call.syntax().parent()?.kind();
    if !matches!(holder, SOURCE_FILE | ITEM_LIST | ASSOC_ITEM_LIST) || is_exempt(call.syntax()) {
        return None;
    }
    let start = call.syntax().children().next()?.text_range().start();
    let tree = call.token_tree()?.syntax().clone();
    let (open, close) = (tree.first_token()?.text_range().end(), tree.last_token()?.text_range().start());
    let text = tree.text().slice(TextRange::new(open, close) - tree.text_range().start()).to_string();
    let parsed = SourceFile::parse(&text, Edition::Edition2021).ok().ok()?;
    let items = parsed.syntax().children().find(|child| child.kind() != ATTR)?;
    // Inner attributes of the macro would not be allowed where it stands.
    let attributes = items.prev_sibling().map_or(0.into(), |attribute| attribute.text_range().end());
    let end = call.syntax().text_range().end();
    Some([TextRange::new(start, open + attributes), TextRange::new(close, end)].map(Range::from))
}

/// Where a text nests deeper than the limits, in bytes.
fn too_deep(text: &str) -> Option<usize> {
    let lexed = LexedStr::new(Edition::Edition2021, text);
    let code: Vec<usize> = (0..lexed.len()).filter(|&token| !lexed.kind(token).is_trivia()).collect();
    // For each open bracket: the tokens since the last separator, and those of them that may open generics.
    let mut levels = vec![(0, 0)];
    let mut before = EOF;
    for (index, &token) in code.iter().enumerate() {
        let (kind, next) = (lexed.kind(token), code.get(index + 1).map_or(EOF, |&next| lexed.kind(next)));
        if matches!(kind, T![')'] | T![']'] | T!['}']) && levels.len() > 1 {
            levels.pop();
        }
        let (run, generics) = levels.last_mut()?;
        let goes_on = next.is_punct() && next != T![#] || matches!(next, T![else] | T![as]);
        *run = match kind {
            T![;] => 0,
            T!['}'] if !goes_on => 0,
            // A bracket counts once; attributes in a row do not nest.
            T![#] | T![')'] | T![']'] | T!['}'] => *run,
            T!['['] if before == T![#] => *run,
            // A comma ends an argument of generics, but not the generics.
            T![,] => *generics,
            _ => *run + 1,
        };
        *generics =
            (*generics + usize::from(kind == T![<])).saturating_sub(usize::from(kind == T![>])).min(*run);
        if matches!(kind, T!['('] | T!['['] | T!['{']) {
            levels.push((0, 0));
        }
        if levels.len() > MOST_BRACKETS || levels.iter().map(|(run, _)| run).sum::<usize>() > MOST_TOKENS {
            return Some(lexed.text_start(token));
        }
        before = kind;
    }
    None
}

/// The line of a byte, and its column in characters, both from 1.
pub(crate) fn place(text: &str, at: usize) -> (usize, usize) {
    let before = text.get(..at).unwrap_or_default();
    let line = before.rsplit('\n').next().unwrap_or_default();
    (before.matches('\n').count() + 1, line.chars().count() + 1)
}
