//! The judge: reads one Rust source and reports which rules it breaks.
//!
//! The figures count what is written, in the arguments of macros and in the bodies of `macro_rules!` as anywhere else;
//! strings and comments are never code. Below a macro the tree has tokens only, so the rules that apply there read tokens.
//!
//! One file does not show whether another declares it under `#[cfg(test)]` or `#[doc(hidden)]`: a [`FileReport`] names
//! the modules that it declares so, and the report removes their findings once all files are known.

use std::{iter::successors, sync::LazyLock};

use ra_ap_syntax::{
    SyntaxElement, SyntaxKind, SyntaxKind::*, SyntaxNode, SyntaxToken, T, TextRange, TextSize,
};
use regex::Regex;

use crate::{
    contracts::{FileReport, Finding, Rule},
    items::{name_of, opens, outer_modules, public_items, test_code},
    parse::{Source, place},
};

/// The most lines of a function, from its `fn` to its closing brace.
const MOST_LINES: usize = 60;

/// Where a rule does not hold, in bytes, and why.
type Found = (usize, Rule, String);

/// Judges any text. `path` is relative, with `/`; it distinguishes tests and benchmarks from the rest.
pub(crate) fn judge(path: &str, text: &str) -> FileReport {
    let mut report = FileReport { path: path.into(), lines: text.lines().count(), ..FileReport::default() };
    let source = Source::parse(text);
    let mut found = todos(&source);
    if let Some((at, message)) = source.error {
        found.push((at, Rule::DoesNotParse, message));
    } else {
        let tests = test_code(&source.nodes);
        let keywords = source.tokens.iter().filter(|token| token.kind() == T![fn]);
        let functions: Vec<_> = keywords.filter_map(function).collect();
        let public_items = public_items(&source.nodes);
        report.functions = functions.len();
        report.public_items = public_items.len();
        [report.test_modules, report.hidden_modules] = outer_modules(path, &source.nodes, &tests);
        for (name, _) in public_items.iter().filter(|(_, documented)| !documented) {
            found.push((start(name), Rule::MissingDocs, format!("`{name}` is public and not documented")));
        }
        found.extend(functions.iter().filter_map(|function| too_long(text, function)));
        found.extend(panics(&source.tokens, &tests));
        found.extend(unsafe_without_reason(text, &source.tokens));
    }
    let findings = found.into_iter().map(|(at, rule, message)| {
        let (line, column) = place(text, at);
        Finding { path: path.into(), rule, line, column, message }
    });
    report.findings = findings.collect();
    report.findings.sort_by_key(|finding| (finding.line, finding.column, finding.rule));
    if path.split('/').rev().skip(1).any(|folder| matches!(folder, "tests" | "benches")) {
        report.spare(true);
    }
    report
}

impl FileReport {
    /// Removes what is not a finding where nobody reads the documentation, or in a test.
    pub(crate) fn spare(&mut self, is_test: bool) {
        let spared = |rule| rule == Rule::MissingDocs || is_test && rule == Rule::MayPanic;
        self.findings.retain(|finding| !spared(finding.rule));
        self.public_items = 0;
    }
}

/// The lines of comments with a mark as a word of its own, in capitals: in small letters it is prose.
fn todos(source: &Source) -> Vec<Found> {
    static MARKS: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(r"\b(?:TODO|FIXME)\b").ok());
    let comments = source.tokens.iter().filter(|token| token.kind() == COMMENT);
    let marks = comments.flat_map(|comment| {
        let marks = MARKS.iter().flat_map(|marks| marks.find_iter(comment.text()));
        let mut marks: Vec<_> = marks.map(|mark| (start(comment) + mark.start(), mark.as_str())).collect();
        let line = |at: usize| comment.text()[..at - start(comment)].matches('\n').count();
        marks.dedup_by_key(|(at, _)| line(*at));
        marks
    });
    marks.map(|(at, mark)| (at, Rule::Todo, format!("a comment says {mark}"))).collect()
}

/// A function that has a body: its name, and its range from `fn` to the closing brace. It may be a method, a trait's
/// default, or a template in a macro.
fn function(keyword: &SyntaxToken) -> Option<(SyntaxToken, TextRange)> {
    let node = keyword.parent()?;
    let (name, body) = if node.kind() == FN {
        (name_of(&node)?, node.children().find(|child| child.kind() == BLOCK_EXPR)?)
    } else {
        // Below a macro, the name may be `$name` or `#name`, and an arm matches what is followed by `=>`.
        let after = code_after(keyword.clone().into());
        let mut rest = after.skip_while(|next| matches!(next.kind(), T![$] | T![#]));
        let name = rest.next()?.into_token().filter(|name| !name.kind().is_punct())?;
        let body = rest.take_while(|next| next.kind() != T![;]).find(|next| opens(next, T!['{']))?;
        let is_matched =
            |tree: SyntaxNode| code_after(tree.into()).map(|next| next.kind()).take(2).eq([T![=], T![>]]);
        let mut trees = node.ancestors().take_while(|node| node.kind() == TOKEN_TREE);
        (name, body.into_node().filter(|_| !trees.any(is_matched))?)
    };
    Some((name, keyword.text_range().cover(body.text_range())))
}

/// What is beside an element and after it, without blanks and comments.
fn code_after(element: SyntaxElement) -> impl Iterator<Item = SyntaxElement> {
    let after = successors(Some(element), SyntaxElement::next_sibling_or_token).skip(1);
    after.filter(|next| !next.kind().is_trivia())
}

fn too_long(text: &str, (name, range): &(SyntaxToken, TextRange)) -> Option<Found> {
    let length = text.get(std::ops::Range::<usize>::from(*range))?.lines().count();
    let message = format!("the function `{name}` is {length} lines long, {MOST_LINES} at most");
    (length > MOST_LINES).then_some((range.start().into(), Rule::LongFunction, message))
}

/// Finds `.unwrap()`, `.expect(…)` and `panic!` outside tests. A method is recognised by its name, whatever its receiver.
fn panics(tokens: &[SyntaxToken], tests: &[TextRange]) -> Vec<Found> {
    let code: Vec<_> = tokens.iter().filter(|token| token.kind() != COMMENT).collect();
    let mut found = Vec::new();
    for (index, token) in code.iter().enumerate().filter(|(_, token)| token.kind() == IDENT) {
        let text = |index: Option<usize>| index.and_then(|at| code.get(at)).map_or("", |token| token.text());
        // Below a macro, `..` is two dots.
        let is_method = text(index.checked_sub(1)) == "." && text(index.checked_sub(2)) != ".";
        let call = match (token.text(), text(Some(index + 1)), text(Some(index + 2))) {
            ("unwrap", "(", ")") if is_method => ".unwrap()",
            ("expect", "(", next) if is_method && next != ")" => ".expect(…)",
            ("panic", "!", "(" | "[" | "{") => "panic!",
            _ => continue,
        };
        if !tests.iter().any(|part| part.contains(token.text_range().start())) {
            found.push((start(token), Rule::MayPanic, format!("`{call}` may panic")));
        }
    }
    found
}

/// Finds `unsafe` blocks and implementations without a comment that says `SAFETY:`, in the statement before them, above
/// that statement, on their line, or as the first thing in the block. The callers of an `unsafe fn` make the promise.
fn unsafe_without_reason(text: &str, tokens: &[SyntaxToken]) -> Vec<Found> {
    let mut found = Vec::new();
    for (index, token) in tokens.iter().enumerate().filter(|(_, token)| token.kind() == T![unsafe]) {
        let (before, after) = tokens.split_at(index);
        let what = match after.iter().skip(1).find(|next| next.kind() != COMMENT).map(SyntaxToken::kind) {
            Some(T!['{']) => "an `unsafe` block",
            Some(T![impl]) => "an `unsafe impl`",
            _ => continue,
        };
        let first = statement(token);
        let line = text[start(token)..].find('\n').map_or(text.len(), |end| start(token) + end);
        // Below a macro, a statement is what no separator divides.
        let belongs = |before: &&SyntaxToken| match first {
            Some(first) => before.kind() == COMMENT || before.text_range().start() >= first,
            None => !matches!(before.kind(), T![;] | T!['{'] | T!['}']),
        };
        let on_line = after.iter().take_while(|next| start(next) < line);
        let block = after.iter().skip_while(|next| next.kind() != T!['{']).skip(1);
        let in_block = block.take_while(|next| next.kind() == COMMENT);
        let mut around = before.iter().rev().take_while(belongs).chain(on_line).chain(in_block);
        let reason = |text: &str| text.starts_with('/') && text.to_ascii_uppercase().contains("SAFETY:");
        if !around.any(|token| reason(token.text())) {
            let message = format!("{what} without a `SAFETY:` comment");
            found.push((start(token), Rule::UnsafeWithoutSafety, message));
        }
    }
    found
}

/// Where the statement, the item or the arm that holds a token starts, unless it is below a macro.
fn statement(token: &SyntaxToken) -> Option<TextSize> {
    const LISTS: [SyntaxKind; 5] = [SOURCE_FILE, ITEM_LIST, ASSOC_ITEM_LIST, STMT_LIST, MATCH_ARM_LIST];
    let mut around = token.parent_ancestors().take_while(|node| node.kind() != TOKEN_TREE);
    let node = around.find(|node| node.parent().is_some_and(|list| LISTS.contains(&list.kind())))?;
    Some(node.text_range().start())
}

fn start(token: &SyntaxToken) -> usize {
    token.text_range().start().into()
}
