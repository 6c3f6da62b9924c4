//! JSON that is stored and sent as text.

use std::{
    fmt,
    sync::{Arc, LazyLock},
};

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{DeserializeOwned, Error as _},
};
use serde_json::{Value, value::RawValue};

/// JSON text, checked once and then shared. A clone does not allocate, and numbers retain every digit.
///
/// Two are equal when they mean the same, whatever their white space and the order of their keys.
#[derive(Clone)]
pub struct RawJson(Arc<RawValue>);

impl RawJson {
    /// Any value as JSON.
    ///
    /// # Errors
    /// When it cannot be written as JSON.
    pub fn of<T: Serialize + ?Sized>(value: &T) -> Result<Self, serde_json::Error> {
        let written = super::write(value).map_err(|failure| serde_json::Error::custom(failure.message))?;
        Self::from_slice(&written)
    }

    /// The JSON in these bytes.
    ///
    /// # Errors
    /// When they are not JSON, or not UTF-8.
    pub fn from_slice(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        super::reserved::refuse_bytes(bytes)?;
        serde_json::from_slice::<Box<RawValue>>(bytes).map(Self::raw)
    }

    fn raw(raw: Box<RawValue>) -> Self {
        Self(raw.into())
    }

    /// The empty object, `{}`.
    pub fn object() -> Self {
        static OBJECT: LazyLock<RawJson> =
            LazyLock::new(|| RawJson::from(Value::Object(serde_json::Map::new())));
        OBJECT.clone()
    }

    /// The JSON text.
    pub fn as_str(&self) -> &str {
        self.0.get()
    }

    /// Deserializes the value.
    ///
    /// # Errors
    /// When it has another shape.
    pub fn read<T: DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        super::read_output(self.as_str().as_bytes())
    }

    /// The value as a tree, which takes many times the memory of the text. Numbers beyond 64 bits are rounded.
    pub fn to_value(&self) -> Value {
        self.read().unwrap_or_default()
    }

    /// Whether it is an object.
    pub fn is_object(&self) -> bool {
        self.as_str().starts_with('{')
    }

    /// Whether it is `{}`.
    pub fn is_empty_object(&self) -> bool {
        let inner = self.as_str().strip_prefix('{').and_then(|text| text.strip_suffix('}'));
        inner.is_some_and(|inner| inner.trim().is_empty())
    }
}

/// `null`.
impl Default for RawJson {
    fn default() -> Self {
        Self::from(Value::Null)
    }
}

impl<T: Into<Value>> From<T> for RawJson {
    fn from(value: T) -> Self {
        // A `Value` is always written: its keys are strings, its numbers finite.
        let raw =
            serde_json::value::to_raw_value(&value.into()).unwrap_or_else(|_| RawValue::NULL.to_owned());
        Self::raw(raw)
    }
}

impl Serialize for RawJson {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for RawJson {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = Box::<RawValue>::deserialize(deserializer)?;
        super::reserved::refuse(raw.get()).map_err(serde::de::Error::custom)?;
        Ok(Self::raw(raw))
    }
}

impl schemars::JsonSchema for RawJson {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "AnyJson".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        true.into()
    }
}

impl PartialEq for RawJson {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str() || self.to_value() == other.to_value()
    }
}

impl<T> PartialEq<T> for RawJson
where
    Value: PartialEq<T>,
{
    fn eq(&self, other: &T) -> bool {
        self.to_value() == *other
    }
}

impl fmt::Display for RawJson {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for RawJson {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_means_the_same_is_equal() {
        let spaced = RawJson::from_slice(b"{ \"b\": 1,\n \"a\": [] }").unwrap();
        assert_eq!(spaced, RawJson::from(json!({ "a": [], "b": 1 })));
        assert_eq!(spaced, json!({ "a": [], "b": 1 }));
        assert_ne!(spaced, RawJson::object());
        assert_eq!(RawJson::from("ten"), "ten");
    }

    #[test]
    fn every_digit_stays() {
        let text = "{\"n\":340282366920938463463374607431768211455}";
        let raw = RawJson::from_slice(text.as_bytes()).unwrap();
        assert_eq!(serde_json::to_string(&raw).unwrap(), text);
        #[derive(Deserialize)]
        struct Big {
            n: u128,
        }
        assert_eq!(raw.read::<Big>().unwrap().n, u128::MAX);
    }

    #[test]
    fn a_number_that_is_none_is_not_written() {
        let error = RawJson::of(&vec![1.0, f64::NAN]).unwrap_err().to_string();
        assert!(error.contains("[1]"), "{error}");
    }

    #[test]
    fn objects_are_told_apart() {
        assert!(RawJson::object().is_empty_object() && RawJson::object().is_object());
        let filled = RawJson::from_slice(b" {\"a\":1} ").unwrap();
        assert!(filled.is_object() && !filled.is_empty_object());
        assert!(!RawJson::from("{}").is_object());
        assert!(RawJson::from_slice(b"{").is_err());
    }
}
