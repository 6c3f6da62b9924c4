//! The derive macros of octollm: [`TaskContract`] and [`Validate`].
//!
//! The prelude of `octollm` has both, under the names of the traits that they implement. A library that depends on
//! `octollm-core` alone takes them from here.
//!
//! ```
//! use octollm::prelude::*;
//!
//! /// Checks that a piece of code parses.
//! #[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
//! #[task(name = "code.validate", output = Verdict, idempotent, timeout = "10s")]
//! struct ValidateCode {
//!     #[garde(length(min = 1, max = 65_536))]
//!     code: String,
//!     language: String,
//! }
//!
//! #[derive(Debug, Serialize, Deserialize, JsonSchema)]
//! struct Verdict {
//!     is_valid: bool,
//!     issues: Vec<String>,
//! }
//!
//! assert_eq!(ValidateCode::SPEC.path, "/validate");
//! assert_eq!(ValidateCode::SPEC.scope, "code:validate");
//! assert_eq!(ValidateCode::SPEC.summary, "Checks that a piece of code parses.");
//!
//! let empty = ValidateCode { code: String::new(), language: "rust".into() };
//! assert_eq!(empty.check().unwrap_err()[0].to_string(), "code: length is lower than 1");
//! ```
//!
//! # How the runtime crate is found
//!
//! Generated code reaches everything through `octollm-core` or `octollm`, whichever the manifest of the crate names, also
//! under another name. Where it is reached by neither, such as through a crate of one's own that re-exports it,
//! `crate = path` says where it is; in `#[task(..)]` or in `#[garde(..)]`, it serves both derives.

mod contract;
mod entries;
mod errors;
mod reach;
mod validate;

use proc_macro::TokenStream;
use proc_macro2::Span;
use syn::{DeriveInput, parse_macro_input};

/// Implements `TaskContract`: the type becomes the input of a contract that arms serve.
///
/// The type is the input, which is an object in JSON: a struct with named fields, or without any (`struct Ping;` is
/// `{}`). It owns its data, and derives `Serialize`, `Deserialize` and `JsonSchema` too. All else is set in
/// `#[task(..)]`, or has a default:
///
/// | key | is | left out |
/// |---|---|---|
/// | `name = "code.validate"` | the entity and what is done to it, in lower case | from the type's name, see below |
/// | `version = 2` | the version, 1 or more | 1 |
/// | `output = Verdict` | the output, any type that JSON can hold | `()` |
/// | `chunk = Line` | what may be streamed before that | nothing is streamed |
/// | `path = "/validate"` | the route on the arm's server | the verb: `/validate`, or `/v2/validate` for version 2 |
/// | `scope = "code:validate"` | the scope that a caller's token needs | the name, its last dot a colon |
/// | `timeout = "10s"` | how long one execution may take: a whole number of `ms`, `s`, `m` or `h` | 30 s |
/// | `idempotent`, `idempotent = true` | running it twice has the same effect as running it once, so a retry is safe | it is not |
/// | `cache = "60s"` | how long a server may repeat an answer to the same caller in place of running it again; needs `idempotent` | each call runs |
/// | `summary = "…"` | one sentence for catalogues and for a planner | the first paragraph of the doc comment |
/// | `title = "…"` | a name for people | none |
/// | `tags = ["…"]` | words to find it by | none |
/// | `examples = ["…"]` | requests in plain words that it serves | none |
/// | `effects = "none"` | what it changes beyond its output: `none`, `additive` or `destructive` | not stated |
/// | `crate = path` | where octollm is | from the manifest |
///
/// Types are called by what they do, verb first, and contracts by what they do it to: `ValidateCode` is `code.validate`,
/// `ListCrateFiles` is `crate-files.list`, and a single word, `Review`, is `review.run`.
///
/// Each part of a name begins with a letter and ends in a letter or a digit, and has no `__`; the last part is not `v` and
/// digits. So every contract has a name of its own where other protocols call it: `code.validate@2` is the MCP tool
/// `code.validate.v2` and the function `code__validate__v2`, which has at most 64 characters.
///
/// A path is made of letters, digits, `-`, `.`, `_` and `~` between slashes. The routes that servers have for themselves,
/// such as `/health` and whatever is below `/tasks/`, are refused.
///
/// # Rules
///
/// `TaskContract::check` runs the rules in `#[garde(..)]`, which [`Validate`] explains, and those of the fields' own types:
/// for these it takes `#[derive(Validate)]`, for the contract itself it does not. Where the contract has a `Validate` all
/// the same, derived or written by hand, that is what runs. Rules that need a feature of garde ask for `garde::Validate`.
///
/// A broken rule is reported at the path that the field has in JSON: serde's renaming and flattening are followed.
///
/// # Generics
///
/// Type parameters are taken, and the contract holds for those with which input, output and chunk can be held by JSON.
/// It has one name for all of them: an arm serves one. Lifetimes are refused, for a contract owns its data.
///
/// # Example
///
/// ```
/// use std::time::Duration;
///
/// use octollm::prelude::*;
///
/// /// Lists the files of a crate.
/// ///
/// /// Hidden files are left out.
/// #[derive(Serialize, Deserialize, JsonSchema, TaskContract)]
/// #[task(version = 2, output = Vec<String>, timeout = "500ms", idempotent)]
/// struct ListCrateFiles {
///     name: String,
/// }
///
/// let spec = ListCrateFiles::SPEC;
/// assert_eq!(spec.to_string(), "crate-files.list@2");
/// assert_eq!(spec.path, "/v2/list");
/// assert_eq!(spec.scope, "crate-files:list");
/// assert_eq!(spec.timeout, Duration::from_millis(500));
/// assert!(spec.idempotent);
/// assert_eq!(spec.summary, "Lists the files of a crate.");
/// ```
#[proc_macro_derive(TaskContract, attributes(task, garde))]
pub fn derive_task_contract(input: TokenStream) -> TokenStream {
    contract::derive(&parse_macro_input!(input as DeriveInput)).into()
}

/// Implements garde's `Validate` by the rules in `#[garde(..)]`.
///
/// Implements garde's own `Validate` with garde's own rules, and reads the same words as garde's derive, without asking
/// for `garde` among the dependencies. The schema of a contract has every rule that a schema can express; where it cannot, the
/// description mentions that a further rule applies.
///
/// A field may have rules. Those of its own type run as well, wherever that has a `Validate` (with a context that has a
/// default), in lists, maps and options too; a type parameter has to be asked for by `dive`.
///
/// | rule | holds |
/// |---|---|
/// | `skip` | always. It states that the field's type checks itself as it is read, where its schema has rules and it has no `Validate`; a `Validate` that it has runs |
/// | `ascii`, `alphanumeric` | for text of such characters only |
/// | `length(min = 1, max = 64)`, `length(equal = 8)` | for text of so many characters, lists and maps of so many items |
/// | `range(min = 0, max = 9)`, `range(equal = 7)` | for numbers within, both ends included |
/// | `contains("a")`, `prefix("a")`, `suffix("a")` | for text that contains, begins with, or ends with it |
/// | `ip`, `ipv4`, `ipv6` | for text that is such an address |
/// | `matches(other)` | for what equals another field |
/// | `required` | for `Some` |
/// | `dive` | when the field's own `Validate` does, which then is required; `dive(context)` with another context |
/// | `inner(..)` | when the rules within do for each item of a list, or each value of a map, also in an `Option` |
/// | `custom(function)` | when `function(&field, &context)` is `Ok` |
/// | `if(cond = expression, ..)` | when the rules within do, or the condition does not |
///
/// Rules apply to what is in an `Option`, if something is. Their arguments are expressions, in which `self` is the value
/// and each field a reference under its own name. `adapt(module)` takes the rules of a field from another module. A function given to
/// `custom` may return any error that can be printed, such as a `String`.
///
/// For the whole type:
///
/// | option | is |
/// |---|---|
/// | `allow_unvalidated` | changes nothing: a field needs no rule |
/// | `transparent` | the path of the one field is left out |
/// | `custom(function)` | a rule over the whole value |
/// | `context(Type as name)` | what functions are handed, and its name in expressions; `()` where none is named |
/// | `crate = path` | the path of octollm, if it is not in the manifest |
///
/// Rules that need a feature of garde (`pattern`, `email`, `url`, `credit_card`, `phone_number`) are refused: for those, add
/// `garde` with that feature to the dependencies and derive `garde::Validate`, which octollm takes as well. A `pattern` is a
/// literal that means the same in Rust and in ECMA-262, the dialect of JSON Schema. Lengths in `bytes`, `utf16` or
/// `graphemes`, which no JSON Schema expresses, are refused too.
///
/// Broken rules are reported in the order of the fields, and of the rules at each field.
///
/// # Example
///
/// ```
/// use octollm::prelude::*;
///
/// const LONGEST: usize = 8;
///
/// #[derive(Validate)]
/// struct Order {
///     #[garde(length(min = 1), inner(ascii, length(max = LONGEST)))]
///     items: Vec<String>,
///     #[garde(range(min = 1, max = 3))]
///     priority: u8,
///     #[garde(custom(known))]
///     currency: String,
/// }
///
/// fn known(currency: &str, _: &()) -> Result<(), &'static str> {
///     if currency == "EUR" { Ok(()) } else { Err("unknown currency") }
/// }
///
/// let order = Order { items: vec!["far too long".into()], priority: 0, currency: "XXX".into() };
/// let report = order.validate().unwrap_err().to_string();
/// assert_eq!(
///     report,
///     "items[0]: length is greater than 8\npriority: lower than 1\ncurrency: unknown currency\n"
/// );
/// ```
#[proc_macro_derive(Validate, attributes(garde))]
pub fn derive_validate(input: TokenStream) -> TokenStream {
    validate::derive(&parse_macro_input!(input as DeriveInput)).into()
}

/// Where an error shows, with names that are resolved as those of the generated code around it.
fn located(span: Span) -> Span {
    span.resolved_at(Span::call_site())
}
