//! Validates real messages against an interface description, which is OpenAPI or AsyncAPI in JSON.

use std::{fs, path::Path};

use jsonschema::Draft;
use serde_json::{Value, json};

/// An interface description. The file allows unknown properties, because readers must ignore them. Here, all objects
/// with properties are closed, because everything that Garage sends must be described.
#[derive(Debug, Clone)]
pub(crate) struct Document(Value);

impl Document {
    /// Reads a file of the workspace.
    pub(crate) fn read(path: &str) -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join(path);
        let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let mut document = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        close(&mut document);
        Self(document)
    }

    /// The value at a JSON pointer, which must exist.
    pub(crate) fn at(&self, pointer: &str) -> &Value {
        self.0.pointer(pointer).unwrap_or_else(|| panic!("the description has no {pointer}"))
    }

    /// Resolves a `$ref`; returns any other value unchanged.
    pub(crate) fn follow<'a>(&'a self, value: &'a Value) -> &'a Value {
        match value["$ref"].as_str() {
            Some(reference) => self.at(reference.strip_prefix('#').unwrap()),
            None => value,
        }
    }

    /// Validates an instance against a schema of this document. Returns all errors.
    pub(crate) fn faults(&self, schema: &Value, instance: &Value) -> Vec<String> {
        let mut schema = schema.clone();
        schema.as_object_mut().unwrap().insert("components".into(), self.0["components"].clone());
        let options = jsonschema::options().with_draft(Draft::Draft202012).should_validate_formats(true);
        let validator = options.build(&schema).unwrap_or_else(|error| panic!("{error}"));
        validator.iter_errors(instance).map(|error| format!("{}: {error}", error.instance_path())).collect()
    }
}

/// Forbids unknown properties in all schemas of objects.
fn close(value: &mut Value) {
    match value {
        Value::Object(object) => {
            if object.get("type") == Some(&json!("object")) && object.contains_key("properties") {
                object.entry("additionalProperties").or_insert(Value::Bool(false));
            }
            object.values_mut().for_each(close);
        }
        Value::Array(values) => values.iter_mut().for_each(close),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}
