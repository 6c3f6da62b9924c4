//! The judge: reads one Rust source and reports which rules it breaks.
//!
//! The figures count what is written, in the arguments of macros and in the bodies of `macro_rules!` as anywhere else;
//! strings and comments are never code. Below a macro the tree has tokens only, so the rules that apply there as well read
//! tokens.
//!
//! One file does not show whether another declares it under `#[cfg(test)]` or `#[doc(hidden)]`: a [`FileReport`] names the
//! modules that it declares so, and the report takes their findings back once all files are known.

use std::sync::LazyLock;

use ra_ap_syntax::{
    SyntaxElement, SyntaxKind, SyntaxKind::*, SyntaxNode, SyntaxToken, T, TextRange, TextSize,
};
use regex::Regex;

use crate::{
    contracts::{FileReport, Finding, Rule},
    items,
    parse::{Lines, Source},
};

/// The most lines of a function, from its `fn` to its closing brace.
const MOST_LINES: usize = 60;

/// Judges any text. `path` is relative, with `/`; it distinguishes tests and benchmarks from the rest.
pub(crate) fn judge(path: &str, text: &str) -> FileReport {
    let mut report =
        FileReport { path: path.to_owned(), lines: text.lines().count(), ..FileReport::default() };
    let lines = Lines::of(text);
    let source = Source::parse(lines.text);
    let mut found = todos(&source, &lines);
    if let Some((at, message)) = source.error {
        found.push((at, Rule::DoesNotParse, message));
    } else {
        let (functions, tests) = (functions(&source), items::test_code(&source.nodes));
        let public_items = items::public_items(&source.nodes);
        report.functions = functions.len();
        report.public_items = public_items.len();
        [report.test_modules, report.hidden_modules] = items::outer_modules(path, &source.nodes, &tests);
        for (what, name, _) in public_items.iter().filter(|(_, _, documented)| !documented) {
            found.push((start(name), Rule::MissingDocs, format!("the {what} `{name}` is not documented")));
        }
        found.extend(functions.iter().filter_map(|function| too_long(function, &lines)));
        found.extend(panics(&source.tokens, &tests));
        found.extend(unsafe_without_reason(&source, &lines));
    }
    report.findings.extend(found.into_iter().map(|(at, rule, message)| {
        let (line, column) = lines.place(at);
        Finding { rule, line, column, message }
    }));
    report.findings.sort_by_key(|finding| (finding.line, finding.column, finding.rule));
    if path.split('/').rev().skip(1).any(|folder| matches!(folder, "tests" | "benches")) {
        report.spare();
    }
    report
}

impl FileReport {
    /// Takes back what is not a finding in a test.
    pub(crate) fn spare(&mut self) {
        self.findings.retain(|finding| !matches!(finding.rule, Rule::MissingDocs | Rule::MayPanic));
        self.public_items = 0;
    }

    /// Takes back what is not a finding where nobody reads the documentation.
    pub(crate) fn hide(&mut self) {
        self.findings.retain(|finding| finding.rule != Rule::MissingDocs);
        self.public_items = 0;
    }
}

/// Where a rule does not hold, in bytes, and why.
type Found = (usize, Rule, String);

/// The lines of comments with a mark as a word of its own, in capitals: in small letters it is prose.
fn todos(source: &Source, lines: &Lines<'_>) -> Vec<Found> {
    static MARKS: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(r"\b(?:TODO|FIXME)\b").ok());
    let mut found: Vec<Found> = Vec::new();
    for comment in source.tokens.iter().filter(|token| token.kind() == COMMENT) {
        let marks = MARKS.iter().flat_map(|marks| marks.find_iter(comment.text()));
        let mut places: Vec<_> = marks.map(|mark| (start(comment) + mark.start(), mark.as_str())).collect();
        places.dedup_by_key(|(at, _)| lines.line(*at));
        found.extend(places.into_iter().map(|(at, mark)| (at, Rule::Todo, format!("a comment says {mark}"))));
    }
    found
}

/// A function that has a body: its name, and its range from `fn` to the closing brace.
type Function = (SyntaxToken, TextRange);

/// The functions, wherever they are written: a method, a trait's default, a template in a macro.
fn functions(source: &Source) -> Vec<Function> {
    let keywords = source.tokens.iter().filter(|token| token.kind() == T![fn]);
    keywords.filter_map(function).collect()
}

fn function(keyword: &SyntaxToken) -> Option<Function> {
    let node = keyword.parent()?;
    let (name, body) = if node.kind() == FN {
        (items::name_of(&node)?, node.children().find(|child| child.kind() == BLOCK_EXPR)?)
    } else {
        // Below a macro, the name may be `$name` or `#name`, and an arm matches what is followed by `=>`.
        let mut rest =
            code_after(keyword.clone().into()).skip_while(|next| matches!(next.kind(), T![$] | T![#]));
        let name = rest.next()?.into_token().filter(|name| !name.kind().is_punct())?;
        let body = rest.take_while(|next| next.kind() != T![;]).find(|next| items::opens(next, T!['{']))?;
        let is_matched =
            |tree: SyntaxNode| code_after(tree.into()).map(|next| next.kind()).take(2).eq([T![=], T![>]]);
        let mut trees = node.ancestors().take_while(|node| node.kind() == TOKEN_TREE);
        (name, body.into_node().filter(|_| !trees.any(is_matched))?)
    };
    Some((name, keyword.text_range().cover(body.text_range())))
}

/// What is beside an element and after it, without blanks and comments.
fn code_after(element: SyntaxElement) -> impl Iterator<Item = SyntaxElement> {
    let after = std::iter::successors(Some(element), SyntaxElement::next_sibling_or_token);
    after.skip(1).filter(|next| !next.kind().is_trivia())
}

fn too_long((name, range): &Function, lines: &Lines<'_>) -> Option<Found> {
    let (first, end) = (usize::from(range.start()), usize::from(range.end()));
    let length = lines.line(end - 1) - lines.line(first) + 1;
    let message = || format!("the function `{name}` is {length} lines long, {MOST_LINES} at most");
    (length > MOST_LINES).then(|| (first, Rule::LongFunction, message()))
}

/// Finds `.unwrap()`, `.expect(…)` and `panic!` outside tests. A method is recognised by its name, whatever its receiver.
fn panics(tokens: &[SyntaxToken], tests: &[TextRange]) -> Vec<Found> {
    let code: Vec<_> = tokens.iter().filter(|token| token.kind() != COMMENT).collect();
    let mut found = Vec::new();
    for (index, token) in code.iter().enumerate().filter(|(_, token)| token.kind() == IDENT) {
        let text = |index: usize| code.get(index).map_or("", |token| token.text());
        // Below a macro, `..` is two dots.
        let is_method = index > 0 && text(index - 1) == "." && (index == 1 || text(index - 2) != ".");
        let call = match (token.text(), text(index + 1), text(index + 2)) {
            ("unwrap", "(", ")") if is_method => ".unwrap()",
            ("expect", "(", next) if is_method && next != ")" => ".expect(…)",
            ("panic", "!", "(" | "[" | "{") => "panic!",
            _ => continue,
        };
        if !items::contains(tests, token.text_range().start()) {
            found.push((start(token), Rule::MayPanic, format!("`{call}` may panic")));
        }
    }
    found
}

/// Finds `unsafe` without a reason. A block and an implementation make a promise, so each needs a comment with `SAFETY:`:
/// in the statement before it, above that statement, on its line, or as the first thing in the block. An `unsafe fn` asks
/// for a promise instead, which is for its documentation to say.
fn unsafe_without_reason(source: &Source, lines: &Lines<'_>) -> Vec<Found> {
    let mut found = Vec::new();
    for (index, token) in source.tokens.iter().enumerate().filter(|(_, token)| token.kind() == T![unsafe]) {
        let (before, after) = source.tokens.split_at(index);
        let what = match after.iter().skip(1).find(|next| next.kind() != COMMENT).map(SyntaxToken::kind) {
            Some(T!['{']) => "an `unsafe` block",
            Some(T![impl]) => "an `unsafe impl`",
            _ => continue,
        };
        let (first, line) = (statement(token), lines.line(start(token)));
        // Below a macro, a statement is what no separator divides.
        let belongs = |before: &&SyntaxToken| match first {
            Some(first) => before.kind() == COMMENT || before.text_range().start() >= first,
            None => !matches!(before.kind(), T![;] | T!['{'] | T!['}']),
        };
        let on_line = after.iter().take_while(|next| lines.line(start(next)) == line);
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
