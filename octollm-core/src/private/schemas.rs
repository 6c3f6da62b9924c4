//! Which rules a type adds to a schema.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap, HashSet, LinkedList, VecDeque},
    marker::PhantomData,
    rc::Rc,
    sync::Arc,
};

use serde_json::Value;

use crate::contract::{RangeEnd, SchemaRules};

/// A type whose rules are known.
pub trait HasSchemaRules {
    /// Adds its rules to a schema.
    fn octollm_schema_rules(rules: &mut SchemaRules);
}

macro_rules! same {
    ($([$($generics:tt)*] $type:ty => $inner:ty),* $(,)?) => {$(
        impl<$($generics)*> HasSchemaRules for $type {
            fn octollm_schema_rules(rules: &mut SchemaRules) {
                <$inner as HasSchemaRules>::octollm_schema_rules(rules);
            }
        }
    )*};
}

same!(
    ['a, T: HasSchemaRules + ?Sized] &'a T => T,
    [T: HasSchemaRules + ?Sized] Box<T> => T,
    [T: HasSchemaRules + ?Sized] Rc<T> => T,
    [T: HasSchemaRules + ?Sized] Arc<T> => T,
    ['a, T: HasSchemaRules + ToOwned + ?Sized] Cow<'a, T> => T,
);

impl<T: HasSchemaRules> HasSchemaRules for Option<T> {
    fn octollm_schema_rules(rules: &mut SchemaRules) {
        rules.present(&mut T::octollm_schema_rules);
    }
}

macro_rules! each {
    ($([$($generics:tt)*] $type:ty),* $(,)?) => {$(
        impl<$($generics)*> HasSchemaRules for $type {
            fn octollm_schema_rules(rules: &mut SchemaRules) {
                rules.each(&mut T::octollm_schema_rules);
            }
        }
    )*};
}

each!(
    [T: HasSchemaRules] Vec<T>, [T: HasSchemaRules] [T], [T: HasSchemaRules, const N: usize] [T; N],
    [T: HasSchemaRules] VecDeque<T>, [T: HasSchemaRules] LinkedList<T>, [T: HasSchemaRules] BinaryHeap<T>,
    [T: HasSchemaRules] BTreeSet<T>, [T: HasSchemaRules, S] HashSet<T, S>, [K, T: HasSchemaRules] BTreeMap<K, T>,
    [K, T: HasSchemaRules, S] HashMap<K, T, S>,
);

/// `garde` checks it, and finds nothing.
impl HasSchemaRules for () {
    fn octollm_schema_rules(_: &mut SchemaRules) {}
}

/// Chooses between the rules of a type that are known, those that are not, and none.
#[derive(Debug)]
pub struct OwnSchema<T: ?Sized>(PhantomData<T>);

impl<T: ?Sized> OwnSchema<T> {
    pub fn of() -> Self {
        Self(PhantomData)
    }
}

/// The first choice: this project's derive.
pub trait RuledByDerive {
    fn octollm_add(&self, rules: &mut SchemaRules);
}

/// The second choice: a `Validate` by hand, or by garde's own derive.
pub trait RuledByHand {
    fn octollm_add(&self, rules: &mut SchemaRules);
}

/// The last choice.
pub trait NotRuled {
    fn octollm_add(&self, rules: &mut SchemaRules);
}

impl<T: HasSchemaRules + garde::Validate<Context: Default> + ?Sized> RuledByDerive for &OwnSchema<T> {
    fn octollm_add(&self, rules: &mut SchemaRules) {
        T::octollm_schema_rules(rules);
    }
}

impl<T: garde::Validate + ?Sized> RuledByHand for &&OwnSchema<T> {
    fn octollm_add(&self, rules: &mut SchemaRules) {
        rules.described();
        rules.skip();
    }
}

impl<T: ?Sized> NotRuled for OwnSchema<T> {
    fn octollm_add(&self, rules: &mut SchemaRules) {
        rules.unruled();
    }
}

/// One end of a range, as a rule has it.
#[derive(Debug)]
pub struct AnyNumber<T>(pub T);

/// The choice for numbers that JSON values hold.
pub trait Number {
    fn octollm_end(&self) -> RangeEnd;
}

/// The choice for others.
pub trait NoNumber {
    fn octollm_end(&self) -> RangeEnd;
}

impl<T: Into<Value> + Clone> Number for AnyNumber<T> {
    fn octollm_end(&self) -> RangeEnd {
        RangeEnd::At(self.0.clone().into())
    }
}

impl<T> NoNumber for &AnyNumber<T> {
    fn octollm_end(&self) -> RangeEnd {
        RangeEnd::Unknown
    }
}
