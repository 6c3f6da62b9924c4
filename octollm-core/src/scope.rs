//! Scopes: their form, and which covers which.

use std::collections::HashSet;

/// Most bytes of a scope.
const LONGEST: usize = 256;

/// Verbs that `entity:*` does not cover: they are always granted by name.
const NAMED_VERBS: [&str; 4] = ["admin", "register", "serve", "publish"];

/// Whether a text is a scope: `entity:verb`, such as `code:validate` or `code:*`, in at most 256 bytes.
///
/// It has one colon, neither part is empty, and its characters are those of a scope token (RFC 6749 §3.3): printable ASCII without
/// blank, `"` and `\`. No other text is ever granted, needed or put into a token.
pub fn is_scope(text: &str) -> bool {
    parts_of(text).is_some()
}

/// The entity and the verb of a scope.
fn parts_of(scope: &str) -> Option<(&str, &str)> {
    let (entity, verb) = scope.split_once(':')?;
    let is_token = |byte: u8| byte.is_ascii_graphic() && byte != b'"' && byte != b'\\';
    let is_scope = scope.len() <= LONGEST
        && !entity.is_empty()
        && !verb.is_empty()
        && !verb.contains(':')
        && scope.bytes().all(is_token);
    is_scope.then_some((entity, verb))
}

/// Whether a list of scopes covers a scope: by name, or by `entity:*`. What is no scope is covered by none.
pub(crate) fn covers(scopes: &[String], scope: &str) -> bool {
    let Some((entity, verb)) = parts_of(scope) else { return false };
    let by_entity =
        |granted: &str| granted.strip_suffix(":*") == Some(entity) && !NAMED_VERBS.contains(&verb);
    scopes.iter().any(|granted| granted == scope || by_entity(granted))
}

/// The scopes that both lists cover, in time that is linear in their lengths but for sorting.
pub(crate) fn common(granted: &[String], needed: &[String]) -> Vec<String> {
    let (all_granted, all_needed) = (indexed(granted), indexed(needed));
    let covered = |all: &HashSet<(&str, &str)>, scope: &str| {
        parts_of(scope).is_some_and(|(entity, verb)| {
            all.contains(&(entity, verb)) || all.contains(&(entity, "*")) && !NAMED_VERBS.contains(&verb)
        })
    };
    let mut common: Vec<_> = needed.iter().filter(|scope| covered(&all_granted, scope)).collect();
    common.extend(granted.iter().filter(|scope| covered(&all_needed, scope)));
    common.sort_unstable();
    common.dedup();
    common.into_iter().cloned().collect()
}

fn indexed(scopes: &[String]) -> HashSet<(&str, &str)> {
    scopes.iter().filter_map(|scope| parts_of(scope)).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_scope_has_one_form() {
        for scope in ["a:b", "code:*", "rust.code:validate", "arms.judge:register", "A-b_c:d/e?f", "*:*"] {
            assert!(is_scope(scope), "{scope}");
        }
        let longest = format!("a:{}", "b".repeat(LONGEST - 2));
        assert!(is_scope(&longest));
        for text in [
            "",
            ":",
            "a",
            "a:",
            ":b",
            "*",
            "a:b:c",
            "a::b",
            "a:b ",
            " a:b",
            "a b:c",
            "a:b c",
            "a:b\tc",
            "a:b\n",
            "a:\"b\"",
            "a:b\\",
            "ä:b",
            "a:b\u{a0}c",
            "a:\u{7f}",
            "a:\0",
            &(longest + "b"),
        ] {
            assert!(!is_scope(text), "{text:?}");
            assert!(!covers(&[text.to_owned(), "a:*".into(), "code:*".into()], text), "{text:?}");
        }
    }

    /// Texts that are nearly scopes.
    fn text() -> impl Strategy<Value = String> {
        let part =
            prop::sample::select(vec!["a", "b", "admin", "publish", "*", ":", " ", "\t", "\u{a0}", ""]);
        prop_oneof![
            9 => prop::collection::vec(part, 1..6).prop_map(|parts| parts.concat()),
            1 => ".*",
        ]
    }

    #[test]
    fn long_lists_are_compared_in_linear_time() {
        let list = |verbs: std::ops::Range<usize>| verbs.map(|n| format!("a{n}:b")).collect::<Vec<_>>();
        let begun = tokio::time::Instant::now();
        assert_eq!(common(&list(0..100_000), &list(99_999..200_000)), ["a99999:b"]);
        // Each with each would be ten thousand million comparisons.
        assert!(begun.elapsed() < std::time::Duration::from_secs(10));
    }

    proptest! {
        /// What is written with spaces in between, and read again, is covered by what it was made of.
        #[test]
        fn what_is_written_and_read_again_is_never_wider(
            granted in prop::collection::vec(text(), 0..6),
            needed in prop::collection::vec(text(), 0..6),
        ) {
            let written = common(&granted, &needed).join(" ");
            for read in written.split(' ').filter(|read| !read.is_empty()) {
                prop_assert!(covers(&granted, read) && covers(&needed, read), "{read:?} of {granted:?} and {needed:?}");
                let (entity, verb) = read.split_once(':').unwrap();
                let all = format!("{entity}:*");
                let by_name = granted.iter().any(|granted| granted == read);
                prop_assert!(by_name || granted.contains(&all) && !NAMED_VERBS.contains(&verb), "{read:?}");
            }
        }
    }
}
