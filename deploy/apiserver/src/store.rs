//! Stores objects, and a history of changes with their revisions for watches.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

/// An object's resource (`pods`), namespace (empty for a node), and name.
pub(crate) type Key = (String, String, String);

/// A change of an object.
#[derive(Debug, Clone)]
pub(crate) struct Change {
    pub(crate) revision: u64,
    /// `ADDED`, `MODIFIED` or `DELETED`.
    pub(crate) kind: &'static str,
    pub(crate) key: Key,
    /// The object after the change. A deleted object is in its last state, with the revision of the deletion.
    pub(crate) object: Value,
}

#[derive(Debug, Default)]
pub(crate) struct Store {
    revision: u64,
    objects: BTreeMap<Key, Value>,
    changes: Vec<Change>,
}

impl Store {
    pub(crate) fn revision(&self) -> u64 {
        self.revision
    }

    pub(crate) fn get(&self, key: &Key) -> Option<&Value> {
        self.objects.get(key)
    }

    /// The objects that match the selector, in the order of their names. An empty namespace means all namespaces.
    pub(crate) fn list(&self, resource: &str, namespace: &str, selector: &Selector) -> Vec<&Value> {
        let in_scope = |key: &Key| key.0 == resource && (namespace.is_empty() || key.1 == namespace);
        let found = self.objects.iter().filter(|(key, object)| in_scope(key) && selector.matches(object));
        found.map(|(_, object)| object).collect()
    }

    /// Creates or replaces an object, with a new revision. Returns the stored object.
    pub(crate) fn put(&mut self, key: Key, mut object: Value) -> Value {
        self.revision += 1;
        set_revision(&mut object, self.revision);
        let previous = self.objects.insert(key.clone(), object.clone());
        let kind = if previous.is_some() { "MODIFIED" } else { "ADDED" };
        self.changes.push(Change { revision: self.revision, kind, key, object: object.clone() });
        object
    }

    /// Removes an object. The deletion gets a revision too.
    pub(crate) fn remove(&mut self, key: &Key) -> Option<Value> {
        let mut object = self.objects.remove(key)?;
        self.revision += 1;
        set_revision(&mut object, self.revision);
        let change = Change { revision: self.revision, kind: "DELETED", key: key.clone(), object: object.clone() };
        self.changes.push(change);
        Some(object)
    }

    /// The changes after a revision.
    pub(crate) fn since(&self, revision: u64) -> &[Change] {
        let first = self.changes.partition_point(|change| change.revision <= revision);
        self.changes.get(first..).unwrap_or_default()
    }
}

fn set_revision(object: &mut Value, revision: u64) {
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.insert("resourceVersion".into(), revision.to_string().into());
    }
}

/// A label selector: labels that an object must have, with or without a value, for example `a=b,c`.
#[derive(Debug, Clone, Default)]
pub(crate) struct Selector(Vec<(String, Option<String>)>);

impl Selector {
    pub(crate) fn parse(text: &str) -> Self {
        let part = |part: &str| match part.split_once('=') {
            Some((label, value)) => (label.to_owned(), Some(value.trim_start_matches('=').to_owned())),
            None => (part.to_owned(), None),
        };
        Self(text.split(',').filter(|text| !text.is_empty()).map(part).collect())
    }

    pub(crate) fn matches(&self, object: &Value) -> bool {
        let none = Map::new();
        let labels = object.pointer("/metadata/labels").and_then(Value::as_object).unwrap_or(&none);
        self.0.iter().all(|(label, wanted)| match (labels.get(label), wanted) {
            (Some(value), Some(wanted)) => value == wanted.as_str(),
            (Some(_), None) => true,
            (None, _) => false,
        })
    }
}
