//! Calls an arm from a program, with a typed input and a typed output.
//!
//! ```text
//! cargo run --example hello_arm &
//! OCTOLLM_ARM_JUDGE=http://127.0.0.1:8103 cargo run --example call_arm -- 'fn main() {'
//! ```

use octollm::prelude::*;

/// The same contract as in `hello_arm`. A difference between the schemas is logged at the first call.
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

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), octollm::Error> {
    let code = std::env::args().nth(1).unwrap_or_else(|| "fn main() {}".into());
    let arms = Arms::from_env()?;
    let verdict = arms.call(ValidateCode { code, language: "rust".into() }).await?;
    if verdict.is_valid {
        println!("it parses");
    }
    for issue in &verdict.issues {
        println!("{issue}");
    }
    Ok(())
}
