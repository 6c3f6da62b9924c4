use octollm::prelude::*;

#[derive(Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "Validate Code", version = 0, path = "/v/", scope = "code", timeout = "10")]
struct AllAtOnce;

#[derive(Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(version = 5_000_000_000, path = "validate", timeout = "0s")]
struct Numbers;

#[derive(Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(path = "/../etc")]
struct Upwards;

#[derive(Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(path = "/a?b=c")]
struct Query;

#[derive(Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(path = "/{id}")]
struct Template;

#[derive(Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(path = "/tasks/mine")]
struct Kept;

#[derive(Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "plan.execute")]
struct KeptByDefault;

#[derive(Serialize, Deserialize, JsonSchema, TaskContract)]
struct Prüfe;

#[derive(Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "code__check.run", effects = "some")]
struct Joined;

#[derive(Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "code.check_")]
struct Trailing;

#[derive(Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "code.v2")]
struct Version;

#[derive(Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "a-name-that-is-far-too-long-for-what-models-take-for-a-function.run")]
struct Long;

#[derive(Serialize, Deserialize, JsonSchema, TaskContract)]
#[doc = concat!("A text that ", "no derive can read.")]
struct Included;

#[derive(Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(cache = "60s")]
struct CachedOnly;

#[derive(Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(cache = "60", chunk = String, idempotent = false)]
struct CachedInParts;

#[derive(Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(cache = "0s", idempotent)]
struct CachedForNothing;

fn main() {}
