//! The OpenAPI 3.1 document of a server, made from its card.

mod fixed;
mod headers;

use std::collections::HashMap;

use bytes::Bytes;
use http::Method;
use octollm_core::{
    card::ArmCard,
    contract::{ContractCard, ContractRef, Keys, output_schema},
};
use serde_json::{Map, Value, json};

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

/// Puts `schema` under `name` into `components`, and each of its `$defs` under a name that no other schema has, so that every
/// `$ref` leads to its own.
pub(crate) fn insert(components: &mut Map<String, Value>, name: &str, mut schema: Value) {
    let mut names = Names { root: name, definitions: HashMap::new() };
    if let Value::Object(object) = &mut schema {
        object.remove("$schema");
        if let Some(Value::Object(definitions)) = object.remove("$defs") {
            for key in definitions.keys() {
                let component = unused(components, definition_name(name, key));
                components.insert(component.clone(), Value::Null);
                names.definitions.insert(key.clone(), component);
            }
            for (key, mut definition) in definitions {
                names.rewrite(&mut definition);
                if let Some(component) = names.definitions.get(&key) {
                    components.insert(component.clone(), definition);
                }
            }
        }
    }
    names.rewrite(&mut schema);
    components.insert(name.to_owned(), schema);
}

/// A reference to a schema of the document.
pub(crate) fn reference(name: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{name}") })
}

/// The name of a definition, with the letters, digits, `.`, `-` and `_` that component names can have.
fn definition_name(name: &str, key: &str) -> String {
    let key = key.replace(|c: char| !(c.is_ascii_alphanumeric() || "._-".contains(c)), "_");
    format!("{name}.{key}")
}

/// `name`, or `name_2`, `name_3` and so on if it is in use, since two names can differ by characters that components cannot have.
fn unused(components: &Map<String, Value>, name: String) -> String {
    let free = |name: &String| !components.contains_key(name);
    if free(&name) {
        return name;
    }
    (2_u64..).map(|number| format!("{name}_{number}")).find(free).unwrap_or(name)
}

/// The component names of the definitions of one schema.
struct Names<'n> {
    root: &'n str,
    definitions: HashMap<String, String>,
}

impl Names<'_> {
    /// Rewrites the references in a schema. Values, such as a default, are not changed.
    fn rewrite(&self, schema: &mut Value) {
        let object = match schema {
            Value::Object(object) => object,
            Value::Array(schemas) => return schemas.iter_mut().for_each(|schema| self.rewrite(schema)),
            _ => return,
        };
        for (key, value) in object {
            match (key.as_str(), value) {
                ("$ref", Value::String(target)) => {
                    if let Some(moved) = self.moved(target) {
                        *target = moved;
                    }
                }
                ("default" | "const" | "enum" | "example" | "examples", _) => {}
                (
                    "properties" | "patternProperties" | "dependentSchemas" | "$defs" | "definitions",
                    Value::Object(schemas),
                ) => schemas.values_mut().for_each(|schema| self.rewrite(schema)),
                (_, value) => self.rewrite(value),
            }
        }
    }

    /// The new target of a reference to a part of this schema.
    fn moved(&self, target: &str) -> Option<String> {
        if target == "#" {
            return Some(format!("#/components/schemas/{}", self.root));
        }
        let rest = target.strip_prefix("#/$defs/")?;
        let (key, deeper) = rest.split_once('/').map_or((rest, None), |(key, deeper)| (key, Some(deeper)));
        // A pointer escapes two characters (RFC 6901 §3), and a fragment more (RFC 3986 §3.5).
        let key = super::head::percent_decoded(key.as_bytes()).and_then(|key| String::from_utf8(key).ok());
        let component = self.definitions.get(&key?.replace("~1", "/").replace("~0", "~"))?;
        Some(match deeper {
            Some(deeper) => format!("#/components/schemas/{component}/{deeper}"),
            None => format!("#/components/schemas/{component}"),
        })
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

    #[test]
    fn names_that_differ_by_what_components_cannot_have_are_two() {
        let mut components = Map::from_iter([("a.b.input.input".to_owned(), Value::Null)]);
        let schema = json!({
            "properties": {
                "size": { "$ref": "#/$defs/Gr%C3%B6%C3%9Fe" },
                "greetings": { "items": { "$ref": "#/$defs/Grüße" } },
                "input": { "$ref": "#/$defs/input" },
            },
            "$defs": {
                "Größe": { "type": "integer" },
                "Grüße": { "type": "string" },
                "input": { "anyOf": [{ "$ref": "#/$defs/Größe" }, { "$ref": "#/$defs/Grüße" }] },
            },
        });
        insert(&mut components, "a.b.input", schema);
        let at = |reference: &Value| {
            let name = reference["$ref"].as_str().unwrap().strip_prefix("#/components/schemas/").unwrap();
            components[name].clone()
        };
        let properties = &components["a.b.input"]["properties"];
        assert_eq!(at(&properties["size"]), json!({ "type": "integer" }));
        assert_eq!(at(&properties["greetings"]["items"]), json!({ "type": "string" }));
        let either = at(&properties["input"]);
        assert_eq!(at(&either["anyOf"][0]), json!({ "type": "integer" }));
        assert_eq!(at(&either["anyOf"][1]), json!({ "type": "string" }));
        assert!(components["a.b.input.input"].is_null(), "it is another contract's");
        let allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        assert!(components.keys().all(|name| name.chars().all(allowed)), "{components:?}");
    }
}
