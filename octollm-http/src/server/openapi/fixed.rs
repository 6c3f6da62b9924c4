//! The parts of a document that are the same for every server.

use http::Method;
use octollm_core::task::Submission;
use serde_json::{Map, Value, json};

use super::{codes, insert, reference};

/// A route, and what the document says of it.
pub(crate) type Operation = (Method, &'static str, Value);

/// The routes of every server.
pub(crate) fn operations() -> Vec<Operation> {
    vec![
        (Method::GET, "/capabilities", get("capabilities", "What is served here.", reference("Card"))),
        (Method::GET, "/health", get("health", "Whether the process lives.", reference("Health"))),
        (Method::GET, "/ready", ready()),
        (Method::GET, "/openapi.json", get("openapi", "This document.", json!({ "type": "object" }))),
    ]
}

/// The route of the envelope.
pub(crate) fn execute() -> Operation {
    let mut operation = with_body(reference("Execute"), reference("Executed"));
    operation["operationId"] = "execute".into();
    operation["summary"] = "Runs a contract that is picked by the body.".into();
    (Method::POST, "/execute", operation)
}

/// The routes of tasks.
pub(crate) fn task_operations() -> Vec<Operation> {
    let id = json!({ "name": "id", "in": "path", "required": true, "schema": task_id() });
    let mut submit = with_body(reference("Submission"), reference("Task"));
    submit["operationId"] = "submitTask".into();
    submit["summary"] = "Queues a task.".into();
    let mut accepted = submit["responses"]["200"].take();
    accepted["headers"]["Location"] =
        json!({ "schema": { "type": "string" }, "description": "Where the task is." });
    submit["responses"] = json!({ "202": accepted, "default": problem() });
    let mut list = get("listTasks", "The caller's tasks, newest first.", reference("TaskPage"));
    let query = |name: &str, schema: Value| json!({ "name": name, "in": "query", "schema": schema, "allowEmptyValue": true });
    push_parameters(
        &mut list,
        [
            query("status", json!({ "enum": STATUSES })),
            query(
                "after",
                json!({ "type": "string", "pattern": "^(task_[a-zA-Z0-9]{16})?$", "description": "A task of the page before." }),
            ),
            query("limit", json!({ "type": "integer", "minimum": 1, "maximum": 100, "default": 20 })),
        ],
    );
    let mut status = get("getTask", "A task as it stands.", reference("Task"));
    push_parameters(&mut status, [id.clone()]);
    let mut cancel =
        get("cancelTask", "Cancels a task; one that is finished stays as it is.", reference("Task"));
    push_parameters(&mut cancel, [id.clone()]);
    let from = json!({
        "anyOf": [
            { "type": "integer", "minimum": 0, "maximum": u32::MAX, "format": "uint32" },
            { "type": ["string", "null"] },
        ],
        "description": "The number or the name of the first step to discard.",
    });
    let input = json!({ "type": "object", "properties": { "from": from }, "additionalProperties": false });
    let mut rerun = with_body(input, reference("Task"));
    rerun["operationId"] = "rerunTask".into();
    rerun["summary"] =
        "Continues a failed task with the step that failed, or discards its calls from a step on.".into();
    let accepted = rerun["responses"]["200"].take();
    rerun["responses"] = json!({ "202": accepted, "default": problem() });
    push_parameters(&mut rerun, [id.clone()]);
    let steps = json!({
        "type": "object", "required": ["steps"],
        "properties": { "steps": { "type": "array", "items": reference("Step") } },
    });
    let mut journal =
        get("taskJournal", "The calls that a task has made, in the order of their answers.", steps);
    push_parameters(&mut journal, [id]);
    let cards = json!({
        "type": "object", "required": ["arms"],
        "properties": { "arms": { "type": "array", "items": reference("Card") } },
    });
    vec![
        (Method::GET, "/arms", get("arms", "The arms that are known here.", cards)),
        (Method::POST, "/tasks/{id}/rerun", rerun),
        (Method::GET, "/tasks/{id}/journal", journal),
        (Method::POST, "/tasks", submit),
        (Method::GET, "/tasks", list),
        (Method::GET, "/tasks/{id}", status),
        (Method::DELETE, "/tasks/{id}", cancel),
    ]
}

/// The route of a reflex.
pub(crate) fn preprocess() -> Operation {
    let flag = || json!({ "type": "boolean", "default": true });
    let input = json!({
        "type": "object", "required": ["input_text"], "additionalProperties": false,
        "properties": { "input_text": { "type": "string" }, "check_cache": flag(), "detect_pii": flag(), "detect_injection": flag() },
    });
    let output = json!({
        "type": "object",
        "properties": {
            "cache_hit": { "type": "boolean" }, "cached_result": {}, "pii_detected": { "type": "boolean" },
            "pii_types": { "type": "array", "items": { "type": "string" } },
            "injection_detected": { "type": "boolean" },
            "risk_score": { "type": "number", "minimum": 0, "maximum": 1 },
            "sanitized_input": { "type": "string" }, "should_proceed": { "type": "boolean" },
        },
    });
    let mut operation = with_body(input, output);
    operation["operationId"] = "preprocess".into();
    operation["summary"] = "Screens a text.".into();
    (Method::POST, "/preprocess", operation)
}

/// An operation that takes JSON and answers JSON.
pub(crate) fn with_body(input: Value, output: Value) -> Value {
    let mut operation = get("", "", output);
    operation["requestBody"] =
        json!({ "required": true, "content": { "application/json": { "schema": input } } });
    let more = ["Timeout", "Budget", "Attempt", "TaskId", "IdempotencyKey", "Traceparent", "Tracestate"];
    push_parameters(
        &mut operation,
        more.map(|name| json!({ "$ref": format!("#/components/parameters/{name}") })),
    );
    operation["responses"]["200"]["headers"]["Octollm-Usage"] =
        json!({ "$ref": "#/components/headers/Usage" });
    if let Some(operation) = operation.as_object_mut() {
        operation.remove("operationId");
        operation.remove("summary");
    }
    operation
}

fn get(id: &str, summary: &str, output: Value) -> Value {
    let parameters = ["RequestId", "CorrelationId"]
        .map(|name| json!({ "$ref": format!("#/components/parameters/{name}") }));
    json!({
        "operationId": id, "summary": summary, "parameters": parameters,
        "responses": { "200": answer(output), "default": problem() },
    })
}

fn push_parameters<const N: usize>(operation: &mut Value, more: [Value; N]) {
    if let Some(parameters) = operation["parameters"].as_array_mut() {
        parameters.extend(more);
    }
}

fn answer(schema: Value) -> Value {
    json!({
        "description": "The answer.",
        "headers": {
            "X-Request-ID": { "$ref": "#/components/headers/RequestId" },
            "X-Correlation-ID": { "$ref": "#/components/headers/CorrelationId" },
        },
        "content": { "application/json": { "schema": schema } },
    })
}

fn ready() -> Value {
    let mut operation = get("ready", "Whether work may be sent here.", reference("Ready"));
    operation["responses"]["503"] = answer(reference("Ready"));
    operation
}

fn problem() -> Value {
    json!({ "$ref": "#/components/responses/Problem" })
}

pub(crate) fn problem_response() -> Value {
    let mut response = answer(Value::Null);
    response["description"] = "What went wrong (RFC 9457).".into();
    response["headers"]["Retry-After"] =
        json!({ "schema": { "type": "integer" }, "description": "Seconds to wait before the next try." });
    response["content"] = json!({ "application/problem+json": { "schema": reference("Problem") } });
    response
}

pub(crate) fn parameters() -> Value {
    let header = |name: &str, schema: Value, description: &str| json!({ "name": name, "in": "header", "schema": schema, "description": description });
    let text = || json!({ "type": "string" });
    let pattern =
        |pattern: &str, example: &str| json!({ "type": "string", "pattern": pattern, "examples": [example] });
    let number = |from: u64, to: u64| json!({ "type": "integer", "minimum": from, "maximum": to });
    json!({
        "RequestId": header("X-Request-ID", text(), "Names the request: 1 to 128 characters of A-Z, a-z, 0-9, `.`, `_` and `-`. Anything else is replaced. Always echoed."),
        "CorrelationId": header("X-Correlation-ID", text(), "The same over all hops of one piece of work. Has the form of a request id; anything else is replaced by that."),
        "Traceparent": header("traceparent", text(), "W3C Trace Context; a malformed one is ignored."),
        "Tracestate": header("tracestate", text(), "W3C Trace Context, the vendors' part."),
        "IdempotencyKey": header("Idempotency-Key", pattern(KEY, "\"run-7\""), "Names a request that may be repeated: a quoted string. So far its form is checked, and nothing is replayed."),
        "Timeout": header("Octollm-Timeout", number(0, u64::MAX), "Milliseconds left; at 0 the answer is 504."),
        "Budget": header("Octollm-Budget", pattern(BUDGET, "tokens=1000;cost_usd=0.5"), "What may be used up, such as tokens=1000;cost_usd=0.5."),
        "Attempt": header("Octollm-Attempt", number(1, u32::MAX.into()), "1 for the first try."),
        "TaskId": header("Octollm-Task-Id", text(), "The task that the request belongs to: `task_` and 16 letters or digits. Anything else is ignored."),
    })
}

/// One quoted string of 1 to 255 characters, in which `"` and `\` stand after a `\`.
const KEY: &str = r#"^"([ !#-\[\]-~]|\\["\\]){1,255}"$"#;
/// Tokens, dollars or both, in any order.
const BUDGET: &str = "^(tokens=[0-9]{1,19}(;cost_usd=[0-9]{1,10}(\\.[0-9]+)?)?|cost_usd=[0-9]{1,10}(\\.[0-9]+)?(;tokens=[0-9]{1,19})?)$";

pub(crate) fn headers() -> Value {
    let header = |schema: Value, description: &str| json!({ "schema": schema, "description": description });
    json!({
        "RequestId": header(id(), "Names the request."),
        "CorrelationId": header(id(), "The same over all hops of one piece of work."),
        "Usage": header(json!({ "type": "string" }), "What was used up, such as tokens=12;cost_usd=0.01."),
    })
}

fn id() -> Value {
    json!({ "type": "string", "pattern": "^[A-Za-z0-9._-]{1,128}$" })
}

fn task_id() -> Value {
    json!({ "type": "string", "pattern": "^task_[a-zA-Z0-9]{16}$" })
}

fn time() -> Value {
    json!({ "type": "string", "format": "date-time" })
}

const STATUSES: [&str; 5] = ["queued", "processing", "completed", "failed", "cancelled"];

/// The schemas of every server's own bodies.
pub(crate) fn schemas() -> Map<String, Value> {
    let object = |required: &[&str], properties: Value| json!({ "type": "object", "required": required, "properties": properties });
    let text = || json!({ "type": "string" });
    let flag = || json!({ "type": "boolean" });
    let count = || json!({ "type": "integer", "minimum": 0 });
    let problem = object(
        &["type", "title", "status", "detail", "code", "message", "retryable", "may_have_executed"],
        json!({
            "type": text(), "title": text(), "status": { "type": "integer" }, "detail": text(),
            "code": { "enum": codes() }, "message": text(), "details": { "type": "object" }, "retryable": flag(),
            "retry_after": { "type": ["integer", "null"] }, "may_have_executed": flag(),
            "request_id": { "type": ["string", "null"] }, "task_id": { "type": ["string", "null"] },
        }),
    );
    let provenance = object(
        &["arm_id", "timestamp", "duration_ms"],
        json!({ "arm_id": text(), "timestamp": time(), "duration_ms": count() }),
    );
    let executed = object(
        &["task_id", "status", "output", "provenance"],
        json!({ "task_id": task_id(), "status": { "const": "completed" }, "output": {}, "provenance": provenance }),
    );
    let health = object(
        &["status", "version", "uptime_seconds"],
        json!({ "status": { "enum": ["healthy", "degraded", "unavailable"] }, "version": text(), "uptime_seconds": count() }),
    );
    let ready = object(
        &["ready", "checks", "timestamp"],
        json!({ "ready": flag(), "checks": { "type": "object", "additionalProperties": flag() }, "timestamp": time() }),
    );
    let named = [("Problem", problem), ("Executed", executed), ("Health", health), ("Ready", ready)];
    let card = ("Card", json!({ "type": "object" }));
    named.into_iter().chain([card]).map(|(name, schema)| (name.to_owned(), schema)).collect()
}

/// The member that repeats an error for clients of other stacks.
pub(crate) fn nested_error() -> Value {
    json!({
        "type": "object", "required": ["code", "message"],
        "properties": { "code": { "enum": codes() }, "message": { "type": "string" } },
    })
}

/// The schema of the envelope around the input of one contract, which the envelope names in any of these forms.
pub(crate) fn envelope(names: &[String], input: Value) -> Value {
    let task = json!({ "anyOf": [task_id(), { "type": "null" }] });
    json!({
        "type": "object", "required": ["contract", "input"], "additionalProperties": false,
        "properties": { "task_id": task, "contract": { "enum": names }, "input": input },
    })
}

/// The schemas of tasks.
pub(crate) fn task_schemas() -> Map<String, Value> {
    let optional = |schema: Value| json!({ "anyOf": [schema, { "type": "null" }] });
    let task = json!({
        "type": "object", "required": ["task_id", "status", "progress", "created_at", "updated_at"],
        "properties": {
            "task_id": task_id(), "status": { "enum": STATUSES }, "goal": { "type": ["string", "null"] },
            "progress": { "type": "object" }, "result": { "type": ["object", "null"] }, "error": { "type": ["object", "null"] },
            "metadata": { "type": "object" }, "created_at": time(), "updated_at": time(),
            "completed_at": optional(time()), "failed_at": optional(time()),
        },
    });
    let page = json!({
        "type": "object", "required": ["tasks"],
        "properties": { "tasks": { "type": "array", "items": reference("Task") }, "next": optional(task_id()) },
    });
    let step = json!({
        "type": "object", "required": ["step", "contract", "outcome", "duration_ms", "tokens_used", "cost_dollars", "at"],
        "properties": {
            "step": { "type": ["integer", "string"] }, "contract": { "type": "string" }, "arm": { "type": "string" },
            "outcome": { "enum": ["answered", "failed", "unknown"] }, "error": { "type": "object" },
            "duration_ms": { "type": "number" }, "tokens_used": { "type": "integer", "minimum": 0 },
            "cost_dollars": { "type": "number", "minimum": 0 }, "at": time(),
        },
    });
    let named = [("Task", task), ("TaskPage", page), ("Step", step)];
    let mut schemas: Map<_, _> = named.into_iter().map(|(name, schema)| (name.to_owned(), schema)).collect();
    insert(&mut schemas, "Submission", Submission::json_schema());
    schemas
}
