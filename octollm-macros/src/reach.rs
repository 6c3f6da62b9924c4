//! How generated code reaches the runtime crate: the one place that decides it.

use proc_macro_crate::{FoundCrate, crate_name};
use proc_macro2::{Span, TokenStream};
use quote::quote;
use syn::{DeriveInput, Ident, LitStr, Path, Token, ext::IdentExt, parse::ParseStream, parse_quote};

/// The crates that carry a `__private`, in the order in which they are looked for.
///
/// The facade depends on the core, so where a manifest names both, the core is reached by everything that reaches the
/// facade. The other way round it is not: a library written against the core may have the facade for its tests only.
const RUNTIMES: [&str; 2] = ["octollm-core", "octollm"];

/// The path of the module that derives write against.
///
/// # Errors
/// When no attribute names the crate and the manifest has none of its packages.
pub(crate) fn runtime(input: &DeriveInput) -> syn::Result<TokenStream> {
    let root = match given(input) {
        Some(path) => path,
        None => found(&input.ident)?,
    };
    Ok(quote!(#root::__private))
}

/// `crate = …` in `#[task(..)]` or `#[garde(..)]`; either applies to both derives.
fn given(input: &DeriveInput) -> Option<Path> {
    let mut given = None;
    for attr in &input.attrs {
        if attr.path().is_ident("task") || attr.path().is_ident("garde") {
            // The derive that owns the attribute reports its errors.
            let _ = attr.parse_args_with(|entries: ParseStream<'_>| {
                while !entries.is_empty() {
                    if entries.peek(Token![crate]) && entries.peek2(Token![=]) {
                        entries.call(Ident::parse_any)?;
                        entries.parse::<Token![=]>()?;
                        given = given.take().or(Some(crate_path(entries)?));
                    } else {
                        entries.parse::<proc_macro2::TokenTree>()?;
                    }
                }
                Ok(())
            });
        }
    }
    given
}

/// The value of `crate = …`: a path, or a path in quotes as serde takes it.
pub(crate) fn crate_path(value: ParseStream<'_>) -> syn::Result<Path> {
    let path = match value.parse::<Option<LitStr>>()? {
        Some(quoted) => quoted.parse_with(Path::parse_mod_style),
        None => value.call(Path::parse_mod_style),
    };
    path.map_err(|error| syn::Error::new(error.span(), "`crate` takes a path: `crate = octollm`"))
}

fn found(at: &Ident) -> syn::Result<Path> {
    for package in RUNTIMES {
        match crate_name(package) {
            Ok(FoundCrate::Itself) => return Ok(within(package)),
            Ok(FoundCrate::Name(name)) => {
                let name = Ident::new(&name, Span::call_site());
                return Ok(parse_quote!(::#name));
            }
            Err(_) => {}
        }
    }
    Err(syn::Error::new_spanned(
        at,
        "this derive needs octollm: add `octollm` to the dependencies of this crate, \
         or say where it is: `#[task(crate = path::to::octollm)]`",
    ))
}

/// From inside the package of the runtime crate: its library says `crate`, while its examples, tests and doc tests are
/// crates of their own.
fn within(package: &str) -> Path {
    let library = package.replace('-', "_");
    let is_library = std::env::var("CARGO_CRATE_NAME").is_ok_and(|name| name == library)
        && std::env::var_os("UNSTABLE_RUSTDOC_TEST_PATH").is_none();
    if is_library {
        parse_quote!(crate)
    } else {
        let library = Ident::new(&library, Span::call_site());
        parse_quote!(::#library)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path_of(input: DeriveInput) -> Option<String> {
        given(&input).map(|path| quote!(#path).to_string().replace(' ', ""))
    }

    #[test]
    fn an_attribute_of_either_derive_names_the_crate() {
        let by_task = parse_quote!(
            #[task(output = Vec<String>, crate = ::a::b, version = 2)]
            struct A;
        );
        let by_garde = parse_quote!(
            #[task(version = 2)]
            #[garde(crate = "c::d")]
            struct A;
        );
        let by_none = parse_quote!(
            #[task(output = Crate)]
            struct A;
        );
        assert_eq!(path_of(by_task).as_deref(), Some("::a::b"));
        assert_eq!(path_of(by_garde).as_deref(), Some("c::d"));
        assert_eq!(path_of(by_none), None);
    }
}
