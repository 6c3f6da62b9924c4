//! What the doc comment says in short.

use syn::{Attribute, Expr, ExprLit, Lit, Meta};

/// The first paragraph of the doc comment on one line, as rustdoc shows it in its lists.
pub(crate) fn of(attrs: &[Attribute]) -> String {
    let mut text = String::new();
    for attr in attrs.iter().filter(|attr| attr.path().is_ident("doc")) {
        if let Meta::NameValue(doc) = &attr.meta
            && let Expr::Lit(ExprLit { lit: Lit::Str(line), .. }) = &doc.value
        {
            text.push_str(&line.value());
            text.push('\n');
        }
    }
    let paragraph: Vec<&str> = text
        .lines()
        // `/** … */` leaves the stars of its lines.
        .map(|line| line.trim().trim_start_matches("* ").trim_start_matches('#').trim())
        .skip_while(|line| line.is_empty() || *line == "*")
        .take_while(|line| !line.is_empty() && *line != "*")
        .collect();
    paragraph.join(" ")
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
        assert_eq!(of(&input.attrs), "Checks that a piece of code parses.");
    }

    #[test]
    fn is_empty_without_a_doc_comment() {
        let input: DeriveInput = parse_quote!(
            struct A;
        );
        assert_eq!(of(&input.attrs), "");
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
        assert_eq!(of(&input.attrs), "Checks code. Quickly.");
    }
}
