//! `GET /dashboard`: the page that displays tasks, arms, events and dead letters as they change.

use async_trait::async_trait;
use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method};
use octollm_core::error::ConfigError;
use sha2::{Digest, Sha256};

use super::{
    Server,
    openapi::Document,
    routes::{Answer, Endpoint, Inbound, Refusal, RouteTable, Takes, tag_of},
};

/// The markup, in which style and script have their places.
const MARKUP: &str = include_str!("page.html");
const STYLE: &str = concat!(include_str!("look.css"), include_str!("parts.css"));
/// One script: each part uses what stands before it.
const SCRIPT: &str = concat!(
    "\"use strict\";\n",
    include_str!("wire.js"),
    include_str!("view.js"),
    include_str!("tasks.js"),
    include_str!("task.js"),
    include_str!("arms.js"),
    include_str!("events.js"),
    include_str!("letters.js"),
    include_str!("page.js"),
);

impl Server {
    /// Leaves out `GET /dashboard`, the page that displays the tasks of an [orchestrator](Self::orchestrator) in a browser. By default
    /// everybody who reaches the server may read the page, which contains no data: it reads the other routes with the token that
    /// is entered on it.
    pub fn without_dashboard(mut self) -> Self {
        self.has_dashboard = false;
        self
    }
}

/// Adds the page, and its operation to the document.
pub(crate) fn add_dashboard(table: &mut RouteTable, document: &mut Document) -> Result<(), ConfigError> {
    document.add_dashboard();
    table.add(Method::GET, "/dashboard", Dashboard::new()?)
}

/// The page for people.
struct Dashboard {
    page: Bytes,
    policy: HeaderValue,
    tag: HeaderValue,
}

impl Dashboard {
    fn new() -> Result<Self, ConfigError> {
        let page = MARKUP.replacen("<style></style>", &format!("<style>{STYLE}</style>"), 1).replacen(
            "<script></script>",
            &format!("<script>{SCRIPT}</script>"),
            1,
        );
        let refused = |problem: &'static str| ConfigError::new("dashboard", problem);
        let policy = HeaderValue::try_from(policy()).map_err(|_| refused("has no policy"))?;
        let tag = tag_of(page.as_bytes()).map_err(|_| refused("has no tag"))?;
        Ok(Self { page: page.into(), policy, tag })
    }
}

/// Allows the style and the script of the page by their hashes, requests to its own server, and no markup that a script writes.
fn policy() -> String {
    let hash = |text: &str| BASE64_STANDARD.encode(Sha256::digest(text));
    format!(
        "default-src 'none'; script-src 'sha256-{}'; style-src 'sha256-{}'; connect-src 'self'; img-src data:; base-uri 'none'; \
         form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
        hash(SCRIPT),
        hash(STYLE)
    )
}

#[async_trait]
impl Endpoint for Dashboard {
    fn takes(&self) -> Takes {
        Takes::Document
    }

    fn is_json(&self) -> bool {
        false
    }

    async fn call(&self, inbound: Inbound<'_>) -> Result<Answer, Refusal> {
        const ALONE: (HeaderName, HeaderValue) =
            (HeaderName::from_static("cross-origin-opener-policy"), HeaderValue::from_static("same-origin"));
        let page = Answer::written(self.page.clone()).tagged(self.tag.clone(), &inbound.head.headers);
        Ok(page.page(self.policy.clone()).header(ALONE.0, ALONE.1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_names_no_other_place_and_writes_no_markup() {
        let page = String::from_utf8(Dashboard::new().unwrap().page.to_vec()).unwrap();
        for (at, _) in page.match_indices("://") {
            // The namespace of pictures.
            assert!(page[at..].starts_with("://www.w3.org/2000/svg"), "{}", &page[at..at + 40]);
        }
        for word in [
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            "Function(",
            "style=\"",
            "localStorage",
            "document.cookie",
        ] {
            assert!(!page.contains(word), "{word}");
        }
    }

    #[test]
    fn style_and_script_are_in_the_page_as_they_are_hashed() {
        let page = String::from_utf8(Dashboard::new().unwrap().page.to_vec()).unwrap();
        for (tag, text) in [("style", STYLE), ("script", SCRIPT)] {
            assert_eq!(page.matches(&format!("<{tag}>")).count(), 1, "{tag}");
            assert!(page.contains(&format!("<{tag}>{text}</{tag}>")), "{tag}");
            assert!(!text.contains(&format!("</{tag}")), "{tag}");
        }
        // Line ends are those of the parser of the browser, which the hash is of.
        assert!(!page.contains('\r'));
    }
}
