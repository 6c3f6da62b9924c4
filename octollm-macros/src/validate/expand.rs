//! Writes `impl Validate`: garde's own trait, over garde's own rules.

use proc_macro2::{Span, TokenStream};
use quote::{ToTokens, format_ident, quote, quote_spanned};
use syn::{Expr, Fields, Ident, Path, ext::IdentExt};

use super::{
    attr::{Arguments, Call, Kind, Rule},
    check::{FieldRules, Shape, Validated, Variant},
    schema,
};
use crate::located;

/// The impl that runs every rule, in the order in which they are written.
pub(crate) fn validated(validated: &Validated<'_>, rt: &TokenStream) -> TokenStream {
    implement(validated, &body(validated, rt), &schema::rules(validated, rt), rt)
}

/// An expression that runs every rule and returns a report.
pub(crate) fn report(validated: &Validated<'_>, rt: &TokenStream) -> TokenStream {
    let body = body(validated, rt);
    let context =
        validated.context.as_ref().map_or_else(|| quote!(()), |(context, _)| context.to_token_stream());
    let name = name_of_context(validated);
    quote! {{
        let #name: &#context = &::core::default::Default::default();
        let __octollm_context = #name;
        let mut __octollm_path: &mut dyn ::core::ops::FnMut() -> #rt::garde::error::Path =
            &mut #rt::garde::error::Path::empty;
        let mut __octollm_given = #rt::garde::error::Report::new();
        let __octollm_report = &mut __octollm_given;
        #body
        __octollm_given
    }}
}

fn body(validated: &Validated<'_>, rt: &TokenStream) -> TokenStream {
    let writer = |variant| Writer { rt, variant, is_transparent: validated.is_transparent };
    let on_type = validated.custom.iter().map(|expr| custom(rt, expr, &quote!(self)));
    let on_fields = match &validated.shape {
        Shape::Struct(variant) => {
            let pattern = pattern(variant.fields);
            let rules = writer(variant).fields();
            quote!(let Self #pattern = self; #rules)
        }
        // No value, no arm.
        Shape::Enum(_, variants) if variants.is_empty() => TokenStream::new(),
        Shape::Enum(tagging, variants) => {
            let arms = variants.iter().map(|(ident, variant)| {
                let pattern = pattern(variant.fields);
                let rules = writer(variant).fields();
                let path = tagging.member(variant.wire.as_deref()).map(|key| nested(&key, rt));
                quote!(Self::#ident #pattern => { #path #rules })
            });
            quote!(match self { #(#arms)* })
        }
    };
    quote!(#(#on_type)* #on_fields)
}

/// An impl that stands in after a mistake, so that the uses of the type are no mistakes too.
pub(crate) fn fallback(validated: &Validated<'_>, rt: &TokenStream) -> TokenStream {
    implement(validated, &TokenStream::new(), &TokenStream::new(), rt)
}

fn implement(
    validated: &Validated<'_>,
    body: &TokenStream,
    schema: &TokenStream,
    rt: &TokenStream,
) -> TokenStream {
    let ident = validated.ident;
    let (impl_generics, type_generics, where_clause) = validated.generics.split_for_impl();
    let context =
        validated.context.as_ref().map_or_else(|| quote!(()), |(context, _)| context.to_token_stream());
    let name = name_of_context(validated);
    quote! {
        #[automatically_derived]
        impl #impl_generics #rt::garde::validate::Validate for #ident #type_generics #where_clause {
            type Context = #context;

            #[allow(unused_mut, unused_variables)]
            fn validate_into(
                &self,
                #name: &Self::Context,
                mut __octollm_path: &mut dyn ::core::ops::FnMut() -> #rt::garde::error::Path,
                __octollm_report: &mut #rt::garde::error::Report,
            ) {
                let __octollm_context = #name;
                #body
            }
        }

        #[automatically_derived]
        impl #impl_generics #rt::HasSchemaRules for #ident #type_generics #where_clause {
            #[allow(unused_variables)]
            fn octollm_schema_rules(__octollm_rules: &mut #rt::SchemaRules) {
                #schema
            }
        }
    }
}

/// The name that the user gave the context.
fn name_of_context(validated: &Validated<'_>) -> Ident {
    let given = validated.context.as_ref().and_then(|(_, name)| name.clone());
    given.unwrap_or_else(|| format_ident!("__octollm_own"))
}

/// Every field under its own name, for the expressions in rules; `_0` and so on where it has none.
fn pattern(fields: &Fields) -> TokenStream {
    let names = fields.iter().enumerate().map(|(index, field)| binding(field.ident.as_ref(), index));
    match fields {
        Fields::Named(_) => quote!({ #(#names,)* }),
        Fields::Unnamed(_) => quote!(( #(#names,)* )),
        Fields::Unit => TokenStream::new(),
    }
}

/// A path within the one that is there.
fn nested(key: &impl ToTokens, rt: &TokenStream) -> TokenStream {
    quote!(let mut __octollm_path = #rt::garde::util::nested_path!(__octollm_path, #key);)
}

fn binding(ident: Option<&Ident>, index: usize) -> Ident {
    ident.cloned().unwrap_or_else(|| format_ident!("_{index}"))
}

struct Writer<'a> {
    rt: &'a TokenStream,
    variant: &'a Variant<'a>,
    is_transparent: bool,
}

impl Writer<'_> {
    fn fields(&self) -> TokenStream {
        let fields = self.variant.fields.iter().zip(&self.variant.rules).enumerate();
        fields.map(|(index, (field, rules))| self.field(field.ident.as_ref(), index, rules)).collect()
    }

    fn field(&self, ident: Option<&Ident>, index: usize, field: &FieldRules) -> TokenStream {
        let rt = self.rt;
        let value = binding(ident, index);
        let key = match ident {
            Some(_) => field.wire.as_ref().map(ToTokens::to_token_stream),
            // serde writes the only one as it is.
            None if self.variant.fields.len() == 1 => None,
            None => Some(quote!(#index)),
        };
        let path = key.filter(|_| !self.is_transparent).map(|key| nested(&key, rt));
        let rules = self.rules(&field.rules, field.adapt.as_ref());
        let own = self.own(field);
        quote!({ #path let __octollm_value = #value; #rules #own })
    }

    /// The rules of the field's own type, if it has some: what it would take to ask for them is nothing to forget.
    fn own(&self, field: &FieldRules) -> Option<TokenStream> {
        let dives = field.rules.iter().any(|rule| matches!(rule.kind, Kind::Dive(_)));
        let rt = self.rt;
        (!dives).then(|| {
            quote! {{
                #[allow(unused_imports)]
                use #rt::{Unruled as _, WithOwnRules as _};
                #[allow(clippy::needless_borrow)]
                (&#rt::OwnRules(__octollm_value)).octollm_run(&mut __octollm_path, __octollm_report);
            }}
        })
    }

    fn rules(&self, rules: &[Rule], adapt: Option<&Path>) -> TokenStream {
        rules.iter().map(|rule| self.rule(rule, adapt)).collect()
    }

    fn rule(&self, rule: &Rule, adapt: Option<&Path>) -> TokenStream {
        let rt = self.rt;
        let at = located(rule.name.span());
        match &rule.kind {
            // Both are settled with the field.
            Kind::Skip | Kind::Adapt(_) => TokenStream::new(),
            Kind::Call(call) => self.call(call, adapt, at),
            Kind::Custom(expr) => custom(rt, expr, &quote!(__octollm_value)),
            Kind::Dive(context) => {
                let context =
                    context.as_ref().map_or_else(|| quote!(__octollm_context), |context| quote!(&#context));
                quote_spanned! {at=>
                    #rt::garde::validate::Validate::validate_into(
                        __octollm_value, #context, &mut __octollm_path, __octollm_report,
                    );
                }
            }
            Kind::Inner(rules) => {
                let rules = self.rules(rules, adapt);
                match adapt {
                    Some(module) => quote_spanned! {at=>
                        #module::inner::apply(__octollm_value, |__octollm_value, __octollm_key| {
                            let mut __octollm_path =
                                #rt::garde::util::nested_path!(__octollm_path, __octollm_key);
                            #rules
                        });
                    },
                    None => quote_spanned! {at=>
                        #rt::Items::octollm_each(__octollm_value, &mut |__octollm_value, __octollm_key| {
                            let mut __octollm_path = || #rt::Place::after(__octollm_key, __octollm_path());
                            #rules
                        });
                    },
                }
            }
            Kind::If(condition, rules) => {
                let rules = self.rules(rules, adapt);
                quote!(if #condition { #rules })
            }
        }
    }

    fn call(&self, call: &Call, adapt: Option<&Path>, at: Span) -> TokenStream {
        let rt = self.rt;
        let module = adapt.map_or_else(|| quote!(#rt::garde::rules), ToTokens::to_token_stream);
        if let (None, Arguments::Length(bounds)) = (adapt, &call.arguments) {
            let bounds = bounds.of_length();
            return quote_spanned! {at=>
                if let ::core::option::Option::Some(__octollm_length) = #rt::Length::octollm_length(__octollm_value)
                    && let ::core::result::Result::Err(__octollm_error) =
                        #module::length::simple::apply(&__octollm_length, #bounds)
                {
                    #rt::append(__octollm_report, &mut __octollm_path, __octollm_error);
                }
            };
        }
        let arguments = match &call.arguments {
            Arguments::None => quote!(()),
            Arguments::Ip(kind) => {
                let kind = Ident::new(kind, Span::call_site());
                quote!((#module::ip::IpKind::#kind,))
            }
            Arguments::Length(bounds) => bounds.of_length(),
            Arguments::Range(bounds) => bounds.of_range(),
            Arguments::Text(text) => quote!((&#text,)),
            Arguments::Field(other) => {
                let name = self.wire_of(other);
                quote!((#name, #other))
            }
        };
        let rule = &call.module;
        let check = quote_spanned!(at=> #module::#rule::apply(__octollm_value, #arguments));
        quote! {
            if let ::core::result::Result::Err(__octollm_error) = #check {
                #rt::append(__octollm_report, &mut __octollm_path, __octollm_error);
            }
        }
    }

    /// What another field is called in JSON.
    fn wire_of(&self, other: &Ident) -> String {
        let mut fields = self.variant.fields.iter().zip(&self.variant.rules);
        let wire = fields.find_map(|(field, rules)| {
            field.ident.as_ref().filter(|ident| *ident == other).and(rules.wire.clone())
        });
        wire.unwrap_or_else(|| other.unraw().to_string())
    }
}

/// A function of the user's: what it returns as an error has only to be printable.
fn custom(rt: &TokenStream, custom: &Expr, value: &TokenStream) -> TokenStream {
    quote! {
        if let ::core::result::Result::Err(__octollm_error) = (#custom)(#value, __octollm_context) {
            #rt::append(__octollm_report, &mut __octollm_path, #rt::garde::error::Error::new(__octollm_error));
        }
    }
}
