//! Regular expressions that mean the same in Rust and in ECMA-262, whose dialect a JSON Schema has.

use std::{iter::Peekable, str::Chars};

use syn::{Expr, ExprLit, Lit, LitStr};

/// The most that a pattern may repeat a part, counted over repetitions inside each other.
const MOST_REPEATED: u32 = 1_000;

/// Checks the argument of `pattern(..)`.
pub(super) fn check(argument: &Expr) -> syn::Result<()> {
    let Expr::Lit(ExprLit { lit: Lit::Str(text), .. }) = argument else {
        let message = "`pattern` takes a text in quotes, which the schema publishes: `pattern(\"^[a-z]+$\")`";
        return Err(syn::Error::new_spanned(argument, message));
    };
    check_text(&text.value()).map_err(|why| refused(text, &why))
}

fn refused(text: &LitStr, why: &str) -> syn::Error {
    syn::Error::new(text.span(), format!("`pattern` is not the same in Rust and in a JSON Schema: {why}"))
}

/// Checks a whole pattern.
///
/// # Errors
/// What differs, and what to write in its place.
fn check_text(text: &str) -> Result<(), String> {
    let mut reader = Reader { rest: text.chars().peekable() };
    reader.alternation(1)?;
    match reader.rest.peek() {
        Some(_) => Err("`)` has no `(` before it: write `\\)` for the character".into()),
        None => Ok(()),
    }
}

struct Reader<'t> {
    rest: Peekable<Chars<'t>>,
}

impl Reader<'_> {
    fn takes(&mut self, expected: char) -> bool {
        self.rest.next_if_eq(&expected).is_some()
    }

    /// Reads up to the end, or to a `)`. Returns how often its parts are repeated at most.
    fn alternation(&mut self, most: u32) -> Result<u32, String> {
        let mut repeated = most;
        while let Some(next) = self.rest.next_if(|next| *next != ')') {
            let inner = self.atom(next)?;
            let Some(inner) = inner else { continue };
            let times = self.quantifier()?.unwrap_or(1);
            repeated = repeated.max(inner.saturating_mul(times));
            if repeated > MOST_REPEATED {
                return Err(format!(
                    "it repeats a part more than {MOST_REPEATED} times: repeat less, or use `*`"
                ));
            }
        }
        Ok(repeated)
    }

    /// Reads one part. Returns how often it repeats a part of its own; `None` where no quantifier may follow.
    fn atom(&mut self, first: char) -> Result<Option<u32>, String> {
        match first {
            '^' | '$' | '|' => {
                if self.rest.peek().is_some_and(|next| "*+?{".contains(*next)) {
                    return Err(format!(
                        "a quantifier follows `{first}`: write `\\{first}` for the character"
                    ));
                }
                Ok(None)
            }
            '(' => self.group().map(Some),
            '[' => self.class().map(|()| Some(1)),
            '\\' => self.escape(false).map(|_| Some(1)),
            '.' => Err("`.` stands for other characters: write a class, such as `[^\\n]`".into()),
            '*' | '+' | '?' => {
                Err(format!("`{first}` has nothing to repeat: write `\\{first}` for the character"))
            }
            '{' | '}' | ']' => Err(format!("`{first}` stands alone: write `\\{first}` for the character")),
            _ => Ok(Some(1)),
        }
    }

    fn group(&mut self) -> Result<u32, String> {
        if self.takes('?') && !self.takes(':') {
            return Err("`(?` begins a flag, a name or a lookaround: write `(` or `(?:`".into());
        }
        let repeated = self.alternation(1)?;
        if self.takes(')') {
            Ok(repeated)
        } else {
            Err("`(` has no `)`: write `\\(` for the character".into())
        }
    }

    /// `*`, `+`, `?`, `{1}`, `{1,}`, `{1,2}`, each with `?` after it or without. Returns the most that it allows.
    fn quantifier(&mut self) -> Result<Option<u32>, String> {
        let most = match self.rest.peek() {
            Some('*' | '+' | '?') => {
                self.rest.next();
                1
            }
            Some('{') => {
                self.rest.next();
                self.bounds()?
            }
            _ => return Ok(None),
        };
        self.takes('?');
        if self.rest.peek().is_some_and(|next| "*+?{".contains(*next)) {
            return Err("two quantifiers follow each other: put the first into a group, `(?:a+)*`".into());
        }
        Ok(Some(most))
    }

    fn bounds(&mut self) -> Result<u32, String> {
        const MALFORMED: &str =
            "`{` begins no repetition: write `{1}`, `{1,}` or `{1,2}`, or `\\{` for the character";
        let least = self.number().ok_or(MALFORMED)?;
        let most = match self.takes(',') {
            true if self.rest.peek() == Some(&'}') => least,
            true => self.number().ok_or(MALFORMED)?,
            false => least,
        };
        if !self.takes('}') || most < least {
            return Err(MALFORMED.into());
        }
        Ok(most.max(1))
    }

    fn number(&mut self) -> Option<u32> {
        let mut digits = String::new();
        while let Some(digit) = self.rest.next_if(char::is_ascii_digit) {
            digits.push(digit);
        }
        digits.parse().ok()
    }

    /// Reads a class after its `[`.
    fn class(&mut self) -> Result<(), String> {
        const BETWEEN: &str = "`-` stands between parts of a class: write `\\-` for the character";
        self.takes('^');
        let mut is_first = true;
        loop {
            let from = match self.rest.next() {
                None => return Err("`[` has no `]`: write `\\[` for the character".into()),
                Some(']') if is_first => return Err("a class is empty: write `\\]` for the character".into()),
                Some(']') => return Ok(()),
                Some('-')
                    if self.rest.peek() != Some(&']') && (!is_first || self.rest.peek() == Some(&'-')) =>
                {
                    return Err(BETWEEN.into());
                }
                Some(first) => self.member(first)?,
            };
            is_first = false;
            let mut ahead = self.rest.clone();
            if ahead.next() != Some('-') || matches!(ahead.next(), Some(']') | None) {
                continue;
            }
            self.rest.next();
            let to = match self.rest.next() {
                Some('-') | None => return Err(BETWEEN.into()),
                Some(last) => self.member(last)?,
            };
            if from > to {
                return Err(format!("the range `{from}-{to}` runs backwards: write `{to}-{from}`"));
            }
        }
    }

    /// Reads one character of a class.
    fn member(&mut self, first: char) -> Result<char, String> {
        match first {
            '\\' => self.escape(true),
            '[' => Err("`[` in a class begins another one: write `\\[` for the character".into()),
            '&' | '~' if self.rest.peek() == Some(&first) => {
                Err(format!("`{first}{first}` combines classes: write `{first}` once for the character"))
            }
            _ => Ok(first),
        }
    }

    /// Reads what follows a backslash.
    fn escape(&mut self, is_in_class: bool) -> Result<char, String> {
        let Some(escaped) = self.rest.next() else {
            return Err("it ends with `\\`: write `\\\\` for the character".into());
        };
        let instead = match escaped {
            'n' => return Ok('\n'),
            'r' => return Ok('\r'),
            't' => return Ok('\t'),
            '-' if is_in_class => return Ok('-'),
            _ if r"^$\.*+?()[]{}|/".contains(escaped) => return Ok(escaped),
            'd' => "write `[0-9]`",
            'D' => "write `[^0-9]`",
            'w' => "write `[0-9A-Za-z_]`",
            'W' => "write `[^0-9A-Za-z_]`",
            's' => r"write `[ \t\r\n]`",
            'S' => r"write `[^ \t\r\n]`",
            'p' | 'P' => "write the characters as a class, such as `[a-zäöü]`",
            'b' | 'B' => "write what stands around the word, such as `(^|[^a-z])`",
            'A' => "write `^`",
            'z' => "write `$`",
            _ if escaped.is_ascii_punctuation() => "write the character without `\\`",
            _ => "write the character itself",
        };
        Err(format!("`\\{escaped}` is another escape there, or none: {instead}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_both_dialects_read_alike_is_taken() {
        for pattern in [
            "",
            "^[a-z0-9]+$",
            r"^\[[^\]]*\]$",
            "a|b|",
            "(?:ab){2,3}?c*?d+?",
            "(a(b)?){0}",
            r"[\-\]\\^-]",
            "[-a]",
            "[a-]",
            "[&~a]",
            r"\n\t\r\/\.",
            "ä+[α-ω]",
            "^(foo|bar)-[0-9]{1,3}(,[0-9]{2,})*$",
            "a-b,c:d",
        ] {
            assert_eq!(check_text(pattern), Ok(()), "{pattern}");
        }
    }

    #[test]
    fn what_differs_is_refused() {
        for pattern in [
            ".",
            r"\d",
            r"[\w]",
            r"\s",
            r"\bword",
            r"\pL",
            r"\p{L}",
            r"\A",
            r"\z",
            r"\x41",
            r"\u0041",
            r"\1",
            r"\k",
            "(?i)a",
            "(?=a)",
            "(?!a)",
            "(?<=a)",
            "(?<n>a)",
            "(?P<n>a)",
            "[[:alpha:]]",
            "[a&&b]",
            "[a--b]",
            "[--a]",
            "[a~~b]",
            "[]a]",
            "[^]a]",
            "[z-a]",
            "[a-z-9]",
            "a**",
            "a{1}{2}",
            "^*",
            "|*",
            "*",
            "{",
            "a{",
            "a{,2}",
            "a{2,1}",
            "}",
            "]",
            "a)",
            "(a",
            "[a",
            r"a\",
            r"\-",
            r"\#",
            "((a{100}){100}){100}",
            "a{1001}",
        ] {
            assert!(check_text(pattern).is_err(), "{pattern}");
        }
    }
}
