//! What is looked for in one source: by the judge in its syntax tree, and by the guardian in its text. `RULES` in `report`
//! defines what counts.

use std::{iter::successors, sync::LazyLock};

use ra_ap_parser::LexedStr;
use ra_ap_syntax::{
    AstNode, AstToken, Edition, NodeOrToken, SourceFile,
    SyntaxKind::{self, *},
    SyntaxNode, SyntaxToken, T, TextRange,
    ast::{self, HasName},
};
use regex::Regex;

use crate::contracts::{FileReport, Finding, Rule};

/// The most lines of a function.
const MOST_LINES: usize = 60;

/// The most open brackets, and the most tokens of unfinished expressions around a place. In a debug build the parser needs up
/// to 3 KiB of stack for each of the first, and 1 KiB for each of the others. A thread has 2 MiB.
const MOST_BRACKETS: usize = 100;
const MOST_TOKENS: usize = 800;

/// What is found in a file, in bytes from its start.
type Found = (usize, Rule, String);

/// Judges any text. The path distinguishes tests and benchmarks from the rest. Of a text that does not parse only the lines
/// are counted.
pub(crate) fn judge(path: &str, text: &str) -> FileReport {
    let mut report = FileReport { lines: text.lines().count(), ..FileReport::default() };
    let root = match parse(text) {
        Ok(root) => root,
        Err((at, problem)) => {
            report.findings = findings(path, text, vec![(at, Rule::DoesNotParse, problem)]);
            return report;
        }
    };
    let tokens = root.descendants_with_tokens().filter_map(NodeOrToken::into_token);
    let tokens = tokens.filter(|token| token.kind() != WHITESPACE);
    let (comments, code): (Vec<_>, Vec<_>) = tokens.partition(|token| token.kind() == COMMENT);
    let functions = root.descendants().filter_map(ast::Fn::cast).filter(|function| function.body().is_some());
    let functions: Vec<_> = functions.collect();
    let public: Vec<_> = root.descendants().filter(is_public).collect();
    (report.functions, report.public_items) = (functions.len(), public.len());

    let mut found = todos(&comments);
    found.extend(functions.iter().filter_map(|function| too_long(function, text)));
    found.extend(public.iter().filter_map(undocumented));
    found.extend(root.descendants().filter_map(|node| unsafe_without_reason(&node)));
    if !path.split('/').any(|part| matches!(part.trim_end_matches(".rs"), "tests" | "benches")) {
        found.extend(panics(&code, &tests(&root)));
    }
    report.findings = findings(path, text, found);
    report
}

fn findings(path: &str, text: &str, mut found: Vec<Found>) -> Vec<Finding> {
    found.sort();
    let finding = |(at, rule, message)| {
        let before = text.get(..at).unwrap_or_default();
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
        Finding { path: path.into(), line, column, rule, message }
    };
    found.into_iter().map(finding).collect()
}

/// Parses in the edition that fits. The error is the first place, in bytes, and why it is not Rust.
fn parse(text: &str) -> Result<SyntaxNode, (usize, String)> {
    if let Some(at) = too_deep(text) {
        return Err((at, "nested too deeply".into()));
    }
    let parse = SourceFile::parse(text, Edition::Edition2021);
    let Some(error) = parse.errors().into_iter().min_by_key(|error| error.range().start()) else {
        return Ok(parse.syntax_node());
    };
    let older = SourceFile::parse(text, Edition::Edition2015).ok();
    older.map(|file| file.syntax().clone()).map_err(|_| (error.range().start().into(), error.to_string()))
}

/// Where a text nests too deeply for the parser, which calls itself, in bytes.
fn too_deep(text: &str) -> Option<usize> {
    let lexed = LexedStr::new(Edition::Edition2021, text);
    let code: Vec<usize> = (0..lexed.len()).filter(|&token| !lexed.kind(token).is_trivia()).collect();
    // For each open bracket: the tokens since the last separator, and those of them that may open generics.
    let mut levels = vec![(0, 0)];
    for (index, &token) in code.iter().enumerate() {
        let (kind, next) = (lexed.kind(token), code.get(index + 1).map_or(EOF, |&next| lexed.kind(next)));
        if matches!(kind, T![')'] | T![']'] | T!['}']) && levels.len() > 1 {
            levels.pop();
        }
        let (run, generics) = levels.last_mut()?;
        let goes_on = next.is_punct() && next != T![#] || matches!(next, T![else] | T![as]);
        *run = match kind {
            T![;] => 0,
            T!['}'] if !goes_on => 0,
            T![')'] | T![']'] | T!['}'] => *run,
            // A comma ends an argument of generics, but not the generics.
            T![,] => *generics,
            _ => *run + 1,
        };
        let opened = *generics + usize::from(kind == T![<]);
        *generics = opened.saturating_sub(usize::from(kind == T![>])).min(*run);
        if matches!(kind, T!['('] | T!['['] | T!['{']) {
            levels.push((0, 0));
        }
        if levels.len() > MOST_BRACKETS || levels.iter().map(|(run, _)| run).sum::<usize>() > MOST_TOKENS {
            return Some(lexed.text_start(token));
        }
    }
    None
}

fn start(token: &SyntaxToken) -> usize {
    token.text_range().start().into()
}

fn todos(comments: &[SyntaxToken]) -> Vec<Found> {
    let marks = comments.iter().flat_map(|comment| {
        let marks = ["TODO", "FIXME"].into_iter().flat_map(|mark| comment.text().match_indices(mark));
        marks.map(|(at, mark)| (start(comment) + at, Rule::Todo, format!("a comment says {mark}")))
    });
    marks.collect()
}

fn too_long(function: &ast::Fn, text: &str) -> Option<Found> {
    let (name, keyword) = (function.name()?, start(&function.fn_token()?));
    let lines = text.get(keyword..function.syntax().text_range().end().into())?.lines().count();
    let message = format!("`{name}` has {lines} lines, {MOST_LINES} at most");
    (lines > MOST_LINES).then_some((keyword, Rule::LongFunction, message))
}

/// Whether a node is an item that says `pub`.
fn is_public(node: &SyntaxNode) -> bool {
    let is_item = matches!(node.kind(), FN | STRUCT | ENUM | UNION | TRAIT | TYPE_ALIAS | CONST | STATIC);
    is_item && node.children().any(|child| child.kind() == VISIBILITY && child.text() == "pub")
}

fn undocumented(item: &SyntaxNode) -> Option<Found> {
    let is_doc =
        |token: &SyntaxToken| ast::Comment::cast(token.clone()).is_some_and(|comment| comment.is_doc());
    // A blank line and a comment may separate an item from its documentation.
    let above = successors(item.first_token()?.prev_token(), SyntaxToken::prev_token);
    let mut above = above.take_while(|token| token.kind().is_trivia() && !token.text().starts_with("//!"));
    let is_documented = item.children_with_tokens().any(|child| match child {
        NodeOrToken::Token(token) => is_doc(&token),
        NodeOrToken::Node(child) => child.kind() == ATTR && path(&meta(&child)) == "doc",
    });
    let name = item.children().find(|child| child.kind() == NAME)?.first_token()?;
    let message = format!("`{name}` is public and not documented");
    (!is_documented && !above.any(|token| is_doc(&token))).then(|| (start(&name), Rule::MissingDocs, message))
}

/// An attribute without its brackets and blanks.
fn meta(attribute: &SyntaxNode) -> String {
    let text: String = attribute.text().to_string().split_whitespace().collect();
    text.trim_start_matches(['#', '!', '[']).trim_end_matches(']').to_owned()
}

/// The name of an attribute.
fn path(meta: &str) -> &str {
    meta.split(['(', '=']).next().unwrap_or_default()
}

/// The parts of a file that have the attribute of a test, or are compiled for tests only.
fn tests(root: &SyntaxNode) -> Vec<TextRange> {
    let is_test = |attribute: &SyntaxNode| {
        let meta = meta(attribute);
        meta == "cfg(test)" || path(&meta).rsplit("::").next() == Some("test")
    };
    let attributes = root.descendants().filter(|node| node.kind() == ATTR).filter(is_test);
    attributes.filter_map(|attribute| Some(attribute.parent()?.text_range())).collect()
}

fn panics(code: &[SyntaxToken], tests: &[TextRange]) -> Vec<Found> {
    let panics = code.windows(3).filter_map(|window| {
        let [before, token, after] = window else { return None };
        let call = match (before.text(), token.text(), after.text()) {
            (".", "unwrap", "(") => "`.unwrap()`",
            (".", "expect", "(") => "`.expect(…)`",
            (_, "panic", "!") => "`panic!`",
            _ => return None,
        };
        let in_test = tests.iter().any(|part| part.contains_range(token.text_range()));
        (!in_test).then(|| (start(token), Rule::MayPanic, format!("{call} may panic")))
    });
    panics.collect()
}

fn unsafe_without_reason(node: &SyntaxNode) -> Option<Found> {
    const LISTS: [SyntaxKind; 5] = [SOURCE_FILE, ITEM_LIST, ASSOC_ITEM_LIST, STMT_LIST, MATCH_ARM_LIST];
    let what = match node.kind() {
        BLOCK_EXPR => "block",
        IMPL => "implementation",
        _ => return None,
    };
    let tokens = node.children_with_tokens().filter_map(NodeOrToken::into_token);
    let keyword = tokens.into_iter().find(|token| token.kind() == T![unsafe])?;
    let is_whole = |node: &SyntaxNode| node.parent().is_none_or(|list| LISTS.contains(&list.kind()));
    let statement = node.ancestors().find(is_whole)?.text_range().start();
    let before = successors(keyword.prev_token(), SyntaxToken::prev_token);
    let mut near =
        before.take_while(|token| token.text_range().start() >= statement || token.kind().is_trivia());
    let explained = near.any(|token| token.kind() == COMMENT && token.text().contains("SAFETY:"));
    (!explained)
        .then(|| (start(&keyword), Rule::UnsafeWithoutSafety, format!("unsafe {what} without a reason")))
}

/// The kinds of secrets, and the form of each.
const FORMS: [(&str, &str); 10] = [
    ("private key", r"-----BEGIN [A-Z ]*PRIVATE KEY-----(?:\s|\\r|\\n)*[A-Za-z0-9+/=]{16}"),
    ("AWS access key", r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"),
    ("GitHub token", r"\b(?:gh[opusr]_[A-Za-z0-9]{36}|github_pat_[A-Za-z0-9_]{82})\b"),
    ("GitLab token", r"\bglpat-[A-Za-z0-9_-]{20}"),
    ("Slack token", r"\bxox[abprs]-[A-Za-z0-9-]{20}"),
    ("Stripe key", r"\b[sr]k_live_[A-Za-z0-9]{24}"),
    ("Google API key", r"\bAIza[A-Za-z0-9_-]{35}"),
    ("OpenAI key", r"\bsk-(?:proj|svcacct|admin)-[A-Za-z0-9_-]{32}"),
    ("Anthropic key", r"\bsk-ant-[A-Za-z0-9_-]{32}"),
    ("npm token", r"\bnpm_[A-Za-z0-9]{36}\b"),
];

static PATTERNS: LazyLock<Vec<(&str, Regex)>> =
    LazyLock::new(|| FORMS.iter().filter_map(|(kind, form)| Some((*kind, Regex::new(form).ok()?))).collect());

/// Finds the secrets of a file, in its strings, its comments and its code. Shows four characters of each.
pub(crate) fn secrets(path: &str, text: &str) -> Vec<Finding> {
    let found = PATTERNS.iter().flat_map(|(kind, pattern)| {
        let secrets = pattern.find_iter(text);
        secrets.map(move |secret| (secret.start(), Rule::Secret, format!("{kind} {:.4}…", secret.as_str())))
    });
    findings(path, text, found.collect())
}
