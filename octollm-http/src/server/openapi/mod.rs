//! The OpenAPI 3.1 document of a server, made from its card.

mod fixed;
mod schema;

use bytes::Bytes;
use http::Method;
use octollm_core::{
    card::ArmCard,
    contract::{ContractCard, ContractRef},
    error::ErrorKind,
};
use serde_json::{Map, Value, json};

/// A document that is being put together.
pub(crate) struct Document {
    info: Value,
    paths: Map<String, Value>,
    schemas: Map<String, Value>,
}

impl Document {
    /// What every server answers.
    pub(crate) fn of(card: &ArmCard) -> Self {
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

    /// Adds the contracts of an arm, each by its own route and all by the envelope.
    pub(crate) fn with_contracts(mut self, card: &ArmCard) -> Self {
        let (method, path, operation) = fixed::execute();
        self.operation(&method, path, operation);
        for contract in &card.contracts {
            self.contract(contract);
        }
        self
    }

    /// Adds the routes of tasks.
    pub(crate) fn with_tasks(mut self) -> Self {
        self.schemas.extend(fixed::task_schemas());
        for (method, path, operation) in fixed::task_operations() {
            self.operation(&method, path, operation);
        }
        self
    }

    /// A reflex may answer a task itself.
    pub(crate) fn with_screened_tasks(self) -> Self {
        let mut document = self.with_tasks();
        let answers = &mut document.paths.entry("/tasks").or_insert(Value::Null)["post"]["responses"];
        answers["200"] = answers["202"].clone();
        answers["200"]["description"] = "The task was answered at once, and is not kept.".into();
        document
    }

    /// Adds the route of a reflex.
    pub(crate) fn with_reflex(mut self) -> Self {
        let (method, path, operation) = fixed::preprocess();
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
                "parameters": fixed::parameters(),
                "headers": fixed::headers(),
                "responses": { "Problem": fixed::problem_response() },
            },
        });
        document.to_string().into()
    }

    fn contract(&mut self, contract: &ContractCard) {
        let ContractCard { name, version, .. } = contract;
        let base = if *version == 1 { name.clone() } else { format!("{name}.v{version}") };
        let (input, output) = (format!("{base}.input"), format!("{base}.output"));
        schema::insert(&mut self.schemas, &input, contract.input_schema.clone());
        schema::insert(&mut self.schemas, &output, contract.output_schema.clone());
        if !contract.chunk_schema.is_null() {
            schema::insert(&mut self.schemas, &format!("{base}.chunk"), contract.chunk_schema.clone());
        }
        let mut operation = fixed::with_body(schema::reference(&input), schema::reference(&output));
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
    }

    fn operation(&mut self, method: &Method, path: &str, operation: Value) {
        let item = self.paths.entry(path).or_insert_with(|| json!({}));
        item[method.as_str().to_ascii_lowercase()] = operation;
    }
}

/// Every code that a problem can have.
fn codes() -> Vec<&'static str> {
    ErrorKind::ALL.iter().map(|kind| kind.code()).collect()
}
