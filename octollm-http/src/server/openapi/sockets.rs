//! The operations of WebSockets.

use http::Method;
use serde_json::{Value, json};

use super::{
    components::reference,
    fixed::{OF_PLACES, OF_TASKS, Operation, TASKS, fails, get, push_parameters, query, task_in_path},
};

pub(crate) fn operations() -> Vec<Operation> {
    let operation = |id: &str, summary: &str, words: &str, errors: &[&[u16]]| {
        let mut operation = get(id, summary, Value::Null);
        errors.iter().for_each(|statuses| fails(&mut operation, statuses));
        operation["tags"] = json!([TASKS]);
        operation["description"] = words.into();
        if let Some(responses) = operation["responses"].as_object_mut() {
            // It states no media type.
            responses.remove("406");
            responses.remove("200");
            let words = "The connection is a WebSocket from now on.";
            responses.insert("101".into(), json!({ "description": words }));
        }
        let field = |name: &str, is_required: bool, schema: Value, words: &str| json!({ "name": name, "in": "header", "required": is_required, "schema": schema, "description": words });
        let protocol = "`bearer, <token>`, for browsers, which can send no `Authorization`.";
        let fields = [
            field("Upgrade", true, json!({ "const": "websocket" }), "With `Connection: upgrade`."),
            field("Sec-WebSocket-Version", true, json!({ "const": "13" }), "The version of the protocol."),
            field("Sec-WebSocket-Key", true, json!({ "type": "string" }), "16 random bytes in base64."),
            field("Sec-WebSocket-Protocol", false, json!({ "type": "string" }), protocol),
            field(
                "Origin",
                false,
                json!({ "type": "string" }),
                "Of a page: that of this host, or one that is allowed.",
            ),
        ];
        push_parameters(&mut operation, fields);
        operation
    };
    let many = operation(
        "followTasks",
        "A WebSocket that follows many tasks.",
        "Takes `subscribe`, `unsubscribe` and `cancel`, each with a `task_id`, as texts of JSON; sends `subscribed`, the updates, `ended` and `error`.",
        &[&[401, 403, 426, 503, 504]],
    );
    let mut one = operation(
        "followTask",
        "A WebSocket that follows one task.",
        "Sends the updates of the task as texts of JSON, and closes after the last. Takes `cancel`.",
        &[OF_PLACES, OF_TASKS, &[426]],
    );
    let after = json!({ "type": "integer", "minimum": 0, "maximum": u64::MAX });
    push_parameters(&mut one, [task_in_path(), query("after", after)]);
    one["responses"]["101"]["x-octollm-message"] = reference("TaskUpdate");
    vec![(Method::GET, "/ws", many), (Method::GET, "/ws/tasks/{id}", one)]
}
