//! Refuses what would take a parser too deep.
//!
//! A parser that calls itself goes one level down for each open bracket, and at most a few for each token of
//! an unfinished expression (`- - - x`, `a + b + c`, `A<A<A<…`). What is given to a macro it only groups.

use super::finding;
use crate::finding::{Finding, Rule};
use crate::lexer::{Kind, Lexed, Token};

/// The most brackets that may be open at once.
const BRACKETS: usize = 200;
/// The most tokens that the expressions around a place may have had before it.
pub(super) const TOKENS: usize = 3_000;

/// A bracket that is open, or the file.
#[derive(Default)]
struct Level {
    /// The tokens since the last separator, here.
    run: usize,
    /// Those among them that may have opened a list of generics.
    angles: usize,
    /// Whether a macro gets what is inside.
    opaque: bool,
}

/// Finds the first place that is too deep.
pub(super) fn check(lexed: &Lexed<'_>) -> Result<(), Finding> {
    let mut levels = vec![Level::default()];
    let mut total = 0usize;
    for (index, token) in lexed.tokens.iter().enumerate() {
        match token.kind {
            Kind::Open => {
                let opaque = levels.last().is_some_and(|level| level.opaque) || opens_macro(lexed, index);
                total += count(&mut levels, 1);
                levels.push(Level { opaque, ..Level::default() });
            }
            Kind::Close if levels.len() > 1 => {
                total -= levels.pop().map_or(0, |level| level.run);
                if ends_statement(lexed, index) {
                    total -= reset(&mut levels, 0);
                }
            }
            Kind::Punct => total = punctuate(lexed, index, token, &mut levels, total),
            _ => total += count(&mut levels, 1),
        }
        if levels.len() > BRACKETS || total > TOKENS {
            return Err(finding(Rule::DoesNotParse, token.at, "nested too deeply"));
        }
    }
    Ok(())
}

fn punctuate(
    lexed: &Lexed<'_>,
    index: usize,
    token: &Token<'_>,
    levels: &mut [Level],
    total: usize,
) -> usize {
    match token.text {
        ";" => total - reset(levels, 0),
        // A comma ends an argument of generics, but not the generics.
        "," => {
            let angles = levels.last().map_or(0, |level| level.angles);
            total - reset(levels, angles)
        }
        "<" => {
            turn(levels, |angles| if is_shift(lexed, index) { angles } else { angles + 1 });
            total + count(levels, 1)
        }
        ">" => {
            let arrow = index
                .checked_sub(1)
                .is_some_and(|before| lexed.is_operator(before, "->") || lexed.is_operator(before, "=>"));
            turn(levels, |angles| if arrow { angles } else { angles.saturating_sub(1) });
            total + count(levels, 1)
        }
        _ => total + count(levels, 1),
    }
}

/// Adds tokens to the innermost run; returns what that adds to the whole.
fn count(levels: &mut [Level], tokens: usize) -> usize {
    match levels.last_mut() {
        Some(level) if !level.opaque => {
            level.run += tokens;
            tokens
        }
        _ => 0,
    }
}

/// Starts a new run, of which `angles` are left; returns what that takes from the whole.
fn reset(levels: &mut [Level], angles: usize) -> usize {
    levels.last_mut().map_or(0, |level| {
        let kept = angles.min(level.run);
        let taken = level.run - kept;
        *level = Level { run: kept, angles: kept, opaque: level.opaque };
        taken
    })
}

fn turn(levels: &mut [Level], change: impl Fn(usize) -> usize) {
    if let Some(level) = levels.last_mut() {
        level.angles = change(level.angles);
    }
}

/// `1 << 4` opens no generics.
fn is_shift(lexed: &Lexed<'_>, index: usize) -> bool {
    let second = index.checked_sub(1).filter(|&before| lexed.is_operator(before, "<<"));
    let after = second.map_or(index + 2, |_| index + 1);
    let shift = second.is_some() || lexed.is_operator(index, "<<");
    shift && lexed.tokens.get(after).is_some_and(|token| token.kind == Kind::Literal)
}

/// Whether a closing brace ends what it belongs to: nothing after it can go on with the expression.
fn ends_statement(lexed: &Lexed<'_>, index: usize) -> bool {
    let goes_on = match lexed.tokens.get(index + 1).map(|next| (next.kind, next.text)) {
        Some((Kind::Ident, text)) => matches!(text, "else" | "as"),
        Some((Kind::Punct, text)) => text != "#",
        _ => false,
    };
    lexed.text(index) == "}" && !goes_on
}

/// Whether a bracket holds a macro's input: `name! (`, or `macro_rules! name {`.
fn opens_macro(lexed: &Lexed<'_>, index: usize) -> bool {
    let is_name = |index: usize| {
        lexed
            .tokens
            .get(index)
            .is_some_and(|token| token.kind == Kind::Ident && !is_operator_word(token.text))
    };
    let called = |bang: Option<usize>| {
        let name = bang.filter(|&bang| lexed.is(bang, Kind::Punct, "!")).and_then(|bang| bang.checked_sub(1));
        name.is_some_and(is_name)
    };
    let before = index.checked_sub(1);
    let named = before.filter(|&name| is_name(name)).and_then(|name| name.checked_sub(1));
    called(before) || called(named)
}

/// The keywords after which `!` is the operator.
fn is_operator_word(word: &str) -> bool {
    matches!(word, "as" | "break" | "else" | "if" | "in" | "match" | "move" | "return" | "while" | "yield")
}

#[cfg(test)]
mod tests {
    use super::{TOKENS, check};
    use crate::lexer::lex;

    fn deep(text: &str) -> bool {
        check(&lex(text)).is_err()
    }

    #[test]
    fn open_brackets_are_counted_in_macros_as_well() {
        assert!(!deep(&format!("{}{}", "(".repeat(150), ")".repeat(150))));
        assert!(deep(&"(".repeat(250)));
        assert!(deep(&format!("m! {{ {} }}", "[{(".repeat(90))));
    }

    #[test]
    fn an_unfinished_expression_is_counted() {
        for part in
            ["!", "a +", "if a {} else ", "a.b().", "S {} + ", "A<B, ", "A<<B as C<D, ", "|| ", "return "]
        {
            assert!(deep(&part.repeat(TOKENS + 1)), "{part}");
        }
        assert!(deep(&"!(&&&&&&&&&&&&&&&&&&&&&&&&&&&&&&&&&&&&&".repeat(TOKENS / 38)));
    }

    #[test]
    fn a_finished_one_is_not() {
        for part in [
            "a;",
            "a,",
            "fn f() {}",
            "if a {}",
            "#[a] mod b {}",
            "1 << 2,",
            "(a) => {}",
            "A<B>,",
            "x as B<C>;",
        ] {
            assert!(!deep(&part.repeat(TOKENS + 1)), "{part}");
        }
    }

    #[test]
    fn what_a_macro_gets_is_not_but_a_negation_is() {
        assert!(!deep(&format!("words! {{ {} }}", "a ".repeat(TOKENS * 2))));
        assert!(!deep(&format!("macro_rules! a {{ {} }}", "a ".repeat(TOKENS * 2))));
        assert!(deep(&format!("return !( {} )", "a ".repeat(TOKENS * 2))));
    }
}
