//! The walk over the characters: one method for each form that has an end of its own.

use super::{Kind, Position};

/// A place in a text, and the steps from it.
pub(super) struct Scanner<'a> {
    text: &'a str,
    offset: usize,
    at: Position,
}

impl<'a> Scanner<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self { text, offset: 0, at: Position::START }
    }

    pub(super) fn place(&self) -> (usize, Position) {
        (self.offset, self.at)
    }

    pub(super) fn since(&self, offset: usize) -> &'a str {
        self.text.get(offset..self.offset).unwrap_or_default()
    }

    pub(super) fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    pub(super) fn bump(&mut self) -> Option<char> {
        let next = self.peek()?;
        self.offset += next.len_utf8();
        if next == '\n' {
            self.at = Position { line: self.at.line + 1, column: 1 };
        } else {
            self.at.column += 1;
        }
        Some(next)
    }

    /// Passes a byte order mark, which takes no column, and a `#!` line, unless it starts an attribute.
    pub(super) fn skip_preamble(&mut self) {
        if self.peek() == Some('\u{feff}') {
            self.offset += '\u{feff}'.len_utf8();
        }
        let attribute = self.rest().strip_prefix("#!").is_none_or(|rest| rest.trim_start().starts_with('['));
        if !attribute {
            self.bump_while(|next| next != '\n');
        }
    }

    /// Passes a comment, if one starts here.
    pub(super) fn skip_comment(&mut self) -> bool {
        if self.rest().starts_with("//") {
            self.bump_while(|next| next != '\n');
            return true;
        }
        if !self.rest().starts_with("/*") {
            return false;
        }
        let mut depth = 0usize;
        loop {
            if self.eat("/*") {
                depth += 1;
            } else if self.eat("*/") {
                depth -= 1;
            } else if self.bump().is_none() {
                return true;
            }
            if depth == 0 {
                return true;
            }
        }
    }

    /// Passes the token that starts here with `first`.
    pub(super) fn skip_token(&mut self, first: char) -> Kind {
        match first {
            '(' | '[' | '{' => self.single(Kind::Open),
            ')' | ']' | '}' => self.single(Kind::Close),
            '"' => self.string(),
            '\'' => self.quote(),
            _ if first.is_ascii_digit() => self.number(),
            _ if starts_name(first) => self.name(),
            _ => self.single(Kind::Punct),
        }
    }

    fn rest(&self) -> &'a str {
        self.text.get(self.offset..).unwrap_or_default()
    }

    fn bump_while(&mut self, holds: impl Fn(char) -> bool) {
        while self.peek().is_some_and(&holds) {
            self.bump();
        }
    }

    fn eat(&mut self, expected: &str) -> bool {
        let found = self.rest().starts_with(expected);
        if found {
            expected.chars().for_each(|_| {
                self.bump();
            });
        }
        found
    }

    fn single(&mut self, kind: Kind) -> Kind {
        self.bump();
        kind
    }

    /// A string from its opening quote on.
    fn string(&mut self) -> Kind {
        self.bump();
        self.escaped_until('"');
        Kind::Literal
    }

    fn escaped_until(&mut self, end: char) {
        while let Some(next) = self.bump() {
            if next == end {
                return;
            }
            if next == '\\' {
                self.bump();
            }
        }
    }

    /// A quote starts a character if an escape follows, or if the next but one is a quote as well; otherwise
    /// a lifetime.
    fn quote(&mut self) -> Kind {
        self.bump();
        let mut ahead = self.rest().chars();
        match (ahead.next(), ahead.next()) {
            (Some('\\'), _) => {
                self.escaped_until('\'');
                Kind::Literal
            }
            (Some(_), Some('\'')) => {
                self.bump();
                self.single(Kind::Literal)
            }
            (Some(first), _) if starts_name(first) => {
                self.eat("r#");
                self.bump_while(continues_name);
                Kind::Lifetime
            }
            _ => Kind::Punct,
        }
    }

    /// Digits with their point, exponent and suffix; `1..2` and `1.max(2)` keep their points.
    fn number(&mut self) -> Kind {
        let start = self.offset;
        self.digits(start);
        let mut ahead = self.rest().chars();
        if ahead.next() == Some('.') && ahead.next().is_none_or(|next| next != '.' && !starts_name(next)) {
            self.bump();
            self.digits(start);
        }
        Kind::Literal
    }

    fn digits(&mut self, start: usize) {
        while let Some(next) = self.peek().filter(|&next| continues_name(next)) {
            let exponent = matches!(next, 'e' | 'E')
                && !self.since(start).contains(|letter: char| letter.is_ascii_alphabetic());
            self.bump();
            let mut ahead = self.rest().chars();
            let sign = matches!(ahead.next(), Some('+' | '-'));
            if exponent && sign && ahead.next().is_some_and(|digit| digit.is_ascii_digit()) {
                self.bump();
            }
        }
    }

    /// A name, or the literal of which it is the prefix.
    fn name(&mut self) -> Kind {
        let start = self.offset;
        self.bump_while(continues_name);
        match (self.since(start), self.peek()) {
            ("b" | "c", Some('"')) => self.string(),
            ("b", Some('\'')) => {
                self.bump();
                self.escaped_until('\'');
                Kind::Literal
            }
            ("r" | "br" | "cr", Some('"' | '#')) => self.raw(),
            _ => Kind::Ident,
        }
    }

    /// What follows a raw prefix: a raw string, a raw name, or nothing that belongs to it.
    fn raw(&mut self) -> Kind {
        let rest = self.rest();
        let inner = rest.trim_start_matches('#');
        let hashes = rest.len() - inner.len();
        if let Some(body) = inner.strip_prefix('"') {
            let end = format!("\"{}", "#".repeat(hashes));
            let length = body.find(&end).map_or(body.len(), |length| length + end.len());
            let stop = self.offset + hashes + 1 + length;
            while self.offset < stop {
                self.bump();
            }
            return Kind::Literal;
        }
        if hashes == 1 && inner.starts_with(starts_name) {
            self.bump();
            self.bump_while(continues_name);
        }
        Kind::Ident
    }
}

/// Letters beyond ASCII are not told apart: no operator of the language is among them.
fn starts_name(character: char) -> bool {
    character == '_'
        || character.is_ascii_alphabetic()
        || (!character.is_ascii() && !character.is_whitespace())
}

fn continues_name(character: char) -> bool {
    starts_name(character) || character.is_ascii_digit()
}
