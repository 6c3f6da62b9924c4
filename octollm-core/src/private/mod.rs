//! What the derive macros write against, and what the crates of this workspace share; not for people.

use std::fmt::Write;

pub use garde;
pub use schemars;
pub use serde;
pub use serde_json;

pub use crate::{
    audit::optional::Audit,
    clock::{now, recent},
    contract::{ContractCard, ContractSpec, Effects, RangeEnd, SchemaRules, TaskContract, Violation},
    meters::{Counter, Counters, Durations, Gauges, Spent, outcome},
    panics::{Panicked, caught},
    resilience::machines,
    spans::{Scope, Traces, connect_traces, who},
};

/// The limits of builders, and settings as variables of the environment.
pub mod settings {
    pub use crate::settings::{SERVICE_LINK, Vars, bytes, count, flag, is_service_link, text, time, within};
}

mod lengths;
mod schemas;

pub use self::{
    lengths::{Items, Length, Measured, Place},
    schemas::{AnyNumber, HasSchemaRules, NoNumber, NotRuled, Number, OwnSchema, RuledByDerive, RuledByHand},
};

/// Chooses between the `Validate` of a contract, where it has one, and the rules that its own derive has read.
#[derive(Debug)]
pub struct ContractCheck<'a, T>(pub &'a T);

/// The choice for types that implement `Validate`.
pub trait CheckedByValidate {
    fn octollm_check(&self) -> Option<Result<(), Vec<Violation>>>;
}

/// The choice for all others.
pub trait CheckedByItself {
    fn octollm_check(&self) -> Option<Result<(), Vec<Violation>>>;
}

impl<T: garde::Validate<Context: Default>> CheckedByValidate for ContractCheck<'_, T> {
    fn octollm_check(&self) -> Option<Result<(), Vec<Violation>>> {
        Some(self.0.validate().map_err(|report| Violation::all_of(&report)))
    }
}

impl<T> CheckedByItself for &ContractCheck<'_, T> {
    fn octollm_check(&self) -> Option<Result<(), Vec<Violation>>> {
        None
    }
}

/// What a report comes to.
pub fn checked(report: garde::Report) -> Result<(), Vec<Violation>> {
    if report.is_empty() { Ok(()) } else { Err(Violation::all_of(&report)) }
}

/// Adds a broken rule to a report, while there is room for it: at most `Violation::MOST` rules and `Violation::MOST_PATH_BYTES` bytes of paths.
pub fn append(report: &mut garde::Report, path: &mut dyn FnMut() -> garde::Path, error: garde::Error) {
    if report.iter().nth(Violation::MOST - 1).is_some() {
        return;
    }
    let mut bytes = Written(0);
    for (path, _) in report.iter() {
        let _ = write!(bytes, "{path}");
    }
    if bytes.0 < Violation::MOST_PATH_BYTES {
        report.append(path(), error);
    }
}

/// Counts the bytes that are written.
struct Written(usize);

impl Write for Written {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        self.0 += text.len();
        Ok(())
    }
}

/// Chooses, for a field, between the rules of its type and nothing at all.
#[derive(Debug)]
pub struct OwnRules<'a, T: ?Sized>(pub &'a T);

/// The choice for types that implement `Validate`.
pub trait WithOwnRules {
    fn octollm_run(&self, path: &mut dyn FnMut() -> garde::Path, report: &mut garde::Report);
}

/// The choice for all others.
pub trait Unruled {
    fn octollm_run(&self, path: &mut dyn FnMut() -> garde::Path, report: &mut garde::Report);
}

impl<T: garde::Validate<Context: Default> + ?Sized> WithOwnRules for OwnRules<'_, T> {
    fn octollm_run(&self, path: &mut dyn FnMut() -> garde::Path, report: &mut garde::Report) {
        self.0.validate_into(&T::Context::default(), path, report);
    }
}

impl<T: ?Sized> Unruled for &OwnRules<'_, T> {
    fn octollm_run(&self, _: &mut dyn FnMut() -> garde::Path, _: &mut garde::Report) {}
}

/// The check of a contract with rules that only garde's own derive can read.
#[diagnostic::on_unimplemented(
    message = "`{Self}` has `#[garde(..)]` rules that need a feature of garde",
    label = "add `garde` with that feature (`email`, `url`, `pattern`, ..) to the dependencies, and derive `garde::Validate` as well",
    note = "without it the rules would be in the schema and never be run"
)]
pub trait Ruled {
    fn octollm_check(&self) -> Result<(), Vec<Violation>>;
}

// Reported as `Ruled`, which has the words above.
#[diagnostic::do_not_recommend]
impl<T: garde::Validate<Context: Default>> Ruled for T {
    fn octollm_check(&self) -> Result<(), Vec<Violation>> {
        self.validate().map_err(|report| Violation::all_of(&report))
    }
}
