//! Writes `impl TaskContract`.

use proc_macro2::TokenStream;
use quote::{quote, quote_spanned};
use syn::{Generics, Type, parse_quote};

use super::check::{Contract, mentions};

/// The impl of a contract without mistakes.
pub(crate) fn contract(contract: &Contract<'_>, rt: &TokenStream) -> TokenStream {
    let Contract { name, version, path, scope, summary, .. } = contract;
    let timeout =
        contract.timeout_ms.map(|millis| quote!(.timeout(::core::time::Duration::from_millis(#millis))));
    let idempotent = contract.idempotent.then(|| quote!(.idempotent()));
    let spec = quote! {
        #rt::ContractSpec::new(#name, #path, #scope)
            .version(#version)
            .summary(#summary)
            .fingerprint(#rt::ContractCard::fingerprint_of::<Self>)
            #timeout
            #idempotent
    };
    implement(contract, &spec, &check(contract, rt), rt)
}

/// An impl that stands in after a mistake, so that the uses of the type are no mistakes too.
pub(crate) fn fallback(contract: &Contract<'_>, rt: &TokenStream) -> TokenStream {
    let spec = quote!(#rt::ContractSpec::new("in.error", "/in-error", "in:error"));
    implement(contract, &spec, &TokenStream::new(), rt)
}

fn implement(
    contract: &Contract<'_>,
    spec: &TokenStream,
    check: &TokenStream,
    rt: &TokenStream,
) -> TokenStream {
    let Contract { ident, output, .. } = contract;
    let chunk = contract.chunk.clone().unwrap_or_else(|| parse_quote!(#rt::NoChunk));
    let generics = bounded(contract, rt);
    let (impl_generics, type_generics, where_clause) = generics.split_for_impl();
    quote! {
        #[automatically_derived]
        impl #impl_generics #rt::TaskContract for #ident #type_generics #where_clause {
            type Output = #output;
            type Chunk = #chunk;
            const SPEC: #rt::ContractSpec = #spec;
            #check
        }
    }
}

fn check(contract: &Contract<'_>, rt: &TokenStream) -> TokenStream {
    let run = if contract.has_rules {
        // At the type, where `Validate` is missing if it is.
        let at = crate::located(contract.ident.span());
        quote_spanned!(at=> <Self as #rt::Ruled>::octollm_check(self))
    } else {
        quote! {
            #[allow(unused_imports)]
            use #rt::{Checked, CheckedByValidate as _, Unchecked as _};
            #[allow(clippy::needless_borrow)]
            (&Checked(self)).octollm_check()
        }
    };
    quote! {
        fn check(&self) -> ::core::result::Result<(), #rt::Violations> {
            #run
        }
    }
}

/// What the trait asks of its types, asked of those that depend on parameters.
fn bounded(contract: &Contract<'_>, rt: &TokenStream) -> Generics {
    let mut generics = contract.generics.clone();
    if generics.params.is_empty() {
        return generics;
    }
    let ident = contract.ident;
    let (_, type_generics, _) = contract.generics.split_for_impl();
    let itself: Type = parse_quote!(#ident #type_generics);
    let payloads = [Some(&contract.output), contract.chunk.as_ref()]
        .into_iter()
        .flatten()
        .filter(|payload| mentions(payload, contract.generics))
        .cloned();
    let clause = generics.make_where_clause();
    for payload in std::iter::once(itself).chain(payloads) {
        clause.predicates.push(parse_quote! {
            #payload: #rt::serde::Serialize + #rt::serde::de::DeserializeOwned + #rt::schemars::JsonSchema
                + ::core::marker::Send + ::core::marker::Sync + 'static
        });
    }
    generics
}
