//! octollm.

#[doc(hidden)]
pub use octollm_core::__private;

pub mod prelude {
    //! What most programs need, in one line.

    pub use async_trait::async_trait;
    // By its module: where another crate turns on garde's own derive, `garde::Validate` is a macro too.
    pub use garde::validate::Validate;
    pub use octollm_core::contract::TaskContract;
    pub use octollm_macros::{TaskContract, Validate};
    // `schemars` is there for its derive, which looks for a crate of that name.
    pub use schemars::{self, JsonSchema};
    pub use serde::{Deserialize, Serialize};
}
