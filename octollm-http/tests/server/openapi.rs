//! The OpenAPI documents.

use octollm_core::{arm::arm_fn, bus::MemoryDurableBus, error::ArmError};
use octollm_http::Server;
use octollm_macros::TaskContract;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{
    arms::{Worker, server, start},
    tasks::{Careful, brain},
};

/// Every `$ref` of a document.
fn references<'v>(value: &'v Value, found: &mut Vec<&'v str>) {
    match value {
        Value::Object(object) => {
            if let Some(Value::String(target)) = object.get("$ref") {
                found.push(target);
            }
            object.values().for_each(|value| references(value, found));
        }
        Value::Array(items) => items.iter().for_each(|value| references(value, found)),
        _ => {}
    }
}

#[track_caller]
fn is_whole(document: &Value) {
    assert_eq!(document["openapi"], "3.1.0");
    let mut found = Vec::new();
    references(document, &mut found);
    assert!(found.len() > 10);
    for target in found {
        let pointer = target.strip_prefix('#').unwrap_or_else(|| panic!("{target} leads away"));
        assert!(document.pointer(pointer).is_some(), "{target} leads nowhere");
    }
    let mut ids: Vec<_> = document["paths"]
        .as_object()
        .unwrap()
        .values()
        .flat_map(|item| item.as_object().unwrap().values())
        .map(|operation| operation["operationId"].as_str().unwrap())
        .collect();
    let all = ids.len();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), all, "an id twice");
    for operation in
        document["paths"].as_object().unwrap().values().flat_map(|item| item.as_object().unwrap())
    {
        assert_eq!(
            operation.1["responses"]["default"]["$ref"], "#/components/responses/Problem",
            "{operation:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn an_arms_document_has_its_contracts() {
    let peer = start(server(&Worker::default()));
    let answer = peer.get("/openapi.json").await;
    assert_eq!(answer.field("content-type"), Some("application/json"));
    let document = answer.json();
    is_whole(&document);
    assert_eq!(document["info"]["version"], "1.2.3");
    let echo = &document["paths"]["/echo"]["post"];
    assert_eq!(echo["operationId"], "text.echo");
    assert_eq!(echo["x-octollm-idempotent"], true);
    let schemas = &document["components"]["schemas"];
    assert_eq!(schemas["text.echo.input"]["additionalProperties"], false);
    // A definition has become a component, and is still found from where it is used.
    let caller = &schemas["text.echo.output"]["properties"]["caller"];
    let mut found = Vec::new();
    references(caller, &mut found);
    assert_eq!(found, ["#/components/schemas/text.echo.output.Named"]);
    assert_eq!(document["paths"]["/v2/panic"]["post"]["x-octollm-contract"], "work.panic@2");
    assert!(document["paths"].get("/tasks").is_none());
}

#[tokio::test(start_paused = true)]
async fn the_other_servers_have_theirs() {
    let orchestrator = Server::new("orchestrator").orchestrator(brain());
    let document = start(orchestrator).get("/openapi.json").await.json();
    is_whole(&document);
    assert!(document["paths"]["/tasks/{id}"]["delete"].is_object());
    assert!(document["paths"]["/tasks/{id}/rerun"]["post"]["responses"]["202"].is_object());
    assert!(document["paths"]["/tasks"]["post"]["responses"]["202"].is_object());

    let reflex = Server::new("reflex").reflex(Careful).orchestrator(brain());
    let document = start(reflex).get("/openapi.json").await.json();
    is_whole(&document);
    assert!(document["paths"]["/preprocess"]["post"].is_object());
    assert!(document["paths"].get("/execute").is_none());

    let with_bus = Server::new("orchestrator").dead_letters(MemoryDurableBus::new());
    let document = start(with_bus).get("/openapi.json").await.json();
    is_whole(&document);
    assert!(document["paths"]["/dead-letters"]["get"]["responses"]["200"].is_object());
    let replay = &document["paths"]["/dead-letters/{id}/replay"]["post"];
    assert_eq!(replay["x-octollm-scope"], "events:admin");
    assert!(replay["responses"]["202"].is_object() && replay["responses"].get("200").is_none());

    let all = server(&Worker::default()).reflex(Careful).orchestrator(brain());
    let document = start(all).get("/openapi.json").await.json();
    is_whole(&document);
    for path in ["/echo", "/execute", "/preprocess", "/tasks", "/arms"] {
        assert!(document["paths"][path].is_object(), "{path}");
    }
}

#[derive(Serialize, Deserialize, JsonSchema)]
struct Größe {
    meters: f64,
}

#[derive(Serialize, Deserialize, JsonSchema)]
struct Grüße {
    words: String,
}

/// Its types are called the same once the letters are gone that a component cannot have.
#[derive(Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "card.print", output = Vec<Grüße>)]
struct PrintCard {
    size: Größe,
    greetings: Grüße,
}

#[derive(Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "input")]
struct Tray {
    sheets: u8,
}

/// Its type is called as the input of the contract below would be among its own.
#[derive(Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "tray.fill", output = ())]
struct FillTray {
    tray: Tray,
}

#[derive(Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "tray.fill.input", output = ())]
struct FillInput {
    ink: f64,
}

#[tokio::test(start_paused = true)]
async fn a_type_does_not_take_the_name_of_a_contracts_input() {
    let tray = || arm_fn(|_: FillTray, _| async { Ok::<_, ArmError>(()) });
    let input = || arm_fn(|_: FillInput, _| async { Ok::<_, ArmError>(()) });
    for first in [true, false] {
        let server = Server::new("printer");
        let server = match first {
            true => server.arm(tray()).arm(input()),
            false => server.arm(input()).arm(tray()),
        };
        let document = start(server).get("/openapi.json").await.json();
        is_whole(&document);
        let schemas = &document["components"]["schemas"];
        assert_eq!(schemas["tray.fill.input.input"]["required"], json!(["ink"]));
        let tray = schemas["tray.fill.input"]["properties"]["tray"]["$ref"].as_str().unwrap();
        let tray = document.pointer(tray.strip_prefix('#').unwrap()).unwrap();
        assert_eq!(tray["required"], json!(["sheets"]));
    }
}

#[tokio::test(start_paused = true)]
async fn types_whose_names_differ_by_a_letter_are_two_schemas() {
    let printer = arm_fn(|card: PrintCard, _| async move { Ok::<_, ArmError>(vec![card.greetings]) });
    let document = start(Server::new("printer").arm(printer)).get("/openapi.json").await.json();
    is_whole(&document);
    let schemas = &document["components"]["schemas"];
    let at = |reference: &Value| {
        document.pointer(reference["$ref"].as_str().unwrap().strip_prefix('#').unwrap()).unwrap()
    };
    let input = &schemas["card.print.input"]["properties"];
    assert_eq!(at(&input["size"])["required"], json!(["meters"]));
    assert_eq!(at(&input["greetings"])["required"], json!(["words"]));
    assert_eq!(at(&schemas["card.print.output"]["items"])["required"], json!(["words"]));
}

#[tokio::test(start_paused = true)]
async fn the_document_states_what_the_server_checks() {
    let all = || server(&Worker::default()).reflex(Careful).orchestrator(brain());
    let document = start(all()).get("/openapi.json").await.json();
    let schemas = &document["components"]["schemas"];
    // An envelope takes the contracts that are served, each with its own input and under each of its names.
    let envelopes = schemas["Execute"]["oneOf"].as_array().unwrap();
    let of = |name: &str| {
        let names = |envelope: &&Value| {
            let all = envelope["properties"]["contract"]["enum"].as_array().unwrap();
            all.iter().any(|known| known == name)
        };
        envelopes.iter().find(names).map(|envelope| &envelope["properties"]["input"]["$ref"])
    };
    assert_eq!(of("text.echo").unwrap(), "#/components/schemas/text.echo.input");
    assert_eq!(of("text.echo@1"), of("text.echo"));
    assert!(of("work.panic@2").is_some());
    assert!(of("work.panic").is_none());
    // A submission is what the orchestrator reads.
    assert_eq!(schemas["Submission.TaskBudget"]["additionalProperties"], false);
    assert_eq!(schemas["Submission.TaskBudget"]["properties"]["max_tokens"]["maximum"], u64::MAX);
    let parameters = &document["components"]["parameters"];
    for (parameter, first_refused) in [("Attempt", "4294967296"), ("Timeout", "18446744073709551616")] {
        let last_taken = parameters[parameter]["schema"]["maximum"].to_string();
        let name = parameters[parameter]["name"].as_str().unwrap();
        for (value, is_taken) in [(&*last_taken, true), (first_refused, false)] {
            let answer = start(all()).post("/echo", &format!("{name}: {value}\r\n"), "{}").await;
            assert_eq!(answer.status != 400, is_taken, "{name}: {value}");
        }
    }
    for parameter in ["IdempotencyKey", "Budget"] {
        let name = parameters[parameter]["name"].as_str().unwrap();
        let example = parameters[parameter]["schema"]["examples"][0].as_str().unwrap();
        for (value, is_taken) in [(example, true), ("", false), ("ru\"n", false)] {
            let answer = start(all()).post("/echo", &format!("{name}: {value}\r\n"), "{}").await;
            assert_eq!(answer.status != 400, is_taken, "{name}: {value}");
        }
    }
}
