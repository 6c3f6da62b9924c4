//! How a contract is named at run time.

use std::{borrow::Cow, fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// A contract's name and version: `code.validate`, or `code.validate@2`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContractRef {
    name: Cow<'static, str>,
    version: u32,
}

impl ContractRef {
    /// Names a contract.
    ///
    /// # Errors
    /// [`InvalidContractRef`] when the name is not `entity.verb` or the version is 0.
    pub fn new(name: impl Into<String>, version: u32) -> Result<Self, InvalidContractRef> {
        let name = name.into();
        if version == 0 || !is_contract_name(&name) {
            return Err(InvalidContractRef { text: format!("{name}@{version}") });
        }
        Ok(Self { name: name.into(), version })
    }

    /// For names that the derive macro has checked.
    pub(crate) fn known(name: &'static str, version: u32) -> Self {
        Self { name: Cow::Borrowed(name), version }
    }

    /// `code.validate`
    pub fn name(&self) -> &str {
        &self.name
    }

    /// 1 unless told.
    pub fn version(&self) -> u32 {
        self.version
    }
}

/// Two or more segments of `[a-z0-9_-]`, joined by dots, each beginning with a letter, 128 characters at most.
fn is_contract_name(name: &str) -> bool {
    let segment = |s: &str| {
        s.starts_with(|c: char| c.is_ascii_lowercase())
            && s.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'-')
    };
    name.len() <= 128 && name.contains('.') && name.split('.').all(segment)
}

impl FromStr for ContractRef {
    type Err = InvalidContractRef;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidContractRef { text: text.chars().take(160).collect() };
        match text.split_once('@') {
            None => Self::new(text, 1),
            Some((_, version)) if version.starts_with(['0', '+']) => Err(invalid()),
            Some((name, version)) => Self::new(name, version.parse().map_err(|_| invalid())?),
        }
        .map_err(|_| invalid())
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
        schemars::json_schema!({
            "type": "string",
            "pattern": "^[a-z][a-z0-9_-]*(\\.[a-z][a-z0-9_-]*)+(@[1-9][0-9]*)?$"
        })
    }
}

/// A text that names no contract.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a contract name such as `code.validate` or `code.validate@2`")]
pub struct InvalidContractRef {
    text: String,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_printed_parses_to_the_same(name in "[a-z][a-z0-9_-]{0,8}(\\.[a-z][a-z0-9_-]{0,8}){1,3}", version in 1_u32..) {
            let reference = ContractRef::new(name, version).unwrap();
            prop_assert_eq!(reference.to_string().parse::<ContractRef>().unwrap(), reference);
        }

        #[test]
        fn what_parses_is_printed_as_it_was(text in "\\PC{0,24}") {
            if let Ok(reference) = text.parse::<ContractRef>() {
                prop_assert!(reference.to_string() == text || text.ends_with("@1"));
            }
        }
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
}
