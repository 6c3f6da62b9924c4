//! The guardian's check: credentials in a source.
//!
//! Only what has a form of its own is found, by prefix, alphabet and length; random-looking text is not guessed at. What the
//! services' own documentation uses for an example (an AWS key id that ends in `EXAMPLE`, a URL with the password
//! `password`) is not a secret, nor is a place that a program fills in, such as `{password}` or `$PASSWORD`.

use std::sync::LazyLock;

use regex::Regex;

use crate::{
    contracts::{FileSecrets, Secret},
    parse::Lines,
};

/// The form of each kind of credential: a pattern, whose first group is the credential, and what else must hold of it. A
/// token ends where another sort of character follows.
type Form = (&'static str, &'static str, fn(&str) -> bool);

const FORMS: [Form; 12] = [
    (
        "private-key",
        r#"(-----BEGIN [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----(?:(?:[^-]|-{1,4}[^-])*-----END [^-]*-----|[A-Za-z0-9+/=\s\\",#*]*))"#,
        has_key,
    ),
    ("aws-access-key", r"((?:AKIA|ASIA)[A-Z0-9]{16})(?:\W|$)", |token| !token.ends_with("EXAMPLE")),
    ("github-token", r"(gh[opusr]_[A-Za-z0-9]{36,255}|github_pat_[A-Za-z0-9_]{82})(?:\W|$)", |_| true),
    ("gitlab-token", r"(glpat-[A-Za-z0-9_-]{20,64})(?:[^\w-]|$)", is_mixed),
    ("slack-token", r"(xox[abprs]-[A-Za-z0-9-]{20,255})(?:[^\w-]|$)", has_numbers),
    ("stripe-key", r"([sr]k_live_[A-Za-z0-9]{24,255})(?:\W|$)", |_| true),
    ("google-api-key", r"(AIza[A-Za-z0-9_-]{35})(?:[^\w-]|$)", |_| true),
    (
        "openai-key",
        r"(sk-(?:proj|svcacct|admin)-[A-Za-z0-9_-]{32,255}|sk-or-v1-[A-Za-z0-9]{64}|sk-[A-Za-z0-9]{32,64})(?:[^\w-]|$)",
        is_mixed,
    ),
    ("anthropic-key", r"(sk-ant-[A-Za-z0-9_-]{32,255})(?:[^\w-]|$)", is_mixed),
    ("npm-token", r"(npm_[A-Za-z0-9]{36})(?:\W|$)", |_| true),
    (
        "json-web-token",
        r"(eyJ[A-Za-z0-9_-]{8,1000}\.eyJ[A-Za-z0-9_-]{5,4000}\.[A-Za-z0-9_-]{20,1000})\.*(?:[^\w.-]|$)",
        |_| true,
    ),
    (
        "url-password",
        r#"[A-Za-z0-9]://[^\s/?\#"'`<>\\|,:]*:([^\s/?\#"'`<>\\|,]+)@[A-Za-z0-9\[{$]"#,
        |password| !is_example(password),
    ),
];

static PATTERNS: LazyLock<Vec<(Regex, &Form)>> =
    LazyLock::new(|| FORMS.iter().filter_map(|form| Some((Regex::new(form.1).ok()?, form))).collect());

/// Finds the secrets of a file, in its strings, its comments and its code.
pub(crate) fn scan(path: &str, text: &str) -> FileSecrets {
    let lines = Lines::of(text);
    let mut found = Vec::new();
    for (pattern, (kind, _, accepts)) in PATTERNS.iter() {
        let groups = pattern.captures_iter(text).filter_map(|captures| captures.get(1));
        let word = !matches!(*kind, "url-password" | "private-key");
        let tokens =
            groups.filter(|token| accepts(token.as_str()) && !(word && is_inside_word(text, token.start())));
        found.extend(tokens.map(|token| (token.start(), *kind, token.as_str())));
    }
    found.sort_by_key(|(start, ..)| *start);
    let secrets = found.into_iter().map(|(start, kind, secret)| {
        let (line, column) = lines.place(start);
        Secret { kind: kind.to_owned(), line, column, masked: mask(kind, secret) }
    });
    FileSecrets { path: path.to_owned(), secrets: secrets.collect() }
}

/// Shows at most a quarter of a token, and at most four characters. A password shows none: a token's first characters are
/// its form, a password's are its own.
fn mask(kind: &str, secret: &str) -> String {
    let length = secret.chars().count();
    let shown = if kind == "url-password" { 0 } else { 4.min(length / 4) };
    let start: String = secret.chars().take(shown).collect();
    format!("{start}… ({length} character{})", if length == 1 { "" } else { "s" })
}

/// Whether the word at `start` goes on with one before it. The `n` of an escaped `\n` is not part of a word.
fn is_inside_word(text: &str, start: usize) -> bool {
    let before = text.get(..start).unwrap_or_default();
    !before.ends_with("\\n")
        && before.ends_with(|last: char| matches!(last, '_' | '-') || last.is_alphanumeric())
}

/// A first line alone is what every reader of keys has in its source: at least one line of a key must follow.
fn has_key(block: &str) -> bool {
    let words = block.split(|next: char| !(next.is_ascii_alphanumeric() || "+/=".contains(next)));
    words.map(|word| word.trim_start_matches(['n', 'r']).len()).max() >= Some(16)
}

/// Prose in kebab case has no digits.
fn is_mixed(token: &str) -> bool {
    let body = token.trim_start_matches("sk-or-v1-");
    body.bytes().any(|byte| byte.is_ascii_digit()) && body.bytes().any(|byte| byte.is_ascii_alphabetic())
}

fn has_numbers(token: &str) -> bool {
    token.bytes().filter(u8::is_ascii_digit).count() >= 6
}

/// Whether a password is the word for it, one character repeated, or a place that a program fills in.
fn is_example(password: &str) -> bool {
    const WORDS: [&str; 8] = ["pass", "passwd", "password", "passw0rd", "pwd", "pw", "secret", "token"];
    let first = password.chars().next();
    password.starts_with(['$', '%'])
        || password.contains(['{', '}', '(', ')', '[', ']', '…', '*'])
        || password.chars().all(|character| Some(character) == first)
        || WORDS.iter().any(|word| password.eq_ignore_ascii_case(word))
}
