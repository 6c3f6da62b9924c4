//! Which known word a misspelt one was meant to be.

/// The candidate that is fewest edits away, if it is near enough to be meant.
pub(crate) fn nearest<'a>(word: &str, candidates: &[&'a str]) -> Option<&'a str> {
    let limit = (word.chars().count() / 3).max(1);
    candidates
        .iter()
        .map(|candidate| (distance(word, candidate), *candidate))
        .filter(|(distance, _)| *distance <= limit)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// `did you mean …?`, or the whole list where nothing is near.
pub(crate) fn hint(word: &str, candidates: &[&str], plural: &str) -> String {
    match nearest(word, candidates) {
        Some(candidate) => format!("did you mean `{candidate}`?"),
        None => format!("the {plural} are `{}`", candidates.join("`, `")),
    }
}

/// Edits (insert, delete, replace, swap neighbours) from one word to the other.
fn distance(from: &str, to: &str) -> usize {
    let (from, to): (Vec<char>, Vec<char>) = (from.chars().collect(), to.chars().collect());
    let mut before = Vec::new();
    let mut above: Vec<usize> = (0..=to.len()).collect();
    for row in 0..from.len() {
        let mut line = vec![row + 1];
        for column in 0..to.len() {
            let replace = above[column] + usize::from(from[row] != to[column]);
            let mut least = replace.min(above[column + 1] + 1).min(line[column] + 1);
            if row > 0 && column > 0 && from[row] == to[column - 1] && from[row - 1] == to[column] {
                let before: &Vec<usize> = &before;
                least = least.min(before[column - 1] + 1);
            }
            line.push(least);
        }
        before = std::mem::replace(&mut above, line);
    }
    above[to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_what_was_meant_and_nothing_far_off() {
        let keys = ["name", "version", "path", "timeout", "idempotent"];
        for (word, meant) in [
            ("nmae", Some("name")),
            ("nam", Some("name")),
            ("versoin", Some("version")),
            ("timout", Some("timeout")),
            ("idempotence", Some("idempotent")),
            ("retries", None),
            ("", None),
        ] {
            assert_eq!(nearest(word, &keys), meant, "{word}");
        }
    }
}
