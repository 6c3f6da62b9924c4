//! Where the tests of a file are.

mod folder;
mod walk;

use syn::punctuated::Punctuated;
use syn::{Attribute, Meta, Token};

use super::docs::conditional;
use crate::lexer::Position;
pub(super) use walk::{Modules, find};

/// The attributes that make a function a test, by the last name of their path: `#[tokio::test]` is one.
const TESTS: [&str; 6] = ["test", "bench", "rstest", "test_case", "quickcheck", "wasm_bindgen_test"];

/// The parts of a file that only tests compile.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct TestCode {
    /// Where each starts and ends, in order and apart from each other.
    parts: Vec<(Position, Position)>,
}

impl TestCode {
    fn new(mut found: Vec<(Position, Position)>) -> Self {
        found.sort_unstable();
        let mut parts: Vec<(Position, Position)> = Vec::new();
        for (start, end) in found {
            match parts.last_mut().filter(|last| start <= last.1) {
                Some(last) => last.1 = last.1.max(end),
                None => parts.push((start, end)),
            }
        }
        Self { parts }
    }

    /// Whether a place is in one of them.
    pub(super) fn contains(&self, at: Position) -> bool {
        let after = self.parts.partition_point(|part| part.0 <= at);
        self.parts.get(..after).and_then(<[_]>::last).is_some_and(|part| at < part.1)
    }
}

/// Whether a file is a test or a benchmark by its path, in a folder `tests` or `benches`. An example is
/// neither.
pub(super) fn is_test_path(path: &str) -> bool {
    let folders = path.rsplit_once('/').map_or("", |(folders, _)| folders);
    folders.split('/').any(|folder| matches!(folder, "tests" | "benches"))
}

/// Whether these attributes leave an item to tests.
pub(super) fn is_test(attrs: &[Attribute]) -> bool {
    attrs.iter().any(|attribute| leaves_to_tests(&attribute.meta))
}

fn leaves_to_tests(meta: &Meta) -> bool {
    match meta {
        Meta::List(list) if list.path.is_ident("cfg") => {
            list.parse_args().is_ok_and(|cfg| implies_test(&cfg))
        }
        Meta::List(list) if list.path.is_ident("cfg_attr") => conditional(meta).iter().any(leaves_to_tests),
        _ => {
            let name = meta.path().segments.last();
            name.is_some_and(|name| TESTS.iter().any(|test| name.ident == test))
        }
    }
}

/// Whether a condition holds in tests only: `all(test, unix)` does, `any(test, unix)` and `not(test)` do not.
fn implies_test(cfg: &Meta) -> bool {
    let Meta::List(list) = cfg else {
        return cfg.path().is_ident("test") || cfg.path().is_ident("doctest");
    };
    let Ok(inner) = list.parse_args_with(Punctuated::<Meta, Token![,]>::parse_terminated) else {
        return false;
    };
    if list.path.is_ident("all") {
        return inner.iter().any(implies_test);
    }
    list.path.is_ident("any") && !inner.is_empty() && inner.iter().all(implies_test)
}

#[cfg(test)]
mod tests {
    use super::{TestCode, is_test, is_test_path};
    use crate::lexer::Position;

    fn leaves(attribute: &str) -> bool {
        let item: syn::ItemFn = syn::parse_str(&format!("#[{attribute}] fn f() {{}}")).unwrap();
        is_test(&item.attrs)
    }

    #[test]
    fn a_condition_that_needs_test_is_one() {
        for attribute in
            ["cfg(test)", "cfg(all(unix, test))", "cfg(all(a, any(test)))", "cfg(any(test, doctest))"]
        {
            assert!(leaves(attribute), "{attribute}");
        }
    }

    #[test]
    fn a_condition_that_can_do_without_is_none() {
        for attribute in ["cfg(not(test))", "cfg(any(test, unix))", "cfg(feature = \"test\")", "cfg(any())"] {
            assert!(!leaves(attribute), "{attribute}");
        }
        for attribute in ["cfg(all(not(test), unix))", "cfg_attr(test, inline)", "inline", "cfg(testing)"] {
            assert!(!leaves(attribute), "{attribute}");
        }
    }

    #[test]
    fn functions_are_tests_by_the_end_of_a_path() {
        for attribute in
            ["test", "tokio::test(flavor = \"x\")", "bench", "rstest", "cfg_attr(not(loom), test)"]
        {
            assert!(leaves(attribute), "{attribute}");
        }
    }

    #[test]
    fn paths_are_told_by_whole_folders() {
        assert!(is_test_path("tests/a.rs") && is_test_path("x/benches/y/b.rs"));
        assert!(
            !is_test_path("src/tests.rs") && !is_test_path("examples/a.rs") && !is_test_path("mytests/a.rs")
        );
    }

    #[test]
    fn parts_are_merged_and_looked_up() {
        let at = |line| Position { line, column: 1 };
        let code = TestCode::new(vec![(at(8), at(9)), (at(2), at(5)), (at(3), at(4))]);
        assert_eq!(code.parts, [(at(2), at(5)), (at(8), at(9))]);
        let inside: Vec<_> = (1..10).filter(|&line| code.contains(at(line))).collect();
        assert_eq!(inside, [2, 3, 4, 8]);
    }
}
