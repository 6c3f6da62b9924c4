//! The summary of a doc comment.

use syn::{Attribute, Expr, ExprLit, Lit, Meta};

/// The first paragraph of the doc comment on one line, as rustdoc shows it in its lists.
///
/// # Errors
/// Where the paragraph is what a macro such as `include_str!` returns, which no derive can read.
pub(crate) fn of(attrs: &[Attribute]) -> syn::Result<String> {
    let mut text = String::new();
    for attr in attrs.iter().filter(|attr| attr.path().is_ident("doc")) {
        let Meta::NameValue(doc) = &attr.meta else { continue };
        match &doc.value {
            Expr::Lit(ExprLit { lit: Lit::Str(line), .. }) => {
                text.push_str(&line.value());
                text.push('\n');
            }
            _ if is_whole(&text) => break,
            other => {
                let message = "a derive cannot read this text: give one sentence as `#[task(summary = \"..\")]`, or as a \
                               doc comment before it that ends with an empty line";
                return Err(syn::Error::new_spanned(other, message));
            }
        }
    }
    Ok(paragraph(&text).join(" "))
}

/// Whether the first paragraph has ended.
fn is_whole(text: &str) -> bool {
    let lines = paragraph(text);
    !lines.is_empty() && lines.len() < text.trim_start().lines().count()
}

fn paragraph(text: &str) -> Vec<&str> {
    text.lines()
        // `/** … */` leaves the stars of its lines.
        .map(|line| line.trim().trim_start_matches("* ").trim_start_matches('#').trim())
        .skip_while(|line| line.is_empty() || *line == "*")
        .take_while(|line| !line.is_empty() && *line != "*")
        .collect()
}

#[cfg(test)]
mod tests {
    use syn::{DeriveInput, parse_quote};

    use super::*;

    #[test]
    fn is_the_first_paragraph_on_one_line() {
        let input: DeriveInput = parse_quote! {
            ///
            /// Checks that a piece of code
            ///   parses.
            ///
            /// And more.
            #[doc(hidden)]
            struct A;
        };
        assert_eq!(of(&input.attrs).unwrap(), "Checks that a piece of code parses.");
    }

    #[test]
    fn is_empty_without_a_doc_comment() {
        let input: DeriveInput = parse_quote!(
            struct A;
        );
        assert_eq!(of(&input.attrs).unwrap(), "");
    }

    #[test]
    fn reads_block_comments_too() {
        let input: DeriveInput = parse_quote! {
            /**
             * Checks code.
             * Quickly.
             *
             * More.
             */
            struct A;
        };
        assert_eq!(of(&input.attrs).unwrap(), "Checks code. Quickly.");
    }

    #[test]
    fn what_a_macro_returns_is_no_summary() {
        let included: DeriveInput = parse_quote! {
            #[doc = include_str!("validate.md")]
            struct A;
        };
        let error = of(&included.attrs).unwrap_err().to_string();
        assert!(error.contains("`#[task(summary = \"..\")]`"), "{error}");
        let continued: DeriveInput = parse_quote! {
            /// Checks code
            #[doc = concat!("in ", "Rust.")]
            struct A;
        };
        assert!(of(&continued.attrs).is_err());
        let below: DeriveInput = parse_quote! {
            /// Checks code.
            ///
            #[doc = include_str!("validate.md")]
            struct A;
        };
        assert_eq!(of(&below.attrs).unwrap(), "Checks code.");
    }
}
