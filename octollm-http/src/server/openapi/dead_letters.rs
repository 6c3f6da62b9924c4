//! The operations and schemas of dead letters.

use http::Method;
use octollm_core::contract::output_schema;
use serde_json::{Map, Value, json};

use super::{
    super::dead_letters::{DeadLetters, MAX_PAGE, PAGE, Replayed, SCOPE},
    components::{insert, reference},
    fixed::{EVENTS, OF_PLACES, Operation, fails, get, push_parameters, query},
};

pub(crate) fn operations() -> Vec<Operation> {
    let operation = |id: &str, summary: &str, output: &str| {
        let mut operation = get(id, summary, reference(output));
        for statuses in [OF_PLACES, &[404]] {
            fails(&mut operation, statuses);
        }
        operation["tags"] = json!([EVENTS]);
        operation["x-octollm-scope"] = SCOPE.into();
        let group = json!({ "name": "group", "in": "query", "required": true, "schema": { "type": "string", "minLength": 1 } });
        push_parameters(&mut operation, [group]);
        operation
    };
    let mut list = operation("listDeadLetters", "The dead letters of a group, oldest first.", "DeadLetters");
    let after = json!({ "type": "string", "description": "Where the page before ended: its next." });
    let limit = json!({ "type": "integer", "minimum": 1, "maximum": MAX_PAGE, "default": PAGE });
    push_parameters(&mut list, [query("after", after), query("limit", limit)]);
    let summary = "Delivers a dead letter to its group again, as attempt 1 of the same event.";
    let mut replay = operation("replayDeadLetter", summary, "ReplayedDeadLetter");
    let id = json!({ "name": "id", "in": "path", "required": true, "schema": { "type": "string" } });
    push_parameters(&mut replay, [id]);
    replay["responses"]["202"] = replay["responses"]["200"].take();
    if let Some(responses) = replay["responses"].as_object_mut() {
        responses.remove("200");
    }
    vec![(Method::GET, "/dead-letters", list), (Method::POST, "/dead-letters/{id}/replay", replay)]
}

pub(crate) fn schemas(schemas: &mut Map<String, Value>) {
    insert(schemas, "DeadLetters", output_schema::<DeadLetters>());
    insert(schemas, "ReplayedDeadLetter", output_schema::<Replayed>());
}
