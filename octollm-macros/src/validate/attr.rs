//! Reads `#[garde(..)]`.

use proc_macro2::TokenStream;
use quote::quote;
use syn::{Attribute, Expr, Ident, Path, Token, Type, ext::IdentExt, parse::ParseStream, token::Paren};

use super::{bounds::Bounds, pattern};
use crate::{
    entries::{self, argument, begin_value, in_parentheses, set},
    errors::Errors,
    reach,
};

const EXAMPLE: &str = "#[garde(length(min = 1))]";
const OPTIONS: [&str; 5] = ["allow_unvalidated", "transparent", "context", "custom", "crate"];
const RULES: [&str; 18] = [
    "skip",
    "ascii",
    "alphanumeric",
    "required",
    "length",
    "range",
    "contains",
    "prefix",
    "suffix",
    "matches",
    "ip",
    "ipv4",
    "ipv6",
    "dive",
    "inner",
    "custom",
    "if",
    "adapt",
];
/// Rules of garde that need crates which octollm does not bring.
const LEFT_OUT: [&str; 5] = ["email", "url", "pattern", "credit_card", "phone_number"];

/// What stands at the type.
#[derive(Default)]
pub(crate) struct Options {
    pub(crate) allow_unvalidated: Option<Ident>,
    pub(crate) transparent: Option<Ident>,
    /// The type of the context and the name it has in expressions.
    pub(crate) context: Option<(Type, Option<Ident>)>,
    pub(crate) custom: Vec<Expr>,
    krate: Option<Path>,
}

impl Options {
    pub(crate) fn read(attrs: &[Attribute], errors: &mut Errors) -> Self {
        let mut options = Self::default();
        for attr in attrs.iter().filter(|attr| attr.path().is_ident("garde")) {
            entries::of(attr, "#[garde(allow_unvalidated)]", errors, &mut |entry| options.entry(entry));
        }
        options
    }

    fn entry(&mut self, entry: ParseStream<'_>) -> syn::Result<()> {
        let key = entry.call(Ident::parse_any)?;
        match key.to_string().as_str() {
            "allow_unvalidated" => set(&mut self.allow_unvalidated, &key, key.clone()),
            "transparent" => set(&mut self.transparent, &key, key.clone()),
            "context" => {
                let context = in_parentheses(entry, &key, "Type as name", |content| {
                    let ty = content.parse()?;
                    let name = content.parse::<Option<Token![as]>>()?.map(|_| content.parse()).transpose()?;
                    Ok((ty, name))
                })?;
                set(&mut self.context, &key, context)
            }
            "custom" => {
                self.custom.push(argument(entry, &key, "a_function")?);
                Ok(())
            }
            "crate" => {
                begin_value(entry, &key, "octollm")?;
                set(&mut self.krate, &key, reach::crate_path(entry)?)
            }
            rule if RULES.contains(&rule) || LEFT_OUT.contains(&rule) => Err(syn::Error::new_spanned(
                &key,
                format!("`{rule}` is a rule for fields, not for the whole type"),
            )),
            unknown => {
                let hint = entries::hint(unknown, &OPTIONS, "options of a type");
                Err(syn::Error::new_spanned(&key, format!("unknown option `{unknown}`: {hint}")))
            }
        }
    }
}

/// One rule as it is written.
pub(crate) struct Rule {
    pub(crate) name: Ident,
    pub(crate) kind: Kind,
}

pub(crate) enum Kind {
    Skip,
    /// Takes the rules from another module.
    Adapt(Path),
    /// The field's own `Validate`, with its context where that is another.
    Dive(Option<Expr>),
    Call(Box<Call>),
    Custom(Expr),
    /// For each item.
    Inner(Vec<Rule>),
    If(Expr, Vec<Rule>),
}

/// A rule that is a function of garde.
pub(crate) struct Call {
    /// Distinguishes rules that may be given once.
    pub(crate) key: String,
    /// Below `garde::rules`.
    pub(crate) module: TokenStream,
    pub(crate) arguments: Arguments,
}

pub(crate) enum Arguments {
    None,
    Ip(&'static str),
    Length(Bounds),
    Range(Bounds),
    Text(Expr),
    /// Another field.
    Field(Ident),
}

/// Reads the rules of a field.
pub(crate) fn rules(attrs: &[Attribute], errors: &mut Errors) -> Vec<Rule> {
    let mut rules = Vec::new();
    for attr in attrs.iter().filter(|attr| attr.path().is_ident("garde")) {
        entries::of(attr, EXAMPLE, errors, &mut |entry| {
            rules.push(rule(entry)?);
            Ok(())
        });
    }
    rules
}

fn rule(entry: ParseStream<'_>) -> syn::Result<Rule> {
    let name = entry.call(Ident::parse_any)?;
    let word = name.to_string();
    let kind = match word.as_str() {
        "skip" => Kind::Skip,
        "ascii" | "alphanumeric" | "required" => call(&word, quote!(#name), Arguments::None),
        "ip" => call(&word, quote!(ip), Arguments::Ip("Any")),
        "ipv4" => call(&word, quote!(ip), Arguments::Ip("V4")),
        "ipv6" => call(&word, quote!(ip), Arguments::Ip("V6")),
        "length" => call(&word, quote!(#name::simple), Arguments::Length(Bounds::read(entry, &name)?)),
        "range" => call(&word, quote!(#name), Arguments::Range(Bounds::read(entry, &name)?)),
        "contains" | "prefix" | "suffix" => {
            call(&word, quote!(#name), Arguments::Text(argument(entry, &name, "\"text\"")?))
        }
        "matches" => call(&word, quote!(#name), Arguments::Field(argument(entry, &name, "other_field")?)),
        "dive" if entry.peek(Paren) => Kind::Dive(Some(argument(entry, &name, "context")?)),
        "dive" => Kind::Dive(None),
        "custom" => Kind::Custom(argument(entry, &name, "a_function")?),
        "adapt" => Kind::Adapt(argument(entry, &name, "a_module")?),
        "inner" => Kind::Inner(inner(entry, &name)?),
        "if" => conditional(entry, &name)?,
        "pattern" => {
            pattern::check(&argument(entry, &name, "\"^[a-z]+$\"")?)?;
            return Err(left_out(&name));
        }
        _ => return Err(unknown(&name)),
    };
    if entry.peek(Paren) {
        return Err(entry.error(format!("`{name}` takes no arguments")));
    }
    Ok(Rule { name, kind })
}

fn call(key: &str, module: TokenStream, arguments: Arguments) -> Kind {
    Kind::Call(Box::new(Call { key: key.to_owned(), module, arguments }))
}

fn inner(entry: ParseStream<'_>, name: &Ident) -> syn::Result<Vec<Rule>> {
    let mut rules = Vec::new();
    let example = "length(min = 1)";
    in_parentheses(entry, name, example, |content| {
        entries::each(content, &mut |entry| {
            rules.push(rule(entry)?);
            Ok(())
        })
    })?;
    if rules.is_empty() {
        return Err(entries::missing_arguments(name, example));
    }
    Ok(rules)
}

/// `if(cond = .., rules)`
fn conditional(entry: ParseStream<'_>, name: &Ident) -> syn::Result<Kind> {
    let mut condition = None;
    let mut rules = Vec::new();
    let example = "cond = *is_text, ascii";
    in_parentheses(entry, name, example, |content| {
        entries::each(content, &mut |entry| {
            if entry.fork().call(Ident::parse_any).is_ok_and(|key| key == "cond") {
                let key = entry.call(Ident::parse_any)?;
                return set(&mut condition, &key, entries::value(entry, &key, "a condition", "*is_text")?);
            }
            rules.push(rule(entry)?);
            Ok(())
        })
    })?;
    match condition {
        Some(condition) if !rules.is_empty() => Ok(Kind::If(condition, rules)),
        _ => {
            let message = format!("`if` needs a condition and a rule: `if({example})`");
            Err(syn::Error::new_spanned(name, message))
        }
    }
}

fn unknown(name: &Ident) -> syn::Error {
    let word = name.to_string();
    if LEFT_OUT.contains(&word.as_str()) {
        return left_out(name);
    }
    if word == "rename" || word == "code" {
        return syn::Error::new_spanned(name, format!("`{word}` changes nothing that is checked: remove it"));
    }
    let hint = entries::hint(&word, &RULES, "rules");
    syn::Error::new_spanned(name, format!("unknown rule `{word}`: {hint}"))
}

/// What is reported of [`left_out`] rules, after the name.
pub(crate) const NEEDS_GARDE: &str = "needs a feature of garde that octollm does without: \
     add `garde` to your dependencies and derive `garde::Validate` instead";

/// A rule that garde has only with one of its features.
pub(crate) fn left_out(name: &Ident) -> syn::Error {
    syn::Error::new_spanned(name, format!("`{name}` {NEEDS_GARDE}"))
}
