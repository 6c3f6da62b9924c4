//! Integers that are written as floats: JSON Schema does not tell `3.0` and `3` apart.

use std::fmt;

use serde::{
    Deserialize,
    de::{Deserializer, Error, Unexpected, Visitor},
};
use serde_json::value::RawValue;

use super::watch::Notes;

/// An integer that is written as a float.
pub(super) enum Whole {
    Positive(u128),
    /// Saturated at the least `i128`.
    Negative(i128),
}

impl Whole {
    /// A float without a fraction, below 2^128.
    pub(super) fn of(float: f64) -> Self {
        if float < 0.0 { Self::Negative(float as i128) } else { Self::Positive(float as u128) }
    }

    /// Passes it on as serde_json passes integers, if it fits 64 bits; then `otherwise`.
    pub(super) fn visit<'de, V: Visitor<'de>, E: Error>(
        self,
        visitor: V,
        otherwise: impl FnOnce(V, Self) -> Result<V::Value, E>,
    ) -> Result<V::Value, E> {
        let (unsigned, signed) = match self {
            Self::Positive(number) => (u64::try_from(number).ok(), None),
            Self::Negative(number) => (None, i64::try_from(number).ok()),
        };
        match (unsigned, signed) {
            (Some(number), _) => visitor.visit_u64(number),
            (_, Some(number)) => visitor.visit_i64(number),
            _ => otherwise(visitor, self),
        }
    }
}

/// Takes an integer, also one that is written as a float.
pub(super) struct Integer<'n, V> {
    pub(super) inner: V,
    pub(super) notes: &'n Notes,
    /// It may have 128 bits.
    pub(super) is_wide: bool,
}

impl<V> Integer<'_, V> {
    /// From the text: serde_json reads 128 bits from digits alone.
    pub(super) fn read<'de, D: Deserializer<'de>>(self, from: D) -> Result<V::Value, D::Error>
    where
        V: Visitor<'de>,
    {
        let raw = Box::<RawValue>::deserialize(from)?;
        let text = raw.get();
        if let Ok(number) = text.parse() {
            return self.inner.visit_u128(number);
        }
        if let Ok(number) = text.parse() {
            return self.inner.visit_i128(number);
        }
        match text.parse() {
            Ok(float) => self.visit_f64(float),
            Err(_) => Err(D::Error::invalid_type(Unexpected::Other("another value"), &self)),
        }
    }
}

impl<'de, V: Visitor<'de>> Visitor<'de> for Integer<'_, V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.expecting(f)
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<V::Value, E> {
        self.inner.visit_i64(number)
    }

    fn visit_i128<E: Error>(self, number: i128) -> Result<V::Value, E> {
        self.inner.visit_i128(number)
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<V::Value, E> {
        self.inner.visit_u64(number)
    }

    fn visit_u128<E: Error>(self, number: u128) -> Result<V::Value, E> {
        self.inner.visit_u128(number)
    }

    fn visit_f64<E: Error>(self, float: f64) -> Result<V::Value, E> {
        let is_wide = self.is_wide;
        match self.notes.whole(float) {
            None => self.inner.visit_f64(float),
            Some(whole) => whole.visit(self.inner, |visitor, whole| match whole {
                Whole::Positive(number) if is_wide => visitor.visit_u128(number),
                Whole::Negative(number) if is_wide => visitor.visit_i128(number),
                _ => visitor.visit_f64(float),
            }),
        }
    }
}
