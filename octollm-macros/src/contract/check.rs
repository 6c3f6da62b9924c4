//! The checked contract.

use quote::ToTokens;
use syn::{Data, DeriveInput, Fields, Generics, Ident, LitStr, Type, ext::IdentExt, parse_quote};

use super::{
    attr::{self, Attrs, Texts},
    name, summary,
};
use crate::{
    errors::Errors,
    validate::{FLATTENED_OPTION, NEEDS_GARDE, Validated, wire},
};

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
    pub(crate) cache_ms: Option<u64>,
    pub(crate) summary: String,
    pub(crate) title: Option<LitStr>,
    pub(crate) tags: Texts,
    pub(crate) examples: Texts,
    /// The variant of `Effects`.
    pub(crate) effects: Option<Ident>,
    pub(crate) output: Type,
    /// `None` where nothing is streamed.
    pub(crate) chunk: Option<Type>,
    /// The rules that `check` runs; `None` where they need garde's own `Validate`.
    pub(crate) rules: Option<Validated<'a>>,
}

impl<'a> Contract<'a> {
    /// Checks everything. After a mistake the contract is only good for a fallback.
    pub(crate) fn new(input: &'a DeriveInput, attrs: Attrs, errors: &mut Errors) -> Self {
        check_shape(input, errors);
        check_sides(input, errors);
        let name = a_name(&input.ident, attrs.name.as_ref(), errors);
        let version = attrs.version.as_ref().map_or(Some(1), |number| {
            let version = number.base10_parse().ok().filter(|version| *version > 0);
            if version.is_none() {
                errors.at(number, format!("a version is a whole number from 1 to {}", u32::MAX));
            }
            version
        });
        check_length(&input.ident, attrs.name.as_ref(), name.as_deref(), version, errors);
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
            .and_then(|text| attr::time_limit(&text.value()).map_err(|why| errors.at(text, why)).ok());
        let cache_ms = attrs.cache.as_ref().and_then(|text| cache_ms(text, &attrs, errors));
        Self {
            ident: &input.ident,
            generics: &input.generics,
            name: name.unwrap_or_default(),
            version: version.unwrap_or(1),
            path: path.unwrap_or_default(),
            scope: scope.unwrap_or_default(),
            timeout_ms,
            cache_ms,
            idempotent: attrs.idempotent.unwrap_or(false),
            summary: match &attrs.summary {
                Some(text) => text.value(),
                None => errors.collect(summary::of(&input.attrs)).unwrap_or_default(),
            },
            title: attrs.title,
            tags: attrs.tags.unwrap_or_default(),
            examples: attrs.examples.unwrap_or_default(),
            effects: attrs.effects.as_ref().and_then(|word| effects(word, errors)),
            output: attrs.output.unwrap_or_else(|| parse_quote!(())),
            chunk: attrs.chunk,
            rules: rules(input, errors),
        }
    }
}

/// A contract is an owned value that is an object in JSON.
fn check_shape(input: &DeriveInput, errors: &mut Errors) {
    match &input.data {
        Data::Struct(data) => {
            if let Fields::Unnamed(fields) = &data.fields {
                errors.at(fields, "the input of a contract is a JSON object: give the fields names");
            }
        }
        Data::Enum(data) => errors.at(
            data.enum_token,
            "the input of a contract is a JSON object: make it a struct, with the choice in a field",
        ),
        Data::Union(data) => {
            errors.at(data.union_token, "a union is no task contract: JSON cannot tell which field it has");
        }
    }
    for lifetime in input.generics.lifetimes() {
        errors.at(
            lifetime,
            format!("a task contract owns its data, so it has no lifetimes: remove `{}`", lifetime.lifetime),
        );
    }
}

/// A caller writes the JSON that an arm reads.
fn check_sides(input: &DeriveInput, errors: &mut Errors) {
    let fields = match &input.data {
        Data::Struct(data) => data.fields.iter().map(|field| &*field.attrs).collect(),
        Data::Enum(_) | Data::Union(_) => Vec::new(),
    };
    for attrs in std::iter::once(&*input.attrs).chain(fields) {
        for (entry, why) in wire::one_sided(attrs) {
            errors.at(entry, why);
        }
    }
}

/// The rules of the input.
fn rules<'a>(input: &'a DeriveInput, errors: &mut Errors) -> Option<Validated<'a>> {
    if matches!(input.data, Data::Union(_)) {
        return None;
    }
    let mut found = Errors::default();
    let rules = Validated::new(input, &mut found);
    if found.mention(NEEDS_GARDE) {
        // garde's own derive reads the other rules.
        let is_ours = |message: &str| message.starts_with("`pattern`") && !message.contains(NEEDS_GARDE);
        errors.append(found.only(|message| is_ours(message) || message == FLATTENED_OPTION));
        return None;
    }
    errors.append(found);
    Some(rules)
}

/// How long answers are cached, which the rest of the contract has to allow.
fn cache_ms(text: &LitStr, attrs: &Attrs, errors: &mut Errors) -> Option<u64> {
    let time = attr::cache_time(&text.value()).map_err(|why| errors.at(text, why)).ok();
    if !attrs.idempotent.unwrap_or(false) {
        errors.at(text, "a cached answer stands in for another run: add `idempotent`, or leave `cache` out");
    }
    if attrs.chunk.is_some() {
        errors.at(text, "a cached answer streams nothing: leave `chunk` or `cache` out");
    }
    time
}

fn effects(word: &LitStr, errors: &mut Errors) -> Option<Ident> {
    let variant = match &*word.value() {
        "none" => "None",
        "additive" => "Additive",
        "destructive" => "Destructive",
        other => {
            let message = format!("`{other}` is no effect: it is `none`, `additive` or `destructive`");
            errors.at(word, message);
            return None;
        }
    };
    Some(Ident::new(variant, proc_macro2::Span::call_site()))
}

/// Checks the length of the name as a function of a model, unless the name is wrong already.
fn check_length(
    ident: &Ident,
    given: Option<&LitStr>,
    name: Option<&str>,
    version: Option<u32>,
    errors: &mut Errors,
) {
    let (Some(name), Some(version)) = (name, version) else { return };
    match (name::check_length(name, version), given) {
        (Err(why), Some(given)) => errors.at(given, why),
        (Err(why), None) => errors.at(ident, why),
        _ => {}
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
                assert!(contract.rules.is_some());
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
                struct A<'a> { a: &'a str }
            },
            |_| (),
        );
        assert_eq!(errors.len(), 6, "{errors:?}");
    }

    #[test]
    fn an_input_is_an_object() {
        for input in [
            parse_quote!(
                struct A(u8);
            ),
            parse_quote!(
                struct A();
            ),
            parse_quote!(
                enum A {
                    B { c: u8 },
                }
            ),
        ] {
            let (_, errors) = with_contract(input, |_| ());
            assert_eq!(errors.len(), 1, "{errors:?}");
            assert!(errors[0].contains("is a JSON object"), "{errors:?}");
        }
        for input in [
            parse_quote!(
                struct A;
            ),
            parse_quote!(
                struct A {}
            ),
        ] {
            assert_eq!(with_contract(input, |_| ()).1, [""; 0]);
        }
    }

    #[test]
    fn rules_that_need_garde_are_left_to_it() {
        let (has_rules, errors) = with_contract(
            parse_quote!(
                struct A {
                    #[garde(email)]
                    a: String,
                }
            ),
            |contract| contract.rules.is_some(),
        );
        assert_eq!((has_rules, errors.len()), (false, 0));
        let (_, errors) = with_contract(
            parse_quote!(
                struct A {
                    #[garde(lenght(min = 1))]
                    a: String,
                }
            ),
            |_| (),
        );
        assert_eq!(errors.len(), 1, "{errors:?}");
    }

    #[test]
    fn a_name_is_short_enough_for_models() {
        let (_, errors) = with_contract(
            parse_quote!(
                #[task(version = 12)]
                struct ValidateAVeryLongNameThatGoesOnAndOnAndOnUntilItIsTooLongForIt;
            ),
            |_| (),
        );
        assert_eq!(errors.len(), 1, "{errors:?}");
        assert!(errors[0].contains("at most 64"), "{errors:?}");
    }
}
