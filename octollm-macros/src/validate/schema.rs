//! Writes the rules of a type into its schema.

use proc_macro2::{TokenStream, TokenTree};
use quote::{ToTokens, quote};
use syn::{Expr, ExprLit, ExprUnary, Field, Fields, Lit, UnOp, ext::IdentExt};

use super::{
    attr::{Arguments, Call, Kind, Rule},
    bounds::Bounds,
    check::{FieldRules, Shape, Validated, Variant},
    wire::Tagging,
};

/// Statements that add every rule of the type to `__octollm_rules`.
pub(crate) fn rules(validated: &Validated<'_>, rt: &TokenStream) -> TokenStream {
    let on_type = (!validated.custom.is_empty()).then(|| quote!(__octollm_rules.described();));
    let writer = |variant| SchemaWriter { rt, variant, validated };
    let on_fields = match &validated.shape {
        Shape::Struct(variant) => writer(variant).fields(),
        Shape::Enum(tagging, variants) => {
            let in_json = variants.iter().filter(|(_, variant)| variant.wire.is_some()).enumerate();
            let of_variants = in_json.map(|(index, (_, variant))| {
                let fields = writer(variant).fields();
                let name = &variant.wire;
                match tagging {
                    _ if fields.is_empty() => TokenStream::new(),
                    Tagging::Name => {
                        quote!(__octollm_rules.member(#name, &mut |__octollm_rules| { #fields });)
                    }
                    Tagging::Within(tag) => {
                        quote!(__octollm_rules.tagged(#tag, #name, &mut |__octollm_rules| { #fields });)
                    }
                    Tagging::Beside(tag, content) => quote! {
                        __octollm_rules.tagged(#tag, #name, &mut |__octollm_rules| {
                            __octollm_rules.member(#content, &mut |__octollm_rules| { #fields });
                        });
                    },
                    Tagging::None => {
                        quote!(__octollm_rules.untagged(#index, &mut |__octollm_rules| { #fields });)
                    }
                }
            });
            let foreign =
                variants.iter().any(|(_, variant)| variant.wire.is_none() && !variant.rules.is_empty());
            let foreign = foreign.then(|| quote!(__octollm_rules.described();));
            quote!(#(#of_variants)* #foreign)
        }
    };
    quote! {
        __octollm_rules.of_type::<Self>(&mut |__octollm_rules| {
            #on_type
            #on_fields
        });
    }
}

struct SchemaWriter<'a> {
    rt: &'a TokenStream,
    variant: &'a Variant<'a>,
    validated: &'a Validated<'a>,
}

impl SchemaWriter<'_> {
    fn fields(&self) -> TokenStream {
        let fields = self.variant.fields.iter().zip(&self.variant.rules).enumerate();
        fields.map(|(index, (field, rules))| self.field(index, field, rules)).collect()
    }

    fn field(&self, index: usize, field: &Field, rules: &FieldRules) -> TokenStream {
        if rules.is_absent {
            return TokenStream::new();
        }
        let (rt, ty) = (self.rt, &field.ty);
        let own = quote! {{
            #[allow(unused_imports)]
            use #rt::{NotRuled as _, RuledByDerive as _, RuledByHand as _};
            (&&#rt::OwnSchema::<#ty>::of()).octollm_add(__octollm_rules);
        }};
        let skip = rules.is_skipped.then(|| quote!(__octollm_rules.skip();));
        let written = match rules.adapt {
            Some(_) => quote!(__octollm_rules.described();),
            None => self.rules(&rules.rules),
        };
        let all = quote!(#written #own #skip);
        match (&rules.wire, self.variant.fields) {
            _ if self.validated.is_transparent_in_json => all,
            (Some(name), Fields::Named(_)) => {
                quote!(__octollm_rules.member(#name, &mut |__octollm_rules| { #all });)
            }
            // The members of a flattened field are there among those of the others, and cannot be counted alone.
            (None, Fields::Named(_)) if rules.rules.iter().all(|rule| matches!(rule.kind, Kind::Dive(_))) => {
                quote!(__octollm_rules.part(&mut |__octollm_rules| { #all });)
            }
            (None, Fields::Named(_)) => quote! {
                __octollm_rules.described();
                __octollm_rules.part(&mut |__octollm_rules| { #own #skip });
            },
            (_, Fields::Unnamed(fields)) if fields.unnamed.len() == 1 => all,
            _ => quote!(__octollm_rules.item(#index, &mut |__octollm_rules| { #all });),
        }
    }

    fn rules(&self, rules: &[Rule]) -> TokenStream {
        rules.iter().map(|rule| self.rule(rule)).collect()
    }

    fn rule(&self, rule: &Rule) -> TokenStream {
        match &rule.kind {
            Kind::Call(call) if !self.is_of_value(call) => self.call(&rule.name.unraw().to_string(), call),
            Kind::Inner(rules) => {
                let rules = self.rules(rules);
                quote!(__octollm_rules.each(&mut |__octollm_rules| { #rules });)
            }
            Kind::Skip | Kind::Dive(_) | Kind::Adapt(_) => TokenStream::new(),
            Kind::Call(_) | Kind::Custom(_) | Kind::If(..) => quote!(__octollm_rules.described();),
        }
    }

    fn call(&self, name: &str, call: &Call) -> TokenStream {
        let rt = self.rt;
        match &call.arguments {
            Arguments::Length(bounds) => {
                let end = |end: Option<&Expr>| match end {
                    Some(end) => quote!(::core::option::Option::Some(#end)),
                    None => quote!(::core::option::Option::None),
                };
                let (min, max) = (end(bounds.min()), end(bounds.max()));
                quote!(__octollm_rules.length(#min, #max);)
            }
            Arguments::Range(bounds) => {
                let end = |end: Option<&Expr>| match end {
                    Some(end) => {
                        let end = wide(end);
                        quote!({
                            #[allow(unused_imports)]
                            use #rt::{NoNumber as _, Number as _};
                            (&#rt::AnyNumber(#end)).octollm_end()
                        })
                    }
                    None => quote!(#rt::RangeEnd::Open),
                };
                let (min, max) = (end(bounds.min()), end(bounds.max()));
                quote!(__octollm_rules.range(#min, #max);)
            }
            Arguments::Text(text) => {
                let rule = quote::format_ident!("{name}");
                quote!(__octollm_rules.#rule(&#text);)
            }
            // That something is there is in the schema already.
            Arguments::None if name == "required" => TokenStream::new(),
            Arguments::None | Arguments::Ip(_) => {
                let rule = quote::format_ident!("{name}");
                quote!(__octollm_rules.#rule();)
            }
            Arguments::Field(_) => quote!(__octollm_rules.described();),
        }
    }

    /// Whether a rule depends on the value that it is for, which a schema does not know.
    fn is_of_value(&self, call: &Call) -> bool {
        let bound = |bounds: &Bounds| bounds.all().any(|expr| self.mentions(expr));
        match &call.arguments {
            Arguments::Length(bounds) | Arguments::Range(bounds) => bound(bounds),
            Arguments::Text(text) => self.mentions(text),
            Arguments::Field(_) => true,
            Arguments::None | Arguments::Ip(_) => false,
        }
    }

    fn mentions(&self, expr: &Expr) -> bool {
        let context = self.validated.context.as_ref().and_then(|(_, name)| name.as_ref());
        let fields = self.variant.fields.iter().filter_map(|field| field.ident.as_ref());
        let named: Vec<_> = fields.chain(context).map(ToString::to_string).collect();
        let positions = self.variant.fields.len();
        any(expr.to_token_stream(), &|word| {
            word == "self" || named.iter().any(|name| name == word) || is_position(word, positions)
        })
    }
}

/// A literal without a type of its own would be an `i32`, whatever the type of the field is.
fn wide(expr: &Expr) -> TokenStream {
    match expr {
        Expr::Lit(ExprLit { lit: Lit::Int(number), .. }) if number.suffix().is_empty() => {
            quote!((#number as ::core::primitive::u64))
        }
        Expr::Unary(ExprUnary { op: UnOp::Neg(_), expr, .. }) => match &**expr {
            Expr::Lit(ExprLit { lit: Lit::Int(number), .. }) if number.suffix().is_empty() => {
                quote!((-#number as ::core::primitive::i64))
            }
            _ => quote!(-#expr),
        },
        expr => expr.to_token_stream(),
    }
}

/// `_0` is the first field of a tuple.
fn is_position(word: &str, fields: usize) -> bool {
    word.strip_prefix('_').and_then(|digits| digits.parse::<usize>().ok()).is_some_and(|index| index < fields)
}

fn any(tokens: TokenStream, is_it: &dyn Fn(&str) -> bool) -> bool {
    tokens.into_iter().any(|token| match token {
        TokenTree::Ident(ident) => is_it(&ident.to_string()),
        TokenTree::Group(group) => any(group.stream(), is_it),
        _ => false,
    })
}
