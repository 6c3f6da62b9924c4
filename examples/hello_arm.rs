//! An arm with an HTTP server of its own.
//!
//! ```text
//! cargo run --example hello_arm [ADDRESS]
//! curl -d '{"code":"fn main() {}","language":"rust"}' -H 'content-type: application/json' localhost:8103/validate
//! ```

use octollm::prelude::*;

/// Checks that a piece of code parses.
#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "code.validate", output = Verdict, idempotent, timeout = "10s")]
struct ValidateCode {
    #[garde(length(min = 1, max = 65_536))]
    code: String,
    language: String,
}

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
struct Verdict {
    is_valid: bool,
    issues: Vec<String>,
}

struct Judge;

#[async_trait]
impl Arm<ValidateCode> for Judge {
    async fn execute(&self, input: ValidateCode, cx: &Context) -> Result<Verdict, ArmError> {
        cx.progress(10, "parsing");
        judge(&input)
    }
}

fn judge(input: &ValidateCode) -> Result<Verdict, ArmError> {
    if input.language != "rust" {
        return Err(ArmError::invalid("language", "is not supported: the only language is rust"));
    }
    let verdict = match syn::parse_file(&input.code) {
        Ok(_) => Verdict { is_valid: true, issues: Vec::new() },
        Err(error) => {
            let at = error.span().start();
            Verdict { is_valid: false, issues: vec![format!("{}:{}: {error}", at.line, at.column + 1)] }
        }
    };
    // For its spans proc-macro2 stores all parsed text of a thread until they are invalidated.
    proc_macro2::extra::invalidate_current_thread_spans();
    Ok(verdict)
}

#[tokio::main]
async fn main() -> Result<(), octollm::Error> {
    tracing_subscriber::fmt::init(); // the environment variable RUST_LOG selects what is logged
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:8103".into());
    Server::new("judge").arm(Judge).serve(address).await?;
    Ok(())
}
