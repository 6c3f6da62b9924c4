//! Header fields in a document. A regular expression matches exactly what is read.

use octollm_core::{contract::output_schema, id::RequestId};
use schemars::JsonSchema;
use serde_json::{Value, json};

/// The header fields of requests.
pub(crate) fn parameters() -> Value {
    let header = |name: &str, schema: Value, description: &str| json!({ "name": name, "in": "header", "schema": schema, "description": description });
    let text = || json!({ "type": "string" });
    let pattern =
        |pattern: &str, example: &str| json!({ "type": "string", "pattern": pattern, "examples": [example] });
    let number = |from: u64, to: u64| json!({ "type": "integer", "minimum": from, "maximum": to });
    json!({
        "RequestId": header("X-Request-ID", text(), "Names the request: 1 to 128 characters of A-Z, a-z, 0-9, `.`, `_` and `-`. Anything else is replaced. Always echoed."),
        "CorrelationId": header("X-Correlation-ID", text(), "The same over all hops of one piece of work. Has the form of a request id; anything else is replaced by that."),
        "Traceparent": header("traceparent", text(), "W3C Trace Context; a malformed one is ignored."),
        "Tracestate": header("tracestate", text(), "W3C Trace Context, the vendors' part."),
        "IdempotencyKey": header("Idempotency-Key", pattern(KEY, "\"run-7\""), "Names a request that may be repeated: a text, which may stand in quotes. A contract that is not idempotent runs once for a caller, a task and a key, and its answer is replayed: 409 while it runs, and where its outcome is not known; 422 with another input. Ignored elsewhere."),
        "Instance": header("Octollm-Instance", text(), "The `instance` of the card, in a request that may have been sent before with its key. A server whose records are not shared answers it from its record alone, and without one 409."),
        "Timeout": header("Octollm-Timeout", number(0, u64::MAX), "Milliseconds left; at 0 the answer is 504."),
        "Budget": header("Octollm-Budget", pattern(&budget(), "tokens=1000;cost_usd=0.5"), "What may be used up, such as tokens=1000;cost_usd=0.5."),
        "Attempt": header("Octollm-Attempt", number(1, u32::MAX.into()), "1 for the first try."),
        "TaskId": header("Octollm-Task-Id", text(), "The task that the request belongs to: `task_` and 16 letters or digits. Anything else is ignored."),
    })
}

/// The header fields of answers.
pub(crate) fn headers() -> Value {
    let header = |schema: Value, description: &str| json!({ "schema": schema, "description": description });
    let id = inline::<RequestId>;
    let number = || json!({ "type": "integer", "minimum": 0 });
    json!({
        "Allow": header(json!({ "type": "string" }), "With 405: the methods of the route."),
        "Challenge": header(json!({ "type": "string" }), "`Bearer`, with the error and the scope that is missing (RFC 6750)."),
        "RequestId": header(id(), "Names the request."),
        "CorrelationId": header(id(), "The same over all hops of one piece of work."),
        "Replayed": header(json!({ "const": "true" }), "The answer is that of an earlier request with the same Idempotency-Key."),
        "Usage": header(json!({ "type": "string" }), "What the work used, such as tokens=12;cost_usd=0.01; also after a failure."),
        "Age": header(number(), "Seconds since the answer was returned by the arm, if it is repeated from the cache of the server."),
        "RateLimit": header(number(), "Requests that are allowed at once, under the rate limit of which the least is left. Absent where the request was not counted."),
        "RateRemaining": header(number(), "Requests that are allowed at once from now on."),
        "RateReset": header(number(), "Seconds until all of them are allowed again."),
    })
}

/// The schema of a type that refers to no other.
pub(crate) fn inline<T: JsonSchema>() -> Value {
    let mut schema = output_schema::<T>();
    if let Some(schema) = schema.as_object_mut() {
        for key in ["$schema", "title", "description"] {
            schema.remove(key);
        }
    }
    schema
}

/// `Idempotency-Key`: a quoted string of 1 to 255 characters, in which `"` and `\` stand after a `\`, or as many characters without quotes
/// and commas.
pub(crate) const KEY: &str =
    r#"^("([ !#-\[\]-~]|\\["\\]){1,255}"|[!#-+\--~]([ !#-+\--~]{0,253}[!#-+\--~])?)$"#;

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

    use http::{HeaderMap, HeaderValue};
    use octollm_core::budget::Budget;
    use proptest::{prelude::*, string::string_regex};
    use regex_automata::meta::Regex;

    use super::*;
    use crate::{
        server::head::is_key,
        wire::{names, read_parts},
    };

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
        fn a_whole_number_is_read_where_the_document_says_so(
            text in "[-+]?[0-9]{0,21}[.e, ]?[0-9]{0,2}",
            near in 0_u64..100,
        ) {
            for (name, limit) in [(names::TIMEOUT, "Timeout"), (names::ATTEMPT, "Attempt")] {
                let schema = &parameters()[limit]["schema"];
                let (least, most) = (schema["minimum"].as_u64().unwrap(), schema["maximum"].as_u64().unwrap());
                let (least, most) = (u128::from(least), u128::from(most));
                let edge = |value: u128| (value.saturating_sub(50) + u128::from(near)).to_string();
                for text in [text.clone(), text.trim_matches(|c: char| !c.is_ascii_digit()).into(), edge(least), edge(most)] {
                    let head = HeaderMap::from_iter([(name.clone(), HeaderValue::try_from(&*text).unwrap())]);
                    let is_digits = text.bytes().all(|byte| byte.is_ascii_digit());
                    let number = text.parse::<u128>().ok().filter(|_| is_digits);
                    let is_listed = number.is_some_and(|number| (least..=most).contains(&number));
                    prop_assert_eq!(read_parts(&head).is_ok(), is_listed, "{} {}", name, text);
                }
            }
        }

        #[test]
        fn what_the_document_calls_a_key_is_read(text in generated(KEY)) {
            prop_assert!(is_key(text.as_bytes()), "{text}");
        }

        #[test]
        fn what_is_read_as_a_key_is_one_in_the_document(text in "\"?[ -~\\\\\"é]{0,6}([a-z]{0,260})\"?") {
            // HTTP has removed the spaces around a value.
            let text = text.trim_matches(' ');
            prop_assert_eq!(KEYS.is_match(text), is_key(text.as_bytes()), "{}", text);
        }
    }
}
