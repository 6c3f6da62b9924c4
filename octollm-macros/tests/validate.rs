//! Our `Validate` finds what garde's own derive finds, with the same words at the same paths.
// Fields that rules read and tests do not.
#![allow(dead_code)]

use std::collections::{BTreeMap, HashMap};

/// Writes the same items twice, once for each derive.
macro_rules! both {
    ($($items:tt)*) => {
        mod ours {
            use octollm::prelude::Validate;
            #[allow(unused_imports)]
            use super::*;
            $($items)*
        }
        mod theirs {
            use garde::Validate;
            #[allow(unused_imports)]
            use super::*;
            $($items)*
        }
    };
}

/// Builds the same value of both, and compares what is found. Gives it back in order.
macro_rules! same {
    ($build:expr) => {{
        let found = {
            use ours::*;
            findings(&$build)
        };
        let expected = {
            use theirs::*;
            findings(&$build)
        };
        assert_eq!(sorted(&found), sorted(&expected));
        found
    }};
}

fn findings<T: garde::Validate<Context: Default>>(value: &T) -> Vec<(String, String)> {
    let report = value.validate().err();
    let found = report.iter().flat_map(garde::Report::iter);
    found.map(|(path, error)| (path.to_string(), error.message().to_owned())).collect()
}

fn sorted(found: &[(String, String)]) -> Vec<(String, String)> {
    let mut found = found.to_vec();
    found.sort();
    found
}

fn paths(found: &[(String, String)]) -> Vec<&str> {
    found.iter().map(|(path, _)| path.as_str()).collect()
}

mod strings {
    use super::*;

    const LEAST: usize = 2;
    const WORD: &str = "octo";

    both! {
        #[derive(Default, Validate)]
        pub(super) struct Strings {
            #[garde(ascii, length(min = LEAST, max = LEAST + 2))]
            pub(super) ascii: String,
            #[garde(alphanumeric)]
            pub(super) alphanumeric: &'static str,
            #[garde(length(chars, max = 3))]
            pub(super) measured: String,
            #[garde(length(min = 1))]
            pub(super) counted: String,
            #[garde(contains(WORD), prefix("o"), suffix("o"))]
            pub(super) word: String,
            #[garde(ip)]
            pub(super) any: String,
            #[garde(ipv4)]
            pub(super) four: String,
            #[garde(ipv6)]
            pub(super) six: String,
            #[garde(skip)]
            pub(super) free: String,
            #[garde(matches(free))]
            pub(super) again: String,
        }
    }

    #[test]
    fn rules_for_text() {
        let found =
            same!(Strings { measured: "öööö".into(), ascii: "äö".into(), ..Strings::default() });
        assert_eq!(
            paths(&found),
            ["ascii", "measured", "counted", "word", "word", "word", "any", "four", "six"]
        );
        let found = same!(Strings {
            ascii: "abcdef".into(),
            alphanumeric: "-",
            measured: "four".into(),
            word: "octopo".into(),
            any: "::1".into(),
            four: "::1".into(),
            six: "::1".into(),
            again: "x".into(),
            ..Strings::default()
        });
        assert_eq!(paths(&found), ["ascii", "alphanumeric", "measured", "counted", "four", "again"]);
    }
}

mod numbers {
    use super::*;

    const MOST: i64 = 9;

    both! {
        #[derive(Validate)]
        #[garde(allow_unvalidated)]
        pub(super) struct Numbers {
            #[garde(range(min = -3, max = MOST))]
            pub(super) whole: i64,
            #[garde(range(max = 0.5))]
            pub(super) part: f32,
            #[garde(range(equal = 7))]
            pub(super) exact: u8,
            #[garde(required, range(min = 1))]
            pub(super) maybe: Option<u8>,
            #[garde(range(max = *exact))]
            pub(super) below: u8,
            pub(super) any: u8,
        }
    }

    #[test]
    fn rules_for_numbers() {
        let found = same!(Numbers { whole: -4, part: 0.75, exact: 8, maybe: None, below: 9, any: 0 });
        assert_eq!(paths(&found), ["whole", "part", "exact", "maybe", "below"]);
        let found = same!(Numbers { whole: 10, part: 0.5, exact: 7, maybe: Some(0), below: 7, any: 0 });
        assert_eq!(paths(&found), ["whole", "maybe"]);
    }
}

mod nested {
    use super::*;

    both! {
        #[derive(Clone, Validate)]
        pub(super) struct Leaf(#[garde(length(min = 1))] pub(super) String, #[garde(skip)] pub(super) u8);

        #[derive(Validate)]
        pub(super) struct Tree {
            #[garde(dive, length(max = 1))]
            pub(super) list: Vec<Leaf>,
            #[garde(dive)]
            pub(super) map: HashMap<String, Leaf>,
            #[garde(dive)]
            pub(super) maybe: Option<Box<Leaf>>,
            #[garde(length(min = 1), inner(length(max = 2), inner(ascii)))]
            pub(super) rows: Vec<Vec<Option<String>>>,
            #[garde(skip)]
            pub(super) other: BTreeMap<u8, u8>,
        }
    }

    #[test]
    fn rules_for_what_is_inside() {
        let found = same!(Tree {
            list: vec![Leaf("a".into(), 0), Leaf(String::new(), 0)],
            map: HashMap::from([("k".to_owned(), Leaf(String::new(), 0))]),
            maybe: Some(Box::new(Leaf(String::new(), 0))),
            rows: vec![vec![Some("ä".into()), None, None]],
            other: BTreeMap::new(),
        });
        assert_eq!(paths(&found), ["list[1][0]", "list", "map.k[0]", "maybe[0]", "rows[0]", "rows[0][0]"]);
    }
}

mod kinds {
    use super::*;

    both! {
        #[derive(Validate)]
        #[garde(transparent)]
        pub(super) struct Wrapper(#[garde(length(min = 1))] pub(super) String);

        #[derive(Validate)]
        pub(super) struct Pair<T, const N: usize>
        where
            T: garde::Validate<Context = ()>,
        {
            #[garde(dive)]
            pub(super) first: T,
            #[garde(dive)]
            pub(super) rest: [T; N],
        }

        #[derive(Validate)]
        pub(super) struct Borrowed<'a> {
            #[garde(length(min = 1))]
            pub(super) text: &'a str,
        }
    }

    #[test]
    fn rules_for_every_kind_of_type() {
        assert_eq!(paths(&same!(Wrapper(String::new()))), [""]);
        assert_eq!(
            paths(&same!(Pair { first: Wrapper(String::new()), rest: [Wrapper(String::new())] })),
            ["first", "rest[0]"]
        );
        assert_eq!(paths(&same!(Borrowed { text: "" })), ["text"]);
    }
}

mod functions {
    use super::*;

    #[derive(Debug, Default)]
    pub(super) struct Limits {
        most: usize,
    }

    fn short(text: &str, limits: &Limits) -> garde::Result {
        if text.len() > limits.most { Err(garde::Error::new("too long")) } else { Ok(()) }
    }

    mod odd {
        pub(super) mod ascii {
            pub(in super::super) fn apply(_: &str, _: ()) -> garde::Result {
                Err(garde::Error::new("never"))
            }
        }
    }

    both! {
        #[derive(Validate)]
        #[garde(context(Limits as limits))]
        #[garde(custom(|all: &Form, _: &Limits| all.differ()))]
        pub(super) struct Form {
            #[garde(custom(short), if(cond = limits.most == 0, length(min = 9)))]
            pub(super) one: String,
            #[garde(if(cond = self.one == "a", length(min = 2), inner(custom(short))))]
            #[garde(custom(|items: &[String], limits: &Limits| {
                if items.len() > limits.most { Err(garde::Error::new("too many")) } else { Ok(()) }
            }))]
            pub(super) many: Vec<String>,
            #[garde(adapt(odd), ascii)]
            pub(super) adapted: String,
        }

        impl Form {
            fn differ(&self) -> garde::Result {
                if self.many.contains(&self.one) { Err(garde::Error::new("twice")) } else { Ok(()) }
            }
        }
    }

    #[test]
    fn rules_by_the_users_own_functions() {
        let found = same!(Form { one: "a".into(), many: vec!["a".into()], adapted: String::new() });
        assert_eq!(paths(&found), ["", "one", "one", "many", "many[0]", "many", "adapted"]);
    }
}

/// What garde's derive does not take.
mod ours_alone {
    use octollm::prelude::*;

    use super::*;

    #[derive(Validate)]
    struct Unit;

    #[derive(Validate)]
    enum Never {}

    fn even(number: &u8, _: &()) -> Result<(), String> {
        if number.is_multiple_of(2) { Ok(()) } else { Err(format!("{number} is odd")) }
    }

    #[derive(Validate)]
    enum Signup {
        Form {
            #[garde(length(min = 1))]
            r#type: String,
            #[garde(matches(r#type))]
            again: String,
            #[garde(custom(even))]
            number: u8,
        },
    }

    #[derive(Validate)]
    enum Kind {
        Named {
            #[garde(length(min = 1))]
            text: String,
            #[garde(skip)]
            rest: u8,
        },
        Numbered(#[garde(range(min = 1))] u8, #[garde(range(min = 1))] u8),
        Nothing,
    }

    #[derive(Validate)]
    struct Newtype(#[garde(length(min = 1))] String);

    macro_rules! written_by_a_macro {
        ($name:ident { $field:ident: $ty:ty = $least:expr }) => {
            #[derive(Validate)]
            struct $name {
                #[garde(length(min = $least), inner(custom(even)))]
                $field: $ty,
                #[garde(range(min = 1))]
                count: usize,
            }
        };
    }

    written_by_a_macro!(Written { items: Vec<u8> = 2 });

    /// Where garde counts bytes, or takes `inner` for the content of an option, a schema does not.
    #[derive(Default, Validate)]
    struct Counted {
        #[garde(length(equal = 3))]
        text: String,
        #[garde(length(equal = 3))]
        boxed: Option<Box<str>>,
        #[garde(length(max = 1), inner(length(max = 2)))]
        texts: Option<Vec<Option<String>>>,
        #[garde(length(max = 1), inner(range(min = 1)))]
        map: BTreeMap<String, u8>,
    }

    #[test]
    fn lengths_are_characters_and_items() {
        let good = || Counted {
            text: "äöü".into(),
            boxed: Some("äöü".into()),
            texts: Some(vec![Some("äö".into())]),
            map: BTreeMap::from([("ä".into(), 1)]),
        };
        assert_eq!(findings(&good()), []);
        assert_eq!(paths(&findings(&Counted { text: "äöüß".into(), ..good() })), ["text"]);
        assert_eq!(paths(&findings(&Counted { boxed: Some("äö".into()), ..good() })), ["boxed"]);
        let texts = Some(vec![None, Some("äöü".into())]);
        assert_eq!(paths(&findings(&Counted { texts, ..good() })), ["texts", "texts[1]"]);
        let map = BTreeMap::from([("a".into(), 0), ("b".into(), 1)]);
        assert_eq!(paths(&findings(&Counted { map, ..good() })), ["map", "map.a"]);
    }

    #[test]
    fn types_without_fields_have_nothing_to_find() {
        assert!(findings(&Unit).is_empty());
        assert!(findings(&None::<Never>).is_empty());
    }

    #[test]
    fn functions_need_no_type_of_garde_and_variants_compare_their_fields() {
        let form = Signup::Form { r#type: "a".into(), again: "b".into(), number: 3 };
        let found = findings(&form);
        assert_eq!(paths(&found), ["Form.again", "Form.number"]);
        assert_eq!(found[1].1, "3 is odd");
    }

    #[test]
    fn variants_and_newtypes_are_at_the_paths_that_serde_gives_them() {
        assert_eq!(paths(&findings(&Kind::Named { text: String::new(), rest: 0 })), ["Named.text"]);
        assert_eq!(paths(&findings(&Kind::Numbered(1, 0))), ["Numbered[1]"]);
        assert!(findings(&Kind::Nothing).is_empty());
        assert_eq!(paths(&findings(&Newtype(String::new()))), [""]);
    }

    #[test]
    fn a_macro_may_write_the_type() {
        assert_eq!(paths(&findings(&Written { items: vec![1], count: 0 })), ["items", "items[0]", "count"]);
    }
}
