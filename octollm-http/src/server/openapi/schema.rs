//! Moving the schemas of a card into a document.

use serde_json::{Map, Value};

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
    serde_json::json!({ "$ref": format!("#/components/schemas/{name}") })
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
    let key =
        super::super::intake::percent_decoded(key.as_bytes()).and_then(|key| String::from_utf8(key).ok());
    let key = key.unwrap_or_default().replace("~1", "/").replace("~0", "~");
    let component = definition_name(name, &key);
    match deeper {
        Some(deeper) => format!("#/components/schemas/{component}/{deeper}"),
        None => format!("#/components/schemas/{component}"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

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
