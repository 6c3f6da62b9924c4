// Every entry is read by itself: a mistake in one does not hide the others.
use octollm::prelude::*;

#[derive(Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(nmae = "code.validate", timeuot = "1s", retries = 3)]
struct Misspelt;

#[derive(Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "code.validate", idempotent, name = "code.check")]
#[task(idempotent = false)]
struct Twice;

#[derive(Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name, version =, path = , scope)]
struct Missing;

#[derive(Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = code, version = "2", output = "String", timeout = 10, idempotent = "yes", crate = 5)]
struct WrongKinds;

#[derive(Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name("code.validate"), path = "/a" "/b")]
struct WrongForms;

#[derive(Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(tags = "code", examples = [1], title, effects = none)]
struct WrongWords;

#[derive(Serialize, Deserialize, JsonSchema, TaskContract)]
#[task]
#[task = "code.validate"]
struct NoList;

fn main() {}
