//! An arm whose traces are exported to OpenTelemetry, with a log beside them.
//!
//! ```text
//! OTEL_EXPORTER_OTLP_ENDPOINT=http://localhost:4318 cargo run --features otel --example traced_arm [ADDRESS]
//! curl -d '{"text":"ten arms"}' -H 'content-type: application/json' localhost:8104/count
//! ```

use octollm::{otel::Exporter, prelude::*};
use tracing_subscriber::{layer::SubscriberExt, util::SubscriberInitExt};

/// Counts the words of a text.
#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "text.count", output = usize, idempotent)]
struct Count {
    text: String,
}

struct Counter;

#[async_trait]
impl Arm<Count> for Counter {
    async fn execute(&self, input: Count, _: &Context) -> Result<usize, ArmError> {
        let words = input.text.split_whitespace().count();
        tracing::info!(words, "counted");
        Ok(words)
    }
}

#[tokio::main]
async fn main() -> Result<(), octollm::Error> {
    let exporter = Exporter::from_env("counter")?; // when main ends, it sends what is left
    tracing_subscriber::registry().with(tracing_subscriber::fmt::layer()).with(exporter.layer()).init();
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:8104".into());
    Server::new("counter").arm(Counter).serve(address).await?;
    Ok(())
}
