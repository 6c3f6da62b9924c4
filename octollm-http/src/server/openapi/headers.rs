//! The forms of header fields as regular expressions, each exactly what is read.

/// `Idempotency-Key`: one quoted string of 1 to 255 characters, in which `"` and `\` stand after a `\`.
pub(crate) const KEY: &str = r#"^"([ !#-\[\]-~]|\\["\\]){1,255}"$"#;

/// `Octollm-Budget`: tokens, dollars or both, in any order, each up to what can be counted.
pub(crate) fn budget() -> String {
    let tokens = format!("tokens=0*{}", at_most(&u64::MAX.to_string()));
    let (dollars, billionths) = (u64::MAX / 1_000_000_000, u64::MAX % 1_000_000_000);
    let below = at_most(&(dollars - 1).to_string());
    let last = fraction_at_most(&format!("{billionths:09}"));
    let cost = format!(r"cost_usd=0*({below}(\.[0-9]+)?|{dollars}(\.{last})?)");
    format!("^({tokens}(; *{cost})?|{cost}(; *{tokens})?)$")
}

/// Whole numbers up to this one, with a zero before them or none.
fn at_most(most: &str) -> String {
    let mut forms = vec![most.to_owned()];
    for (index, digit) in most.bytes().enumerate() {
        let rest = most.len() - index - 1;
        if let Some(digits) = below(digit) {
            forms.push(format!("{}{digits}[0-9]{{{rest}}}", &most[..index]));
        }
    }
    forms.push(format!("[0-9]{{1,{}}}", most.len() - 1));
    format!("({})", forms.join("|"))
}

/// The digits of fractions up to this one; digits beyond the last one do not count.
fn fraction_at_most(most: &str) -> String {
    let mut forms = vec![format!("{most}[0-9]*")];
    for (index, digit) in most.bytes().enumerate() {
        let before = &most[..index];
        if index > 0 {
            forms.push(before.to_owned());
        }
        if let Some(digits) = below(digit) {
            forms.push(format!("{before}{digits}[0-9]*"));
        }
    }
    format!("({})", forms.join("|"))
}

/// The digits before this one.
fn below(digit: u8) -> Option<String> {
    let last = digit.checked_sub(1).filter(u8::is_ascii_digit)?;
    Some(format!("[0-{}]", char::from(last)))
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use octollm_core::budget::Budget;
    use proptest::{prelude::*, string::string_regex};
    use regex_automata::meta::Regex;

    use super::*;
    use crate::server::head::is_quoted_string;

    static BUDGETS: LazyLock<Regex> = LazyLock::new(|| Regex::new(&budget()).unwrap());
    static KEYS: LazyLock<Regex> = LazyLock::new(|| Regex::new(KEY).unwrap());

    fn generated(pattern: &str) -> impl Strategy<Value = String> + use<> {
        string_regex(pattern.trim_start_matches('^').trim_end_matches('$')).unwrap()
    }

    #[track_caller]
    fn agrees(text: &str) -> bool {
        let is_read = text.parse::<Budget>().is_ok();
        assert_eq!(BUDGETS.is_match(text), is_read, "{text:?}");
        is_read
    }

    #[test]
    fn a_budget_is_read_where_the_document_says_so() {
        for (text, is_read) in [
            ("tokens=1000;cost_usd=0.5", true),
            ("cost_usd=1; tokens=7", true),
            ("tokens=18446744073709551615", true),
            ("tokens=00018446744073709551615", true),
            ("tokens=18446744073709551616", false),
            ("cost_usd=18446744073.709551615", true),
            ("cost_usd=18446744073.7095516159", true),
            ("cost_usd=18446744073.709551616", false),
            ("cost_usd=18446744073.71", false),
            ("cost_usd=18446744073.7", true),
            ("cost_usd=18446744074", false),
            ("cost_usd=9999999999.999", true),
            ("", false),
            ("tokens=1;", false),
            ("tokens=1;;cost_usd=1", false),
            ("tokens=1;tokens=1", false),
            (" tokens=1", false),
            ("tokens =1", false),
            ("tokens=1 ;cost_usd=1", false),
            ("tokens=1;calls=2", false),
            ("tokens=1.0", false),
            ("tokens=+1", false),
            ("cost_usd=.5", false),
            ("cost_usd=5.", false),
            ("cost_usd=1e3", false),
        ] {
            assert_eq!(agrees(text), is_read, "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_the_document_calls_a_budget_is_read(text in generated(&budget())) {
            prop_assert!(agrees(&text));
        }

        #[test]
        fn what_is_read_as_a_budget_is_one_in_the_document(
            text in "(tokens|cost_usd|Tokens)[= ]{0,2}[0-9]{0,22}[.]?[0-9]{0,11}(;[ \t]?(tokens|cost_usd)=[0-9]{1,12}[.]?[0-9]{0,3})?",
            cut in any::<prop::sample::Index>(),
        ) {
            agrees(&text);
            agrees(&text[..cut.index(text.len())]);
        }

        #[test]
        fn large_amounts_agree(tokens in u64::MAX - 2_000_000_000.., more: u8, dollars in 18_446_744_070_u64..18_446_744_080, part in "[0-9]{0,12}") {
            agrees(&format!("tokens={}", u128::from(tokens) + u128::from(more)));
            agrees(&format!("cost_usd={dollars}"));
            agrees(&format!("cost_usd={dollars}.{part}"));
            agrees(&format!("cost_usd=18446744073.7{part}"));
        }

        #[test]
        fn what_the_document_calls_a_key_is_read(text in generated(KEY)) {
            prop_assert!(is_quoted_string(text.as_bytes()), "{text}");
        }

        #[test]
        fn what_is_read_as_a_key_is_one_in_the_document(text in "\"?[ -~\\\\\"é]{0,6}([a-z]{0,260})\"?") {
            prop_assert_eq!(KEYS.is_match(&text), is_quoted_string(text.as_bytes()), "{}", text);
        }
    }
}
