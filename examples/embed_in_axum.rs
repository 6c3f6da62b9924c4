//! Mounts an arm into an existing axum service.
//!
//! ```text
//! cargo run --example embed_in_axum [ADDRESS]
//! curl localhost:3000/
//! curl -d '{"text":"Ten arms, one brain."}' -H 'content-type: application/json' localhost:3000/arms/scribe/count
//! curl localhost:3000/arms/scribe/capabilities
//! ```

use axum::{Router, routing::get};
use octollm::prelude::*;

/// Counts the words of a text.
#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "text.count", output = Count, idempotent)]
struct CountWords {
    text: String,
}

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
struct Count {
    words: usize,
}

struct Scribe;

#[async_trait]
impl Arm<CountWords> for Scribe {
    async fn execute(&self, input: CountWords, _: &Context) -> Result<Count, ArmError> {
        Ok(Count { words: input.text.split_whitespace().count() })
    }
}

#[tokio::main]
async fn main() -> Result<(), octollm::Error> {
    tracing_subscriber::fmt::init(); // the environment variable RUST_LOG selects what is logged
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:3000".into());
    // Callers are not checked here. The guide has servers that identify their callers.
    let scribe = Server::new("scribe").arm(Scribe).open_to_all();
    let app = Router::new()
        .route("/", get(|| async { "the existing service" }))
        .nest_service("/arms/scribe", scribe.into_service()?);
    axum::serve(tokio::net::TcpListener::bind(address).await?, app).await?;
    Ok(())
}
