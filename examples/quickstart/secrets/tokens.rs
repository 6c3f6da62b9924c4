//! Credentials that are one word: a prefix, then so many characters of an alphabet.

use super::{Found, SecretKind};

/// The form of a token.
struct Form {
    kind: SecretKind,
    prefix: &'static str,
    /// What may follow the prefix.
    alphabet: fn(u8) -> bool,
    /// How much of it, at least and at most.
    length: (usize, usize),
    /// What else must hold of what follows.
    accepts: fn(&str) -> bool,
}

impl Form {
    const fn new(
        kind: SecretKind,
        prefix: &'static str,
        alphabet: fn(u8) -> bool,
        length: (usize, usize),
    ) -> Self {
        Self { kind, prefix, alphabet, length, accepts: |_| true }
    }

    const fn checked(self, accepts: fn(&str) -> bool) -> Self {
        Self { accepts, ..self }
    }

    /// The end of the token that starts here.
    fn end(&self, text: &str, start: usize) -> Option<usize> {
        let rest = text.get(start..)?.strip_prefix(self.prefix)?;
        let letters = rest.bytes().take(self.length.1 + 1);
        let length = letters.take_while(|&byte| (self.alphabet)(byte)).count();
        let body = rest.get(..length)?;
        // What goes on with another sort of letter is a longer word.
        let ends = !rest.get(length..)?.starts_with(|next: char| next == '_' || next.is_alphanumeric());
        let fits = (self.length.0..=self.length.1).contains(&length) && ends && (self.accepts)(body);
        fits.then_some(start + self.prefix.len() + length)
    }
}

/// The forms. Of two whose prefixes agree, the longer one comes first.
const FORMS: [Form; 25] = [
    Form::new(SecretKind::AwsAccessKey, "AKIA", upper, (16, 16)).checked(is_no_example),
    Form::new(SecretKind::AwsAccessKey, "ASIA", upper, (16, 16)).checked(is_no_example),
    Form::new(SecretKind::GithubToken, "ghp_", alphanumeric, (36, 255)),
    Form::new(SecretKind::GithubToken, "gho_", alphanumeric, (36, 255)),
    Form::new(SecretKind::GithubToken, "ghu_", alphanumeric, (36, 255)),
    Form::new(SecretKind::GithubToken, "ghs_", alphanumeric, (36, 255)),
    Form::new(SecretKind::GithubToken, "ghr_", alphanumeric, (36, 255)),
    Form::new(SecretKind::GithubToken, "github_pat_", word, (82, 82)),
    Form::new(SecretKind::GitlabToken, "glpat-", dashed, (20, 64)).checked(is_mixed),
    Form::new(SecretKind::SlackToken, "xoxa-", kebab, (20, 255)).checked(has_numbers),
    Form::new(SecretKind::SlackToken, "xoxb-", kebab, (20, 255)).checked(has_numbers),
    Form::new(SecretKind::SlackToken, "xoxp-", kebab, (20, 255)).checked(has_numbers),
    Form::new(SecretKind::SlackToken, "xoxr-", kebab, (20, 255)).checked(has_numbers),
    Form::new(SecretKind::SlackToken, "xoxs-", kebab, (20, 255)).checked(has_numbers),
    Form::new(SecretKind::StripeKey, "sk_live_", alphanumeric, (24, 255)),
    Form::new(SecretKind::StripeKey, "rk_live_", alphanumeric, (24, 255)),
    Form::new(SecretKind::GoogleApiKey, "AIza", dashed, (35, 35)),
    Form::new(SecretKind::AnthropicKey, "sk-ant-", dashed, (32, 255)).checked(is_mixed),
    Form::new(SecretKind::OpenaiKey, "sk-proj-", dashed, (32, 255)).checked(is_mixed),
    Form::new(SecretKind::OpenaiKey, "sk-svcacct-", dashed, (32, 255)).checked(is_mixed),
    Form::new(SecretKind::OpenaiKey, "sk-admin-", dashed, (32, 255)).checked(is_mixed),
    Form::new(SecretKind::OpenaiKey, "sk-or-v1-", alphanumeric, (64, 64)),
    Form::new(SecretKind::OpenaiKey, "sk-", alphanumeric, (32, 64)).checked(is_mixed),
    Form::new(SecretKind::NpmToken, "npm_", alphanumeric, (36, 36)),
    Form::new(SecretKind::JsonWebToken, "eyJ", dotted, (40, 4_096)).checked(is_signed),
];

/// Finds the tokens, each at the start of a word.
pub(super) fn find(text: &str) -> Vec<Found> {
    let mut found = Vec::new();
    let mut before = None;
    let mut end = 0;
    for (start, character) in text.char_indices() {
        let inside = start < end || before.is_some_and(goes_on);
        // A `\n` before a word is no letter of it.
        let escaped = before == Some('n') && text.get(..start).is_some_and(|before| before.ends_with("\\n"));
        before = Some(character);
        if (inside && !escaped) || !matches!(character, 'A' | 'a'..='z') {
            continue;
        }
        let token = FORMS.iter().find_map(|form| Some((form.kind, form.end(text, start)?)));
        if let Some((kind, stop)) = token {
            found.push(Found { kind, start, end: stop });
            end = stop;
        }
    }
    found
}

/// Whether a character belongs to the word that follows it.
fn goes_on(before: char) -> bool {
    matches!(before, '_' | '-') || before.is_alphanumeric()
}

fn upper(byte: u8) -> bool {
    byte.is_ascii_uppercase() || byte.is_ascii_digit()
}

fn alphanumeric(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
}

fn word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

fn kebab(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'-'
}

fn dashed(byte: u8) -> bool {
    word(byte) || byte == b'-'
}

fn dotted(byte: u8) -> bool {
    dashed(byte) || byte == b'.'
}

fn is_no_example(body: &str) -> bool {
    !body.ends_with("EXAMPLE")
}

/// Prose in kebab case has no digits.
fn is_mixed(body: &str) -> bool {
    body.bytes().any(|byte| byte.is_ascii_digit()) && body.bytes().any(|byte| byte.is_ascii_alphabetic())
}

fn has_numbers(body: &str) -> bool {
    body.bytes().filter(u8::is_ascii_digit).count() >= 6
}

/// Three parts, of which the first two are JSON objects; the `eyJ` of the first one is gone. The end of a
/// sentence may follow.
fn is_signed(body: &str) -> bool {
    let parts: Vec<&str> = body.trim_end_matches('.').split('.').collect();
    let [header, payload, signature] = parts.as_slice() else { return false };
    header.len() >= 8 && payload.len() >= 8 && payload.starts_with("eyJ") && signature.len() >= 20
}

#[cfg(test)]
mod tests {
    use super::{FORMS, find};
    use crate::secrets::SecretKind;

    /// A token of each form. No part of it stands in this file, so that nobody takes the file for a leak.
    fn samples() -> Vec<(SecretKind, String)> {
        let samples = FORMS.iter().map(|form| {
            let body = match form.kind {
                SecretKind::AwsAccessKey => "Q7".repeat(8),
                SecretKind::JsonWebToken => {
                    format!("{}.eyJ{}.{}", "a1".repeat(9), "b2".repeat(9), "c_-".repeat(9))
                }
                _ => "aB34".repeat(64)[..form.length.0].to_owned(),
            };
            (form.kind, format!("{}{body}", form.prefix))
        });
        samples.collect()
    }

    #[test]
    fn every_form_is_found_whole_and_by_its_kind() {
        for (kind, sample) in samples() {
            for text in [
                sample.clone(),
                format!("(\"{sample}\");"),
                format!("x={sample} y"),
                format!("é\\n{sample}\\n"),
            ] {
                let found = find(&text);
                assert_eq!(found.len(), 1, "{kind:?}");
                assert_eq!((found[0].kind, &text[found[0].start..found[0].end]), (kind, sample.as_str()));
            }
        }
    }

    #[test]
    fn a_part_of_a_word_is_none() {
        for (kind, sample) in samples() {
            for text in
                [format!("x{sample}"), format!("-{sample}"), format!("{sample}é"), sample[..12].to_owned()]
            {
                assert!(find(&text).is_empty(), "{kind:?}");
            }
        }
    }

    #[test]
    fn prefixes_and_prose_are_none() {
        for text in [
            "sk-learn AKIA task-force-of-the-year-and-then-some sk-proj-name-of-a-very-long-project-in-prose",
            "xoxb-your-token-goes-right-here-please glpat-the-access-token-of-yours npm_config_registry ghp_ AIza eyJ",
            "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0. eyJhbGciOiJIUzI1NiJ9.not-json.aaaaaaaaaaaaaaaaaaaaaaa",
            "AKIAIOSFODNN7EXAMPLE sk_test_aB3daB3daB3daB3daB3daB3d",
        ] {
            assert!(find(text).is_empty(), "{text}");
        }
    }

    #[test]
    fn lengths_are_exact_where_the_form_is() {
        let id = format!("{}{}", "AKIA", "Q7".repeat(8));
        assert_eq!(find(&id).len(), 1);
        assert!(
            find(&id[..19]).is_empty()
                && find(&format!("{id}Q")).is_empty()
                && find(&id.to_lowercase()).is_empty()
        );
    }
}
