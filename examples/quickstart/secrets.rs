//! The guardian's eye: credentials left in a source.
//!
//! Only what has a form of its own is found, by prefix, alphabet and length; random-looking text is not
//! guessed at. What the services' own documentation uses for an example (an AWS key id that ends in
//! `EXAMPLE`, a URL with the password `password`) is no secret, nor is a place that a program fills in,
//! `{password}` or `$PASSWORD`.
//!
//! What is found is never shown: a [`Secret`] keeps at most a quarter of it, and never more than four
//! characters.

mod blocks;
mod tokens;
mod urls;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The secrets of one file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct FileSecrets {
    /// The file, relative to the folder under review.
    pub(crate) path: String,
    /// What is in it, by line.
    pub(crate) secrets: Vec<Secret>,
}

/// A credential in a source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Secret {
    /// What it opens.
    pub(crate) kind: SecretKind,
    /// The line, from one.
    pub(crate) line: usize,
    /// The column in characters, from one.
    pub(crate) column: usize,
    /// Its first characters and its length.
    pub(crate) masked: String,
}

/// What a credential opens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum SecretKind {
    /// A private key in a PEM block.
    PrivateKey,
    /// The id of an AWS access key.
    AwsAccessKey,
    /// A token of GitHub.
    GithubToken,
    /// A token of GitLab.
    GitlabToken,
    /// A token of Slack.
    SlackToken,
    /// A live key of Stripe.
    StripeKey,
    /// A key of Google's services.
    GoogleApiKey,
    /// A key of OpenAI, or of a service that took over its form.
    OpenaiKey,
    /// A key of Anthropic.
    AnthropicKey,
    /// A token of npm.
    NpmToken,
    /// A signed JSON web token.
    JsonWebToken,
    /// The password in a URL.
    UrlPassword,
}

impl SecretKind {
    /// Its name, for a reader.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::PrivateKey => "private key",
            Self::AwsAccessKey => "AWS access key id",
            Self::GithubToken => "GitHub token",
            Self::GitlabToken => "GitLab token",
            Self::SlackToken => "Slack token",
            Self::StripeKey => "Stripe live key",
            Self::GoogleApiKey => "Google API key",
            Self::OpenaiKey => "OpenAI key",
            Self::AnthropicKey => "Anthropic key",
            Self::NpmToken => "npm token",
            Self::JsonWebToken => "JSON web token",
            Self::UrlPassword => "password in a URL",
        }
    }

    /// How many of the first characters may be shown: those of a token are its form, those of a password are
    /// its own.
    fn shown(self) -> usize {
        if self == Self::UrlPassword { 0 } else { 4 }
    }
}

/// Where a secret is, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Found {
    kind: SecretKind,
    start: usize,
    end: usize,
}

/// Finds the secrets of a file, in its strings, its comments and its code.
pub(crate) fn scan(path: &str, text: &str) -> FileSecrets {
    let mut found = tokens::find(text);
    found.extend(blocks::find(text));
    found.extend(urls::find(text));
    found.sort_by_key(|found| (found.start, found.end));
    let mut places = Places { text, offset: 0, line: 1, column: 1 };
    let secrets = found.iter().filter_map(|found| places.secret(found)).collect();
    FileSecrets { path: path.to_owned(), secrets }
}

/// A walk over a text that counts its lines.
struct Places<'a> {
    text: &'a str,
    offset: usize,
    line: usize,
    column: usize,
}

impl Places<'_> {
    /// Walks on to what was found, which must come by start.
    fn secret(&mut self, found: &Found) -> Option<Secret> {
        for character in self.text.get(self.offset..found.start)?.chars() {
            match character {
                '\n' => (self.line, self.column) = (self.line + 1, 1),
                '\u{feff}' if (self.line, self.column) == (1, 1) => {}
                _ => self.column += 1,
            }
        }
        self.offset = found.start;
        let masked = mask(self.text.get(found.start..found.end)?, found.kind.shown());
        Some(Secret { kind: found.kind, line: self.line, column: self.column, masked })
    }
}

fn mask(secret: &str, shown: usize) -> String {
    let length = secret.chars().count();
    let start: String = secret.chars().take(shown.min(length / 4)).collect();
    let unit = if length == 1 { "character" } else { "characters" };
    format!("{start}… ({length} {unit})")
}

#[cfg(test)]
mod tests {
    use super::{SecretKind, mask, scan};

    #[test]
    fn a_mask_keeps_a_quarter_at_most() {
        assert_eq!(mask("", 4), "… (0 characters)");
        assert_eq!(mask("x", 4), "… (1 character)");
        assert_eq!(mask("abcdefg", 4), "a… (7 characters)");
        assert_eq!(mask(&"é".repeat(100), 4), "éééé… (100 characters)");
        assert_eq!(mask("hunter22", 0), "… (8 characters)");
    }

    #[test]
    fn secrets_come_by_place_and_are_never_whole() {
        // In parts, so that this file has none.
        let (id, password) = (["AKIA", "QWERTYUIOPASDFGH"].concat(), "s3cr3t-word");
        let text = format!("\u{feff}é = \"{id}\";\n// http://u:{password}@host {id}");
        let found = scan("a.rs", &text);
        let places: Vec<_> =
            found.secrets.iter().map(|secret| (secret.kind, secret.line, secret.column)).collect();
        use SecretKind::*;
        assert_eq!(places, [(AwsAccessKey, 1, 6), (UrlPassword, 2, 13), (AwsAccessKey, 2, 30)]);
        assert_eq!(found.secrets[0].masked, "AKIA… (20 characters)");
        let json = serde_json::to_string(&found).unwrap();
        assert!(!json.contains(&id) && !json.contains(password) && !json.contains("QWER"));
    }
}
