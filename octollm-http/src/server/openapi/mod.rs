//! The OpenAPI 3.1 document of a server, made from its card.

mod fixed;

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
        let envelopes: Vec<_> = card.contracts.iter().map(|contract| self.contract(contract)).collect();
        self.schemas.insert("Execute".into(), json!({ "oneOf": envelopes }));
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
        answers["200"]["description"] = "The task was answered at once, and is not stored.".into();
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

    /// Adds the route of a contract; returns the schema of its envelope.
    fn contract(&mut self, contract: &ContractCard) -> Value {
        let ContractCard { name, version, .. } = contract;
        let base = if *version == 1 { name.clone() } else { format!("{name}.v{version}") };
        let (input, output) = (format!("{base}.input"), format!("{base}.output"));
        insert(&mut self.schemas, &input, contract.input_schema.clone());
        insert(&mut self.schemas, &output, contract.output_schema.clone());
        if !contract.chunk_schema.is_null() {
            insert(&mut self.schemas, &format!("{base}.chunk"), contract.chunk_schema.clone());
        }
        let mut operation = fixed::with_body(reference(&input), reference(&output));
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

/// Every code that a problem can have.
fn codes() -> Vec<&'static str> {
    ErrorKind::ALL.iter().map(|kind| kind.code()).collect()
}

/// Puts `schema` under `name` into `components`, and each of its `$defs` under a name of its own, so that every `$ref`
/// leads somewhere in the document.
pub(crate) fn insert(components: &mut Map<String, Value>, name: &str, mut schema: Value) {
    if let Value::Object(object) = &mut schema {
        object.remove("$schema");
        if let Some(Value::Object(definitions)) = object.remove("$defs") {
            for (key, mut definition) in definitions {
                rewrite(&mut definition, name);
                components.insert(definition_name(name, &key), definition);
            }
        }
    }
    rewrite(&mut schema, name);
    components.insert(name.to_owned(), schema);
}

/// A reference to a schema of the document.
pub(crate) fn reference(name: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{name}") })
}

/// Component names have letters, digits, `.`, `-` and `_` alone.
fn definition_name(name: &str, key: &str) -> String {
    let key = key.replace(|c: char| !(c.is_ascii_alphanumeric() || "._-".contains(c)), "_");
    format!("{name}.{key}")
}

/// Rewrites the references in a schema. What stands for a value, such as a default, is left as it is.
fn rewrite(schema: &mut Value, name: &str) {
    let object = match schema {
        Value::Object(object) => object,
        Value::Array(schemas) => return schemas.iter_mut().for_each(|schema| rewrite(schema, name)),
        _ => return,
    };
    for (key, value) in object {
        match (key.as_str(), value) {
            ("$ref", Value::String(target)) => *target = moved(target, name),
            ("default" | "const" | "enum" | "example" | "examples", _) => {}
            (
                "properties" | "patternProperties" | "dependentSchemas" | "$defs" | "definitions",
                Value::Object(schemas),
            ) => schemas.values_mut().for_each(|schema| rewrite(schema, name)),
            (_, value) => rewrite(value, name),
        }
    }
}

fn moved(target: &str, name: &str) -> String {
    let Some(rest) = target.strip_prefix("#/$defs/") else {
        return match target {
            "#" => format!("#/components/schemas/{name}"),
            other => other.to_owned(),
        };
    };
    let (key, deeper) = rest.split_once('/').map_or((rest, None), |(key, deeper)| (key, Some(deeper)));
    // A pointer escapes two characters (RFC 6901 §3), and a fragment more (RFC 3986 §3.5).
    let key = super::head::percent_decoded(key.as_bytes()).and_then(|key| String::from_utf8(key).ok());
    let key = key.unwrap_or_default().replace("~1", "/").replace("~0", "~");
    let component = definition_name(name, &key);
    match deeper {
        Some(deeper) => format!("#/components/schemas/{component}/{deeper}"),
        None => format!("#/components/schemas/{component}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reference_leads_somewhere() {
        let mut components = Map::new();
        insert(
            &mut components,
            "a.b.input",
            json!({
                "$schema": "x",
                "type": "object",
                "properties": {
                    "self": { "$ref": "#" },
                    "$ref": { "anyOf": [{ "$ref": "#/$defs/Node<u8>" }, { "type": "null" }] },
                    "default": { "$ref": "#/$defs/Node%3Cu8%3E/properties/next" },
                    "text": { "type": "string", "default": { "$ref": "#/$defs/none" } },
                },
                "$defs": { "Node<u8>": { "properties": { "next": { "$ref": "#/$defs/Node<u8>" } } } },
            }),
        );
        let node = "#/components/schemas/a.b.input.Node_u8_";
        assert_eq!(components["a.b.input.Node_u8_"], json!({ "properties": { "next": { "$ref": node } } }));
        assert_eq!(
            components["a.b.input"],
            json!({
                "type": "object",
                "properties": {
                    "self": { "$ref": "#/components/schemas/a.b.input" },
                    "$ref": { "anyOf": [{ "$ref": node }, { "type": "null" }] },
                    "default": { "$ref": format!("{node}/properties/next") },
                    "text": { "type": "string", "default": { "$ref": "#/$defs/none" } },
                },
            })
        );
    }
}
