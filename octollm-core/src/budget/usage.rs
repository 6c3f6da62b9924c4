//! The usage of work: tokens and money.

use std::{
    fmt,
    str::FromStr,
    sync::{Mutex, PoisonError},
};

use serde::{Deserialize, Serialize};

use super::Cost;
use crate::invalid::InvalidValue;

/// The tokens and the money that work used.
///
/// A call whose usage was not reported is *unmetered*: it counts in [`unmetered`](Self::unmetered), because an absent
/// usage is not zero. What a [`Budget`](super::Budget) limits is the total of tokens and the cost; the other members are for reports.
///
/// ```
/// use octollm_core::budget::{Cost, Usage};
///
/// let used = Usage::metered(900, 100).with_cached(800).with_cost(Cost::from_dollars(0.0025)?);
/// assert_eq!(used.tokens, 1_000);
/// assert_eq!(used.to_string(), "tokens=1000;cost_usd=0.0025;input=900;output=100;cached=800");
/// # Ok::<(), octollm_core::error::InvalidValue>(())
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Usage {
    /// Tokens in total.
    #[serde(default)]
    pub tokens: u64,
    /// Their cost.
    #[serde(default)]
    pub cost: Cost,
    /// Input tokens, as far as they are known; part of `tokens`.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub input: u64,
    /// Output tokens, as far as they are known; part of `tokens`.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub output: u64,
    /// Input tokens from a cache; part of `input`.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub cached: u64,
    /// Calls whose usage was not reported.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub unmetered: u64,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
pub(crate) fn is_zero(count: &u64) -> bool {
    *count == 0
}

impl Usage {
    /// No usage.
    pub const ZERO: Self = Self { tokens: 0, cost: Cost::ZERO, input: 0, output: 0, cached: 0, unmetered: 0 };

    /// One unmetered call.
    pub const UNMETERED: Self = Self { unmetered: 1, ..Self::ZERO };

    /// `tokens` tokens that cost nothing.
    pub const fn tokens(tokens: u64) -> Self {
        Self { tokens, ..Self::ZERO }
    }

    /// Input and output tokens: their sum is the total.
    pub const fn metered(input: u64, output: u64) -> Self {
        Self { tokens: input.saturating_add(output), input, output, ..Self::ZERO }
    }

    /// Sets the cost.
    #[must_use]
    pub const fn with_cost(mut self, cost: Cost) -> Self {
        self.cost = cost;
        self
    }

    /// Sets how many of the input tokens came from a cache.
    #[must_use]
    pub const fn with_cached(mut self, cached: u64) -> Self {
        self.cached = cached;
        self
    }

    /// The sum of both; a member that would overflow stays at its maximum.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self {
            tokens: self.tokens.saturating_add(other.tokens),
            cost: Cost::from_nano_dollars(self.cost.nano_dollars().saturating_add(other.cost.nano_dollars())),
            input: self.input.saturating_add(other.input),
            output: self.output.saturating_add(other.output),
            cached: self.cached.saturating_add(other.cached),
            unmetered: self.unmetered.saturating_add(other.unmetered),
        }
    }

    /// The difference of both; a member that would be negative is 0.
    pub(crate) const fn minus(self, other: Self) -> Self {
        Self {
            tokens: self.tokens.saturating_sub(other.tokens),
            cost: Cost::from_nano_dollars(self.cost.nano_dollars().saturating_sub(other.cost.nano_dollars())),
            input: self.input.saturating_sub(other.input),
            output: self.output.saturating_sub(other.output),
            cached: self.cached.saturating_sub(other.cached),
            unmetered: self.unmetered.saturating_sub(other.unmetered),
        }
    }

    /// Whether nothing was used and every call reported so.
    pub fn is_zero(self) -> bool {
        self == Self::ZERO
    }
}

/// The header form: `tokens=120;cost_usd=0.0025`, then `input=…;output=…;cached=…;unmetered=…`, each where it is not 0.
impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tokens={};cost_usd={}", self.tokens, self.cost)?;
        let rest = [
            ("input", self.input),
            ("output", self.output),
            ("cached", self.cached),
            ("unmetered", self.unmetered),
        ];
        rest.iter().filter(|(_, count)| *count > 0).try_for_each(|(name, count)| write!(f, ";{name}={count}"))
    }
}

/// Parses the header form. A count may be written as other stacks print whole numbers, such as `10.0`. Members may be
/// absent, and unknown ones are ignored, so that later versions can add some; but at least one known member has to be
/// there.
impl FromStr for Usage {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (mut tokens, mut cost) = (None, None);
        let (mut input, mut output, mut cached, mut unmetered) = (None, None, None, None);
        for part in text.split(';').map(str::trim).filter(|part| !part.is_empty()) {
            let (name, value) = part.split_once('=').ok_or(INVALID)?;
            let slot = match name {
                "cost_usd" => {
                    let read = value.parse().map_err(|_| INVALID)?;
                    if cost.replace(read).is_some() {
                        return Err(INVALID);
                    }
                    continue;
                }
                "tokens" => &mut tokens,
                "input" => &mut input,
                "output" => &mut output,
                "cached" => &mut cached,
                "unmetered" => &mut unmetered,
                _ => continue,
            };
            if slot.replace(count(value).ok_or(INVALID)?).is_some() {
                return Err(INVALID);
            }
        }
        if cost.is_none() && [tokens, input, output, cached, unmetered].iter().all(Option::is_none) {
            return Err(INVALID);
        }
        let (input, output) = (input.unwrap_or(0), output.unwrap_or(0));
        Ok(Self {
            // Where only the parts are there, the total follows.
            tokens: tokens.unwrap_or(input.saturating_add(output)),
            cost: cost.unwrap_or_default(),
            input,
            output,
            cached: cached.unwrap_or(0),
            unmetered: unmetered.unwrap_or(0),
        })
    }
}

/// A count: digits, and after a point nothing but zeros.
fn count(text: &str) -> Option<u64> {
    let (whole, part) = text.split_once('.').unwrap_or((text, "0"));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    (digits(whole) && digits(part) && part.bytes().all(|b| b == b'0')).then(|| whole.parse().ok())?
}

/// A usage without any known member, or with one that is negative, not a whole number, out of range, or given twice.
const INVALID: InvalidValue = InvalidValue::new("usage, such as `tokens=1000;cost_usd=0.5`");

/// Adds up the usage of a piece of work, from any number of threads.
#[derive(Debug, Default)]
pub(crate) struct Ledger(Mutex<Usage>);

impl Ledger {
    pub(crate) fn add(&self, usage: Usage) {
        if !usage.is_zero() {
            let mut sum = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            *sum = sum.plus(usage);
        }
    }

    pub(crate) fn used(&self) -> Usage {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn usages() -> impl Strategy<Value = Usage> {
        let count = || prop_oneof![Just(0_u64), 1_u64..1_000_000, any::<u64>()];
        (count(), count(), count(), count(), count(), count()).prop_map(
            |(tokens, nano, input, output, cached, unmetered)| Usage {
                tokens,
                cost: Cost::from_nano_dollars(nano),
                input,
                output,
                cached,
                unmetered,
            },
        )
    }

    proptest! {
        #[test]
        fn header_form_round_trips(usage in usages()) {
            prop_assert_eq!(usage.to_string().parse(), Ok(usage));
        }

        #[test]
        fn sums_do_not_depend_on_the_order(a in usages(), b in usages(), c in usages()) {
            prop_assert_eq!(a.plus(b), b.plus(a));
            prop_assert_eq!(a.plus(b).plus(c), a.plus(b.plus(c)));
            prop_assert_eq!(a.plus(Usage::ZERO), a);
        }

        #[test]
        fn any_header_is_read_or_refused(text in "\\PC{0,40}") {
            let _ = text.parse::<Usage>();
        }
    }

    #[test]
    fn an_absent_usage_is_not_zero() {
        assert!(!Usage::UNMETERED.is_zero());
        assert_eq!(Usage::UNMETERED.plus(Usage::UNMETERED).to_string(), "tokens=0;cost_usd=0;unmetered=2");
    }

    #[test]
    fn what_limits_ignore_is_written_only_where_it_is_there() {
        assert_eq!(Usage::tokens(120).to_string(), "tokens=120;cost_usd=0");
        let json = serde_json::to_string(&Usage::tokens(120)).unwrap();
        assert_eq!(json, r#"{"tokens":120,"cost":0.0}"#);
        assert_eq!(serde_json::from_str::<Usage>(&json).unwrap(), Usage::tokens(120));
    }

    #[test]
    fn other_stacks_print_whole_numbers_in_their_own_way() {
        assert_eq!("tokens=10.0".parse(), Ok(Usage::tokens(10)));
        assert_eq!("input=7; output=3.00;model=x".parse(), Ok(Usage::metered(7, 3)));
        for text in [
            "",
            ";",
            "tokens",
            "tokens=",
            "tokens=-1",
            "tokens=1.5",
            "tokens=1e3",
            "tokens=1.",
            "tokens=.0",
            "tokens=1;tokens=1",
            "cost_usd=NaN",
            "model=x",
            "tokens=18446744073709551616",
        ] {
            assert_eq!(text.parse::<Usage>(), Err(INVALID), "{text}");
        }
    }
}
