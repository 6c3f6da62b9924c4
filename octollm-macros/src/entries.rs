//! The list of entries in an attribute. An error in one entry does not affect the others.

use proc_macro2::TokenTree;
use syn::{
    Attribute, Ident, Lit, Meta, Token, Type,
    ext::IdentExt,
    parse::{Parse, ParseStream},
    token::Paren,
};

use crate::errors::Errors;

/// Reads one entry, without the comma after it.
pub(crate) type Entry<'a> = dyn FnMut(ParseStream<'_>) -> syn::Result<()> + 'a;

/// The entries of `#[attr(..)]`.
pub(crate) fn of(attr: &Attribute, example: &str, errors: &mut Errors, entry: &mut Entry<'_>) {
    if !matches!(attr.meta, Meta::List(_)) {
        errors.at(attr, format!("this attribute takes its entries in parentheses: `{example}`"));
        return;
    }
    errors.collect(attr.parse_args_with(|entries: ParseStream<'_>| each(entries, entry)));
}

/// Reads entries up to the end of the stream, and returns all errors together.
pub(crate) fn each(entries: ParseStream<'_>, entry: &mut Entry<'_>) -> syn::Result<()> {
    let mut errors = Errors::default();
    while !entries.is_empty() {
        let done = entry(entries).and_then(|()| at_end(entries));
        if errors.collect(done).is_none() {
            skip(entries)?;
        }
        if !entries.is_empty() {
            entries.parse::<Token![,]>()?;
        }
    }
    errors.into_result()
}

/// Sets a value once.
pub(crate) fn set<T>(slot: &mut Option<T>, key: &Ident, value: T) -> syn::Result<()> {
    if slot.is_some() {
        return Err(syn::Error::new_spanned(key, format!("`{key}` is given twice")));
    }
    *slot = Some(value);
    Ok(())
}

/// `= value`
pub(crate) fn value<T: Parse>(
    entry: ParseStream<'_>,
    key: &Ident,
    kind: &str,
    example: &str,
) -> syn::Result<T> {
    begin_value(entry, key, example)?;
    let at = entry.fork();
    entry.parse().map_err(|error| {
        let message = format!("`{key}` takes {kind}: `{key} = {example}`");
        // A literal of the wrong kind is marked as it stands, in one piece.
        match at.parse::<Lit>() {
            Ok(literal) => syn::Error::new_spanned(literal, message),
            Err(_) => syn::Error::new(error.span(), message),
        }
    })
}

/// `=`, and something after it.
pub(crate) fn begin_value(entry: ParseStream<'_>, key: &Ident, example: &str) -> syn::Result<()> {
    let equals = entry.parse::<Option<Token![=]>>()?;
    if equals.is_none() || entry.is_empty() || entry.peek(Token![,]) {
        return Err(syn::Error::new_spanned(key, format!("`{key}` needs a value: `{key} = {example}`")));
    }
    Ok(())
}

/// `(argument)`
pub(crate) fn argument<T: Parse>(entry: ParseStream<'_>, key: &Ident, example: &str) -> syn::Result<T> {
    in_parentheses(entry, key, example, |content| {
        if content.is_empty() {
            return Err(missing_arguments(key, example));
        }
        content.parse()
    })
}

/// `(..)`, read to its end.
pub(crate) fn in_parentheses<T>(
    entry: ParseStream<'_>,
    key: &Ident,
    example: &str,
    read: impl FnOnce(ParseStream<'_>) -> syn::Result<T>,
) -> syn::Result<T> {
    if !entry.peek(Paren) {
        return Err(missing_arguments(key, example));
    }
    let content;
    syn::parenthesized!(content in entry);
    let value = read(&content)?;
    if content.is_empty() {
        return Ok(value);
    }
    Err(content.error(format!("`{key}` takes no more than `{key}({example})`")))
}

pub(crate) fn missing_arguments(key: &Ident, example: &str) -> syn::Error {
    syn::Error::new_spanned(key, format!("`{key}` needs arguments: `{key}({example})`"))
}

fn at_end(entries: ParseStream<'_>) -> syn::Result<()> {
    if entries.is_empty() || entries.peek(Token![,]) {
        return Ok(());
    }
    Err(entries.error("expected `,` before the next entry"))
}

/// Goes on to the comma before the next entry: not to one inside a type's angle brackets.
fn skip(entries: ParseStream<'_>) -> syn::Result<()> {
    while !entries.is_empty() && !before_entry(entries) {
        // A type in one piece where it is one, so that its commas are not taken for the list's.
        let as_type = entries.fork();
        if as_type.parse::<Type>().is_ok() {
            entries.parse::<Type>()?;
        } else {
            entries.parse::<TokenTree>()?;
        }
    }
    Ok(())
}

fn before_entry(entries: ParseStream<'_>) -> bool {
    let ahead = entries.fork();
    if ahead.parse::<Token![,]>().is_err() {
        return false;
    }
    ahead.is_empty()
        || ahead.call(Ident::parse_any).is_ok()
            && (ahead.is_empty() || ahead.peek(Token![=]) || ahead.peek(Token![,]) || ahead.peek(Paren))
}

/// The candidate that is fewest edits away, if it is near enough to be meant.
pub(crate) fn nearest<'a>(word: &str, candidates: &[&'a str]) -> Option<&'a str> {
    let limit = (word.chars().count() / 3).max(1);
    candidates
        .iter()
        .map(|candidate| (distance(word, candidate), *candidate))
        .filter(|(distance, _)| *distance <= limit)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// `did you mean …?`, or the whole list where nothing is near.
pub(crate) fn hint(word: &str, candidates: &[&str], plural: &str) -> String {
    match nearest(word, candidates) {
        Some(candidate) => format!("did you mean `{candidate}`?"),
        None => format!("the {plural} are `{}`", candidates.join("`, `")),
    }
}

/// Edits (insert, delete, replace, swap neighbours) from one word to the other.
fn distance(from: &str, to: &str) -> usize {
    let (from, to): (Vec<char>, Vec<char>) = (from.chars().collect(), to.chars().collect());
    let mut before = Vec::new();
    let mut above: Vec<usize> = (0..=to.len()).collect();
    for row in 0..from.len() {
        let mut line = vec![row + 1];
        for column in 0..to.len() {
            let replace = above[column] + usize::from(from[row] != to[column]);
            let mut least = replace.min(above[column + 1] + 1).min(line[column] + 1);
            if row > 0 && column > 0 && from[row] == to[column - 1] && from[row - 1] == to[column] {
                let before: &Vec<usize> = &before;
                least = least.min(before[column - 1] + 1);
            }
            line.push(least);
        }
        before = std::mem::replace(&mut above, line);
    }
    above[to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_what_was_meant_and_nothing_far_off() {
        let keys = ["name", "version", "path", "timeout", "idempotent"];
        for (word, meant) in [
            ("nmae", Some("name")),
            ("nam", Some("name")),
            ("versoin", Some("version")),
            ("timout", Some("timeout")),
            ("idempotence", Some("idempotent")),
            ("retries", None),
            ("", None),
        ] {
            assert_eq!(nearest(word, &keys), meant, "{word}");
        }
    }
}
