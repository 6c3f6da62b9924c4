//! `GET /docs`: the page that displays the OpenAPI document of its server.

use async_trait::async_trait;
use bytes::Bytes;
use http::HeaderValue;

use super::routes::{Answer, Endpoint, Inbound, Refusal, Takes};

/// The page: markup, style and script in one, which loads nothing but the document.
const PAGE: &str = include_str!("docs.html");

/// Allows the style and the script of the page by their hashes, requests to its own server, and no markup that a script writes.
const POLICY: &str = "default-src 'none'; script-src 'sha256-ji1rJ4JZT51TCJt+pRNXsbK8yZkkiikeWS0bZuWONT0='; style-src 'sha256-gf4TwvMLLK9AjBy6aFr3KoOcNul2FnVwxQxLNQsfaL8='; \
    connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
    require-trusted-types-for 'script'; trusted-types 'none'";

/// The page for people.
pub(crate) struct DocsPage;

#[async_trait]
impl Endpoint for DocsPage {
    fn takes(&self) -> Takes {
        Takes::Document
    }

    fn is_json(&self) -> bool {
        false
    }

    async fn call(&self, _: Inbound<'_>) -> Result<Answer, Refusal> {
        Ok(Answer::written(Bytes::from_static(PAGE.as_bytes())).page(HeaderValue::from_static(POLICY)))
    }
}

#[cfg(test)]
mod tests {
    use base64::{Engine, prelude::BASE64_STANDARD};
    use sha2::{Digest, Sha256};

    use super::*;

    /// The text between the only two of these tags.
    fn between<'p>(open: &str, close: &str) -> &'p str {
        let (_, rest) = PAGE.split_once(open).unwrap();
        let (text, rest) = rest.split_once(close).unwrap();
        assert!(!rest.contains(open), "{open} twice");
        text
    }

    #[test]
    fn the_policy_has_the_hashes_of_the_page() {
        for (directive, text) in
            [("script-src", between("<script>", "</script>")), ("style-src", between("<style>", "</style>"))]
        {
            let expected = format!("{directive} 'sha256-{}';", BASE64_STANDARD.encode(Sha256::digest(text)));
            assert!(POLICY.contains(&expected), "write into POLICY: {expected}");
        }
    }

    #[test]
    fn the_page_names_no_other_place_and_writes_no_markup() {
        for (at, _) in PAGE.match_indices("://") {
            let scheme = PAGE[..at].rfind(|c: char| !c.is_ascii_alphabetic()).map_or(0, |before| before + 1);
            let address = &PAGE[scheme..];
            // A namespace, and an example of an address.
            let is_inert = ["http://www.w3.org/2000/svg'", "https://example.org/\""]
                .iter()
                .any(|known| address.starts_with(known));
            assert!(is_inert, "{}", &address[..40]);
        }
        for word in [
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            "Function(",
            "style=\"",
        ] {
            assert!(!PAGE.contains(word), "{word}");
        }
    }
}
