//! The operations and schemas of a document that are the same for every server.

use http::{Method, StatusCode};
use octollm_core::{
    card::ArmCard,
    contract::{input_schema, output_schema},
    error::ErrorKind,
    id::TaskId,
    orchestrator::{MAX_STEPS, TaskPage},
    task::{Submission, Task, TaskStatus},
};
use serde_json::{Map, Value, json};

use super::{
    super::{
        arm::{ArmsBody, Executed, HealthBody, ReadyBody},
        registry::Cleared,
        tasks::{PreprocessBody, Preprocessed, RerunBody, Steps},
    },
    components::{insert, reference},
    headers::inline,
};
use crate::{
    registry::{Registered, Request},
    wire::Problem,
};

/// A route and its operation in the document.
pub(crate) type Operation = (Method, &'static str, Value);

/// The tag of contracts.
pub(crate) const CONTRACTS: &str = "contracts";
pub(crate) const TASKS: &str = "tasks";
const SCREENING: &str = "screening";
pub(crate) const EVENTS: &str = "events";
const SERVER: &str = "server";
/// The tags that group the operations, in the order of a reader's interest.
pub(crate) const TAGS: [(&str, &str); 5] = [
    (
        CONTRACTS,
        "What the arm does: one route for each contract, and one that picks the contract by its body.",
    ),
    (TASKS, "Work that is queued, and goes on without its submitter."),
    (SCREENING, "Texts are screened before they become tasks."),
    (EVENTS, "Events that are no longer delivered."),
    (SERVER, "What the server reports about itself."),
];

/// Statuses of any route, for a head that is refused.
const OF_HEADS: &[u16] = &[400, 406, 414, 417, 431];
/// More statuses of a route that answers with a document, whose requests have a limit.
const OF_DOCUMENTS: &[u16] = &[503];
/// More statuses of a route that asks an orchestrator for its arms.
const OF_ARM_LISTS: &[u16] = &[500, 503];
/// Further ones, where the server has no card of its own to answer with.
const OF_FAILED_LISTS: &[u16] = &[429, 502, 504];
/// More statuses of a route that needs an identity and a place among the requests that run.
pub(crate) const OF_PLACES: &[u16] = &[401, 403, 429, 500, 503, 504];
/// More statuses of a route with a body.
const OF_BODIES: &[u16] = &[408, 413, 415, 422];
/// More statuses of a route that runs an arm.
pub(crate) const OF_ARMS: &[u16] = &[404, 409, 502];
/// More statuses of a registration. Without tokens proofs cannot be verified.
const OF_REGISTRATIONS: &[u16] = if cfg!(feature = "tokens") { &[409] } else { &[409, 501] };
/// More statuses of the routes of one task.
pub(crate) const OF_TASKS: &[u16] = &[404, 409, 501];

/// The route of the card of a server without an orchestrator.
pub(crate) fn capabilities() -> Operation {
    (Method::GET, "/capabilities", document("capabilities", "What is served here.", reference("Card")))
}

/// The routes of every server.
pub(crate) fn operations() -> Vec<Operation> {
    let mut ready = get("ready", "Whether work may be sent here.", reference("Ready"));
    ready["responses"]["503"] = answer(reference("Ready"));
    ready["responses"]["503"]["description"] = "No work may be sent here now.".into();
    vec![
        (Method::GET, "/health", get("health", "Whether the process lives.", reference("Health"))),
        (Method::GET, "/ready", ready),
        (Method::GET, "/openapi.json", document("openapi", "This document.", json!({ "type": "object" }))),
    ]
}

/// The metrics, for readers with a scope if there is one.
pub(crate) fn metrics(scope: Option<&str>) -> Operation {
    let summary = "The metrics of the process, in the text format of Prometheus.";
    let mut operation = text("metrics", summary, "text/plain");
    if let Some(scope) = scope {
        operation["x-octollm-scope"] = scope.into();
        fails(&mut operation, &[401, 403, 504]);
    }
    (Method::GET, "/metrics", operation)
}

/// The events of the bus.
pub(crate) fn events() -> Operation {
    let summary = "The events of the bus whose channels match a pattern, as they are published.";
    let mut operation = get("events", summary, Value::Null);
    fails(&mut operation, OF_PLACES);
    let pattern = "Channels, such as `events:task:*`. The caller needs the scope of each.";
    let pattern = json!({
        "name": "pattern", "in": "query", "required": true, "schema": { "type": "string" }, "description": pattern,
    });
    push_parameters(&mut operation, [pattern]);
    operation["responses"]["200"]["content"] = events_of(json!({ "type": "object" }));
    operation["responses"]["200"]["description"] =
        "Server-sent events, whose data are events, and gaps between them.".into();
    (Method::GET, "/events", operation)
}

/// The content of an answer of server-sent events. The schema is that of one event, as the item schema of OpenAPI 3.2 is.
pub(crate) fn events_of(data: Value) -> Value {
    let data = json!({ "type": "string", "contentMediaType": "application/json", "contentSchema": data });
    let text = json!({ "type": "string" });
    let event = json!({
        "type": "object", "properties": { "id": text, "event": text, "data": data }, "required": ["data"],
    });
    json!({ "text/event-stream": { "schema": event } })
}

/// The page that displays the document.
pub(crate) fn page() -> Operation {
    (Method::GET, "/docs", text("docs", "A page that displays this document.", "text/html"))
}

/// The page that displays tasks, arms and events as they change.
#[cfg(feature = "dashboard")]
pub(crate) fn dashboard() -> Operation {
    let summary = "A page that displays tasks, arms, events and dead letters as they change.";
    (Method::GET, "/dashboard", tagged(text("dashboard", summary, "text/html")))
}

/// A document of this media type, whatever its readers accept.
fn text(id: &str, summary: &str, media_type: &str) -> Value {
    let mut operation = document(id, summary, Value::Null);
    operation["responses"]["200"]["content"] = json!({ media_type: { "schema": { "type": "string" } } });
    if let Some(responses) = operation["responses"].as_object_mut() {
        responses.remove("406");
    }
    operation
}

/// The route of the public keys of an issuer.
#[cfg(feature = "tokens")]
pub(crate) fn jwks() -> Operation {
    let keys = json!({ "type": "array", "items": { "type": "object", "required": ["kty"] } });
    let set = json!({ "type": "object", "required": ["keys"], "properties": { "keys": keys } });
    let summary = "The public keys of the issuer of tokens (RFC 7517).";
    (Method::GET, "/.well-known/jwks.json", document("jwks", summary, set))
}

/// The route of the envelope.
pub(crate) fn execute() -> Operation {
    let mut operation = with_body(reference("Execute"), reference("Executed"), OF_ARMS);
    honour_keys(&mut operation);
    operation["tags"] = json!([CONTRACTS]);
    (Method::POST, "/execute", named(operation, "execute", "Runs a contract that is picked by the body."))
}

/// The routes of tasks.
pub(crate) fn task_operations(has_contracts: bool) -> Vec<Operation> {
    let place = |id: &str, summary: &str, output: &str, errors: &[&[u16]]| {
        let mut operation = get(id, summary, reference(output));
        errors.iter().for_each(|statuses| fails(&mut operation, statuses));
        operation
    };
    let of_task = |id: &str, summary: &str, output: &str| {
        let mut operation = place(id, summary, output, &[OF_PLACES, OF_TASKS]);
        push_parameters(&mut operation, [task_in_path()]);
        operation
    };
    let submit = accepted(with_body(reference("Submission"), reference("Task"), OF_ARMS));
    let mut submit = named(submit, "submitTask", "Queues a task.");
    submit["responses"]["202"]["headers"]["Location"] =
        json!({ "schema": { "type": "string" }, "description": "Where the task is." });
    submit["responses"]["200"] = submit["responses"]["202"].clone();
    submit["responses"]["200"]["description"] = EXISTING.into();
    let mut list = place("listTasks", "The caller's tasks, newest first.", "TaskPage", &[OF_PLACES]);
    push_parameters(&mut list, list_parameters());
    let rerun = accepted(with_body(reference("Rerun"), reference("Task"), OF_TASKS));
    let mut rerun = named(
        rerun,
        "rerunTask",
        "Continues a failed task with the step that failed, or discards its calls from a step on.",
    );
    push_parameters(&mut rerun, [task_in_path()]);
    let lists: &[&[u16]] = if has_contracts { &[OF_ARM_LISTS] } else { &[OF_ARM_LISTS, OF_FAILED_LISTS] };
    let of_arms = |id: &str, summary: &str| tagged(place(id, summary, "Arms", lists));
    let cards = of_arms("capabilities", "What is served here, and the arms that are known here.");
    let arms = of_arms("arms", "The arms that are known here.");
    let journal = "A page of the calls that a task has made, in the order of their answers.";
    let mut journal = of_task("taskJournal", journal, "Journal");
    push_parameters(&mut journal, journal_parameters());
    let updates = "The updates of a task after a number, as they come: its progress, chunks and statuses.";
    let mut updates = of_task("taskEvents", updates, "TaskUpdate");
    push_parameters(&mut updates, updates_parameters());
    let update = updates["responses"]["200"]["content"]["application/json"]["schema"].take();
    updates["responses"]["200"]["content"] = events_of(update);
    updates["responses"]["200"]["description"] = EVENT_STREAM.into();
    let cards = [(Method::GET, "/capabilities", cards), (Method::GET, "/arms", arms)];
    let mut operations = vec![
        (Method::POST, "/tasks/{id}/rerun", rerun),
        (Method::GET, "/tasks/{id}/journal", journal),
        (Method::GET, "/tasks/{id}/events", updates),
        (Method::POST, "/tasks", submit),
        (Method::GET, "/tasks", list),
        (Method::GET, "/tasks/{id}", of_task("getTask", "A task as it stands.", "Task")),
        (
            Method::DELETE,
            "/tasks/{id}",
            of_task("cancelTask", "Cancels a task; one that is finished stays as it is.", "Task"),
        ),
    ];
    for (_, _, operation) in &mut operations {
        operation["tags"] = json!([TASKS]);
    }
    operations.extend(cards);
    operations
}

/// Adds the tag of an answer, and the answer to a request that has it.
fn tagged(mut operation: Value) -> Value {
    let tag = json!({ "schema": { "type": "string" }, "description": "Changes with the answer." });
    let field = "The tag of the answer that the caller has.";
    let field = json!({ "name": "If-None-Match", "in": "header", "schema": { "type": "string" }, "description": field });
    push_parameters(&mut operation, [field]);
    operation["responses"]["200"]["headers"]["ETag"] = tag;
    operation["responses"]["304"] = json!({ "description": "The caller has the answer." });
    operation
}

/// The routes of a registry.
pub(crate) fn registry_operations() -> Vec<Operation> {
    let mut register =
        get("registerArm", "Registers an arm, renews its registration, or ends it.", reference("Registered"));
    register["requestBody"] = json!({ "required": true, "content": { "application/json": { "schema": reference("Registration") } } });
    for statuses in [OF_PLACES, OF_BODIES, OF_REGISTRATIONS] {
        fails(&mut register, statuses);
    }
    let proof = "A signature of the request by the key on the card, once: see the section on registration in the description of the wire.";
    let proof = json!({ "name": "Octollm-Proof", "in": "header", "schema": { "type": "string" }, "description": proof });
    push_parameters(&mut register, [proof]);
    register["responses"]["201"] = register["responses"]["200"].clone();
    register["responses"]["201"]["description"] = "The process was not registered before.".into();
    let mut clear = get("clearArm", "Forgets an arm and who holds its id.", reference("Cleared"));
    for statuses in [OF_PLACES, &[404]] {
        fails(&mut clear, statuses);
    }
    clear["x-octollm-scope"] = "arms:admin".into();
    let id = json!({ "name": "id", "in": "path", "required": true, "schema": { "type": "string" } });
    push_parameters(&mut clear, [id]);
    vec![(Method::POST, "/arms/register", register), (Method::DELETE, "/arms/{id}", clear)]
}

/// The schemas of a registry.
pub(crate) fn registry_schemas(schemas: &mut Map<String, Value>) {
    insert(schemas, "Registration", input_schema::<Request>());
    insert(schemas, "Registered", output_schema::<Registered>());
    insert(schemas, "Cleared", output_schema::<Cleared>());
}

pub(crate) fn task_in_path() -> Value {
    json!({ "name": "id", "in": "path", "required": true, "schema": inline::<TaskId>() })
}

pub(crate) fn query(name: &str, schema: Value) -> Value {
    json!({ "name": name, "in": "query", "schema": schema, "allowEmptyValue": true })
}

fn journal_parameters() -> [Value; 2] {
    let after = "Where the page before ended: its next.";
    let after = json!({ "type": "integer", "minimum": 0, "maximum": u64::MAX, "description": after });
    let limit = json!({ "type": "integer", "minimum": 1, "maximum": MAX_STEPS, "default": 100 });
    [query("after", after), query("limit", limit)]
}

/// The events of a task.
const EVENT_STREAM: &str = "Server-sent events, whose data have this form, and whose ids are the numbers.";

fn updates_parameters() -> [Value; 2] {
    let after = json!({ "type": "integer", "minimum": 0, "maximum": u64::MAX });
    let last = "The number of the last update that the caller has, in place of `after`. Empty is none.";
    let schema = json!({ "anyOf": [after, { "type": "string", "maxLength": 0 }] });
    let last = json!({ "name": "Last-Event-ID", "in": "header", "schema": schema, "description": last });
    [query("after", after), last]
}

fn list_parameters() -> [Value; 3] {
    let statuses = TaskStatus::ALL.map(TaskStatus::as_str);
    [
        query("status", json!({ "enum": statuses })),
        query(
            "after",
            json!({ "type": "string", "pattern": "^(task_[a-zA-Z0-9]{16})?$", "description": "A task of the page before." }),
        ),
        query("limit", json!({ "type": "integer", "minimum": 1, "maximum": 100, "default": 20 })),
    ]
}

/// The route of a reflex.
pub(crate) fn preprocess() -> Operation {
    let mut operation = with_body(reference("Preprocess"), reference("Preprocessed"), OF_ARMS);
    operation["tags"] = json!([SCREENING]);
    (Method::POST, "/preprocess", named(operation, "preprocess", "Screens a text."))
}

/// An operation that takes JSON and answers JSON.
pub(crate) fn with_body(input: Value, output: Value, more_errors: &[u16]) -> Value {
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
    limited(&mut operation["responses"]["200"]);
    for statuses in [OF_PLACES, OF_BODIES, more_errors] {
        fails(&mut operation, statuses);
    }
    if let Some(operation) = operation.as_object_mut() {
        operation.remove("operationId");
        operation.remove("summary");
    }
    operation
}

/// Adds what repeated requests with a key have.
pub(crate) fn honour_keys(operation: &mut Value) {
    push_parameters(operation, [json!({ "$ref": "#/components/parameters/Instance" })]);
    operation["responses"]["200"]["headers"]["Idempotency-Replayed"] =
        json!({ "$ref": "#/components/headers/Replayed" });
}

fn named(mut operation: Value, id: &str, summary: &str) -> Value {
    operation["operationId"] = id.into();
    operation["summary"] = summary.into();
    operation
}

/// The answer to a submission whose key a task has.
pub(crate) const EXISTING: &str = "A task that is not finished has the uniqueness key of the submission.";

/// Answers 202 in place of 200.
fn accepted(mut operation: Value) -> Value {
    if let Some(responses) = operation["responses"].as_object_mut()
        && let Some(mut answer) = responses.remove("200")
    {
        answer["description"] = "The work was accepted, and runs later.".into();
        responses.insert("202".into(), answer);
    }
    operation
}

/// Adds statuses that are answered with a problem.
pub(crate) fn fails(operation: &mut Value, statuses: &[u16]) {
    for status in statuses {
        operation["responses"][status.to_string()] = problem(*status);
    }
}

fn document(id: &str, summary: &str, output: Value) -> Value {
    let mut operation = get(id, summary, output);
    fails(&mut operation, OF_DOCUMENTS);
    operation
}

pub(crate) fn get(id: &str, summary: &str, output: Value) -> Value {
    let parameters = ["RequestId", "CorrelationId"]
        .map(|name| json!({ "$ref": format!("#/components/parameters/{name}") }));
    let mut operation = json!({
        "operationId": id, "summary": summary, "tags": [SERVER], "parameters": parameters,
        "responses": { "200": answer(output), "default": reference_to_problem("Problem") },
    });
    fails(&mut operation, OF_HEADS);
    operation
}

pub(crate) fn push_parameters<const N: usize>(operation: &mut Value, more: [Value; N]) {
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

/// The problem with a status, and the codes that it can have.
fn problem(status: u16) -> Value {
    let mut problem = reference_to_problem(if matches!(status, 401 | 403) { "Challenge" } else { "Problem" });
    let codes = ErrorKind::ALL.iter().filter(|kind| kind.status() == status).map(|kind| kind.code());
    let codes: Vec<_> = codes.map(|code| format!("`{code}`")).collect();
    let name = StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason());
    problem["description"] = format!("{}: {}.", name.unwrap_or("Problem"), codes.join(", ")).into();
    problem
}

fn reference_to_problem(name: &str) -> Value {
    json!({ "$ref": format!("#/components/responses/{name}") })
}

/// Adds the header fields of a request that a rate limit counts.
fn limited(response: &mut Value) {
    for (field, name) in [
        ("X-RateLimit-Limit", "RateLimit"),
        ("X-RateLimit-Remaining", "RateRemaining"),
        ("X-RateLimit-Reset", "RateReset"),
    ] {
        response["headers"][field] = json!({ "$ref": format!("#/components/headers/{name}") });
    }
}

/// Adds the header field of an answer that can come from the cache.
pub(crate) fn cacheable(operation: &mut Value) {
    operation["responses"]["200"]["headers"]["Age"] = json!({ "$ref": "#/components/headers/Age" });
}

pub(crate) fn problem_response() -> Value {
    let mut response = answer(Value::Null);
    response["description"] = "What went wrong (RFC 9457).".into();
    response["headers"]["Retry-After"] =
        json!({ "schema": { "type": "integer" }, "description": "Seconds to wait before the next try." });
    for (field, name) in
        [("Octollm-Usage", "Usage"), ("Idempotency-Replayed", "Replayed"), ("Allow", "Allow")]
    {
        response["headers"][field] = json!({ "$ref": format!("#/components/headers/{name}") });
    }
    limited(&mut response);
    response["content"] = json!({ "application/problem+json": { "schema": reference("Problem") } });
    response
}

/// The problem of a caller whose identity is refused.
pub(crate) fn challenge_response() -> Value {
    let mut response = problem_response();
    response["headers"]["WWW-Authenticate"] = json!({ "$ref": "#/components/headers/Challenge" });
    response
}

/// The schemas of every server's own bodies.
pub(crate) fn schemas() -> Map<String, Value> {
    let mut schemas = Map::new();
    insert(&mut schemas, "Problem", output_schema::<Problem>());
    insert(&mut schemas, "Health", output_schema::<HealthBody<'_>>());
    insert(&mut schemas, "Ready", output_schema::<ReadyBody>());
    schemas
}

/// The schema of a card.
pub(crate) fn card_schema(schemas: &mut Map<String, Value>) {
    insert(schemas, "Card", output_schema::<ArmCard>());
}

/// The schema of the answer of `/execute`.
pub(crate) fn executed_schema(schemas: &mut Map<String, Value>) {
    insert(schemas, "Executed", output_schema::<Executed<'_>>());
}

/// The schemas of tasks.
pub(crate) fn task_schemas(schemas: &mut Map<String, Value>) {
    insert(schemas, "Task", output_schema::<Task>());
    insert(schemas, "TaskPage", output_schema::<TaskPage>());
    insert(schemas, "Journal", output_schema::<Steps>());
    insert(schemas, "TaskUpdate", update_schema());
    insert(schemas, "Arms", output_schema::<ArmsBody>());
    insert(schemas, "Rerun", input_schema::<RerunBody>());
    insert(schemas, "Submission", Submission::json_schema());
}

fn update_schema() -> Value {
    let number = json!({ "type": "integer", "minimum": 0 });
    json!({
        "type": "object", "required": ["type", "task_id", "seq"],
        "properties": {
            "type": { "enum": ["progress", "chunk", "status", "gap"] },
            "task_id": inline::<TaskId>(), "seq": number, "missed": number,
            "progress": { "type": "integer", "minimum": 0, "maximum": 100 },
            "phase": { "type": "string" }, "message": { "type": "string" },
            "data": {}, "status": { "enum": TaskStatus::ALL.map(TaskStatus::as_str) },
            "result": {}, "error": {},
        },
    })
}

/// The schemas of a reflex.
pub(crate) fn reflex_schemas(schemas: &mut Map<String, Value>) {
    insert(schemas, "Preprocess", input_schema::<PreprocessBody>());
    insert(schemas, "Preprocessed", output_schema::<Preprocessed>());
}

/// The schema of the envelope around the input of a contract, which has these names.
pub(crate) fn envelope(names: &[String], input: Value) -> Value {
    let task = json!({ "anyOf": [inline::<TaskId>(), { "type": "null" }] });
    json!({
        "type": "object", "required": ["contract", "input"], "additionalProperties": false,
        "properties": { "task_id": task, "contract": { "enum": names }, "input": input },
    })
}
