//! What is noted while a type reads its input, and the integers that are written as floats: `3.0` is 3 in JSON Schema.

use std::{
    cell::{Cell, OnceCell},
    fmt,
};

use serde::{
    Deserialize,
    de::{Deserializer, Error, Unexpected, Visitor},
};
use serde_json::value::RawValue;

use super::value::BEYOND_INTEGERS;

/// What a type did with its input.
#[derive(Debug, Default)]
pub(super) struct Notes {
    /// It ignored something: a field that it does not know.
    pub(super) ignored: Cell<bool>,
    /// It took a text unparsed, raw or as bytes.
    pub(super) unread: Cell<bool>,
    /// It took a part aside before it knew what it is, as serde does where a struct is flattened or an enum has a tag:
    /// what it leaves out of that is not seen.
    pub(super) set_aside: Cell<bool>,
    /// Set where a float without a fraction is taken for an integer: they are the same in JSON Schema. These values are
    /// not taken, as what is written has a fraction.
    pub(super) inexact: OnceCell<Vec<f64>>,
}

impl Notes {
    /// From now on `3.0` is taken where an integer is due.
    pub(super) fn take_whole_floats(&self, text: &str) {
        self.inexact.get_or_init(|| super::value::inexact(text.as_bytes()));
    }

    /// The integer that a float is, if it is one.
    pub(super) fn whole(&self, float: f64) -> Option<Whole> {
        let is_whole = float.fract() == 0.0 && float.abs() < BEYOND_INTEGERS;
        let is_exact = self.inexact.get().is_some_and(|inexact| !inexact.contains(&float));
        (is_whole && is_exact).then(|| Whole::of(float))
    }
}

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
