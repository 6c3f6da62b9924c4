//! The rule on comments that leave work for later.

use super::finding;
use crate::finding::{Finding, Rule};
use crate::lexer::{Lexed, Position};

/// The words that say so, in capitals only: in small letters they are prose.
const MARKS: [&str; 2] = ["TODO", "FIXME"];

/// Finds the lines of comments that hold a mark as a word of its own; the first one speaks for its line.
pub(super) fn check(lexed: &Lexed<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for comment in &lexed.comments {
        for (index, line) in comment.text.split('\n').enumerate() {
            let first = MARKS.iter().filter_map(|mark| Some((find_word(line, mark)?, mark))).min();
            let Some((offset, mark)) = first else { continue };
            let before = line.get(..offset).map_or(0, |before| before.chars().count());
            let column = if index == 0 { comment.at.column + before } else { before + 1 };
            let at = Position { line: comment.at.line + index, column };
            findings.push(finding(Rule::Todo, at, format!("a comment says {mark}")));
        }
    }
    findings
}

fn find_word(line: &str, word: &str) -> Option<usize> {
    line.match_indices(word).map(|(offset, _)| offset).find(|&offset| {
        let before = line.get(..offset).and_then(|before| before.chars().next_back());
        let after = line.get(offset + word.len()..).and_then(|after| after.chars().next());
        !before.is_some_and(continues_word) && !after.is_some_and(continues_word)
    })
}

fn continues_word(character: char) -> bool {
    character == '_' || character.is_alphanumeric()
}

#[cfg(test)]
mod tests {
    use super::check;
    use crate::lexer::lex;

    fn places(text: &str) -> Vec<(usize, usize)> {
        check(&lex(text)).iter().map(|finding| (finding.line, finding.column)).collect()
    }

    #[test]
    fn marks_are_found_in_every_sort_of_comment() {
        assert_eq!(
            places("// TODO\nx /* a\n é FIXME(me): b */ y\n/// see TODO.\n//!TODO"),
            [(1, 4), (3, 4), (4, 9), (5, 4)]
        );
    }

    #[test]
    fn marks_outside_comments_are_none() {
        assert!(places("let TODO = \"// TODO\"; r#\"\n// FIXME\"#; '\"'; todo!(\"/* TODO */\")").is_empty());
    }

    #[test]
    fn a_mark_is_a_word_in_capitals() {
        assert!(places("// TODOS AUTODOC TODO_LIST _TODO todo Fixme FIXME2 éTODO").is_empty());
        assert_eq!(places("// TODOS, TODO"), [(1, 11)]);
    }

    #[test]
    fn a_line_counts_once() {
        assert_eq!(places("// FIXME: TODO TODO\n/* TODO */ /* TODO */"), [(1, 4), (2, 4), (2, 15)]);
    }
}
