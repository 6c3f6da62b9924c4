//! What the derive macros write against; not for people.
pub use garde;
pub use schemars;
pub use serde;
pub use serde_json;

pub use crate::contract::{ContractCard, ContractSpec, NoChunk, TaskContract, Violations};

/// Chooses, for a contract without validation rules of its own, between its `Validate` and nothing at all.
#[derive(Debug)]
pub struct Checked<'a, T>(pub &'a T);

/// The choice for types that implement `Validate`.
pub trait CheckedByValidate {
    fn octollm_check(&self) -> Result<(), Violations>;
}

/// The choice for all others.
pub trait Unchecked {
    fn octollm_check(&self) -> Result<(), Violations>;
}

impl<T: garde::Validate<Context = ()>> CheckedByValidate for Checked<'_, T> {
    fn octollm_check(&self) -> Result<(), Violations> {
        self.0.validate().map_err(Violations::from)
    }
}

impl<T> Unchecked for &Checked<'_, T> {
    fn octollm_check(&self) -> Result<(), Violations> {
        Ok(())
    }
}

/// The check of a contract with `#[garde(..)]` rules, which ask for a `Validate` that runs them.
#[diagnostic::on_unimplemented(
    message = "`{Self}` has `#[garde(..)]` rules, but nothing checks them",
    label = "derive `Validate` as well",
    note = "without it the rules would stand in the schema and never be run"
)]
pub trait Ruled {
    fn octollm_check(&self) -> Result<(), Violations>;
}

// Told as `Ruled`: that is what has the words above.
#[diagnostic::do_not_recommend]
impl<T: garde::Validate<Context: Default>> Ruled for T {
    fn octollm_check(&self) -> Result<(), Violations> {
        self.validate().map_err(Violations::from)
    }
}
