//! A deserializer that watches what a type takes from another one.
//!
//! For a plain struct of plain fields, serde and serde_json refuse on their own all that is to be refused: the watch
//! then costs a flag, and the text is not read again. The notes record when it has to be.

use std::fmt::{self, Write};

use serde::de::{
    DeserializeSeed, Deserializer, EnumAccess, Expected, IgnoredAny, MapAccess, SeqAccess, Unexpected,
    VariantAccess, Visitor,
};

use super::{
    keys::{KeyDigests, Seen},
    notes::{Integer, Notes},
};

macro_rules! visit {
    ($($method:ident($($value:ident: $type:ty)?);)*) => {$(
        fn $method<E: serde::de::Error>(self, $($value: $type)?) -> Result<V::Value, E> {
            self.inner.$method($($value)?)
        }
    )*};
}

/// Where a value is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Position {
    Root,
    Within,
    /// In a map, or in what a type takes whatever it is. Only this finds a key that is there twice.
    InMap,
    /// In a `serde_json::Value`, which takes all there is.
    InAnyValue,
    /// In what is set aside until it is known what it is. An integer is due there, or any number.
    Aside,
    /// In an `f32`, which would take a number beyond its range for infinity.
    InF32,
}

/// Wraps a deserializer, and everything that it hands out.
pub(super) struct Watch<'n, X> {
    inner: X,
    notes: &'n Notes,
    position: Position,
}

impl<'n, X> Watch<'n, X> {
    pub(super) fn new(inner: X, notes: &'n Notes) -> Self {
        Self { inner, notes, position: Position::Root }
    }

    /// For what is no input: a unit struct is not read from an object.
    pub(super) fn of_output(inner: X, notes: &'n Notes) -> Self {
        Self { inner, notes, position: Position::Within }
    }

    /// Something within what is watched here.
    fn hand_out<Y>(&self, inner: Y) -> Watch<'n, Y> {
        let position =
            if self.position == Position::InAnyValue { Position::InAnyValue } else { Position::Within };
        Watch { inner, notes: self.notes, position }
    }

    /// Looks at what a type asks for. The names that serde passes show what it is going to do with it.
    fn asks_freely<'de, V: Visitor<'de>>(&self, visitor: &V) -> Position {
        if self.position == Position::InAnyValue {
            return Position::InAnyValue;
        }
        let mut words = Words { text: [0; 22], length: 0 };
        let _ = write!(words, "{}", visitor as &dyn Expected);
        let words = &words.text[..words.length];
        if words == b"any valid JSON value" {
            return Position::InAnyValue;
        }
        let aside: [&[u8]; 3] = [b"any value", b"struct ", b"internally tagged enum"];
        if aside.iter().any(|aside| words.starts_with(aside)) {
            self.notes.set_aside.set(true);
            return Position::Aside;
        }
        Position::InMap
    }
}

/// The first bytes of what is written.
struct Words {
    text: [u8; 22],
    length: usize,
}

impl Write for Words {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = &mut self.text[self.length..];
        let taken = room.len().min(text.len());
        room[..taken].copy_from_slice(&text.as_bytes()[..taken]);
        self.length += taken;
        Ok(())
    }
}

macro_rules! deserialize {
    ($($method:ident($($arg:ident: $type:ty),*) $(=> $note:ident)?;)*) => {$(
        fn $method<V: Visitor<'de>>(self, $($arg: $type,)* visitor: V) -> Result<V::Value, D::Error> {
            $(self.notes.$note.set(true);)?
            let visitor = self.hand_out(visitor);
            self.inner.$method($($arg,)* visitor)
        }
    )*};
}

macro_rules! integers {
    ($($method:ident, $is_wide:literal;)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
            let visitor = Integer { inner: visitor, notes: self.notes, is_wide: $is_wide };
            if $is_wide && self.notes.inexact.get().is_some() {
                return visitor.read(self.inner);
            }
            self.inner.$method(visitor)
        }
    )*};
}

impl<'de, D: Deserializer<'de>> Deserializer<'de> for Watch<'_, D> {
    type Error = D::Error;

    deserialize! {
        deserialize_bool();
        deserialize_f64();
        deserialize_char();
        deserialize_str();
        deserialize_string();
        deserialize_bytes() => unread;
        deserialize_byte_buf() => unread;
        deserialize_option();
        deserialize_unit();
        deserialize_seq();
        deserialize_tuple(len: usize);
        deserialize_tuple_struct(name: &'static str, len: usize);
        deserialize_enum(name: &'static str, variants: &'static [&'static str]);
        deserialize_identifier();
        deserialize_ignored_any() => ignored;
    }

    integers! {
        deserialize_i8, false;
        deserialize_i16, false;
        deserialize_i32, false;
        deserialize_i64, false;
        deserialize_i128, true;
        deserialize_u8, false;
        deserialize_u16, false;
        deserialize_u32, false;
        deserialize_u64, false;
        deserialize_u128, true;
    }

    fn deserialize_f32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        let visitor = Watch { inner: visitor, notes: self.notes, position: Position::InF32 };
        self.inner.deserialize_f32(visitor)
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        let position = self.asks_freely(&visitor);
        self.inner.deserialize_any(Watch { inner: visitor, notes: self.notes, position })
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        let position = self.asks_freely(&visitor);
        self.inner.deserialize_map(Watch { inner: visitor, notes: self.notes, position })
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        if self.position == Position::Root {
            let visitor = self.hand_out(Memberless(visitor));
            return self.inner.deserialize_any(visitor);
        }
        let visitor = self.hand_out(visitor);
        self.inner.deserialize_unit_struct(name, visitor)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        // serde_json asks for raw text by a name of its own.
        if name.starts_with('$') {
            self.notes.unread.set(true);
        }
        let visitor = Watch { inner: visitor, notes: self.notes, position: self.position };
        self.inner.deserialize_newtype_struct(name, visitor)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        let visitor = Object(self.hand_out(visitor));
        self.inner.deserialize_struct(name, fields, visitor)
    }

    fn is_human_readable(&self) -> bool {
        self.inner.is_human_readable()
    }
}

/// Takes a struct from an object alone. serde would take one from an array too, by the order of its fields, which no
/// schema tells.
struct Object<V>(V);

impl<'de, V: Visitor<'de>> Visitor<'de> for Object<V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.expecting(f)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<V::Value, A::Error> {
        self.0.visit_map(map)
    }
}

/// Takes a unit struct from an object without members: the input of a contract is an object.
struct Memberless<V>(V);

impl<'de, V: Visitor<'de>> Visitor<'de> for Memberless<V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object without members")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<V::Value, A::Error> {
        while map.next_key::<IgnoredAny>()?.is_some() {
            map.next_value::<IgnoredAny>()?;
        }
        self.0.visit_unit()
    }
}

impl<'de, V: Visitor<'de>> Visitor<'de> for Watch<'_, V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.expecting(f)
    }

    visit! {
        visit_bool(value: bool);
        visit_i8(value: i8);
        visit_i16(value: i16);
        visit_i32(value: i32);
        visit_i64(value: i64);
        visit_i128(value: i128);
        visit_u8(value: u8);
        visit_u16(value: u16);
        visit_u32(value: u32);
        visit_u64(value: u64);
        visit_u128(value: u128);
        visit_f32(value: f32);
        visit_char(value: char);
        visit_str(value: &str);
        visit_borrowed_str(value: &'de str);
        visit_string(value: String);
        visit_bytes(value: &[u8]);
        visit_borrowed_bytes(value: &'de [u8]);
        visit_byte_buf(value: Vec<u8>);
        visit_none();
        visit_unit();
    }

    fn visit_f64<E: serde::de::Error>(self, float: f64) -> Result<V::Value, E> {
        if self.position == Position::InF32 && (float as f32).is_infinite() {
            return Err(E::invalid_value(Unexpected::Float(float), &"an f32"));
        }
        let whole = if self.position == Position::Aside { self.notes.whole(float) } else { None };
        match whole {
            None => self.inner.visit_f64(float),
            Some(whole) => whole.visit(self.inner, |visitor, _| visitor.visit_f64(float)),
        }
    }

    fn visit_some<D: Deserializer<'de>>(self, inner: D) -> Result<V::Value, D::Error> {
        let inner = self.hand_out(inner);
        self.inner.visit_some(inner)
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, inner: D) -> Result<V::Value, D::Error> {
        let inner = self.hand_out(inner);
        self.inner.visit_newtype_struct(inner)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, items: A) -> Result<V::Value, A::Error> {
        let items = self.hand_out(items);
        self.inner.visit_seq(items)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<V::Value, A::Error> {
        // With whole floats, the keys have been compared before.
        let is_new = self.notes.inexact.get().is_none();
        let looks =
            is_new && matches!(self.position, Position::InMap | Position::Aside | Position::InAnyValue);
        let map = WatchedMembers { inner: self.hand_out(map), keys: looks.then(KeyDigests::default) };
        self.inner.visit_map(map)
    }

    fn visit_enum<A: EnumAccess<'de>>(self, variant: A) -> Result<V::Value, A::Error> {
        let variant = self.hand_out(variant);
        self.inner.visit_enum(variant)
    }
}

impl<'de, S: DeserializeSeed<'de>> DeserializeSeed<'de> for Watch<'_, S> {
    type Value = S::Value;

    fn deserialize<D: Deserializer<'de>>(self, inner: D) -> Result<S::Value, D::Error> {
        let inner = self.hand_out(inner);
        self.inner.deserialize(inner)
    }
}

impl<'de, A: SeqAccess<'de>> SeqAccess<'de> for Watch<'_, A> {
    type Error = A::Error;

    fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, A::Error> {
        let seed = self.hand_out(seed);
        self.inner.next_element_seed(seed)
    }

    fn size_hint(&self) -> Option<usize> {
        self.inner.size_hint()
    }
}

/// The members of an object.
struct WatchedMembers<'n, A> {
    inner: Watch<'n, A>,
    /// Where a key that is there twice has to be found here; a struct finds it by itself.
    keys: Option<KeyDigests>,
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for WatchedMembers<'_, A> {
    type Error = A::Error;

    // Keys are text and have nothing to watch but that they differ.
    fn next_key_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, A::Error> {
        match &mut self.keys {
            Some(keys) => self.inner.inner.next_key_seed(Seen { inner: seed, keys }),
            None => self.inner.inner.next_key_seed(seed),
        }
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, A::Error> {
        let seed = self.inner.hand_out(seed);
        self.inner.inner.next_value_seed(seed)
    }

    fn size_hint(&self) -> Option<usize> {
        self.inner.inner.size_hint()
    }
}

impl<'de, 'n, A: EnumAccess<'de>> EnumAccess<'de> for Watch<'n, A> {
    type Error = A::Error;
    type Variant = Watch<'n, A::Variant>;

    fn variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<(S::Value, Self::Variant), A::Error> {
        let (notes, position) = (self.notes, self.position);
        let (name, variant) = self.inner.variant_seed(seed)?;
        Ok((name, Watch { inner: variant, notes, position }))
    }
}

impl<'de, A: VariantAccess<'de>> VariantAccess<'de> for Watch<'_, A> {
    type Error = A::Error;

    fn unit_variant(self) -> Result<(), A::Error> {
        self.inner.unit_variant()
    }

    fn newtype_variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<S::Value, A::Error> {
        let seed = self.hand_out(seed);
        self.inner.newtype_variant_seed(seed)
    }

    fn tuple_variant<V: Visitor<'de>>(self, len: usize, visitor: V) -> Result<V::Value, A::Error> {
        let visitor = self.hand_out(visitor);
        self.inner.tuple_variant(len, visitor)
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, A::Error> {
        let visitor = self.hand_out(visitor);
        self.inner.struct_variant(fields, visitor)
    }
}
