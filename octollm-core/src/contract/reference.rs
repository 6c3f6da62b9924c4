//! The name and version of a contract at run time.

use std::{borrow::Cow, fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::invalid::InvalidValue;

/// A contract's name and version: `code.validate`, or `code.validate@2`.
///
/// Other protocols have a form of the same name each, and every form parses back to the reference it came from:
///
/// | | version 1 | version 2 |
/// |---|---|---|
/// | here | `code.validate` | `code.validate@2` |
/// | MCP ([`mcp_name`](Self::mcp_name)) | `code.validate` | `code.validate.v2` |
/// | a model's function ([`function_name`](Self::function_name)) | `code__validate` | `code__validate__v2` |
///
/// Therefore a name has two or more segments of `[a-z0-9_-]`, joined by dots. Each begins with a letter, ends in a letter
/// or a digit and has no `__`; the last one is not `v` and digits. The function's name has at most 64 characters.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContractRef {
    name: Cow<'static, str>,
    version: u32,
}

impl ContractRef {
    /// A reference to the contract of this name and version.
    ///
    /// # Errors
    /// [`InvalidValue`] when the name breaks a rule above, or the version is 0.
    pub fn new(name: impl Into<String>, version: u32) -> Result<Self, InvalidValue> {
        let reference = Self { name: Cow::Owned(name.into()), version };
        match reference.fault() {
            None => Ok(reference),
            Some(why) => Err(invalid(&reference.to_string(), why)),
        }
    }

    /// A reference that was parsed from `text`.
    fn read(name: &str, version: u32, text: &str) -> Result<Self, InvalidValue> {
        let reference = Self { name: Cow::Owned(name.to_owned()), version };
        match reference.fault() {
            None => Ok(reference),
            Some(why) => Err(invalid(text, why)),
        }
    }

    /// For names that the derive macro has checked.
    pub(crate) const fn known(name: &'static str, version: u32) -> Self {
        Self { name: Cow::Borrowed(name), version }
    }

    /// `code.validate`
    pub fn name(&self) -> &str {
        &self.name
    }

    /// 1 or more (default 1).
    pub fn version(&self) -> u32 {
        self.version
    }

    /// The name as a tool of the Model Context Protocol: `code.validate.v2`.
    pub fn mcp_name(&self) -> String {
        match self.version {
            1 => self.name.clone().into_owned(),
            version => format!("{}.v{version}", self.name),
        }
    }

    /// The name as a model calls a function: `code__validate__v2`, at most 64 characters of `[A-Za-z0-9_-]`.
    pub fn function_name(&self) -> String {
        self.mcp_name().replace('.', "__")
    }

    /// Parses what [`mcp_name`](Self::mcp_name) returns.
    ///
    /// # Errors
    /// [`InvalidValue`] for a text that no reference has as its name.
    pub fn from_mcp_name(text: &str) -> Result<Self, InvalidValue> {
        Self::read_mcp_name(text, text)
    }

    /// Parses what [`function_name`](Self::function_name) returns.
    ///
    /// # Errors
    /// [`InvalidValue`] for a text that no reference has as its name.
    pub fn from_function_name(text: &str) -> Result<Self, InvalidValue> {
        if text.contains('.') {
            return Err(invalid(text, "a function's name has no dots"));
        }
        Self::read_mcp_name(&text.replace("__", "."), text)
    }

    fn read_mcp_name(mcp_name: &str, text: &str) -> Result<Self, InvalidValue> {
        let (name, version) = match mcp_name.rsplit_once('.') {
            Some((name, last)) if is_version(last) => match parse_version(&last[1..]) {
                Some(version) if version > 1 => (name, version),
                _ => return Err(invalid(text, NOT_A_VERSION)),
            },
            _ => (mcp_name, 1),
        };
        Self::read(name, version, text)
    }

    /// The rule that the name breaks, if any.
    pub(super) fn fault(&self) -> Option<&'static str> {
        let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let segment = |s: &str| {
            s.starts_with(|c: char| c.is_ascii_lowercase())
                && s.bytes().last().is_some_and(alphanumeric)
                && s.bytes().all(|b| alphanumeric(b) || b == b'_' || b == b'-')
                && !s.contains("__")
        };
        if self.version == 0 {
            return Some("versions begin at 1");
        }
        let Some((_, last)) = self.name.rsplit_once('.') else {
            return Some("it has no dot");
        };
        if !self.name.split('.').all(segment) {
            return Some(
                "a segment begins with a-z, has a-z, 0-9, `-` and single `_`, and ends in a letter or a digit",
            );
        }
        if is_version(last) {
            return Some("its last segment reads as a version");
        }
        (self.function_name().len() > FUNCTION_NAME).then_some("it is too long for the name of a function")
    }
}

/// The longest name that models take for a function, in characters.
const FUNCTION_NAME: usize = 64;

const NOT_A_VERSION: &str = "a version is a whole number without leading zeros";

/// Whether it is `v` and digits.
fn is_version(segment: &str) -> bool {
    segment
        .strip_prefix('v')
        .is_some_and(|digits| !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()))
}

/// A whole number as `Display` writes it.
fn parse_version(digits: &str) -> Option<u32> {
    let version: u32 = digits.parse().ok()?;
    (!digits.starts_with(['0', '+'])).then_some(version)
}

impl FromStr for ContractRef {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, version) = match text.split_once('@') {
            None => (text, 1),
            Some((name, version)) => {
                (name, parse_version(version).ok_or_else(|| invalid(text, NOT_A_VERSION))?)
            }
        };
        Self::read(name, version, text)
    }
}

impl fmt::Display for ContractRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.version {
            1 => f.write_str(&self.name),
            version => write!(f, "{}@{version}", self.name),
        }
    }
}

impl Serialize for ContractRef {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ContractRef {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl schemars::JsonSchema for ContractRef {
    fn schema_name() -> Cow<'static, str> {
        "ContractRef".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": "string", "pattern": pattern(), "anyOf": lengths() })
    }
}

/// The lengths of names whose form as the name of a function is at most 64 characters long, where a dot is two characters
/// and `@` three: exact for up to four segments; with more, no name that is shorter is refused.
fn lengths() -> Vec<Value> {
    let of_dots = |dots: usize| {
        let name = format!("^[^.@]+(\\.[^.@]+){{{dots}}}");
        [
            json!({ "pattern": format!("{name}$"), "maxLength": 64 - dots }),
            json!({ "pattern": format!("{name}@"), "maxLength": 62 - dots }),
        ]
    };
    (1..=3).flat_map(of_dots).chain([json!({ "maxLength": 41 })]).collect()
}

/// The rules of a name as a regular expression that every JSON Schema validator takes: without lookaround.
fn pattern() -> String {
    // What may follow the first letter: no `__`, and a letter or a digit at the end.
    let rest = "(_?[a-z0-9-])*_?[a-z0-9]";
    let segment = format!("[a-z]({rest})?");
    // Of those that begin with `v`, one that goes on after the digits.
    let last = format!("([a-uw-z]({rest})?|v([0-9]*(_?[a-z]|_[0-9]|(_?[a-z-]|_[0-9]){rest}))?)");
    // Versions up to the greatest, less the last few of ten digits.
    format!("^{segment}(\\.{segment})*\\.{last}(@([1-9][0-9]{{0,8}}|[1-3][0-9]{{9}}))?$")
}

/// A text that names no contract.
fn invalid(text: &str, why: &'static str) -> InvalidValue {
    let text: String = text.chars().take(160).collect();
    InvalidValue::new("contract name such as `code.validate` or `code.validate@2`")
        .because(format!("`{text}`: {why}"))
}

#[cfg(test)]
mod tests {
    use proptest::{prelude::*, string::string_regex};

    use super::*;

    /// Names whose every form is short enough.
    fn references() -> impl Strategy<Value = ContractRef> {
        let segment = "[a-z](_?[a-z0-9-]){0,5}_?[a-z0-9]|[a-z]|v[0-9]|v[0-9]_?[a-z]";
        let name = prop::collection::vec(string_regex(segment).unwrap(), 2..5);
        let version = prop_oneof![Just(1), 2_u32..12, any::<u32>()];
        (name, version)
            .prop_filter_map("not a name", |(name, version)| ContractRef::new(name.join("."), version).ok())
    }

    proptest! {
        #[test]
        fn every_form_parses_back_to_the_same(reference in references()) {
            prop_assert_eq!(reference.to_string().parse(), Ok(reference.clone()));
            prop_assert_eq!(ContractRef::from_mcp_name(&reference.mcp_name()), Ok(reference.clone()));
            let function = reference.function_name();
            prop_assert_eq!(ContractRef::from_function_name(&function), Ok(reference));
            prop_assert!(function.len() <= 64);
            prop_assert!(function.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-'));
        }

        #[test]
        fn what_parses_is_printed_as_it_was(text in "[av1_.@-]{0,9}|\\PC{0,24}") {
            if let Ok(reference) = text.parse::<ContractRef>() {
                prop_assert!(reference.to_string() == text || text.ends_with("@1"));
            }
            if let Ok(reference) = ContractRef::from_mcp_name(&text) {
                prop_assert_eq!(reference.mcp_name(), text.clone());
            }
            if let Ok(reference) = ContractRef::from_function_name(&text) {
                prop_assert_eq!(reference.function_name(), text);
            }
        }

        #[test]
        fn two_names_never_share_a_form(a in "[av1_.-]{3,7}", b in "[av1_.-]{3,7}", version in 1_u32..3) {
            if let (Ok(a), Ok(b)) = (ContractRef::new(a, version), ContractRef::new(b, 1))
                && a != b
            {
                prop_assert_ne!(a.mcp_name(), b.mcp_name());
                prop_assert_ne!(a.function_name(), b.function_name());
            }
        }

        #[test]
        fn the_schema_describes_no_other_names(text in string_regex(pattern().trim_matches(['^', '$'])).unwrap()) {
            let too_long = text.len() > 40;
            prop_assert!(too_long || text.parse::<ContractRef>().is_ok(), "{}", text);
        }
    }

    #[test]
    fn the_lengths_in_the_schema_are_those_that_parse() {
        for dots in 1..=3 {
            for version in ["", "@9"] {
                let name = |length: usize| {
                    let rest = "a".repeat(length - 2 * dots - version.len());
                    format!("{}{rest}{version}", "a.".repeat(dots))
                };
                let most = if version.is_empty() { 64 - dots } else { 62 - dots };
                let all = lengths();
                let is_there = all.iter().any(|length| {
                    length["maxLength"] == most
                        && length["pattern"].as_str().unwrap().contains(&format!("{{{dots}}}"))
                });
                assert!(is_there, "{dots} {version}");
                assert!(name(most).parse::<ContractRef>().is_ok(), "{}", name(most));
                assert!(name(most + 1).parse::<ContractRef>().is_err(), "{}", name(most + 1));
            }
        }
        for text in ["a.".repeat(20) + "a", "a.".repeat(19) + "a@9"] {
            assert!(text.len() <= 41 && text.parse::<ContractRef>().is_ok(), "{text}");
        }
    }

    #[test]
    fn the_forms_of_a_name() {
        let reference: ContractRef = "code.validate@2".parse().unwrap();
        assert_eq!(reference.mcp_name(), "code.validate.v2");
        assert_eq!(reference.function_name(), "code__validate__v2");
        let first: ContractRef = "crate-files.list_all".parse().unwrap();
        assert_eq!(
            (&*first.mcp_name(), &*first.function_name()),
            ("crate-files.list_all", "crate-files__list_all")
        );
        for text in ["code", "code.v2", "code.validate.v1", "code.validate.v02", "code.validate.v99999999999"]
        {
            assert!(ContractRef::from_mcp_name(text).is_err(), "{text}");
            assert!(ContractRef::from_function_name(&text.replace('.', "__")).is_err(), "{text}");
        }
        assert!(ContractRef::from_function_name("code.validate").is_err());
    }

    #[test]
    fn refuses_what_names_nothing() {
        for text in [
            "",
            ".",
            "code",
            "code.",
            ".validate",
            "Code.validate",
            "code.validate@0",
            "code.validate@+2",
            "code.validate@",
            "code.validate@02",
            "a.b@99999999999",
            "code.val idate",
            "code.1x",
        ] {
            assert!(text.parse::<ContractRef>().is_err(), "{text}");
        }
    }

    #[test]
    fn refuses_what_another_protocol_could_not_name() {
        for text in ["a__b.c", "a_.c", "a.c_", "a-.c", "a.c-", "a.v2", "a.v0", "a.b.v10", "a._b"] {
            assert!(text.parse::<ContractRef>().is_err(), "{text}");
        }
        for text in ["a_b.c-d", "v2.a", "a.v2.b", "a.v", "a.v2x", "a.v2_1", "a.v-2", "a--b.c_1"] {
            assert!(text.parse::<ContractRef>().is_ok(), "{text}");
        }
        let longest = format!("a.{}", "b".repeat(61));
        assert!(ContractRef::new(&*longest, 1).is_ok());
        assert!(ContractRef::new(&*longest, 2).is_err());
        let why = ContractRef::new(longest + "b", 1).unwrap_err().to_string();
        assert!(why.ends_with("it is too long for the name of a function"), "{why}");
    }
}
