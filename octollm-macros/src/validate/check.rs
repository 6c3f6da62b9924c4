//! The checked rules of a type, field by field.

use std::collections::HashSet;

use syn::{Attribute, Data, DeriveInput, Expr, Fields, Generics, Ident, Path, Type, ext::IdentExt};

use super::{
    attr::{self, Arguments, Kind, Options, Rule},
    wire::{self, Case, Tagging},
};
use crate::{entries::nearest, errors::Errors};

/// A type and its rules.
pub(crate) struct Validated<'a> {
    pub(crate) ident: &'a Ident,
    pub(crate) generics: &'a Generics,
    pub(crate) context: Option<(Type, Option<Ident>)>,
    pub(crate) is_transparent: bool,
    /// Its one field stands in its place in JSON.
    pub(crate) is_transparent_in_json: bool,
    pub(crate) custom: Vec<Expr>,
    pub(crate) shape: Shape<'a>,
}

pub(crate) enum Shape<'a> {
    Struct(Variant<'a>),
    Enum(Tagging, Vec<(&'a Ident, Variant<'a>)>),
}

/// A struct, or a variant of an enum.
pub(crate) struct Variant<'a> {
    /// What it is called in JSON; `None` where it is not there, or has no tag among others that have.
    pub(crate) wire: Option<String>,
    pub(crate) fields: &'a Fields,
    /// As many as there are fields.
    pub(crate) rules: Vec<FieldRules>,
}

/// The rules of one field.
pub(crate) struct FieldRules {
    /// The module that stands in for `garde::rules`.
    pub(crate) adapt: Option<Path>,
    pub(crate) rules: Vec<Rule>,
    /// Nothing in it is checked, not even by rules of its own type.
    pub(crate) is_skipped: bool,
    /// What it is called in JSON; `None` where its own fields stand in its place.
    pub(crate) wire: Option<String>,
    /// It is not in the JSON.
    pub(crate) is_absent: bool,
}

impl<'a> Validated<'a> {
    /// Checks everything. After a mistake the result is only good for a fallback.
    pub(crate) fn new(input: &'a DeriveInput, errors: &mut Errors) -> Self {
        let options = Options::read(&input.attrs, errors);
        let allows = options.allow_unvalidated.is_some();
        let shape = match &input.data {
            Data::Struct(data) => {
                Shape::Struct(variant(&data.fields, wire::rename_all(&input.attrs), allows, errors))
            }
            Data::Enum(data) => {
                let all = wire::rename_all_fields(&input.attrs);
                let case_of_variants = wire::rename_all(&input.attrs);
                let variants = data.variants.iter().map(|it| {
                    refuse_rules(&it.attrs, errors);
                    let case = wire::rename_all(&it.attrs).or(all);
                    let mut variant = variant(&it.fields, case, allows, errors);
                    variant.wire = wire::variant(&it.ident, &it.attrs, case_of_variants);
                    (&it.ident, variant)
                });
                Shape::Enum(wire::tagging(&input.attrs), variants.collect())
            }
            Data::Union(data) => {
                errors.at(data.union_token, "a union has no rules: nobody knows which field it has");
                Shape::Enum(Tagging::Name, Vec::new())
            }
        };
        if let Some(at) = options.transparent.as_ref()
            && errors.is_empty()
            && !has_one_checked_field(&shape)
        {
            errors.at(at, "only a struct with one field that is not skipped can be `transparent`");
        }
        Self {
            ident: &input.ident,
            generics: &input.generics,
            context: options.context,
            is_transparent: options.transparent.is_some() || wire::is_transparent(&input.attrs),
            is_transparent_in_json: wire::is_transparent(&input.attrs),
            custom: options.custom,
            shape,
        }
    }
}

/// The error of `#[serde(flatten)]` at an `Option`.
pub(crate) const FLATTENED_OPTION: &str = "serde reads an `Option` that is flattened as `None` where a member is wrong, and \
     the input is lost: flatten the type in it, with `#[serde(default)]` at its fields, or remove `flatten`";

fn refuse_rules(attrs: &[Attribute], errors: &mut Errors) {
    for attr in attrs.iter().filter(|attr| attr.path().is_ident("garde")) {
        errors.at(attr, "a variant has no rules of its own: they stand at its fields");
    }
}

fn has_one_checked_field(shape: &Shape<'_>) -> bool {
    match shape {
        Shape::Struct(variant) => variant.rules.iter().filter(|field| !field.is_skipped).count() == 1,
        Shape::Enum(..) => false,
    }
}

fn variant<'a>(fields: &'a Fields, case: Option<Case>, allows: bool, errors: &mut Errors) -> Variant<'a> {
    let rules = fields.iter().map(|field| {
        let mut found = Errors::default();
        if let Some(flatten) = wire::flattened_option(&field.ty, &field.attrs) {
            found.at(flatten, FLATTENED_OPTION);
        }
        let written = attr::rules(&field.attrs, &mut found);
        let is_unruled = written.is_empty();
        let mut rules = field_rules(written, fields, &mut found);
        rules.is_skipped |= is_unruled && allows;
        rules.is_absent = wire::is_absent(&field.attrs);
        rules.wire = field.ident.as_ref().and_then(|ident| wire::name(ident, &field.attrs, case));
        errors.append(found);
        rules
    });
    Variant { wire: None, fields, rules: rules.collect() }
}

/// Separates the options of the field from its rules, and checks the rules.
fn field_rules(written: Vec<Rule>, fields: &Fields, errors: &mut Errors) -> FieldRules {
    let mut field =
        FieldRules { adapt: None, rules: Vec::new(), is_skipped: false, wire: None, is_absent: false };
    let mut skip = None;
    let only_one = written.len() == 1;
    let has_inner = written.iter().any(|rule| has_inner(&rule.kind));
    refuse_twice(&written, errors);
    for rule in written {
        match rule.kind {
            Kind::Skip => skip = Some(rule.name),
            Kind::Adapt(path) => field.adapt = Some(path),
            Kind::Dive(_) if has_inner => {
                errors.at(&rule.name, "`dive` does not stand beside `inner`: both speak of what is inside");
            }
            Kind::Inner(ref rules) | Kind::If(_, ref rules) => {
                nested_rules(rules, fields, errors);
                field.rules.push(rule);
            }
            _ => {
                check_fields(&rule, fields, errors);
                field.rules.push(rule);
            }
        }
    }
    field.is_skipped = skip.is_some();
    if let Some(skip) = skip
        && !only_one
    {
        errors.at(&skip, "`skip` does not stand beside other rules");
    }
    field
}

fn has_inner(kind: &Kind) -> bool {
    match kind {
        Kind::Inner(_) => true,
        Kind::If(_, rules) => rules.iter().any(|rule| has_inner(&rule.kind)),
        _ => false,
    }
}

fn nested_rules(rules: &[Rule], fields: &Fields, errors: &mut Errors) {
    refuse_twice(rules, errors);
    for rule in rules {
        match &rule.kind {
            Kind::Skip | Kind::Adapt(_) | Kind::Dive(_) => {
                errors.at(&rule.name, format!("`{}` stands at the field itself only", rule.name));
            }
            Kind::Inner(rules) | Kind::If(_, rules) => nested_rules(rules, fields, errors),
            _ => check_fields(rule, fields, errors),
        }
    }
}

/// `custom` and `if` may stand as often as one likes.
fn refuse_twice(rules: &[Rule], errors: &mut Errors) {
    let mut seen = HashSet::new();
    for rule in rules {
        let key = match &rule.kind {
            Kind::Custom(_) | Kind::If(..) => continue,
            Kind::Call(call) => call.key.clone(),
            _ => rule.name.to_string(),
        };
        if !seen.insert(key) {
            errors.at(&rule.name, format!("`{}` is given twice", rule.name));
        }
    }
}

/// `matches` speaks of another field.
fn check_fields(rule: &Rule, fields: &Fields, errors: &mut Errors) {
    let Kind::Call(call) = &rule.kind else { return };
    let Arguments::Field(other) = &call.arguments else { return };
    let word = other.unraw().to_string();
    let names: Vec<_> =
        fields.iter().filter_map(|field| Some(field.ident.as_ref()?.unraw().to_string())).collect();
    if !names.contains(&word) {
        let names: Vec<_> = names.iter().map(String::as_str).collect();
        let meant = nearest(&word, &names).map(|meant| format!(": did you mean `{meant}`?"));
        errors.at(other, format!("there is no field `{word}` here{}", meant.unwrap_or_default()));
    }
}
