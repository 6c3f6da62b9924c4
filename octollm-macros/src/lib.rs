//! The derive macros of octollm.

mod contract;
mod entries;
mod errors;
mod nearest;
mod reach;
mod validate;

use proc_macro::TokenStream;
use proc_macro2::Span;
use syn::{DeriveInput, parse_macro_input};

/// Makes a type a task contract.
#[proc_macro_derive(TaskContract, attributes(task, garde))]
pub fn derive_task_contract(input: TokenStream) -> TokenStream {
    contract::derive(&parse_macro_input!(input as DeriveInput)).into()
}

/// Makes the rules in `#[garde(..)]` checkable.
#[proc_macro_derive(Validate, attributes(garde))]
pub fn derive_validate(input: TokenStream) -> TokenStream {
    validate::derive(&parse_macro_input!(input as DeriveInput)).into()
}

/// Where an error shows, with names that are resolved as those of the generated code around it.
fn located(span: Span) -> Span {
    span.resolved_at(Span::call_site())
}
