//! Any JSON, read for nothing but whether it is well formed.

use std::{fmt, marker::PhantomData};

use serde::{
    Deserializer,
    de::{DeserializeSeed, Error, IgnoredAny, MapAccess, SeqAccess, Visitor},
};

use super::{
    keys::{KeyDigests, Seen},
    parser,
};

/// How deep values may be nested.
pub(super) const MAX_DEPTH: usize = 128;

/// Reads any JSON value in which no object has a key twice, escapes in keys resolved, and which is not too deep.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Unique {
    /// How many values this one is in.
    depth: usize,
}

/// Checks a whole text.
pub(super) fn check(text: &str) -> Result<(), serde_json::Error> {
    let mut json = parser(text);
    Unique::default().deserialize(&mut json).and_then(|()| json.end())
}

impl<'de> DeserializeSeed<'de> for Unique {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl Unique {
    /// For what is within.
    fn within<E: Error>(self) -> Result<Self, E> {
        if self.depth == MAX_DEPTH {
            return Err(E::custom(format_args!("more than {MAX_DEPTH} values are inside each other")));
        }
        Ok(Self { depth: self.depth + 1 })
    }
}

macro_rules! scalars {
    ($($method:ident($($type:ty)?);)*) => {$(
        fn $method<E: Error>(self, $(_: $type)?) -> Result<(), E> {
            Ok(())
        }
    )*};
}

impl<'de> Visitor<'de> for Unique {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let (within, mut keys) = (self.within()?, KeyDigests::default());
        while map.next_key_seed(Seen { inner: PhantomData::<IgnoredAny>, keys: &mut keys })?.is_some() {
            map.next_value_seed(within)?;
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let within = self.within()?;
        while items.next_element_seed(within)?.is_some() {}
        Ok(())
    }

    scalars! {
        visit_bool(bool);
        visit_i64(i64);
        visit_u64(u64);
        visit_f64(f64);
        visit_str(&str);
        visit_unit();
    }
}
