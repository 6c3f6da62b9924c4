//! The OpenAPI 3.1 document of a server, made from its card.

mod components;
mod dead_letters;
mod fixed;
mod headers;
#[cfg(feature = "ws")]
mod sockets;

use std::time::Duration;

use bytes::Bytes;
use http::Method;
use octollm_core::{
    contract::{ContractCard, ContractRef, Keys, output_schema},
    dispatcher::Dispatcher,
};
use serde_json::{Map, Value, json};

use self::components::{insert, reference};
use crate::wire::NestedError;

/// The parts of a document.
pub(crate) struct Document {
    info: Value,
    paths: Map<String, Value>,
    schemas: Map<String, Value>,
    verifies_tokens: bool,
}

/// What a server has beside its contracts.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Features {
    /// Errors have a member that repeats them.
    pub(crate) nested_errors: bool,
    /// It has a reflex.
    pub(crate) screens: bool,
    /// It has an orchestrator.
    pub(crate) has_tasks: bool,
    /// Arms register at it.
    pub(crate) has_registry: bool,
    /// It has the dead letters of a bus.
    pub(crate) has_dead_letters: bool,
    /// Its callers have capability tokens.
    pub(crate) verifies_tokens: bool,
}

impl Document {
    /// The document of a server with these contracts.
    pub(crate) fn new(dispatcher: &Dispatcher, features: Features) -> Self {
        let mut document = Self::of(dispatcher, features);
        if features.nested_errors {
            document = document.with_nested_errors();
        }
        if !dispatcher.card().contracts.is_empty() {
            document = document.with_contracts(dispatcher);
        }
        if features.screens {
            document = document.with_reflex();
        }
        let document = match (features.has_tasks, features.screens) {
            (false, _) => document.with_card(),
            (true, false) => document.with_tasks(),
            (true, true) => document.with_screened_tasks(),
        };
        let document = if features.has_registry { document.with_registry() } else { document };
        if features.has_dead_letters { document.with_dead_letters() } else { document }
    }

    /// The routes of every server.
    fn of(dispatcher: &Dispatcher, Features { verifies_tokens, .. }: Features) -> Self {
        let card = dispatcher.card();
        let version = if card.version.is_empty() { "0" } else { &card.version };
        let mut info = json!({ "title": card.name, "version": version, "x-octollm-arm": card.arm_id });
        if !card.description.is_empty() {
            info["description"] = card.description.as_str().into();
        }
        let mut document = Self { info, paths: Map::new(), schemas: fixed::schemas(), verifies_tokens };
        for (method, path, operation) in fixed::operations() {
            document.operation(&method, path, operation);
        }
        document
    }

    /// Adds the card of the server, in whose place an orchestrator has a list of cards.
    fn with_card(mut self) -> Self {
        fixed::card_schema(&mut self.schemas);
        let (method, path, operation) = fixed::capabilities();
        self.operation(&method, path, operation);
        self
    }

    /// Adds the member that repeats an error for clients of other stacks.
    fn with_nested_errors(mut self) -> Self {
        insert(&mut self.schemas, "NestedError", output_schema::<NestedError<'_>>());
        let problem = self.schemas.entry("Problem").or_insert(Value::Null);
        problem["properties"]["error"] = reference("NestedError");
        if let Some(required) = problem["required"].as_array_mut() {
            required.push("error".into());
        }
        self
    }

    /// Adds the contracts of an arm, each by its own route and all by the envelope.
    fn with_contracts(mut self, dispatcher: &Dispatcher) -> Self {
        let contracts = &dispatcher.card().contracts;
        let cached = |contract: &ContractCard| {
            contract.reference().and_then(|contract| dispatcher.spec(&contract).ok()?.cache)
        };
        let (method, path, mut operation) = fixed::execute();
        if contracts.iter().any(|contract| cached(contract).is_some()) {
            fixed::cacheable(&mut operation);
        }
        self.operation(&method, path, operation);
        fixed::executed_schema(&mut self.schemas);
        // The names of the contracts' own schemas come first: no definition of a type takes one.
        for name in contracts.iter().flat_map(|contract| schema_names(&operation_id(contract))) {
            self.schemas.insert(name, Value::Null);
        }
        let envelopes: Vec<_> =
            contracts.iter().map(|contract| self.contract(contract, cached(contract))).collect();
        self.schemas.insert("Execute".into(), json!({ "oneOf": envelopes }));
        self
    }

    /// Adds the metrics, with the scope that their readers need.
    pub(crate) fn add_metrics(&mut self, scope: Option<&str>) {
        let (method, path, operation) = fixed::metrics(scope);
        self.operation(&method, path, operation);
    }

    /// Adds the events of the bus.
    pub(crate) fn add_events(&mut self) {
        let (method, path, operation) = fixed::events();
        self.operation(&method, path, operation);
    }

    /// Adds the WebSockets.
    #[cfg(feature = "ws")]
    pub(crate) fn add_sockets(&mut self) {
        for (method, path, operation) in sockets::operations() {
            self.operation(&method, path, operation);
        }
    }

    /// Adds the page that displays the document.
    pub(crate) fn add_page(&mut self) {
        let (method, path, operation) = fixed::page();
        self.operation(&method, path, operation);
    }

    /// Adds the page that displays tasks, arms and events.
    #[cfg(feature = "dashboard")]
    pub(crate) fn add_dashboard(&mut self) {
        let (method, path, operation) = fixed::dashboard();
        self.operation(&method, path, operation);
    }

    /// Adds the routes of tasks.
    fn with_tasks(mut self) -> Self {
        fixed::task_schemas(&mut self.schemas);
        for (method, path, operation) in fixed::task_operations(self.paths.contains_key("/execute")) {
            self.operation(&method, path, operation);
        }
        self
    }

    /// Adds the routes of a registry.
    fn with_registry(mut self) -> Self {
        fixed::registry_schemas(&mut self.schemas);
        for (method, path, operation) in fixed::registry_operations() {
            self.operation(&method, path, operation);
        }
        self
    }

    /// Adds the routes of dead letters.
    fn with_dead_letters(mut self) -> Self {
        dead_letters::schemas(&mut self.schemas);
        for (method, path, operation) in dead_letters::operations() {
            self.operation(&method, path, operation);
        }
        self
    }

    /// Adds the routes of tasks that a reflex screens, and can answer itself.
    fn with_screened_tasks(self) -> Self {
        let mut document = self.with_tasks();
        let answers = &mut document.paths.entry("/tasks").or_insert(Value::Null)["post"]["responses"];
        // A task that is answered at once is nowhere.
        answers["200"]["headers"]["Location"]["required"] = false.into();
        let answered = format!("The task was answered at once, and is not stored. Or: {}", fixed::EXISTING);
        answers["200"]["description"] = answered.into();
        document
    }

    /// Adds the route of a reflex.
    fn with_reflex(mut self) -> Self {
        fixed::reflex_schemas(&mut self.schemas);
        let (method, path, operation) = fixed::preprocess();
        self.operation(&method, path, operation);
        self
    }

    /// Adds the route of the public keys of an issuer.
    #[cfg(feature = "tokens")]
    pub(crate) fn with_jwks(mut self) -> Self {
        let (method, path, operation) = fixed::jwks();
        self.operation(&method, path, operation);
        self
    }

    /// The document as JSON.
    pub(crate) fn write(self) -> Bytes {
        let mut components = json!({
            "schemas": self.schemas,
            "parameters": headers::parameters(),
            "headers": headers::headers(),
            "responses": { "Problem": fixed::problem_response(), "Challenge": fixed::challenge_response() },
        });
        if self.verifies_tokens {
            components["securitySchemes"] = json!({ TOKEN: {
                "type": "http", "scheme": "bearer", "bearerFormat": "JWT",
                "description": "A capability token for this server, with the scopes that an operation lists.",
            } });
        }
        let in_use = |tag: &str| {
            let operations = self.paths.values().filter_map(Value::as_object).flat_map(Map::values);
            operations.into_iter().any(|operation| operation["tags"][0] == tag)
        };
        let tags: Vec<_> = fixed::TAGS
            .iter()
            .filter(|(tag, _)| in_use(tag))
            .map(|(tag, words)| json!({ "name": tag, "description": words }))
            .collect();
        let document = json!({
            "openapi": "3.1.0",
            "info": self.info,
            // Relative to the URL of the document: a server does not know below which prefix it is mounted.
            "servers": [{ "url": "." }],
            "tags": tags,
            "paths": self.paths,
            "components": components,
        });
        document.to_string().into()
    }

    /// Adds the route of a contract; returns the schema of its envelope.
    fn contract(&mut self, contract: &ContractCard, cached: Option<Duration>) -> Value {
        let ContractCard { name, version, .. } = contract;
        let base = operation_id(contract);
        let [input, output, chunk] = schema_names(&base);
        insert(&mut self.schemas, &input, contract.input_schema.clone());
        insert(&mut self.schemas, &output, contract.output_schema.clone());
        if contract.chunk_schema.is_null() {
            self.schemas.remove(&chunk);
        } else {
            insert(&mut self.schemas, &chunk, contract.chunk_schema.clone());
        }
        let mut operation = fixed::with_body(reference(&input), reference(&output), fixed::OF_ARMS);
        if cached.is_some() {
            fixed::cacheable(&mut operation);
        }
        if contract.keys != Keys::None {
            fixed::honour_keys(&mut operation);
        }
        let streamed = &mut operation["responses"]["200"]["content"];
        streamed["text/event-stream"] = fixed::events_of(json!({}))["text/event-stream"].take();
        describe(&mut operation, contract, cached);
        operation["operationId"] = base.into();
        self.operation(&Method::POST, &contract.path, operation);
        let mut names = vec![format!("{name}@{version}")];
        if *version == 1 {
            names.push(name.clone());
        }
        fixed::envelope(&names, reference(&input))
    }

    fn operation(&mut self, method: &Method, path: &str, mut operation: Value) {
        // What answers 401 needs a token. The contracts that are picked by a body have different scopes.
        if self.verifies_tokens && operation["responses"].get("401").is_some() {
            let scope = operation.get("x-octollm-scope").cloned();
            operation["security"] = json!([{ TOKEN: Vec::from_iter(scope) }]);
        }
        let item = self.paths.entry(path).or_insert_with(|| json!({}));
        item[method.as_str().to_ascii_lowercase()] = operation;
    }
}

/// Name of the security scheme.
const TOKEN: &str = "token";

/// Adds what the card states about a contract to its operation.
fn describe(operation: &mut Value, contract: &ContractCard, cached: Option<Duration>) {
    let tags = contract.tags.iter().filter(|tag| *tag != fixed::CONTRACTS);
    operation["tags"] = json!(Vec::from_iter([fixed::CONTRACTS].into_iter().chain(tags.map(String::as_str))));
    let reference =
        contract.reference().as_ref().map_or_else(|| contract.name.clone(), ContractRef::to_string);
    let mut put = |key: &str, value: Value| operation[key] = value;
    match (&*contract.title, &*contract.summary) {
        ("", "") => {}
        ("", summary) => put("summary", summary.into()),
        (title, "") => put("summary", title.into()),
        (title, summary) => {
            put("summary", title.into());
            put("description", summary.into());
        }
    }
    // `#[deprecated]` on the type of the input.
    if contract.input_schema.get("deprecated") == Some(&Value::Bool(true)) {
        put("deprecated", true.into());
    }
    put("x-octollm-contract", reference.into());
    put("x-octollm-scope", contract.scope.clone().into());
    put("x-octollm-idempotent", contract.idempotent.into());
    put("x-octollm-timeout-ms", contract.timeout_ms.into());
    put("x-octollm-keys", json!(contract.keys));
    if let Some(seconds) = contract.keys_retained_s {
        put("x-octollm-keys-retained-s", seconds.into());
    }
    if let Some(time) = cached {
        put("x-octollm-cache-s", time.as_secs_f64().into());
    }
    if let Some(effects) = contract.effects {
        put("x-octollm-effects", json!(effects));
    }
    if !contract.examples.is_empty() {
        put("x-octollm-examples", json!(contract.examples));
    }
}

/// `code.validate`; `code.validate.v2` for version 2.
fn operation_id(contract: &ContractCard) -> String {
    match contract.version {
        1 => contract.name.clone(),
        version => format!("{}.v{version}", contract.name),
    }
}

/// The names of the schemas of an operation's input, output and chunks.
fn schema_names(operation: &str) -> [String; 3] {
    ["input", "output", "chunk"].map(|part| format!("{operation}.{part}"))
}
