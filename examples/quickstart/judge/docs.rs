//! The rule on public items without documentation.
//!
//! It asks what the compiler's `missing_docs` asks, of what is written: an item counts if it says `pub`,
//! whether or not the crate lets it be reached. `pub mod x;` does not count, as its documentation may be in
//! the other file; the crate's own page does not either.

use proc_macro2::Ident;
use syn::punctuated::Punctuated;
use syn::{
    Attribute, Fields, File, ForeignItem, ImplItem, Item, ItemEnum, ItemImpl, ItemMacro, ItemMod, ItemTrait,
};
use syn::{Meta, Token, TraitItem, Type, Visibility};

use super::syntax::{position, wrapped_items};
use super::{finding, test_code};
use crate::finding::{Finding, Rule};

/// Counts the items that should be documented, and finds those that are not.
pub(super) fn check(file: &File) -> (usize, Vec<Finding>) {
    let mut docs = Docs::default();
    if !is_exempt(&file.attrs) {
        docs.collect_types(&file.items);
        docs.items(&file.items);
    }
    (docs.items, docs.findings)
}

#[derive(Default)]
struct Docs {
    items: usize,
    findings: Vec<Finding>,
    /// The names of the types of this file that are not public, and of those that are.
    private: Vec<String>,
    public: Vec<String>,
}

impl Docs {
    fn require(&mut self, attrs: &[Attribute], what: &str, name: &Ident) {
        if is_exempt(attrs) {
            return;
        }
        self.items += 1;
        if !attrs.iter().any(|attribute| documents(&attribute.meta)) {
            let message = format!("the {what} `{name}` is not documented");
            self.findings.push(finding(Rule::MissingDocs, position(name.span().start()), message));
        }
    }

    fn require_public(&mut self, vis: &Visibility, attrs: &[Attribute], what: &str, name: &Ident) {
        if is_public(vis) {
            self.require(attrs, what, name);
        }
    }

    fn collect_types(&mut self, items: &[Item]) {
        for item in items {
            let (vis, name) = match item {
                Item::Struct(item) => (&item.vis, &item.ident),
                Item::Enum(item) => (&item.vis, &item.ident),
                Item::Union(item) => (&item.vis, &item.ident),
                Item::Mod(item) => {
                    self.collect_types(item.content.as_ref().map_or(&[], |(_, items)| items));
                    continue;
                }
                Item::Macro(item) => {
                    self.collect_types(&wrapped_items(item).unwrap_or_default());
                    continue;
                }
                _ => continue,
            };
            let names = if is_public(vis) { &mut self.public } else { &mut self.private };
            names.push(name.to_string());
        }
    }

    fn items(&mut self, items: &[Item]) {
        for item in items {
            self.item(item);
        }
    }

    fn item(&mut self, item: &Item) {
        match item {
            Item::Const(item) if item.ident == "_" => {}
            Item::Const(item) => self.require_public(&item.vis, &item.attrs, "constant", &item.ident),
            Item::Fn(item) => self.require_public(&item.vis, &item.attrs, "function", &item.sig.ident),
            Item::Static(item) => self.require_public(&item.vis, &item.attrs, "static", &item.ident),
            Item::TraitAlias(item) => self.require_public(&item.vis, &item.attrs, "trait alias", &item.ident),
            Item::Type(item) => self.require_public(&item.vis, &item.attrs, "type alias", &item.ident),
            Item::Struct(item) => {
                self.require_public(&item.vis, &item.attrs, "struct", &item.ident);
                if is_public(&item.vis) && !is_exempt(&item.attrs) {
                    self.fields(&item.fields, false);
                }
            }
            Item::Union(item) => {
                self.require_public(&item.vis, &item.attrs, "union", &item.ident);
                if is_public(&item.vis) && !is_exempt(&item.attrs) {
                    self.fields(&Fields::Named(item.fields.clone()), false);
                }
            }
            Item::Enum(item) => self.enumeration(item),
            Item::Trait(item) => self.trait_items(item),
            Item::Impl(item) => self.inherent_items(item),
            Item::ForeignMod(item) if !is_exempt(&item.attrs) => self.foreign_items(&item.items),
            Item::Mod(item) => self.module(item),
            Item::Macro(item) => self.macro_items(item),
            _ => {}
        }
    }

    /// The fields that have names: a tuple's need no documentation. A variant's are as public as it is.
    fn fields(&mut self, fields: &Fields, of_variant: bool) {
        for field in fields {
            if let Some(name) = field.ident.as_ref().filter(|_| of_variant || is_public(&field.vis)) {
                self.require(&field.attrs, "field", name);
            }
        }
    }

    fn enumeration(&mut self, item: &ItemEnum) {
        self.require_public(&item.vis, &item.attrs, "enum", &item.ident);
        if !is_public(&item.vis) || is_exempt(&item.attrs) {
            return;
        }
        for variant in &item.variants {
            self.require(&variant.attrs, "variant", &variant.ident);
            if !is_exempt(&variant.attrs) {
                self.fields(&variant.fields, true);
            }
        }
    }

    fn trait_items(&mut self, item: &ItemTrait) {
        self.require_public(&item.vis, &item.attrs, "trait", &item.ident);
        if !is_public(&item.vis) || is_exempt(&item.attrs) {
            return;
        }
        for item in &item.items {
            match item {
                TraitItem::Const(item) => self.require(&item.attrs, "associated constant", &item.ident),
                TraitItem::Fn(item) => self.require(&item.attrs, "method", &item.sig.ident),
                TraitItem::Type(item) => self.require(&item.attrs, "associated type", &item.ident),
                _ => {}
            }
        }
    }

    /// The public items of a type's own implementation, unless this file shows that the type is not public.
    fn inherent_items(&mut self, item: &ItemImpl) {
        if item.trait_.is_some() || is_exempt(&item.attrs) || self.is_private(&item.self_ty) {
            return;
        }
        for item in &item.items {
            match item {
                ImplItem::Const(item) => {
                    self.require_public(&item.vis, &item.attrs, "associated constant", &item.ident);
                }
                ImplItem::Fn(item) => self.require_public(&item.vis, &item.attrs, "method", &item.sig.ident),
                ImplItem::Type(item) => {
                    self.require_public(&item.vis, &item.attrs, "associated type", &item.ident);
                }
                _ => {}
            }
        }
    }

    fn is_private(&self, ty: &Type) -> bool {
        let Type::Path(path) = ty else { return false };
        let name = path.path.segments.last().map(|segment| segment.ident.to_string());
        name.is_some_and(|name| self.private.contains(&name) && !self.public.contains(&name))
    }

    fn foreign_items(&mut self, items: &[ForeignItem]) {
        for item in items {
            match item {
                ForeignItem::Fn(item) => {
                    self.require_public(&item.vis, &item.attrs, "function", &item.sig.ident)
                }
                ForeignItem::Static(item) => {
                    self.require_public(&item.vis, &item.attrs, "static", &item.ident)
                }
                ForeignItem::Type(item) => self.require_public(&item.vis, &item.attrs, "type", &item.ident),
                _ => {}
            }
        }
    }

    fn module(&mut self, item: &ItemMod) {
        if let Some((_, items)) = item.content.as_ref().filter(|_| !is_exempt(&item.attrs)) {
            self.require_public(&item.vis, &item.attrs, "module", &item.ident);
            self.items(items);
        }
    }

    fn macro_items(&mut self, item: &ItemMacro) {
        let exported = item.attrs.iter().any(|attribute| attribute.path().is_ident("macro_export"));
        match &item.ident {
            Some(name) if exported => self.require(&item.attrs, "macro", name),
            _ if !is_exempt(&item.attrs) => self.items(&wrapped_items(item).unwrap_or_default()),
            _ => {}
        }
    }
}

fn is_public(vis: &Visibility) -> bool {
    matches!(vis, Visibility::Public(_))
}

/// Whether nobody reads the documentation of an item: it is hidden, or a test.
fn is_exempt(attrs: &[Attribute]) -> bool {
    test_code::is_test(attrs) || is_hidden(attrs)
}

/// Whether `#[doc(hidden)]` is among them.
pub(super) fn is_hidden(attrs: &[Attribute]) -> bool {
    attrs.iter().any(|attribute| hides(&attribute.meta))
}

fn documents(meta: &Meta) -> bool {
    match meta {
        Meta::NameValue(meta) => meta.path.is_ident("doc"),
        _ => conditional(meta).iter().any(documents),
    }
}

fn hides(meta: &Meta) -> bool {
    match meta {
        Meta::List(list) if list.path.is_ident("doc") => {
            let inner = list.parse_args_with(Punctuated::<Meta, Token![,]>::parse_terminated);
            inner.is_ok_and(|inner| inner.iter().any(|meta| meta.path().is_ident("hidden")))
        }
        _ => conditional(meta).iter().any(hides),
    }
}

/// What `cfg_attr` adds, whatever its condition.
pub(super) fn conditional(meta: &Meta) -> Vec<Meta> {
    let Meta::List(list) = meta else { return Vec::new() };
    if !list.path.is_ident("cfg_attr") {
        return Vec::new();
    }
    let inner = list.parse_args_with(Punctuated::<Meta, Token![,]>::parse_terminated);
    inner.map(|inner| inner.into_iter().skip(1).collect()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::check;

    fn undocumented(text: &str) -> Vec<String> {
        let (_, findings) = check(&syn::parse_file(text).unwrap());
        findings.into_iter().map(|finding| finding.message).collect()
    }

    fn names(text: &str) -> Vec<String> {
        undocumented(text).iter().map(|message| message.split('`').nth(1).unwrap().to_owned()).collect()
    }

    #[test]
    fn every_sort_of_item_is_asked_for() {
        let text = "pub fn a() {} pub struct B; pub enum C {} pub trait D {} pub type E = u8; pub const F: u8 = 0; \
            pub static G: u8 = 0; pub mod h {} pub union I { x: u8 } extern \"C\" { pub fn j(); fn no(); } \
            #[macro_export] macro_rules! k { () => {} } macro_rules! no { () => {} }";
        assert_eq!(names(text), ["a", "B", "C", "D", "E", "F", "G", "h", "I", "j", "k"]);
        assert_eq!(undocumented("pub type E = u8;"), ["the type alias `E` is not documented"]);
    }

    #[test]
    fn members_are_asked_for_where_their_owner_is_public() {
        let text = "/** */ pub struct A { pub b: u8, c: u8, pub(crate) d: u8 } /** */ pub struct E(pub u8); \
            /** */ pub enum F { G, H { i: u8 }, J(u8) } struct K { pub l: u8 } enum M { N } \
            /** */ pub trait O { fn p(); const Q: u8; type R; } trait S { fn t(); }";
        assert_eq!(names(text), ["b", "G", "H", "i", "J", "p", "Q", "R"]);
    }

    #[test]
    fn methods_are_asked_for_unless_their_type_is_private() {
        let text = "impl Elsewhere { pub fn a() {} pub(super) fn b() {} fn c() {} pub const D: u8 = 0; } \
            struct P; impl P { pub fn e() {} } impl Clone for Elsewhere { fn clone() {} } \
            /** */ pub struct Q<T>(T); impl<T> m::Q<T> { pub fn f() {} }";
        assert_eq!(names(text), ["a", "D", "f"]);
    }

    #[test]
    fn any_documentation_will_do() {
        let text = "/// a\npub fn a() {} #[doc = \"b\"] pub fn b() {} #[doc = include_str!(\"c\")] pub fn c() {} \
            pub mod d { //! d\n } #[cfg_attr(x, doc = \"e\")] pub fn e() {} /** f */ pub fn f() {}";
        assert!(names(text).is_empty());
        assert_eq!(names("#[doc(alias = \"x\")] pub fn a() {} // b\npub fn b() {}"), ["a", "b"]);
    }

    #[test]
    fn what_is_hidden_or_a_test_is_not_asked_for() {
        let text = "#[doc(hidden)] pub mod a { pub fn b() {} } #[cfg(test)] pub mod c { pub fn d() {} } \
            #[doc(hidden)] pub enum E { F } /** */ pub enum G { #[doc(hidden)] H { i: u8 } } #[doc(hidden)] impl J { \
            pub fn k() {} } pub use l::m; pub mod n; pub extern crate o; pub(in p) fn q() {} fn r() { pub fn s() {} }";
        assert!(names(text).is_empty());
        assert_eq!(names("#[cfg(not(test))] pub fn a() {} mod b { pub fn c() {} }"), ["a", "c"]);
    }

    #[test]
    fn items_in_a_macro_are_items() {
        assert_eq!(
            names("cfg_x! { pub fn a() {} cfg_y! { pub fn b() {} } } flags! { pub a b c }"),
            ["a", "b"]
        );
    }

    #[test]
    fn the_count_is_of_what_is_asked_for() {
        assert_eq!(check(&syn::parse_file("/** */ pub fn a() {} pub fn b() {} fn c() {}").unwrap()).0, 2);
    }
}
