// What uses the types goes on as if nothing was wrong with them.
use octollm::prelude::*;

#[derive(Serialize, Deserialize, JsonSchema, Validate, TaskContract)]
#[task(name = "code.validate", output = Verdict, timeout = "soon")]
struct ValidateCode {
    #[garde(length(min = 1))]
    code: String,
}

#[derive(Serialize, Deserialize, JsonSchema, Validate, TaskContract)]
#[task(output = Verdict)]
struct CheckCode {
    #[garde(lenght(min = 1))]
    code: String,
}

#[derive(Serialize, Deserialize, JsonSchema)]
struct Verdict {
    is_valid: bool,
}

fn verdict<C: TaskContract<Output = Verdict>>(task: C) -> bool {
    task.check().is_ok() && C::SPEC.version == 1
}

fn validated<V: Validate<Context = ()>>(value: &V) -> bool {
    value.validate().is_ok()
}

fn main() {
    validated(&ValidateCode { code: String::new() });
    validated(&CheckCode { code: String::new() });
    verdict(ValidateCode { code: String::new() });
    verdict(CheckCode { code: String::new() });
}
