//! Header fields and error bodies: see `docs/wire.md`.

mod body;
mod headers;
mod problem;

pub(crate) use self::body::{BodyBuffer, is_json};
pub use self::headers::names;
pub(crate) use self::headers::{read_parts, read_usage, write_key, write_parts, write_usage};
pub(crate) use self::problem::MOST_VIOLATIONS;
pub use self::problem::Problem;
pub(crate) use self::problem::{NestedError, write_problem};
