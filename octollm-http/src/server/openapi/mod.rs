//! The OpenAPI 3.1 document of a server, made from its card.

mod components;
mod fixed;
mod headers;

use bytes::Bytes;
use http::Method;
use octollm_core::{
    card::ArmCard,
    contract::{ContractCard, ContractRef, Keys, output_schema},
};
use serde_json::{Map, Value, json};

use self::components::{insert, reference};
use crate::wire::NestedError;

/// The parts of a document.
pub(crate) struct Document {
    info: Value,
    paths: Map<String, Value>,
    schemas: Map<String, Value>,
}

impl Document {
    /// The document of a server with this card; `nested` adds the member that repeats an error, and `screens` and `has_tasks`
    /// the routes of a reflex and of an orchestrator.
    pub(crate) fn new(card: &ArmCard, nested: bool, screens: bool, has_tasks: bool) -> Self {
        let mut document = Self::of(card);
        if nested {
            document = document.with_nested_errors();
        }
        if !card.contracts.is_empty() {
            document = document.with_contracts(card);
        }
        if screens {
            document = document.with_reflex();
        }
        match (has_tasks, screens) {
            (false, _) => document,
            (true, false) => document.with_tasks(),
            (true, true) => document.with_screened_tasks(),
        }
    }

    /// The routes of every server.
    fn of(card: &ArmCard) -> Self {
        let version = if card.version.is_empty() { "0" } else { &card.version };
        let mut info = json!({ "title": card.name, "version": version });
        if !card.description.is_empty() {
            info["description"] = card.description.as_str().into();
        }
        let mut document = Self { info, paths: Map::new(), schemas: fixed::schemas() };
        for (method, path, operation) in fixed::operations() {
            document.operation(&method, path, operation);
        }
        document
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
    fn with_contracts(mut self, card: &ArmCard) -> Self {
        let (method, path, operation) = fixed::execute();
        self.operation(&method, path, operation);
        // The names of the contracts' own schemas come first: no definition of a type takes one.
        for name in card.contracts.iter().flat_map(|contract| schema_names(&operation_id(contract))) {
            self.schemas.insert(name, Value::Null);
        }
        let envelopes: Vec<_> = card.contracts.iter().map(|contract| self.contract(contract)).collect();
        self.schemas.insert("Execute".into(), json!({ "oneOf": envelopes }));
        self
    }

    /// Adds the metrics, with the scope that their readers need.
    pub(crate) fn add_metrics(&mut self, scope: Option<&str>) {
        let (method, path, operation) = fixed::metrics(scope);
        self.operation(&method, path, operation);
    }

    /// Adds the routes of tasks.
    fn with_tasks(mut self) -> Self {
        fixed::task_schemas(&mut self.schemas);
        for (method, path, operation) in fixed::task_operations() {
            self.operation(&method, path, operation);
        }
        self
    }

    /// Adds the routes of tasks that a reflex screens, and can answer itself.
    fn with_screened_tasks(self) -> Self {
        let mut document = self.with_tasks();
        let answers = &mut document.paths.entry("/tasks").or_insert(Value::Null)["post"]["responses"];
        answers["200"] = answers["202"].clone();
        answers["200"]["description"] = "The task was answered at once, and is not stored.".into();
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
        let document = json!({
            "openapi": "3.1.0",
            "info": self.info,
            "paths": self.paths,
            "components": {
                "schemas": self.schemas,
                "parameters": headers::parameters(),
                "headers": headers::headers(),
                "responses": { "Problem": fixed::problem_response() },
            },
        });
        document.to_string().into()
    }

    /// Adds the route of a contract; returns the schema of its envelope.
    fn contract(&mut self, contract: &ContractCard) -> Value {
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
        fixed::cacheable(&mut operation);
        if contract.keys != Keys::None {
            fixed::honour_keys(&mut operation);
        }
        operation["operationId"] = base.into();
        operation["tags"] = json!(["contracts"]);
        operation["x-octollm-contract"] = ContractRef::new(name.clone(), *version)
            .map_or_else(|_| name.clone(), |contract| contract.to_string())
            .into();
        for (key, value) in [
            ("x-octollm-scope", contract.scope.clone().into()),
            ("x-octollm-idempotent", contract.idempotent.into()),
            ("x-octollm-timeout-ms", contract.timeout_ms.into()),
        ] {
            operation[key] = value;
        }
        if !contract.summary.is_empty() {
            operation["summary"] = contract.summary.as_str().into();
        }
        self.operation(&Method::POST, &contract.path, operation);
        let mut names = vec![format!("{name}@{version}")];
        if *version == 1 {
            names.push(name.clone());
        }
        fixed::envelope(&names, reference(&input))
    }

    fn operation(&mut self, method: &Method, path: &str, operation: Value) {
        let item = self.paths.entry(path).or_insert_with(|| json!({}));
        item[method.as_str().to_ascii_lowercase()] = operation;
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
