//! The names of fields and variants in JSON: serde's renaming and tagging.

use syn::{
    Attribute, Expr, ExprLit, Ident, Lit, LitStr, Meta, Token, Type, ext::IdentExt, punctuated::Punctuated,
};

/// One of serde's cases for all fields of a type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Case {
    Lower,
    Upper,
    Pascal,
    Camel,
    Snake,
    ScreamingSnake,
    Kebab,
    ScreamingKebab,
}

/// `rename_all = ".."` of a struct, or of one variant.
pub(crate) fn rename_all(attrs: &[Attribute]) -> Option<Case> {
    text(attrs, "rename_all").and_then(|case| Case::parse(&case.value()))
}

/// `rename_all_fields = ".."` of an enum.
pub(crate) fn rename_all_fields(attrs: &[Attribute]) -> Option<Case> {
    text(attrs, "rename_all_fields").and_then(|case| Case::parse(&case.value()))
}

/// Whether the type stands for its one field.
pub(crate) fn is_transparent(attrs: &[Attribute]) -> bool {
    has(attrs, "transparent")
}

/// The name of a field; `None` where its own fields stand in its place.
pub(crate) fn name(ident: &Ident, attrs: &[Attribute], all: Option<Case>) -> Option<String> {
    if has(attrs, "flatten") {
        return None;
    }
    let own = || {
        let name = ident.unraw().to_string();
        all.map_or(name.clone(), |case| case.apply(&name))
    };
    Some(text(attrs, "rename").map_or_else(own, |name| name.value()))
}

/// The tagging of an enum in JSON.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Tagging {
    /// `{"Name": content}`
    Name,
    /// `{"tag": "Name", ..}`
    Within(String),
    /// `{"tag": "Name", "content": content}`
    Beside(String, String),
    /// Not at all.
    None,
}

impl Tagging {
    /// The member in which the fields of a variant of this name stand; `None` where they stand beside the tag or alone.
    pub(crate) fn member<'a>(&'a self, variant: Option<&'a str>) -> Option<&'a str> {
        let name = variant?;
        match self {
            Self::Name => Some(name),
            Self::Beside(_, content) => Some(content),
            Self::Within(_) | Self::None => None,
        }
    }
}

/// `tag = ".."`, `content = ".."` and `untagged` of an enum.
pub(crate) fn tagging(attrs: &[Attribute]) -> Tagging {
    match (text(attrs, "tag"), text(attrs, "content")) {
        (Some(tag), Some(content)) => Tagging::Beside(tag.value(), content.value()),
        (Some(tag), None) => Tagging::Within(tag.value()),
        _ if has(attrs, "untagged") => Tagging::None,
        _ => Tagging::Name,
    }
}

/// The name of a variant; `None` where it is not in the JSON, or has no tag although others have.
pub(crate) fn variant(ident: &Ident, attrs: &[Attribute], all: Option<Case>) -> Option<String> {
    if is_absent(attrs) || has(attrs, "untagged") {
        return None;
    }
    let own = || {
        let name = ident.unraw().to_string();
        all.map_or(name.clone(), |case| case.apply_to_variant(&name))
    };
    Some(text(attrs, "rename").map_or_else(own, |name| name.value()))
}

/// The `flatten` of a field whose type is an `Option`.
pub(crate) fn flattened_option(ty: &Type, attrs: &[Attribute]) -> Option<Meta> {
    let Type::Path(ty) = ty else { return None };
    let is_option = ty.path.segments.last().is_some_and(|segment| segment.ident == "Option");
    entries(attrs).into_iter().find(|entry| is_option && entry.path().is_ident("flatten"))
}

/// Whether a field or a variant is never read.
pub(crate) fn is_absent(attrs: &[Attribute]) -> bool {
    has(attrs, "skip") || has(attrs, "skip_deserializing")
}

fn has(attrs: &[Attribute], key: &str) -> bool {
    entries(attrs).iter().any(|entry| entry.path().is_ident(key))
}

/// What makes JSON that is written another one than is read, in the attributes of a struct or of one of its fields: the
/// entry, and what to do about it.
pub(crate) fn one_sided(attrs: &[Attribute]) -> Vec<(Meta, &'static str)> {
    let fault = |entry: &Meta| {
        let is = |key: &str| entry.path().is_ident(key);
        if is("tag") {
            Some("a tag is written and not read: remove it, and name the value in a field")
        } else if is("skip_serializing") || is("skip_deserializing") {
            Some(
                "the field is written or read, but not both: use `skip`, or `default` with `skip_serializing_if`",
            )
        } else if (is("rename") || is("rename_all")) && differs(entry) {
            Some(
                "the names that are written and read differ: use one name for both, and `alias` for others that are read",
            )
        } else {
            None
        }
    };
    entries(attrs)
        .into_iter()
        .filter_map(|entry| Some((fault(&entry)?, entry)))
        .map(|(why, entry)| (entry, why))
        .collect()
}

/// `key(serialize = "a", deserialize = "b")`, or one of both alone.
fn differs(entry: &Meta) -> bool {
    let Meta::List(list) = entry else { return false };
    let sides = list.parse_args_with(Punctuated::<Meta, Token![,]>::parse_terminated).unwrap_or_default();
    let side = |key: &str| {
        sides.iter().find_map(|side| match side {
            Meta::NameValue(side) if side.path.is_ident(key) => literal(&side.value).map(|name| name.value()),
            _ => None,
        })
    };
    side("serialize") != side("deserialize")
}

/// `key = ".."`, or `key(deserialize = "..")`.
fn text(attrs: &[Attribute], key: &str) -> Option<LitStr> {
    entries(attrs).iter().filter(|entry| entry.path().is_ident(key)).find_map(|entry| match entry {
        Meta::NameValue(entry) => literal(&entry.value),
        Meta::List(list) => {
            let both = list.parse_args_with(Punctuated::<Meta, Token![,]>::parse_terminated).ok()?;
            both.iter().find_map(|side| match side {
                Meta::NameValue(side) if side.path.is_ident("deserialize") => literal(&side.value),
                _ => None,
            })
        }
        Meta::Path(_) => None,
    })
}

fn literal(expr: &Expr) -> Option<LitStr> {
    match expr {
        Expr::Lit(ExprLit { lit: Lit::Str(text), .. }) => Some(text.clone()),
        _ => None,
    }
}

/// What stands in `#[serde(..)]`. Its mistakes are serde's to report.
fn entries(attrs: &[Attribute]) -> Vec<Meta> {
    let serde = attrs.iter().filter(|attr| attr.path().is_ident("serde"));
    serde
        .filter_map(|attr| attr.parse_args_with(Punctuated::<Meta, Token![,]>::parse_terminated).ok())
        .flatten()
        .collect()
}

impl Case {
    fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "lowercase" => Self::Lower,
            "UPPERCASE" => Self::Upper,
            "PascalCase" => Self::Pascal,
            "camelCase" => Self::Camel,
            "snake_case" => Self::Snake,
            "SCREAMING_SNAKE_CASE" => Self::ScreamingSnake,
            "kebab-case" => Self::Kebab,
            "SCREAMING-KEBAB-CASE" => Self::ScreamingKebab,
            _ => return None,
        })
    }

    /// As serde does it to a variant, which it takes to be in Pascal case.
    fn apply_to_variant(self, variant: &str) -> String {
        match self {
            Self::Lower => variant.to_ascii_lowercase(),
            Self::Upper => variant.to_ascii_uppercase(),
            Self::Pascal => variant.to_owned(),
            Self::Camel => {
                let mut name = variant.to_owned();
                if let Some(first) = name.get_mut(..1) {
                    first.make_ascii_lowercase();
                }
                name
            }
            Self::Snake => snake(variant),
            Self::ScreamingSnake => snake(variant).to_ascii_uppercase(),
            Self::Kebab => snake(variant).replace('_', "-"),
            Self::ScreamingKebab => snake(variant).to_ascii_uppercase().replace('_', "-"),
        }
    }

    /// As serde does it to a field, which it takes to be in snake case.
    fn apply(self, field: &str) -> String {
        match self {
            Self::Lower | Self::Snake => field.to_owned(),
            Self::Upper | Self::ScreamingSnake => field.to_ascii_uppercase(),
            Self::Pascal => pascal(field),
            Self::Camel => {
                let mut name = pascal(field);
                if let Some(first) = name.get_mut(..1) {
                    first.make_ascii_lowercase();
                }
                name
            }
            Self::Kebab => field.replace('_', "-"),
            Self::ScreamingKebab => field.to_ascii_uppercase().replace('_', "-"),
        }
    }
}

fn snake(variant: &str) -> String {
    let mut name = String::new();
    for (at, letter) in variant.char_indices() {
        if at > 0 && letter.is_uppercase() {
            name.push('_');
        }
        name.push(letter.to_ascii_lowercase());
    }
    name
}

fn pascal(field: &str) -> String {
    let words = field.split('_').map(|word| {
        let mut word = word.to_owned();
        if let Some(first) = word.get_mut(..1) {
            first.make_ascii_uppercase();
        }
        word
    });
    words.collect()
}

#[cfg(test)]
mod tests {
    use syn::{Data, DeriveInput, parse_quote};

    use super::*;

    fn names(input: DeriveInput) -> Vec<Option<String>> {
        let all = rename_all(&input.attrs);
        let Data::Struct(data) = &input.data else { panic!() };
        data.fields.iter().map(|field| name(field.ident.as_ref().unwrap(), &field.attrs, all)).collect()
    }

    #[test]
    fn a_field_is_called_as_serde_reads_it() {
        let names = names(parse_quote! {
            #[serde(default, rename_all(serialize = "lowercase", deserialize = "camelCase"), crate = "a::b")]
            struct A {
                first_name: u8,
                #[serde(rename = "x-y", default = "zero")]
                a: u8,
                #[serde(rename(serialize = "in", deserialize = "out"))]
                b: u8,
                #[serde(rename(serialize = "in"))]
                r#type: u8,
                #[serde(flatten)]
                rest: u8,
            }
        });
        let expected = [Some("firstName"), Some("x-y"), Some("out"), Some("type"), None];
        assert_eq!(names, expected.map(|name| name.map(str::to_owned)));
    }

    #[test]
    fn the_fields_of_a_variant_stand_where_serde_writes_them() {
        let members = |input: DeriveInput| {
            let Data::Enum(data) = &input.data else { panic!() };
            let (tagging, case) = (super::tagging(&input.attrs), rename_all(&input.attrs));
            let names = data.variants.iter().map(|it| variant(&it.ident, &it.attrs, case));
            names.map(|name| tagging.member(name.as_deref()).map(str::to_owned)).collect::<Vec<_>>()
        };
        let external = members(parse_quote! {
            #[serde(rename_all = "snake_case")]
            enum A { VeryTasty, #[serde(rename = "x-y")] B, #[serde(untagged)] C }
        });
        assert_eq!(external, [Some("very_tasty".to_owned()), Some("x-y".to_owned()), None]);
        let content = members(parse_quote!(
            #[serde(tag = "t", content = "c")]
            enum A {
                B,
            }
        ));
        assert_eq!(content, [Some("c".to_owned())]);
        let within = members(parse_quote!(
            #[serde(tag = "t")]
            enum A {
                B,
            }
        ));
        assert_eq!(within, [None]);
    }

    #[test]
    fn every_case_is_serdes() {
        for (case, expected) in [
            ("lowercase", "very_tasty"),
            ("UPPERCASE", "VERY_TASTY"),
            ("PascalCase", "VeryTasty"),
            ("camelCase", "veryTasty"),
            ("snake_case", "very_tasty"),
            ("SCREAMING_SNAKE_CASE", "VERY_TASTY"),
            ("kebab-case", "very-tasty"),
            ("SCREAMING-KEBAB-CASE", "VERY-TASTY"),
        ] {
            assert_eq!(Case::parse(case).unwrap().apply("very_tasty"), expected);
        }
        for (case, expected) in [
            ("lowercase", "verytasty"),
            ("UPPERCASE", "VERYTASTY"),
            ("PascalCase", "VeryTasty"),
            ("camelCase", "veryTasty"),
            ("snake_case", "very_tasty"),
            ("SCREAMING_SNAKE_CASE", "VERY_TASTY"),
            ("kebab-case", "very-tasty"),
            ("SCREAMING-KEBAB-CASE", "VERY-TASTY"),
        ] {
            assert_eq!(Case::parse(case).unwrap().apply_to_variant("VeryTasty"), expected);
        }
    }

    #[test]
    fn variants_are_tagged_as_by_serde() {
        let tagging = |input: DeriveInput| super::tagging(&input.attrs);
        assert_eq!(
            tagging(parse_quote!(
                enum A {}
            )),
            Tagging::Name
        );
        assert_eq!(
            tagging(parse_quote!(
                #[serde(untagged)]
                enum A {}
            )),
            Tagging::None
        );
        assert_eq!(
            tagging(parse_quote!(
                #[serde(tag = "t")]
                enum A {}
            )),
            Tagging::Within("t".into())
        );
        let beside = tagging(parse_quote!(
            #[serde(tag = "t", content = "c")]
            enum A {}
        ));
        assert_eq!(beside, Tagging::Beside("t".into(), "c".into()));
    }
}
