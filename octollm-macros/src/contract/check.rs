//! From what is written to what is meant, with every rule checked.

use quote::ToTokens;
use syn::{Attribute, Data, DeriveInput, Generics, Ident, LitStr, Type, ext::IdentExt, parse_quote};

use super::{attr::Attrs, name, summary, timeout};
use crate::errors::Errors;

/// A contract as it is written into the impl.
pub(crate) struct Contract<'a> {
    pub(crate) ident: &'a Ident,
    pub(crate) generics: &'a Generics,
    pub(crate) name: String,
    pub(crate) version: u32,
    pub(crate) path: String,
    pub(crate) scope: String,
    pub(crate) timeout_ms: Option<u64>,
    pub(crate) idempotent: bool,
    pub(crate) summary: String,
    pub(crate) output: Type,
    /// `None` where nothing is streamed.
    pub(crate) chunk: Option<Type>,
    /// Whether there are `#[garde(..)]` rules that `check` must run.
    pub(crate) has_rules: bool,
}

impl<'a> Contract<'a> {
    /// Checks everything. After a mistake the contract is only good for a fallback.
    pub(crate) fn new(input: &'a DeriveInput, attrs: Attrs, errors: &mut Errors) -> Self {
        check_shape(input, errors);
        let name = a_name(&input.ident, attrs.name.as_ref(), errors);
        let version = attrs.version.as_ref().map_or(Some(1), |number| {
            let version = number.base10_parse().ok().filter(|version| *version > 0);
            if version.is_none() {
                errors.at(number, format!("a version is a whole number from 1 to {}", u32::MAX));
            }
            version
        });
        let scope = match &attrs.scope {
            Some(scope) => checked(scope, name::check_scope, errors),
            None => name.as_deref().map(name::scope_of),
        };
        let path = match (&attrs.path, &name, version) {
            (Some(path), ..) => checked(path, name::check_path, errors),
            (None, Some(name), Some(version)) => {
                default_path(&input.ident, attrs.name.as_ref(), name, version, errors)
            }
            _ => None,
        };
        let timeout_ms = attrs
            .timeout
            .as_ref()
            .and_then(|text| timeout::millis(&text.value()).map_err(|why| errors.at(text, why)).ok());
        Self {
            ident: &input.ident,
            generics: &input.generics,
            name: name.unwrap_or_default(),
            version: version.unwrap_or(1),
            path: path.unwrap_or_default(),
            scope: scope.unwrap_or_default(),
            timeout_ms,
            idempotent: attrs.idempotent.unwrap_or(false),
            summary: attrs.summary.map_or_else(|| summary::of(&input.attrs), |text| text.value()),
            output: attrs.output.unwrap_or_else(|| parse_quote!(())),
            chunk: attrs.chunk,
            has_rules: has_rules(input),
        }
    }
}

/// A contract is an owned value that JSON can tell.
fn check_shape(input: &DeriveInput, errors: &mut Errors) {
    if let Data::Union(union) = &input.data {
        errors.at(union.union_token, "a union is no task contract: JSON cannot tell which field it has");
    }
    for lifetime in input.generics.lifetimes() {
        errors.at(
            lifetime,
            format!("a task contract owns its data, so it has no lifetimes: remove `{}`", lifetime.lifetime),
        );
    }
}

fn a_name(ident: &Ident, given: Option<&LitStr>, errors: &mut Errors) -> Option<String> {
    if let Some(given) = given {
        return checked(given, name::check, errors);
    }
    let name = name::from_type(&ident.unraw().to_string());
    if name.is_none() {
        errors.at(
            ident,
            format!("`{ident}` makes no contract name: give one with `#[task(name = \"entity.verb\")]`"),
        );
    }
    name
}

fn default_path(
    ident: &Ident,
    given: Option<&LitStr>,
    name: &str,
    version: u32,
    errors: &mut Errors,
) -> Option<String> {
    let path = name::path_of(name, version);
    let Err(why) = name::check_path(&path) else {
        return Some(path);
    };
    match given {
        Some(given) => errors.at(given, why),
        None => errors.at(ident, why),
    }
    None
}

fn checked(text: &LitStr, check: fn(&str) -> Result<(), String>, errors: &mut Errors) -> Option<String> {
    let value = text.value();
    match check(&value) {
        Ok(()) => Some(value),
        Err(why) => {
            errors.at(text, why);
            None
        }
    }
}

/// Whether the type or one of its fields carries `#[garde(..)]`.
fn has_rules(input: &DeriveInput) -> bool {
    let is_rule = |attrs: &[Attribute]| attrs.iter().any(|attr| attr.path().is_ident("garde"));
    let on_fields = match &input.data {
        Data::Struct(data) => data.fields.iter().any(|field| is_rule(&field.attrs)),
        Data::Enum(data) => data.variants.iter().any(|variant| {
            is_rule(&variant.attrs) || variant.fields.iter().any(|field| is_rule(&field.attrs))
        }),
        Data::Union(_) => false,
    };
    on_fields || is_rule(&input.attrs)
}

/// Whether a type speaks of the generic parameters of the contract, by name or as `Self`.
pub(crate) fn mentions(ty: &Type, generics: &Generics) -> bool {
    fn any(tokens: proc_macro2::TokenStream, is_it: &dyn Fn(&Ident) -> bool) -> bool {
        tokens.into_iter().any(|token| match token {
            proc_macro2::TokenTree::Ident(ident) => is_it(&ident),
            proc_macro2::TokenTree::Group(group) => any(group.stream(), is_it),
            _ => false,
        })
    }
    any(ty.to_token_stream(), &|ident| {
        ident == "Self"
            || generics.type_params().any(|param| param.ident == *ident)
            || generics.const_params().any(|param| param.ident == *ident)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_contract<T>(input: DeriveInput, use_it: impl FnOnce(&Contract<'_>) -> T) -> (T, Vec<String>) {
        let mut errors = Errors::default();
        let attrs = Attrs::read(&input.attrs, &mut errors);
        let contract = Contract::new(&input, attrs, &mut errors);
        (use_it(&contract), errors.messages())
    }

    #[test]
    fn the_defaults_follow_from_the_type() {
        let (_, errors) = with_contract(
            parse_quote!(
                /** Checks code. */
                struct ValidateCode;
            ),
            |contract| {
                assert_eq!(contract.name, "code.validate");
                assert_eq!(contract.version, 1);
                assert_eq!(contract.path, "/validate");
                assert_eq!(contract.scope, "code:validate");
                assert_eq!(contract.timeout_ms, None);
                assert!(!contract.idempotent);
                assert_eq!(contract.summary, "Checks code.");
                assert_eq!(contract.output.to_token_stream().to_string(), "()");
                assert!(contract.chunk.is_none());
                assert!(!contract.has_rules);
            },
        );
        assert_eq!(errors, [""; 0]);
    }

    #[test]
    fn a_wrong_name_is_one_mistake() {
        let (_, errors) = with_contract(
            parse_quote!(
                #[task(name = "Validate")]
                struct A;
            ),
            |_| (),
        );
        assert_eq!(errors.len(), 1, "{errors:?}");
    }

    #[test]
    fn a_name_whose_route_is_kept_needs_a_path() {
        let (_, errors) = with_contract(
            parse_quote!(
                #[task(name = "plan.execute")]
                struct A;
            ),
            |_| (),
        );
        assert_eq!(errors.len(), 1, "{errors:?}");
        assert!(errors[0].contains("choose another `path`"), "{errors:?}");
        let (path, errors) = with_contract(
            parse_quote!(
                #[task(name = "plan.execute", path = "/plan")]
                struct A;
            ),
            |contract| contract.path.clone(),
        );
        assert_eq!((path.as_str(), errors.len()), ("/plan", 0));
    }

    #[test]
    fn every_mistake_is_told() {
        let (_, errors) = with_contract(
            parse_quote! {
                #[task(name = "a", version = 0, path = "/a/", scope = "a", timeout = "0s")]
                struct A<'a>(&'a str);
            },
            |_| (),
        );
        assert_eq!(errors.len(), 6, "{errors:?}");
    }

    #[test]
    fn rules_are_seen_on_types_fields_and_variants() {
        for (input, expected) in [
            (
                parse_quote!(
                    struct A {
                        #[garde(skip)]
                        a: u8,
                    }
                ),
                true,
            ),
            (
                parse_quote!(
                    #[garde(allow_unvalidated)]
                    struct A {
                        a: u8,
                    }
                ),
                true,
            ),
            (
                parse_quote!(
                    enum A {
                        B,
                        C(#[garde(skip)] u8),
                    }
                ),
                true,
            ),
            (
                parse_quote!(
                    enum A {
                        B,
                        C(#[serde(skip)] u8),
                    }
                ),
                false,
            ),
        ] {
            assert_eq!(with_contract(input, |contract| contract.has_rules).0, expected);
        }
    }
}
