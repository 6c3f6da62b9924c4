//! From a text to a syntax tree, whose tokens include the comments.

use std::{ops::Range, panic::catch_unwind};

use ra_ap_parser::LexedStr;
use ra_ap_syntax::{
    AstNode, Edition, NodeOrToken, SourceFile, SyntaxKind::*, SyntaxNode, SyntaxToken, T, TextRange, ast,
};

use crate::items::is_exempt;

/// The most brackets that may be open at once, and the most tokens of the unfinished expressions around a place: the
/// parser calls itself for each of them.
const MOST_BRACKETS: usize = 200;
const MOST_TOKENS: usize = 1_000;

/// The stack that the deepest source within these limits needs, in bytes. Only what is used of it is ever allocated.
pub(crate) const STACK: usize = 128 << 20;

/// A source that is parsed: its nodes and its tokens, in order.
#[derive(Default)]
pub(crate) struct Source {
    pub(crate) nodes: Vec<SyntaxNode>,
    /// Comments among them, blanks not.
    pub(crate) tokens: Vec<SyntaxToken>,
    /// Where the text is not Rust, in bytes, and why.
    pub(crate) error: Option<(usize, String)>,
}

impl Source {
    /// Parses any text.
    pub(crate) fn parse(text: &str) -> Self {
        if let Some(at) = too_deep(text) {
            return Self { error: Some((at, "nested too deeply".into())), ..Self::default() };
        }
        let Ok((root, error)) = catch_unwind(|| parse(text)) else {
            return Self { error: Some((0, "the parser failed".into())), ..Self::default() };
        };
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

/// Parses a text that does not nest too deeply. A macro that wraps items, `cfg_unix! { pub fn f() {} }`, is replaced by its
/// items, which stay where they are.
fn parse(text: &str) -> (SyntaxNode, Option<(usize, String)>) {
    let (mut root, error) = parse_as(text, Edition::Edition2021);
    if error.is_some() {
        // What is a keyword, or a type, is not the same in all editions.
        let (older, older_error) = parse_as(text, Edition::Edition2015);
        return if older_error.is_none() { (older, None) } else { (root, error) };
    }
    let mut text = text.to_owned();
    loop {
        let wrappers = root.descendants().filter_map(ast::MacroCall::cast).filter_map(|call| wrapper(&call));
        let ranges: Vec<_> = wrappers.flatten().collect();
        for range in &ranges {
            let blank = |old: char| if old == '\n' { "\n".into() } else { " ".repeat(old.len_utf8()) };
            let blanks = text.get(range.clone()).map(|old| old.chars().map(blank).collect::<String>());
            text.replace_range(range.clone(), &blanks.unwrap_or_default());
        }
        match parse_as(&text, Edition::Edition2021) {
            (unwrapped, None) if !ranges.is_empty() => root = unwrapped,
            _ => return (root, None),
        }
    }
}

fn parse_as(text: &str, edition: Edition) -> (SyntaxNode, Option<(usize, String)>) {
    let parse = SourceFile::parse(text, edition);
    let first = parse.errors().into_iter().min_by_key(|error| error.range().start());
    (parse.syntax_node(), first.map(|error| (error.range().start().into(), error.to_string())))
}

/// What is around the items that a macro is given, if it stands where items do.
fn wrapper(call: &ast::MacroCall) -> Option<[Range<usize>; 2]> {
    let holder = call.syntax().parent()?.kind();
    if !matches!(holder, SOURCE_FILE | ITEM_LIST | ASSOC_ITEM_LIST) || is_exempt(call.syntax()) {
        return None;
    }
    let start = call.syntax().children().next()?.text_range().start();
    let tree = call.token_tree()?.syntax().clone();
    let (open, close) = (tree.first_token()?.text_range().end(), tree.last_token()?.text_range().start());
    let text = tree.text().slice(TextRange::new(open, close) - tree.text_range().start()).to_string();
    let parsed = SourceFile::parse(&text, Edition::Edition2021);
    let items = parsed.tree().syntax().children().find(|child| child.kind() != ATTR)?;
    // An attribute of the file would not be one where the macro is.
    let attributes = items.prev_sibling().map_or(0.into(), |attribute| attribute.text_range().end());
    let range = |from, to| Range::from(TextRange::new(from, to));
    let end = call.syntax().text_range().end();
    parsed.errors().is_empty().then(|| [range(start, open + attributes), range(close, end)])
}

/// Where a text nests deeper than the limits, in bytes.
fn too_deep(text: &str) -> Option<usize> {
    let lexed = LexedStr::new(Edition::Edition2021, text);
    let code: Vec<usize> = (0..lexed.len()).filter(|&token| !lexed.kind(token).is_trivia()).collect();
    // For each open bracket: the tokens since the last separator, and those of them that may open generics.
    let mut levels = vec![(0, 0)];
    let (mut total, mut before) = (0, EOF);
    for (index, &token) in code.iter().enumerate() {
        let (kind, next) = (lexed.kind(token), code.get(index + 1).map_or(EOF, |&next| lexed.kind(next)));
        let before = std::mem::replace(&mut before, kind);
        if matches!(kind, T![')'] | T![']'] | T!['}']) && levels.len() > 1 {
            total -= levels.pop().map_or(0, |(run, _)| run);
        }
        let Some((run, generics)) = levels.last_mut() else { break };
        let goes_on = next.is_punct() && next != T![#] || matches!(next, T![else] | T![as]);
        let kept = match kind {
            T![;] => 0,
            T!['}'] if !goes_on => 0,
            // A bracket counts once; attributes in a row do not nest.
            T![#] | T![')'] | T![']'] | T!['}'] => *run,
            T!['['] if before == T![#] => *run,
            // A comma ends an argument of generics, but not the generics.
            T![,] => *generics,
            _ => *run + 1,
        };
        total = total + kept - *run;
        *run = kept;
        *generics =
            (*generics + usize::from(kind == T![<])).saturating_sub(usize::from(kind == T![>])).min(kept);
        if matches!(kind, T!['('] | T!['['] | T!['{']) {
            levels.push((0, 0));
        }
        if levels.len() > MOST_BRACKETS || total > MOST_TOKENS {
            return Some(lexed.text_start(token));
        }
    }
    None
}

/// The lines of a text, without a byte order mark.
pub(crate) struct Lines<'a> {
    pub(crate) text: &'a str,
    starts: Vec<usize>,
}

impl<'a> Lines<'a> {
    pub(crate) fn of(text: &'a str) -> Self {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        Self {
            text,
            starts: std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect(),
        }
    }

    /// The line of a byte, from 1.
    pub(crate) fn line(&self, at: usize) -> usize {
        self.starts.partition_point(|start| *start <= at)
    }

    /// The line of a byte, and its column in characters, both from 1.
    pub(crate) fn place(&self, at: usize) -> (usize, usize) {
        let line = self.line(at);
        let start = line.checked_sub(1).and_then(|line| self.starts.get(line)).copied().unwrap_or_default();
        (line, self.text.get(start..at).map_or(0, |before| before.chars().count()) + 1)
    }
}
