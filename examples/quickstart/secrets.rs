//! The guardian's check: credentials in a source.
//!
//! Only what has a form of its own is found, by prefix, alphabet and length. An example of a service's documentation (an
//! AWS key id that ends in `EXAMPLE`) is not a secret, nor is a place that a program fills in, such as `{password}`.

use std::sync::LazyLock;

use regex::Regex;

use crate::{contracts::Secret, parse::place};

/// The kinds of credentials. A form's group is the credential; it ends where another sort of character follows.
const FORMS: [(&str, &str); 12] = [
    (
        "private-key",
        r#"(-----BEGIN [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----(?:(?:[^-]|-{1,4}[^-])*-----END [^-]*-----|[A-Za-z0-9+/=\s\\",#*]*))"#,
    ),
    ("aws-access-key", r"((?:AKIA|ASIA)[A-Z0-9]{16})(?:\W|$)"),
    ("github-token", r"(gh[opusr]_[A-Za-z0-9]{36,255}|github_pat_[A-Za-z0-9_]{82})(?:\W|$)"),
    ("gitlab-token", r"(glpat-[A-Za-z0-9_-]{20,64})(?:[^\w-]|$)"),
    ("slack-token", r"(xox[abprs]-[A-Za-z0-9-]{20,255})(?:[^\w-]|$)"),
    ("stripe-key", r"([sr]k_live_[A-Za-z0-9]{24,255})(?:\W|$)"),
    ("google-api-key", r"(AIza[A-Za-z0-9_-]{35})(?:[^\w-]|$)"),
    (
        "openai-key",
        r"(sk-(?:(?:proj|svcacct|admin)-[A-Za-z0-9_-]{32,255}|or-v1-[A-Za-z0-9]{64}|[A-Za-z0-9]{32,64}))(?:[^\w-]|$)",
    ),
    ("anthropic-key", r"(sk-ant-[A-Za-z0-9_-]{32,255})(?:[^\w-]|$)"),
    ("npm-token", r"(npm_[A-Za-z0-9]{36})(?:\W|$)"),
    (
        "json-web-token",
        r"(eyJ[A-Za-z0-9_-]{8,1000}\.eyJ[A-Za-z0-9_-]{5,4000}\.[A-Za-z0-9_-]{20,1000})\.*(?:[^\w.-]|$)",
    ),
    ("url-password", r#"[A-Za-z0-9]://[^\s/?\#"'`<>\\|,:]*:([^\s/?\#"'`<>\\|,]+)@[A-Za-z0-9\[{$]"#),
];

static PATTERNS: LazyLock<Vec<(&str, Regex)>> =
    LazyLock::new(|| FORMS.iter().filter_map(|(kind, form)| Some((*kind, Regex::new(form).ok()?))).collect());

/// Finds the secrets of a file, in its strings, its comments and its code.
pub(crate) fn scan(path: &str, text: &str) -> Vec<Secret> {
    let mut secrets = Vec::new();
    for (kind, pattern) in PATTERNS.iter() {
        let tokens = pattern.captures_iter(text).filter_map(|captures| captures.get(1));
        let tokens = tokens.filter(|token| is_secret(kind, token.as_str(), &text[..token.start()]));
        secrets.extend(tokens.map(|token| {
            let (line, column) = place(text, token.start());
            Secret {
                path: path.into(),
                kind: (*kind).into(),
                line,
                column,
                masked: mask(kind, token.as_str()),
            }
        }));
    }
    secrets.sort_by_key(|secret| (secret.line, secret.column));
    secrets
}

/// Shows at most a quarter of a token, and at most four characters. A password shows none: a token's first characters are
/// its form, a password's are its own.
fn mask(kind: &str, secret: &str) -> String {
    let length = secret.chars().count();
    let shown = if kind == "url-password" { 0 } else { 4.min(length / 4) };
    format!("{}… ({length} characters)", secret.chars().take(shown).collect::<String>())
}

fn is_secret(kind: &str, token: &str, before: &str) -> bool {
    match kind {
        "url-password" => !is_example(token),
        // Every reader of keys has a first line in its source: at least one line of a key must follow.
        "private-key" => {
            let words = token.split(|next: char| !(next.is_ascii_alphanumeric() || "+/=".contains(next)));
            words.map(|word| word.trim_start_matches(['n', 'r']).len()).max() >= Some(16)
        }
        // Prose in kebab case has no digits. The `n` of an escaped `\n` is not part of a word.
        _ => {
            let is_word = |last: char| matches!(last, '_' | '-') || last.is_alphanumeric();
            let inside_word = before.ends_with(is_word) && !before.ends_with("\\n");
            let body = token.trim_start_matches("sk-or-v1-");
            let digits = kind == "aws-access-key" || body.contains(|next: char| next.is_ascii_digit());
            !inside_word && digits && !token.ends_with("EXAMPLE")
        }
    }
}

/// Whether a password is the word for it, one character repeated, or a place that a program fills in.
fn is_example(password: &str) -> bool {
    const WORDS: [&str; 8] = ["pass", "passwd", "password", "passw0rd", "pwd", "pw", "secret", "token"];
    password.starts_with(['$', '%'])
        || password.contains(['{', '}', '(', ')', '[', ']', '…', '*'])
        || password.chars().all(|character| password.starts_with(character))
        || WORDS.iter().any(|word| password.eq_ignore_ascii_case(word))
}
