// What is allowed, in every form in which it may be written.
#![deny(warnings)]
#![allow(dead_code)]

use std::collections::BTreeMap;

use octollm::prelude::*;

const MOST: usize = 9;

/// One form for each key.
#[derive(Serialize, Deserialize, JsonSchema, Validate, TaskContract)]
#[task(name = "crate-files.list_all", version = 7u32, output = BTreeMap<String, Vec<(u8, Self)>>)]
#[task(chunk = [u8; 4], path = "/v7/files/list-all", scope = "files:read", timeout = "500ms")]
#[task(idempotent = true, summary = "Lists them.", crate = "::octollm",)]
#[garde(allow_unvalidated)]
struct EveryKey {
    #[garde(length(min = 1, max = MOST))]
    text: String,
    any: u8,
}

#[derive(Serialize, Deserialize, JsonSchema, TaskContract)]
#[task()]
struct Ping;

#[derive(Serialize, Deserialize, JsonSchema, TaskContract)]
struct r#Match {
    r#type: u8,
}

/// Not all of it is read for the summary.
///
#[doc = concat!("More ", "of it.")]
#[derive(Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(title = "T", tags = [], examples = ["a", "b",], effects = "destructive", output = Option<Choice>)]
struct ChooseOne {
    #[garde(length(min = 1), custom(known))]
    names: Vec<String>,
    choice: Choice,
}

fn known(names: &[String], _: &()) -> Result<(), &'static str> {
    if names.is_empty() { Err("none") } else { Ok(()) }
}

#[derive(Serialize, Deserialize, JsonSchema, Validate)]
enum Choice {
    First,
    Second(u8),
    Third {
        #[garde(range(max = 3))]
        number: u8,
        next: Option<Box<Choice>>,
    },
}

#[derive(Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(output = Page<T>)]
struct Page<T, const WIDTH: usize = 80> {
    items: Vec<T>,
}

macro_rules! contract {
    ($name:ident, $contract:literal, $output:ty, $timeout:expr) => {
        #[derive(Serialize, Deserialize, JsonSchema, Validate, TaskContract)]
        #[task(name = $contract, output = $output, timeout = $timeout)]
        struct $name {
            #[garde(ascii)]
            text: String,
        }
    };
}

contract!(WrittenByAMacro, "macro.write", Vec<u8>, "1s");

mod inner {
    /// Nothing of the prelude is in sight here.
    #[derive(octollm::prelude::Validate)]
    pub struct Bare<'a> {
        #[garde(dive)]
        pub inside: Option<&'a Bare<'a>>,
    }
}

fn main() {}
