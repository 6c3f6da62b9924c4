//! Rules for texts as regular expressions, in the syntax that Rust, ECMA-262 and Python share.

/// A text as a pattern that matches it alone, in the syntax of ECMA-262.
pub(super) fn literal(text: &str) -> String {
    let escape = |c: char| [r"^$\.*+?()[]{}|/".contains(c).then_some('\\'), Some(c)];
    text.chars().flat_map(escape).flatten().collect()
}

/// As the standard library reads it: four numbers without leading zeros.
pub(super) fn ipv4() -> String {
    let octet = "(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])";
    format!(r"({octet}\.{octet}\.{octet}\.{octet})")
}

/// As the standard library reads it: RFC 3986.
pub(super) fn ipv6() -> String {
    let h = "[0-9A-Fa-f]{1,4}";
    let last = format!("({h}:{h}|{})", ipv4());
    format!(
        "(({h}:){{6}}{last}|::({h}:){{5}}{last}|({h})?::({h}:){{4}}{last}|(({h}:){{0,1}}{h})?::({h}:){{3}}{last}\
         |(({h}:){{0,2}}{h})?::({h}:){{2}}{last}|(({h}:){{0,3}}{h})?::{h}:{last}|(({h}:){{0,4}}{h})?::{last}\
         |(({h}:){{0,5}}{h})?::{h}|(({h}:){{0,6}}{h})?::)"
    )
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;
    use regex_automata::meta::Regex;

    use super::*;

    #[test]
    fn addresses_are_those_that_the_standard_library_reads() {
        let (four, six) = (format!("^{}$", ipv4()), format!("^{}$", ipv6()));
        let (four, six) = (Regex::new(&four).unwrap(), Regex::new(&six).unwrap());
        for text in [
            "1.2.3.4",
            "255.255.255.255",
            "256.1.1.1",
            "1.2.3",
            "01.2.3.4",
            "0.0.0.0",
            "1.2.3.4.5",
            "::",
            "::1",
            "1::",
            "1:2:3:4:5:6:7:8",
            "1:2:3:4:5:6:7::",
            "::2:3:4:5:6:7:8",
            "1:2:3:4:5:6:7::8",
            "1:2:3:4:5:6:7:8:9",
            "::ffff:1.2.3.4",
            "1:2:3:4:5:6:1.2.3.4",
            "1:2:3:4:5::1.2.3.4",
            "1:2:3:4:5:6::1.2.3.4",
            "1.2.3.4::",
            "fe80::1%eth0",
            "1::2::3",
            ":1",
            "1:",
            "00001::",
            "::1.2.3",
            "::01.2.3.4",
            "ABCD::abcd",
            "",
        ] {
            assert_eq!(four.is_match(text), text.parse::<Ipv4Addr>().is_ok(), "{text}");
            assert_eq!(six.is_match(text), text.parse::<Ipv6Addr>().is_ok(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn texts_like_addresses_agree(text in "(::)?([0-9a-g]{1,2}:{1,2}){0,8}([0-9]{1,3}[.:]){0,4}[0-9a-f]{0,5}") {
            let (four, six) = (format!("^{}$", ipv4()), format!("^{}$", ipv6()));
            let (four, six) = (Regex::new(&four).unwrap(), Regex::new(&six).unwrap());
            prop_assert_eq!(four.is_match(&text), text.parse::<Ipv4Addr>().is_ok(), "{}", text);
            prop_assert_eq!(six.is_match(&text), text.parse::<Ipv6Addr>().is_ok(), "{}", text);
        }

        #[test]
        fn a_literal_matches_itself_alone(text in "\\PC{0,8}", other in "\\PC{0,8}") {
            let pattern = Regex::new(&format!("^{}$", literal(&text))).unwrap();
            prop_assert!(pattern.is_match(&text));
            prop_assert_eq!(pattern.is_match(&other), text == other);
        }
    }
}
