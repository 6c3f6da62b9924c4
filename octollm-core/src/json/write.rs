//! Writing what goes out, strictly.
//!
//! serde_json alone writes `null` for a number that is infinite or NaN. The type on the other side would refuse it, or take
//! it for an absent value.

use std::cell::RefCell;

use serde::{
    Serialize,
    ser::{
        Error, SerializeMap, SerializeSeq, SerializeStruct, SerializeStructVariant, SerializeTuple,
        SerializeTupleStruct, SerializeTupleVariant, Serializer,
    },
};

use super::shape::join;
use crate::{
    contract::Violation,
    error::{ErrorKind, Failure},
};

/// Writes a value as JSON, strictly: every number is a number.
///
/// # Errors
/// [`ErrorKind::ValidationFailed`], with the path of a number that is infinite or NaN; also where a type refuses to be
/// written.
pub fn write<T: Serialize + ?Sized>(value: &T) -> Result<Vec<u8>, Failure> {
    try_write(value).map_err(|error| error.0)
}

/// The same, with the cause of a failure for the log.
pub(crate) fn try_write<T: Serialize + ?Sized>(
    value: &T,
) -> Result<Vec<u8>, Box<(Failure, serde_json::Error)>> {
    let mut bytes = Vec::with_capacity(USUAL);
    let fault = FaultPath::default();
    match value.serialize(Strict { inner: &mut serde_json::Serializer::new(&mut bytes), fault: &fault }) {
        Ok(()) => Ok(bytes),
        Err(cause) => Err(Box::new((unwritable(fault.0.into_inner()), cause))),
    }
}

/// The failure of a value that JSON cannot hold: at `path` is a number that is infinite or NaN.
fn unwritable(path: Option<String>) -> Failure {
    let Some(path) = path else {
        return Failure::new(ErrorKind::ValidationFailed, "the value has no JSON form");
    };
    let subject = if path.is_empty() { "the value" } else { &path };
    let message = format!("{subject} is infinite or not a number");
    let violations = vec![Violation::new(path, "is infinite or not a number")];
    Failure { message, ..Failure::invalid(violations) }
}

/// Room for the JSON of most inputs and outputs, in bytes.
const USUAL: usize = 1024;

/// Where a number was none; built from the inside out, and only then.
#[derive(Default)]
struct FaultPath(RefCell<Option<String>>);

impl FaultPath {
    fn at<T, E>(&self, result: Result<T, E>, segment: impl FnOnce() -> Option<String>) -> Result<T, E> {
        if result.is_err()
            && let Some(path) = self.0.borrow_mut().as_mut()
            && let Some(segment) = segment()
        {
            *path = match path.as_str() {
                "" => segment,
                rest if rest.starts_with('[') => segment + rest,
                rest => join(&segment, rest),
            };
        }
        result
    }
}

/// Wraps a serializer, what it hands out, and the values that it is given.
struct Strict<'f, X> {
    inner: X,
    fault: &'f FaultPath,
}

impl<'f, X> Strict<'f, X> {
    fn none<T, E: Error>(&self) -> Result<T, E> {
        *self.fault.0.borrow_mut() = Some(String::new());
        Err(E::custom("a number that is infinite or NaN"))
    }
}

/// A list or an object that is being written.
struct Compound<'f, X> {
    inner: X,
    fault: &'f FaultPath,
    /// How many items it has so far.
    count: usize,
    /// What it is in, where it is the content of an enum's variant.
    variant: Option<&'static str>,
}

impl<X> Compound<'_, X> {
    /// Notes where an item is whose number is none.
    fn noted<T, E>(&self, result: Result<T, E>, segment: impl FnOnce() -> Option<String>) -> Result<T, E> {
        let result = self.fault.at(result, segment);
        match self.variant {
            Some(variant) => self.fault.at(result, || Some(variant.to_owned())),
            None => result,
        }
    }
}

impl<T: Serialize + ?Sized> Serialize for Strict<'_, &T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.inner.serialize(Strict { inner: serializer, fault: self.fault })
    }
}

macro_rules! plain {
    ($($method:ident($($arg:ident: $type:ty),*);)*) => {$(
        fn $method(self, $($arg: $type),*) -> Result<S::Ok, S::Error> {
            self.inner.$method($($arg),*)
        }
    )*};
}

macro_rules! compound {
    ($($method:ident($($arg:ident: $type:ty),*) -> $kind:ident;)*) => {$(
        fn $method(self, $($arg: $type),*) -> Result<Self::$kind, S::Error> {
            Ok(Compound { inner: self.inner.$method($($arg),*)?, fault: self.fault, count: 0, variant: None })
        }
    )*};
}

impl<'f, S: Serializer> Serializer for Strict<'f, S> {
    type Ok = S::Ok;
    type Error = S::Error;
    type SerializeSeq = Compound<'f, S::SerializeSeq>;
    type SerializeTuple = Compound<'f, S::SerializeTuple>;
    type SerializeTupleStruct = Compound<'f, S::SerializeTupleStruct>;
    type SerializeTupleVariant = Compound<'f, S::SerializeTupleVariant>;
    type SerializeMap = Compound<'f, S::SerializeMap>;
    type SerializeStruct = Compound<'f, S::SerializeStruct>;
    type SerializeStructVariant = Compound<'f, S::SerializeStructVariant>;

    plain! {
        serialize_bool(value: bool);
        serialize_i8(value: i8);
        serialize_i16(value: i16);
        serialize_i32(value: i32);
        serialize_i64(value: i64);
        serialize_i128(value: i128);
        serialize_u8(value: u8);
        serialize_u16(value: u16);
        serialize_u32(value: u32);
        serialize_u64(value: u64);
        serialize_u128(value: u128);
        serialize_char(value: char);
        serialize_str(value: &str);
        serialize_bytes(value: &[u8]);
        serialize_none();
        serialize_unit();
        serialize_unit_struct(name: &'static str);
        serialize_unit_variant(name: &'static str, index: u32, variant: &'static str);
    }

    compound! {
        serialize_seq(len: Option<usize>) -> SerializeSeq;
        serialize_tuple(len: usize) -> SerializeTuple;
        serialize_tuple_struct(name: &'static str, len: usize) -> SerializeTupleStruct;
        serialize_map(len: Option<usize>) -> SerializeMap;
        serialize_struct(name: &'static str, len: usize) -> SerializeStruct;
    }

    fn serialize_tuple_variant(
        self,
        name: &'static str,
        index: u32,
        variant: &'static str,
        len: usize,
    ) -> Result<Self::SerializeTupleVariant, S::Error> {
        let inner = self.inner.serialize_tuple_variant(name, index, variant, len)?;
        Ok(Compound { inner, fault: self.fault, count: 0, variant: Some(variant) })
    }

    fn serialize_struct_variant(
        self,
        name: &'static str,
        index: u32,
        variant: &'static str,
        len: usize,
    ) -> Result<Self::SerializeStructVariant, S::Error> {
        let inner = self.inner.serialize_struct_variant(name, index, variant, len)?;
        Ok(Compound { inner, fault: self.fault, count: 0, variant: Some(variant) })
    }

    fn serialize_f32(self, value: f32) -> Result<S::Ok, S::Error> {
        if value.is_finite() { self.inner.serialize_f32(value) } else { self.none() }
    }

    fn serialize_f64(self, value: f64) -> Result<S::Ok, S::Error> {
        if value.is_finite() { self.inner.serialize_f64(value) } else { self.none() }
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<S::Ok, S::Error> {
        self.inner.serialize_some(&Strict { inner: value, fault: self.fault })
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        name: &'static str,
        value: &T,
    ) -> Result<S::Ok, S::Error> {
        self.inner.serialize_newtype_struct(name, &Strict { inner: value, fault: self.fault })
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        name: &'static str,
        index: u32,
        variant: &'static str,
        value: &T,
    ) -> Result<S::Ok, S::Error> {
        let value = Strict { inner: value, fault: self.fault };
        let written = self.inner.serialize_newtype_variant(name, index, variant, &value);
        self.fault.at(written, || Some(variant.to_owned()))
    }

    fn is_human_readable(&self) -> bool {
        self.inner.is_human_readable()
    }
}

macro_rules! items {
    ($($trait:ident::$method:ident;)*) => {$(
        impl<X: $trait> $trait for Compound<'_, X> {
            type Ok = X::Ok;
            type Error = X::Error;

            fn $method<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), X::Error> {
                let (index, fault) = (self.count, self.fault);
                self.count += 1;
                let written = self.inner.$method(&Strict { inner: value, fault });
                self.noted(written, || Some(format!("[{index}]")))
            }

            fn end(self) -> Result<X::Ok, X::Error> {
                self.inner.end()
            }
        }
    )*};
}

items! {
    SerializeSeq::serialize_element;
    SerializeTuple::serialize_element;
    SerializeTupleStruct::serialize_field;
    SerializeTupleVariant::serialize_field;
}

macro_rules! fields {
    ($($trait:ident)*) => {$(
        impl<X: $trait> $trait for Compound<'_, X> {
            type Ok = X::Ok;
            type Error = X::Error;

            fn serialize_field<T: Serialize + ?Sized>(&mut self, key: &'static str, value: &T) -> Result<(), X::Error> {
                let fault = self.fault;
                let written = self.inner.serialize_field(key, &Strict { inner: value, fault });
                self.noted(written, || Some(key.to_owned()))
            }

            fn end(self) -> Result<X::Ok, X::Error> {
                self.inner.end()
            }
        }
    )*};
}

fields!(SerializeStruct SerializeStructVariant);

impl<X: SerializeMap> SerializeMap for Compound<'_, X> {
    type Ok = X::Ok;
    type Error = X::Error;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), X::Error> {
        self.inner.serialize_key(key)
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), X::Error> {
        self.inner.serialize_value(&Strict { inner: value, fault: self.fault })
    }

    fn serialize_entry<K: Serialize + ?Sized, V: Serialize + ?Sized>(
        &mut self,
        key: &K,
        value: &V,
    ) -> Result<(), X::Error> {
        let fault = self.fault;
        fault.at(self.inner.serialize_entry(key, &Strict { inner: value, fault }), || {
            serde_json::to_value(key)
                .ok()
                .map(|key| key.as_str().map_or_else(|| key.to_string(), str::to_owned))
        })
    }

    fn end(self) -> Result<X::Ok, X::Error> {
        self.inner.end()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use serde_json::{Value, json, value::RawValue};

    use super::*;

    #[derive(Serialize)]
    enum Shape {
        Circle { radius: f32 },
        Line(f64, f64),
        Point(f64),
        Nothing,
    }

    #[derive(Serialize)]
    struct Drawing<'a> {
        #[serde(flatten)]
        rest: BTreeMap<&'a str, f64>,
        shapes: Vec<Shape>,
        raw: Box<RawValue>,
        pair: (u128, Option<f64>),
    }

    fn drawing(shapes: Vec<Shape>) -> Drawing<'static> {
        let raw = RawValue::from_string("[1.50]".into()).unwrap();
        Drawing { rest: BTreeMap::new(), shapes, raw, pair: (u128::MAX, Some(0.5)) }
    }

    fn path<T: Serialize>(value: &T) -> Option<String> {
        write(value).unwrap_err().violations.first().map(|violation| violation.path.clone())
    }

    #[test]
    fn a_number_that_is_none_is_named() {
        assert_eq!(path(&f64::NAN).as_deref(), Some(""));
        assert_eq!(path(&[[0.0], [f32::INFINITY]]).as_deref(), Some("[1][0]"));
        assert_eq!(path(&BTreeMap::from([("a", Some(f64::NAN))])).as_deref(), Some("a"));
        for (shape, expected) in [
            (Shape::Circle { radius: f32::NAN }, "shapes[1].Circle.radius"),
            (Shape::Line(0.0, f64::NEG_INFINITY), "shapes[1].Line[1]"),
            (Shape::Point(f64::NAN), "shapes[1].Point"),
        ] {
            assert_eq!(path(&drawing(vec![Shape::Nothing, shape])).as_deref(), Some(expected));
        }
        let mut flattened = drawing(Vec::new());
        flattened.rest.insert("score", f64::NAN);
        assert_eq!(path(&flattened).as_deref(), Some("score"));
        flattened.rest.clear();
        flattened.pair.1 = Some(f64::NAN);
        assert_eq!(path(&flattened).as_deref(), Some("pair[1]"));
        assert_eq!(write(&flattened).unwrap_err().to_string(), "pair[1] is infinite or not a number");
    }

    #[test]
    fn what_refuses_to_be_written_is_another_fault() {
        let map = BTreeMap::from([((1, 2), 3)]);
        let error = write(&map).unwrap_err();
        assert_eq!((error.violations.len(), &*error.to_string()), (0, "the value has no JSON form"));
    }

    #[test]
    fn all_else_is_written_as_serde_json_does() {
        let shapes =
            vec![Shape::Circle { radius: 1.5 }, Shape::Line(0.0, -1e300), Shape::Point(0.1), Shape::Nothing];
        let value = drawing(shapes);
        assert_eq!(write(&value).unwrap(), serde_json::to_vec(&value).unwrap());
        assert!(String::from_utf8(write(&value).unwrap()).unwrap().contains(&u128::MAX.to_string()));
    }

    proptest! {
        #[test]
        fn numbers_and_texts_are_written_as_serde_json_does(
            numbers in prop::collection::vec(any::<f64>(), 0..5), text in "\\PC{0,20}", big: i128,
        ) {
            let value = (numbers.clone(), json!({ text.clone(): [text, Value::Null, true] }), big);
            match write(&value) {
                Ok(bytes) => prop_assert_eq!(bytes, serde_json::to_vec(&value).unwrap()),
                Err(error) => {
                    let first = numbers.iter().position(|number| !number.is_finite());
                    prop_assert_eq!(error.violations.first().map(|it| it.path.clone()), first.map(|index| format!("[0][{index}]")));
                }
            }
        }
    }
}
