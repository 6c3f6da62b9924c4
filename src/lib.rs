//! octollm.

#[doc(hidden)]
pub use octollm_core::__private;

pub mod prelude {
    //! What most programs need, in one line.

    pub use async_trait::async_trait;
    pub use octollm_core::contract::TaskContract;
    pub use octollm_macros::TaskContract;
    // `schemars` is there for its derive, which looks for a crate of that name.
    pub use schemars::{self, JsonSchema};
    pub use serde::{Deserialize, Serialize};
}
