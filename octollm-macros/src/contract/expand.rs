//! Writes `impl TaskContract`.

use proc_macro2::{Span, TokenStream};
use quote::{quote, quote_spanned};
use syn::{Generics, Ident, Type, parse_quote};

use super::{
    attr::Texts,
    check::{Contract, mentions},
};
use crate::validate;

/// The impl of a contract without mistakes.
pub(crate) fn contract(contract: &Contract<'_>, rt: &TokenStream) -> TokenStream {
    let Contract { name, version, path, scope, summary, .. } = contract;
    let timeout =
        contract.timeout_ms.map(|millis| quote!(.timeout(::core::time::Duration::from_millis(#millis))));
    let idempotent = contract.idempotent.then(|| quote!(.idempotent()));
    let cache = contract.cache_ms.map(|millis| quote!(.cache(::core::time::Duration::from_millis(#millis))));
    let title = contract.title.as_ref().map(|title| quote!(.title(#title)));
    let texts = |setter, texts: &Texts| {
        let setter = Ident::new(setter, Span::call_site());
        let texts = &texts.0;
        (!texts.is_empty()).then(|| quote!(.#setter(&[#(#texts),*])))
    };
    let (tags, examples) = (texts("tags", &contract.tags), texts("examples", &contract.examples));
    let effects = contract.effects.as_ref().map(|effects| quote!(.effects(#rt::Effects::#effects)));
    let spec = quote! {
        #rt::ContractSpec::new(#name, #path, #scope)
            .version(#version)
            .summary(#summary)
            .fingerprint(#rt::ContractCard::fingerprint_of::<Self>)
            #timeout
            #idempotent
            #cache
            #title
            #tags
            #examples
            #effects
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
    let chunk = contract.chunk.clone().unwrap_or_else(|| parse_quote!(()));
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
    let schema = match &contract.rules {
        None => quote!(__octollm_rules.described(); __octollm_rules.skip();),
        Some(rules) => validate::schema_rules(rules, rt),
    };
    let schema = quote! {
        #schema
        {
            #[allow(unused_imports)]
            use #rt::{NotRuled as _, RuledByDerive as _, RuledByHand as _};
            __octollm_rules.part(&mut |__octollm_rules| {
                (&&#rt::OwnSchema::<Self>::of()).octollm_add(__octollm_rules);
            });
        }
    };
    let run = match &contract.rules {
        // At the type, where `Validate` is missing if it is.
        None => {
            let at = crate::located(contract.ident.span());
            quote_spanned!(at=> <Self as #rt::Ruled>::octollm_check(self))
        }
        Some(rules) => {
            let report = validate::report(rules, rt);
            quote! {
                #[allow(unused_imports)]
                use #rt::{CheckedByItself as _, CheckedByValidate as _};
                #[allow(clippy::needless_borrow)]
                let __octollm_validated = (&#rt::ContractCheck(self)).octollm_check();
                match __octollm_validated {
                    ::core::option::Option::Some(__octollm_checked) => __octollm_checked,
                    ::core::option::Option::None => #rt::checked(#report),
                }
            }
        }
    };
    quote! {
        #[allow(unused_mut, unused_variables)]
        fn check(&self) -> ::core::result::Result<(), ::std::vec::Vec<#rt::Violation>> {
            #run
        }

        #[allow(unused_variables)]
        fn schema_rules(__octollm_rules: &mut #rt::SchemaRules) {
            #schema
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
