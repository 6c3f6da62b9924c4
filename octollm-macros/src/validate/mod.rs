//! `#[derive(Validate)]`: attr → check → expand.
//!
//! garde's own derive writes `::garde::…`, which a crate that depends on octollm alone does not have. This one reads the same
//! words, implements the same trait and calls the same rules, reached through the runtime crate.

mod attr;
mod bounds;
mod check;
mod expand;
mod pattern;
mod schema;
pub(crate) mod wire;

use proc_macro2::TokenStream;
use syn::DeriveInput;

pub(crate) use self::{
    attr::NEEDS_GARDE,
    check::{FLATTENED_OPTION, Validated},
    expand::report,
    schema::rules as schema_rules,
};
use crate::{errors::Errors, reach};

pub(crate) fn derive(input: &DeriveInput) -> TokenStream {
    let mut errors = Errors::default();
    let validated = Validated::new(input, &mut errors);
    let runtime = errors.collect(reach::runtime(input));
    let implementation = match runtime {
        Some(rt) if errors.is_empty() => expand::validated(&validated, &rt),
        Some(rt) => expand::fallback(&validated, &rt),
        None => TokenStream::new(),
    };
    let mut tokens = errors.into_tokens();
    tokens.extend(implementation);
    tokens
}

#[cfg(test)]
mod tests {
    use proc_macro2::TokenStream;
    use syn::parse_quote;

    use super::*;

    #[test]
    fn survives_any_tokens() {
        for tokens in [
            "=",
            ",",
            "5",
            "length",
            "length(",
            "length(min)",
            "length(min =)",
            "length(min = , max)",
            "range(1..2)",
            "inner",
            "inner()",
            "inner(inner())",
            "if",
            "if()",
            "if(cond)",
            "custom()",
            "custom(,)",
            "matches(5)",
            "dive()",
            "adapt",
            "adapt(5)",
            "skip skip",
            "ascii ascii",
            "ascii = 5",
            "crate = 5",
            "context",
            "r#length",
        ] {
            let Ok(tokens) = tokens.parse::<TokenStream>() else { continue };
            for input in [
                parse_quote!(
                    struct A {
                        #[garde(#tokens)]
                        a: String,
                    }
                ),
                parse_quote!(
                    #[garde(#tokens)]
                    struct A {
                        #[garde(skip)]
                        a: String,
                    }
                ),
            ] {
                let mut errors = Errors::default();
                Validated::new(&input, &mut errors);
                assert!(!errors.is_empty(), "{tokens}");
            }
        }
    }
}
