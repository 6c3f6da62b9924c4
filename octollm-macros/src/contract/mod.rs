//! `#[derive(TaskContract)]`: attr → check → expand.

mod attr;
mod check;
mod expand;
mod name;
mod summary;

use proc_macro2::TokenStream;
use syn::{Data, DeriveInput};

use self::{attr::Attrs, check::Contract};
use crate::{errors::Errors, reach};

pub(crate) fn derive(input: &DeriveInput) -> TokenStream {
    let mut errors = Errors::default();
    let attrs = Attrs::read(&input.attrs, &mut errors);
    let contract = Contract::new(input, attrs, &mut errors);
    let runtime = errors.collect(reach::runtime(input));
    let implementation = match runtime {
        Some(rt) if errors.is_empty() => expand::contract(&contract, &rt),
        Some(rt) if may_stand_in(input) => expand::fallback(&contract, &rt),
        _ => TokenStream::new(),
    };
    let mut tokens = errors.into_tokens();
    tokens.extend(implementation);
    tokens
}

/// Whether an impl would hold at all: it would not for what borrows, nor for unions, which serde refuses too.
fn may_stand_in(input: &DeriveInput) -> bool {
    input.generics.lifetimes().next().is_none() && !matches!(input.data, Data::Union(_))
}
