//! The keys of an object, each seen as it is read.

use std::{
    collections::HashSet,
    fmt,
    hash::{BuildHasher, RandomState},
    sync::LazyLock,
};

use serde::de::{DeserializeSeed, Deserializer, EnumAccess, Error, Visitor};

use super::reserved;

/// Digests of the keys that an object has had so far.
///
/// Two keys with one digest are taken for the same. A digest has 64 bits and a random seed, so that this does not happen.
#[derive(Debug, Default)]
pub(super) struct KeyDigests {
    few: [u64; 8],
    count: usize,
    more: HashSet<u64>,
}

impl KeyDigests {
    /// Whether a key is new.
    fn add(&mut self, key: &str) -> bool {
        static HASHER: LazyLock<RandomState> = LazyLock::new(RandomState::new);
        let digest = HASHER.hash_one(key);
        let known = self.few.get(..self.count.min(self.few.len())).unwrap_or_default();
        if known.contains(&digest) || self.more.contains(&digest) {
            return false;
        }
        match self.few.get_mut(self.count) {
            Some(free) => *free = digest,
            None => drop(self.more.insert(digest)),
        }
        self.count += 1;
        true
    }
}

/// Wraps what reads a key, what it reads from, and what it visits.
pub(super) struct Seen<'k, X> {
    pub(super) inner: X,
    pub(super) keys: &'k mut KeyDigests,
}

impl<'de, S: DeserializeSeed<'de>> DeserializeSeed<'de> for Seen<'_, S> {
    type Value = S::Value;

    fn deserialize<D: Deserializer<'de>>(self, inner: D) -> Result<S::Value, D::Error> {
        self.inner.deserialize(Seen { inner, keys: self.keys })
    }
}

macro_rules! deserialize {
    ($($method:ident($($arg:ident: $type:ty),*);)*) => {$(
        fn $method<V: Visitor<'de>>(self, $($arg: $type,)* visitor: V) -> Result<V::Value, D::Error> {
            self.inner.$method($($arg,)* Seen { inner: visitor, keys: self.keys })
        }
    )*};
}

impl<'de, D: Deserializer<'de>> Deserializer<'de> for Seen<'_, D> {
    type Error = D::Error;

    deserialize! {
        deserialize_any();
        deserialize_bool();
        deserialize_i8();
        deserialize_i16();
        deserialize_i32();
        deserialize_i64();
        deserialize_i128();
        deserialize_u8();
        deserialize_u16();
        deserialize_u32();
        deserialize_u64();
        deserialize_u128();
        deserialize_f32();
        deserialize_f64();
        deserialize_char();
        deserialize_str();
        deserialize_string();
        deserialize_bytes();
        deserialize_byte_buf();
        deserialize_option();
        deserialize_unit();
        deserialize_unit_struct(name: &'static str);
        deserialize_newtype_struct(name: &'static str);
        deserialize_seq();
        deserialize_tuple(len: usize);
        deserialize_tuple_struct(name: &'static str, len: usize);
        deserialize_map();
        deserialize_struct(name: &'static str, fields: &'static [&'static str]);
        deserialize_enum(name: &'static str, variants: &'static [&'static str]);
        deserialize_identifier();
        deserialize_ignored_any();
    }

    fn is_human_readable(&self) -> bool {
        self.inner.is_human_readable()
    }
}

macro_rules! visit {
    ($($method:ident($value:ident: $type:ty) $text:expr;)*) => {$(
        fn $method<E: Error>(self, $value: $type) -> Result<V::Value, E> {
            let text = $text;
            if reserved::is_reserved(text) {
                return Err(reserved::error(text));
            }
            if !self.keys.add(text) {
                return Err(E::custom(format_args!("duplicate key `{text}`")));
            }
            self.inner.$method($value)
        }
    )*};
}

impl<'de, V: Visitor<'de>> Visitor<'de> for Seen<'_, V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.expecting(f)
    }

    visit! {
        visit_str(key: &str) key;
        visit_borrowed_str(key: &'de str) key;
        visit_string(key: String) &key;
        visit_bool(key: bool) if key { "true" } else { "false" };
        visit_i64(key: i64) &key.to_string();
        visit_i128(key: i128) &key.to_string();
        visit_u64(key: u64) &key.to_string();
        visit_u128(key: u128) &key.to_string();
        visit_f64(key: f64) &key.to_string();
        visit_bytes(key: &[u8]) &String::from_utf8_lossy(key);
        visit_borrowed_bytes(key: &'de [u8]) &String::from_utf8_lossy(key);
    }

    fn visit_none<E: Error>(self) -> Result<V::Value, E> {
        self.inner.visit_none()
    }

    fn visit_unit<E: Error>(self) -> Result<V::Value, E> {
        self.inner.visit_unit()
    }

    fn visit_some<D: Deserializer<'de>>(self, inner: D) -> Result<V::Value, D::Error> {
        self.inner.visit_some(Seen { inner, keys: self.keys })
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, inner: D) -> Result<V::Value, D::Error> {
        self.inner.visit_newtype_struct(Seen { inner, keys: self.keys })
    }

    fn visit_enum<A: EnumAccess<'de>>(self, variant: A) -> Result<V::Value, A::Error> {
        self.inner.visit_enum(Seen { inner: variant, keys: self.keys })
    }
}

impl<'de, A: EnumAccess<'de>> EnumAccess<'de> for Seen<'_, A> {
    type Error = A::Error;
    type Variant = A::Variant;

    fn variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<(S::Value, A::Variant), A::Error> {
        self.inner.variant_seed(Seen { inner: seed, keys: self.keys })
    }
}
