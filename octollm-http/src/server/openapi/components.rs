//! Schemas as components of a document: each definition under a name of its own, and every reference to where it has moved.

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use super::super::head;

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
        let key = head::percent_decoded(key.as_bytes()).and_then(|key| String::from_utf8(key).ok());
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
