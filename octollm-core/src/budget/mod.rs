//! Budgets and usage: tokens and money.

mod usage;

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::invalid::InvalidValue;

pub(crate) use self::usage::Ledger;
pub use self::usage::Usage;
pub(crate) use self::usage::is_zero;

/// An amount of money, exact to a billionth of a US dollar.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cost {
    nano_dollars: u64,
}

const NANO: u64 = 1_000_000_000;

impl Cost {
    /// No money.
    pub const ZERO: Self = Self { nano_dollars: 0 };

    /// An amount in billionths of a dollar.
    pub const fn from_nano_dollars(nano_dollars: u64) -> Self {
        Self { nano_dollars }
    }

    /// An amount in dollars, rounded to the nearest billionth.
    ///
    /// # Errors
    /// [`InvalidValue`] for NaN, a negative amount, or more than 18 billion dollars.
    pub fn from_dollars(dollars: f64) -> Result<Self, InvalidValue> {
        let nano_dollars = dollars * NANO as f64;
        // As many as there are, so that whatever was written as dollars is read again.
        if !(0.0..=u64::MAX as f64).contains(&nano_dollars) {
            return Err(INVALID);
        }
        Ok(Self { nano_dollars: nano_dollars.round() as u64 })
    }

    /// The amount in dollars, for display and JSON.
    pub fn dollars(self) -> f64 {
        self.nano_dollars as f64 / NANO as f64
    }

    /// The amount in billionths of a dollar.
    pub const fn nano_dollars(self) -> u64 {
        self.nano_dollars
    }
}

/// Dollars with as many digits as needed: `0.25`.
impl fmt::Display for Cost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, part) = (self.nano_dollars / NANO, self.nano_dollars % NANO);
        if part == 0 {
            return write!(f, "{whole}");
        }
        write!(f, "{whole}.{}", format!("{part:09}").trim_end_matches('0'))
    }
}

impl fmt::Debug for Cost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "${self}")
    }
}

impl FromStr for Cost {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (whole, part) = text.split_once('.').unwrap_or((text, "0"));
        let digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
        if !digits(whole) || !digits(part) {
            return Err(INVALID);
        }
        // Digits beyond the ninth are below what is counted: a limit only shrinks by leaving them out.
        let part = format!("{part:0<9}");
        let whole: u64 = whole.parse().map_err(|_| INVALID)?;
        let part: u64 = part[..9].parse().map_err(|_| INVALID)?;
        whole
            .checked_mul(NANO)
            .and_then(|nano| nano.checked_add(part))
            .map(Self::from_nano_dollars)
            .ok_or(INVALID)
    }
}

impl schemars::JsonSchema for Cost {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Cost".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": "number", "minimum": 0 })
    }
}

impl Serialize for Cost {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(self.dollars())
    }
}

impl<'de> Deserialize<'de> for Cost {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::from_dollars(f64::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

/// The tokens and the money that work may still use. `None` is no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Budget {
    /// Tokens left.
    pub tokens: Option<u64>,
    /// Money left.
    pub cost: Option<Cost>,
}

impl Budget {
    /// No limit at all.
    pub const UNLIMITED: Self = Self { tokens: None, cost: None };

    /// At most `tokens` tokens, at any cost.
    pub const fn tokens(tokens: u64) -> Self {
        Self { tokens: Some(tokens), cost: None }
    }

    /// At most `dollars`, for any number of tokens.
    ///
    /// # Errors
    /// [`InvalidValue`] for NaN, a negative amount, or more than 18 billion dollars.
    pub fn dollars(dollars: f64) -> Result<Self, InvalidValue> {
        Ok(Self { tokens: None, cost: Some(Cost::from_dollars(dollars)?) })
    }

    /// The budget that is left after `usage`; never below zero.
    #[must_use]
    pub fn after(self, usage: Usage) -> Self {
        let cost =
            |left: Cost| Cost::from_nano_dollars(left.nano_dollars.saturating_sub(usage.cost.nano_dollars));
        Self { tokens: self.tokens.map(|left| left.saturating_sub(usage.tokens)), cost: self.cost.map(cost) }
    }

    /// The lesser of both limits, for tokens and for money.
    #[must_use]
    pub fn within(self, other: Self) -> Self {
        Self { tokens: narrower(self.tokens, other.tokens), cost: narrower(self.cost, other.cost) }
    }

    /// Whether a limit is 0, so that nothing more may start.
    pub fn is_exhausted(self) -> bool {
        self.tokens == Some(0) || self.cost == Some(Cost::ZERO)
    }

    /// Whether there is no limit.
    pub fn is_unlimited(self) -> bool {
        self == Self::UNLIMITED
    }
}

/// The lesser of two limits, where there is one.
pub(crate) fn narrower<T: Ord>(a: Option<T>, b: Option<T>) -> Option<T> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

/// The header form: `tokens=100;cost_usd=0.5`; empty without limits.
impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.tokens, self.cost) {
            (Some(tokens), Some(cost)) => write!(f, "tokens={tokens};cost_usd={cost}"),
            (Some(tokens), None) => write!(f, "tokens={tokens}"),
            (None, Some(cost)) => write!(f, "cost_usd={cost}"),
            (None, None) => Ok(()),
        }
    }
}

/// Parses the header form. An unknown name is an error: a limit that is not known cannot be enforced.
impl FromStr for Budget {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut budget = Self::UNLIMITED;
        for (index, part) in text.split(';').enumerate() {
            let part = if index == 0 { part } else { part.trim_start_matches(' ') };
            let (name, value) = part.split_once('=').ok_or(INVALID)?;
            let twice = match name {
                "tokens" => {
                    if value.is_empty() || !value.bytes().all(|b| b.is_ascii_digit()) {
                        return Err(INVALID);
                    }
                    budget.tokens.replace(value.parse().map_err(|_| INVALID)?).is_some()
                }
                "cost_usd" => budget.cost.replace(value.parse()?).is_some(),
                _ => return Err(INVALID),
            };
            if twice {
                return Err(INVALID);
            }
        }
        Ok(budget)
    }
}

/// An amount that is negative, not a number, out of range, or given twice.
const INVALID: InvalidValue = InvalidValue::new("budget, such as `tokens=1000;cost_usd=0.5`");

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn budgets() -> impl Strategy<Value = Budget> {
        (any::<Option<u64>>(), any::<Option<u64>>())
            .prop_map(|(tokens, nano)| Budget { tokens, cost: nano.map(Cost::from_nano_dollars) })
    }

    fn usages() -> impl Strategy<Value = Usage> {
        (any::<u64>(), any::<u64>())
            .prop_map(|(tokens, nano)| Usage::tokens(tokens).with_cost(Cost::from_nano_dollars(nano)))
    }

    /// No limit counts as more than any.
    fn wider_or_equal(a: Budget, b: Budget) -> bool {
        let key = |x: Option<u64>| x.map_or(u128::MAX, u128::from);
        key(a.tokens) >= key(b.tokens)
            && key(a.cost.map(Cost::nano_dollars)) >= key(b.cost.map(Cost::nano_dollars))
    }

    proptest! {
        #[test]
        fn header_form_round_trips(budget in budgets()) {
            let read = budget.to_string().parse::<Budget>();
            prop_assert_eq!(read, if budget.is_unlimited() { Err(INVALID) } else { Ok(budget) });
        }

        #[test]
        fn a_budget_only_shrinks(budget in budgets(), other in budgets(), usage in usages()) {
            prop_assert!(wider_or_equal(budget, budget.after(usage)));
            prop_assert!(wider_or_equal(budget, budget.within(other)));
            prop_assert_eq!(budget.within(other), other.within(budget));
        }

        #[test]
        fn using_in_two_parts_is_using_at_once(budget in budgets(), a in usages(), b in usages()) {
            prop_assert_eq!(budget.after(a).after(b), budget.after(a.plus(b)));
        }

        #[test]
        fn whatever_is_written_as_json_is_read_again(nano in prop_oneof![any::<u64>(), Just(u64::MAX), (u64::MAX - 1_000_000_000)..u64::MAX]) {
            let text = serde_json::to_string(&Cost::from_nano_dollars(nano)).unwrap();
            let read: Cost = serde_json::from_str(&text).unwrap();
            prop_assert!(read.nano_dollars.abs_diff(nano) <= nano >> 50, "{text}");
        }

        #[test]
        fn any_header_is_read_or_refused(text in "\\PC{0,40}") {
            let _ = text.parse::<Budget>();
        }
    }

    #[test]
    fn refuses_what_is_no_amount() {
        for text in [
            "tokens=-1",
            "tokens=",
            "tokens=1e3",
            "cost_usd=NaN",
            "cost_usd=-0.1",
            "cost_usd=1.",
            "tokens",
            "tokens=1;tokens=2",
            "",
            ";",
            "token=1",
            "tokens=18446744073709551616",
            "cost_usd=99999999999999",
        ] {
            assert!(text.parse::<Budget>().is_err(), "{text}");
        }
        for dollars in [f64::NAN, f64::INFINITY, -0.01, 1e300] {
            assert!(Cost::from_dollars(dollars).is_err(), "{dollars}");
            assert_eq!(Budget::dollars(dollars), Err(INVALID), "{dollars}");
        }
    }
}
