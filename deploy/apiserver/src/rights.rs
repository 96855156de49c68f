//! Access rights. Everything is allowed unless a test denies it.

use std::sync::{Mutex, PoisonError};

use serde_json::{Value, json};

use crate::rules;

/// The path at which clients check their own rights.
pub(crate) const REVIEWS: &str = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";

/// The denied rights: verbs and resources, as roles name them.
#[derive(Debug, Default)]
pub(crate) struct Denied(Mutex<Vec<(String, String)>>);

impl Denied {
    pub(crate) fn add(&self, verb: &str, resource: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push((verb.into(), resource.into()));
    }

    pub(crate) fn remove(&self, verb: &str, resource: &str) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|denied| (&*denied.0, &*denied.1) != (verb, resource));
    }

    pub(crate) fn has(&self, verb: &str, resource: &str) -> bool {
        let denied = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        denied.iter().any(|denied| denied.0 == verb && denied.1 == resource)
    }

    /// The answer to a `SelfSubjectAccessReview`.
    pub(crate) fn review(&self, mut review: Value) -> (u16, Value) {
        let asked = |field: &str| review.pointer(&format!("/spec/resourceAttributes/{field}")).and_then(Value::as_str);
        let denied = asked("verb").zip(asked("resource")).is_none_or(|(verb, resource)| self.has(verb, resource));
        if let Some(review) = review.as_object_mut() {
            review.insert("status".into(), json!({"allowed": !denied}));
        }
        (201, review)
    }
}

/// The answer to a request that the client has no right to make.
pub(crate) fn forbidden(verb: &str, resource: &str, namespace: &str) -> (u16, Value) {
    let message = format!(
        "{resource} is forbidden: User \"viewer\" cannot {verb} resource \"{resource}\" in API group \"\" in the namespace \
         \"{namespace}\""
    );
    rules::refusal(403, "Forbidden", &message, json!({"kind": resource}))
}
