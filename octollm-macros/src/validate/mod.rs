//! `#[derive(Validate)]`: attr → check → expand.
//!
//! garde's own derive writes `::garde::…`, which whoever depends on octollm alone does not have. This one reads the same
//! words, implements the same trait and calls the same rules, reached through the runtime crate.

mod attr;
mod bounds;
mod check;
mod expand;

use proc_macro2::TokenStream;
use syn::DeriveInput;

use self::check::Validated;
use crate::{errors::Errors, reach};

pub(crate) fn derive(input: &DeriveInput) -> TokenStream {
    let mut errors = Errors::default();
    let validated = Validated::new(input, &mut errors);
    let runtime = errors.keep(reach::runtime(input));
    let implementation = match runtime {
        Some(rt) if errors.is_empty() => expand::validated(&validated, &rt),
        Some(rt) => expand::fallback(&validated, &rt),
        None => TokenStream::new(),
    };
    let mut tokens = errors.into_tokens();
    tokens.extend(implementation);
    tokens
}
