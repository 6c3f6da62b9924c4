//! Splits Rust source into tokens and comments, each with its place.
//!
//! The syntax tree keeps neither comments nor the inside of macro calls; the rules about those read this
//! instead. Every text can be lexed: what is left open (a string, a comment, a bracket) ends where the text
//! does.

mod scan;
#[cfg(test)]
mod tests;

use scan::Scanner;

/// A place in a text: both numbers start at one, and a column is one character.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Position {
    /// The line.
    pub(crate) line: usize,
    /// The column.
    pub(crate) column: usize,
}

impl Position {
    /// Where every text begins.
    pub(crate) const START: Self = Self { line: 1, column: 1 };
}

/// What sort of token it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A name or a keyword; a raw one keeps its `r#`.
    Ident,
    /// `'a`, with its quote.
    Lifetime,
    /// A number, a string of any kind, a character.
    Literal,
    /// One character of an operator or a separator.
    Punct,
    /// `(`, `[` or `{`.
    Open,
    /// `)`, `]` or `}`.
    Close,
}

/// One token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Token<'a> {
    /// Its sort.
    pub(crate) kind: Kind,
    /// Its text, as written.
    pub(crate) text: &'a str,
    /// The byte at which it starts.
    pub(crate) offset: usize,
    /// Where it starts.
    pub(crate) at: Position,
    /// The bracket that holds it, by index among the tokens.
    pub(crate) parent: Option<usize>,
    /// For a bracket, the other of its pair.
    pub(crate) partner: Option<usize>,
}

/// One comment: a line's, a block's, documentation or not, with its slashes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Comment<'a> {
    /// Its text, as written, without the end of its line.
    pub(crate) text: &'a str,
    /// Where it starts.
    pub(crate) at: Position,
}

/// All of a text, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Lexed<'a> {
    /// Its tokens.
    pub(crate) tokens: Vec<Token<'a>>,
    /// Its comments.
    pub(crate) comments: Vec<Comment<'a>>,
}

impl<'a> Lexed<'a> {
    /// The text of a token, empty past the end.
    pub(crate) fn text(&self, index: usize) -> &'a str {
        self.tokens.get(index).map_or("", |token| token.text)
    }

    /// Whether a token has this sort and this text.
    pub(crate) fn is(&self, index: usize, kind: Kind, text: &str) -> bool {
        self.tokens.get(index).is_some_and(|token| token.kind == kind && token.text == text)
    }

    /// Whether the punctuation marks that start at `index` are these, with nothing between them.
    pub(crate) fn is_operator(&self, index: usize, operator: &str) -> bool {
        operator.chars().enumerate().all(|(step, expected)| {
            let (Some(first), Some(token)) = (self.tokens.get(index), self.tokens.get(index + step)) else {
                return false;
            };
            token.kind == Kind::Punct
                && token.text.starts_with(expected)
                && token.offset == first.offset + step
        })
    }

    /// The index past a token, or past the whole group if it opens one.
    pub(crate) fn after(&self, index: usize) -> usize {
        let token = self.tokens.get(index).filter(|token| token.kind == Kind::Open);
        token.map_or(index + 1, |token| token.partner.map_or(self.tokens.len(), |close| close + 1))
    }
}

/// Lexes a text. A byte order mark and a `#!` line at its start are passed over.
pub(crate) fn lex(text: &str) -> Lexed<'_> {
    let mut scanner = Scanner::new(text);
    scanner.skip_preamble();
    let mut lexed = Lexed::default();
    let mut open = Vec::new();
    while let Some(next) = scanner.peek() {
        let (offset, at) = scanner.place();
        if next.is_whitespace() {
            scanner.bump();
        } else if scanner.skip_comment() {
            lexed.comments.push(Comment { text: scanner.since(offset).trim_end_matches('\r'), at });
        } else {
            let kind = scanner.skip_token(next);
            let parent = open.last().copied();
            let text = scanner.since(offset);
            push(&mut lexed.tokens, &mut open, Token { kind, text, offset, at, parent, partner: None });
        }
    }
    lexed
}

/// Adds a token, and pairs it with its bracket. A closing bracket that fits none is kept, without a partner.
fn push<'a>(tokens: &mut Vec<Token<'a>>, open: &mut Vec<usize>, mut token: Token<'a>) {
    let index = tokens.len();
    match token.kind {
        Kind::Open => open.push(index),
        Kind::Close => {
            let opener = open.last().and_then(|&last| Some((last, tokens.get_mut(last)?)));
            if let Some((last, opener)) = opener.filter(|(_, opener)| closes(opener.text, token.text)) {
                opener.partner = Some(index);
                token.partner = Some(last);
                token.parent = opener.parent;
                open.pop();
            }
        }
        _ => {}
    }
    tokens.push(token);
}

fn closes(open: &str, close: &str) -> bool {
    matches!((open, close), ("(", ")") | ("[", "]") | ("{", "}"))
}
