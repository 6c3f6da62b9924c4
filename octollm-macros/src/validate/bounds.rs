//! `min`, `max` and `equal`: the arguments of `length` and `range`.

use proc_macro2::TokenStream;
use quote::quote;
use syn::{Expr, Ident, Lit, UnOp, ext::IdentExt, parse::ParseStream};

use crate::entries::{self, set, value};

/// Ways of counting that garde has and no JSON Schema.
const FOREIGN: [&str; 4] = ["simple", "bytes", "utf16", "graphemes"];

/// From where to where, both included.
#[derive(Default)]
pub(crate) struct Bounds {
    min: Option<Expr>,
    max: Option<Expr>,
    equal: Option<Expr>,
    chars: Option<Ident>,
}

impl Bounds {
    /// Reads `(min = 1, max = 64)`; with the mode where a length is counted.
    pub(crate) fn read(entry: ParseStream<'_>, rule: &Ident) -> syn::Result<Self> {
        let mut bounds = Self::default();
        entries::in_parentheses(entry, rule, "min = 1, max = 64", |content| {
            entries::each(content, &mut |entry| bounds.entry(entry, rule))
        })?;
        bounds.check(rule)?;
        Ok(bounds)
    }

    fn entry(&mut self, entry: ParseStream<'_>, rule: &Ident) -> syn::Result<()> {
        let key = entry.call(Ident::parse_any)?;
        let counts = *rule == "length";
        let word = key.to_string();
        match word.as_str() {
            "min" => set(&mut self.min, &key, value(entry, &key, "a number", "1")?),
            "max" => set(&mut self.max, &key, value(entry, &key, "a number", "64")?),
            "equal" => set(&mut self.equal, &key, value(entry, &key, "a number", "8")?),
            "chars" if counts => set(&mut self.chars, &key, key.clone()),
            foreign if counts && FOREIGN.contains(&foreign) => Err(syn::Error::new_spanned(
                &key,
                format!(
                    "no JSON Schema counts in `{foreign}`: leave it out, and `length` counts the characters of a text \
                     and the items of a list or a map"
                ),
            )),
            unknown => {
                let known: &[&str] = &["min", "max", "equal", "chars"];
                let hint = entries::hint(unknown, if counts { known } else { &known[..3] }, "arguments");
                Err(syn::Error::new_spanned(&key, format!("unknown argument `{unknown}`: {hint}")))
            }
        }
    }

    fn check(&self, rule: &Ident) -> syn::Result<()> {
        match (&self.min, &self.max, &self.equal) {
            (None, None, None) => Err(syn::Error::new_spanned(
                rule,
                format!("`{rule}` needs at least one of `min`, `max` and `equal`"),
            )),
            (None, None, Some(_)) | (_, _, None) => self.check_order(),
            (_, _, Some(equal)) => Err(syn::Error::new_spanned(
                equal,
                "`equal` says it all: `min` and `max` do not stand beside it",
            )),
        }
    }

    /// Numbers are compared here; constants and calls are taken on trust.
    fn check_order(&self) -> syn::Result<()> {
        if let (Some(min), Some(max)) = (&self.min, &self.max)
            && let (Some(least), Some(most)) = (number(min), number(max))
            && least > most
        {
            return Err(syn::Error::new_spanned(max, format!("`max` is below `min`, which is {least}")));
        }
        Ok(())
    }

    /// `(least, most)`
    pub(crate) fn of_length(&self) -> TokenStream {
        let min = self.min.as_ref().or(self.equal.as_ref());
        let max = self.max.as_ref().or(self.equal.as_ref());
        let min = min.map_or_else(|| quote!(0_usize), |min| quote!(#min));
        let max = max.map_or_else(|| quote!(::core::primitive::usize::MAX), |max| quote!(#max));
        quote!((#min, #max))
    }

    /// `(least, most)`, each of which may be missing.
    pub(crate) fn of_range(&self) -> TokenStream {
        let bound = |given: &Option<Expr>| match given.as_ref().or(self.equal.as_ref()) {
            Some(given) => quote!(::core::option::Option::Some(#given)),
            None => quote!(::core::option::Option::None),
        };
        let (min, max) = (bound(&self.min), bound(&self.max));
        quote!((#min, #max))
    }
}

impl Bounds {
    /// The expressions in it.
    pub(super) fn all(&self) -> impl Iterator<Item = &Expr> {
        [&self.min, &self.max, &self.equal].into_iter().flatten()
    }

    pub(super) fn min(&self) -> Option<&Expr> {
        self.min.as_ref().or(self.equal.as_ref())
    }

    pub(super) fn max(&self) -> Option<&Expr> {
        self.max.as_ref().or(self.equal.as_ref())
    }
}

fn number(expr: &Expr) -> Option<i128> {
    match expr {
        Expr::Lit(literal) => match &literal.lit {
            Lit::Int(number) => number.base10_parse().ok(),
            _ => None,
        },
        Expr::Unary(unary) if matches!(unary.op, UnOp::Neg(_)) => number(&unary.expr)?.checked_neg(),
        Expr::Group(group) => number(&group.expr),
        _ => None,
    }
}
