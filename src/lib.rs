//! An SDK for systems of LLM agents that are made of services: typed task contracts over HTTP and JSON, an orchestrator with
//! a journal, events, and deadlines, budgets and cancellation over any number of hops.
//!
//! ```no_run
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
//! struct Verdict { is_valid: bool, issues: Vec<String> }
//!
//! struct Judge;
//!
//! #[async_trait]
//! impl Arm<ValidateCode> for Judge {
//!     async fn execute(&self, input: ValidateCode, cx: &Context) -> Result<Verdict, ArmError> {
//!         cx.progress(10, "parsing");
//!         Ok(judge(&input)?) // `?` converts any error: std, anyhow, a string
//!     }
//! }
//!
//! #[tokio::main]
//! async fn main() -> Result<(), octollm::Error> {
//!     Server::new("judge").arm(Judge).serve("127.0.0.1:8103").await?;
//!     Ok(())
//! }
//! # fn judge(input: &ValidateCode) -> Result<Verdict, String> {
//! #     let is_valid = input.code.contains("fn");
//! #     Ok(Verdict { is_valid, issues: Vec::new() })
//! # }
//! ```
//!
//! The README has the first programs. The guide in `docs/guide` has a chapter for each subject.
//!
//! | to | see |
//! |---|---|
//! | declare a contract | [`contract::TaskContract`], derived by `#[derive(TaskContract)]` |
//! | implement it | [`Arm`], [`Context`] |
//! | serve it | `http::Server` |
//! | call it | `http::Arms`, [`Context::call`] |
//! | call services that are no arms | `RestClient`, and the guide's chapter on other services |
//! | find where it is | `http::resolve`, and the guide's chapter on discovery |
//! | run tasks with a journal | [`brain::Brain`] |
//! | run tasks later, once, and again after a failure | [`task::Submission`], and the guide's chapter on jobs |
//! | run steps as data | [`plan`] |
//! | store tasks in a database | `sql::SqlStore` |
//! | store events with the changes of your own tables, and handle them once | `sql::Outbox`, `sql::Inbox`, `sql::SqlBus` |
//! | record who did what | [`audit`], `sql::SqlAuditLog` |
//! | survive arms that fail, on any tower stack as well | [`resilience`], and the guide's chapter on it |
//! | screen tasks | [`reflex`] |
//! | publish and receive events | [`bus`] |
//! | call arms by a queue | [`worker`], and the guide's chapter on workers |
//! | say who may call what | `http::token` |
//! | see what a process does | [`metrics`], `otel`, and the guide's chapter on operations |
//! | test a system without a network | `mesh::Mesh` |
//! | test a store or a bus of one's own | `conformance` |
//!
//! # Features
//!
//! | feature | adds | default |
//! |---|---|---|
//! | `http` | servers and clients | yes |
//! | `tokens` | capability tokens (with `http`); needs a C compiler | yes |
//! | `tls` | `https` for clients, TLS for servers; needs a C compiler | no |
//! | `compression` | gzip for answers and request bodies of servers | no |
//! | `dashboard` | a page at servers of orchestrators that displays tasks, arms and events | no |
//! | `dns` | endpoints by names in DNS: A, AAAA and SRV records | no |
//! | `otel` | the export of traces to OpenTelemetry | no |
//! | `ws` | live updates over WebSockets | no |
//! | `mesh` | the in-process mesh, for tests: enable it under `[dev-dependencies]` | no |
//! | `conformance` | suites of tests for a user's own stores and buses: enable it under `[dev-dependencies]` | no |
//! | `events` | the encodings of events | no |
//! | `sql` | tasks, events and the audit log in a database: SQLite or Postgres; needs a C compiler | no |
//! | `redis` | events, records of keys and rates over a Redis server; needs a C compiler | no |
//! | `full` | all of them but `conformance` | no |

pub use octollm_core::{
    arm, audit, brain, budget, bus, card, context, contract, deadline, dispatcher, error, event, explain, id,
    idempotency, json, limit, metrics, orchestrator, plan, reflex, resilience, store, task, trace, transport,
    update, worker,
};

#[cfg(feature = "mesh")]
pub use octollm_core::mesh;

#[cfg(feature = "conformance")]
pub use octollm_core::conformance;

/// Servers and clients over HTTP.
#[cfg(feature = "http")]
pub use octollm_http as http;

/// The export of traces to OpenTelemetry.
#[cfg(feature = "otel")]
pub use octollm_http::otel;

/// The encodings of events.
#[cfg(feature = "events")]
pub use octollm_events as events;

#[cfg(feature = "sql")]
pub use octollm_events::sql;

#[cfg(feature = "redis")]
pub use octollm_events::redis;

pub use octollm_core::{Arm, Context, error::Error};

#[cfg(feature = "http")]
pub use octollm_http::RestClient;

#[doc(hidden)]
pub use octollm_core::__private;

pub mod prelude {
    //! The names that most programs need. Others are imported from their modules.

    pub use async_trait::async_trait;
    // By its module: where another crate turns on garde's own derive, `garde::Validate` is a macro too.
    pub use garde::validate::Validate;
    pub use octollm_core::{
        Arm, Context,
        arm::arm_fn,
        brain::Brain,
        budget::Budget,
        bus::EventBus,
        contract::TaskContract,
        error::{ArmError, CallError, ErrorKind},
        orchestrator::Orchestrator,
        task::{TaskRequest, TaskResult, TaskStatus},
    };
    #[cfg(feature = "http")]
    pub use octollm_http::{Arms, OrchestratorClient, Server};
    pub use octollm_macros::{TaskContract, Validate};
    // `schemars` is there for its derive, which looks for a crate of that name.
    pub use schemars::{self, JsonSchema};
    pub use serde::{Deserialize, Serialize};

    #[cfg(feature = "mesh")]
    pub use octollm_core::mesh::{Fault, Mesh};
}

/// The programs of the guide and of the README, compiled and run with the doc tests.
#[cfg(all(doctest, feature = "http", feature = "mesh", feature = "conformance"))]
mod guide {
    #[doc = include_str!("../README.md")]
    mod readme {}
    #[doc = include_str!("../docs/guide/arms.md")]
    mod arms {}
    #[doc = include_str!("../docs/guide/calls.md")]
    mod calls {}
    #[doc = include_str!("../docs/guide/dashboard.md")]
    mod dashboard {}
    #[doc = include_str!("../docs/guide/discovery.md")]
    mod discovery {}
    #[doc = include_str!("../docs/guide/durability.md")]
    mod durability {}
    #[doc = include_str!("../docs/guide/embedding.md")]
    mod embedding {}
    #[doc = include_str!("../docs/guide/events.md")]
    mod events {}
    #[doc = include_str!("../docs/guide/failure.md")]
    mod failure {}
    #[doc = include_str!("../docs/guide/jobs.md")]
    mod jobs {}
    #[doc = include_str!("../docs/guide/operations.md")]
    mod operations {}
    #[doc = include_str!("../docs/guide/orchestration.md")]
    mod orchestration {}
    #[doc = include_str!("../docs/guide/plans.md")]
    mod plans {}
    #[doc = include_str!("../docs/guide/postgres.md")]
    mod postgres {}
    #[doc = include_str!("../docs/guide/redis.md")]
    mod redis {}
    #[doc = include_str!("../docs/guide/reflexes.md")]
    mod reflexes {}
    #[cfg(feature = "tokens")]
    #[doc = include_str!("../docs/guide/registry.md")]
    mod registry {}
    #[doc = include_str!("../docs/guide/resilience.md")]
    mod resilience {}
    #[cfg(feature = "tokens")]
    #[doc = include_str!("../docs/guide/security.md")]
    mod security {}
    #[doc = include_str!("../docs/guide/services.md")]
    mod services {}
    #[doc = include_str!("../docs/guide/streaming.md")]
    mod streaming {}
    #[doc = include_str!("../docs/guide/testing.md")]
    mod testing {}
    #[doc = include_str!("../docs/guide/workers.md")]
    mod workers {}
}
