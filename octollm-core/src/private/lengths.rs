//! What `length` counts, and what `inner` is about.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap, HashSet, LinkedList, VecDeque},
    rc::Rc,
    sync::Arc,
};

use garde::{
    error::PathComponentKind,
    rules::{AsStr, length::simple::HasSimpleLength},
};

/// A length that has been counted.
#[derive(Debug)]
pub struct Measured(pub usize);

impl HasSimpleLength for Measured {
    fn length(&self) -> usize {
        self.0
    }
}

/// What has a length: characters of a text, items of a list, members of a map. `M` distinguishes the kinds.
pub trait Length<M> {
    /// `None` where nothing is there.
    fn octollm_length(&self) -> Option<Measured>;
}

/// Text.
#[derive(Debug)]
pub struct Text;
/// Text that garde takes for none.
#[derive(Debug)]
pub struct OwnedText;
/// Items, or members.
#[derive(Debug)]
pub struct Several;
/// What may be missing.
#[derive(Debug)]
pub struct Maybe<M>(M);

impl<T: AsStr> Length<Text> for T {
    fn octollm_length(&self) -> Option<Measured> {
        Some(Measured(self.as_str().chars().count()))
    }
}

macro_rules! texts {
    ($($text:ty),*) => {$(
        impl Length<OwnedText> for $text {
            fn octollm_length(&self) -> Option<Measured> {
                Some(Measured(self.chars().count()))
            }
        }
    )*};
}

texts!(Box<str>, Rc<str>, Arc<str>, &String);

macro_rules! several {
    ($([$($generics:tt)*] $several:ty),* $(,)?) => {$(
        impl<$($generics)*> Length<Several> for $several {
            fn octollm_length(&self) -> Option<Measured> {
                Some(Measured(self.len()))
            }
        }
    )*};
}

several!(
    [T] Vec<T>, [T] Box<[T]>, ['a, T] &'a [T], ['a, T] &'a Vec<T>, [T, const N: usize] [T; N],
    ['a, T, const N: usize] &'a [T; N], [T] VecDeque<T>, [T] LinkedList<T>, [T] BinaryHeap<T>, [T] BTreeSet<T>,
    [T, S] HashSet<T, S>, [K, V] BTreeMap<K, V>, [K, V, S] HashMap<K, V, S>,
    ['a, T: Clone] Cow<'a, [T]>,
);

impl<M, T: Length<M>> Length<Maybe<M>> for Option<T> {
    fn octollm_length(&self) -> Option<Measured> {
        self.as_ref().and_then(Length::octollm_length)
    }
}

/// A list or a map, also one that may be missing: what `inner` looks into.
pub trait Items<M> {
    /// What is in it.
    type Item;

    /// Passes each item, and its place.
    fn octollm_each(&self, each: &mut dyn FnMut(&Self::Item, &dyn Place));
}

/// A part of a path.
pub trait Place {
    /// The path to it.
    fn after(&self, path: garde::Path) -> garde::Path;
}

impl<P: PathComponentKind> Place for P {
    fn after(&self, path: garde::Path) -> garde::Path {
        path.join(self)
    }
}

macro_rules! lists {
    ($([$($generics:tt)*] $list:ty),* $(,)?) => {$(
        impl<$($generics)*> Items<Several> for $list {
            type Item = T;

            fn octollm_each(&self, each: &mut dyn FnMut(&T, &dyn Place)) {
                self.iter().enumerate().for_each(|(index, item)| each(item, &index));
            }
        }
    )*};
}

lists!(
    [T] Vec<T>, [T] Box<[T]>, ['a, T] &'a [T], [T, const N: usize] [T; N], [T] VecDeque<T>, [T] LinkedList<T>,
    [T] BinaryHeap<T>, [T] BTreeSet<T>, [T, S] HashSet<T, S>,
);

macro_rules! maps {
    ($([$($generics:tt)*] $map:ty),* $(,)?) => {$(
        impl<$($generics)*> Items<Several> for $map {
            type Item = V;

            fn octollm_each(&self, each: &mut dyn FnMut(&V, &dyn Place)) {
                self.iter().for_each(|(key, value)| each(value, &key));
            }
        }
    )*};
}

maps!([K: PathComponentKind, V] BTreeMap<K, V>, [K: PathComponentKind, V, S] HashMap<K, V, S>);

impl<M, T: Items<M>> Items<Maybe<M>> for Option<T> {
    type Item = T::Item;

    fn octollm_each(&self, each: &mut dyn FnMut(&T::Item, &dyn Place)) {
        if let Some(items) = self {
            items.octollm_each(each);
        }
    }
}
