//! Checks the gateway's responses against `gateway/openapi.json`, and its frames against `events/asyncapi.json`.

use std::{collections::BTreeSet, sync::LazyLock};

use reqwest::{Method, StatusCode, header::HeaderMap};
use serde_json::{Value, json};

use crate::document::Document;

pub(crate) static OPENAPI: LazyLock<Document> = LazyLock::new(|| Document::read("gateway/openapi.json"));

pub(crate) static ASYNCAPI: LazyLock<Document> = LazyLock::new(|| Document::read("events/asyncapi.json"));

/// A response of the gateway.
#[derive(Debug)]
pub(crate) struct ReceivedResponse<'a> {
    pub(crate) status: StatusCode,
    pub(crate) headers: &'a HeaderMap,
    /// `None` if the body was not read completely.
    pub(crate) body: Option<&'a [u8]>,
}

/// The paths in OpenAPI, in the order in which a request's path is matched.
pub(crate) fn paths() -> impl Iterator<Item = (&'static String, &'static Value)> {
    OPENAPI.at("/paths").as_object().unwrap().iter()
}

/// The methods of a path.
pub(crate) fn methods(item: &Value) -> BTreeSet<String> {
    item.as_object().unwrap().keys().filter(|key| *key != "parameters").map(|method| method.to_uppercase()).collect()
}

/// The differences between a response and OpenAPI.
pub(crate) fn faults(method: &Method, path: &str, received: &ReceivedResponse<'_>) -> Vec<String> {
    let path = path.split('?').next().unwrap();
    let none = json!({});
    let item = paths().find(|(template, item)| is_of(path, template, item)).map(|(_, item)| item);
    let operation = item.map_or(&none, |item| &item[method.as_str().to_lowercase()]);
    let (expected, response) = match (item, operation) {
        (None, _) => (Some(404), OPENAPI.follow(OPENAPI.at("/x-fallback-responses/404"))),
        (Some(_), Value::Null) => (Some(405), OPENAPI.at("/x-fallback-responses/405")),
        (Some(_), operation) => match &operation["responses"][received.status.as_str()] {
            Value::Null => return vec![format!("{} is not described", received.status)],
            response => (None, OPENAPI.follow(response)),
        },
    };
    let mut faults = Vec::new();
    if let Some(expected) = expected.filter(|expected| received.status != *expected) {
        faults.push(format!("{} instead of {expected}", received.status));
    }
    if let (Some(item), Some(allow)) = (item, received.headers.get("allow")) {
        let allowed: BTreeSet<_> = allow.to_str().unwrap().split(", ").map(ToOwned::to_owned).collect();
        if allowed != methods(item) {
            faults.push(format!("Allow: {allow:?}"));
        }
    }
    faults.extend(headers(response, received.headers));
    if let Some(body) = received.body.filter(|_| method != Method::HEAD) {
        faults.extend(content(response, received, body));
    }
    faults
}

/// Whether a path matches a template: `/v1/garage/cars/gt` matches `/v1/garage/cars/{car}`.
pub(crate) fn is_of(path: &str, template: &str, item: &Value) -> bool {
    let (parts, wanted) = (path.split('/'), template.split('/'));
    let is_value = |name: &str, value: &str| {
        let mut parameters = item["parameters"].as_array().unwrap().iter().map(|one| OPENAPI.follow(one));
        let parameter = parameters.find(|parameter| parameter["name"] == name).unwrap();
        OPENAPI.faults(&parameter["schema"], &value.into()).is_empty()
    };
    parts.clone().count() == wanted.clone().count()
        && parts.zip(wanted).all(|(part, wanted)| {
            match wanted.strip_prefix('{').and_then(|wanted| wanted.strip_suffix('}')) {
                Some(name) => is_value(name, part),
                None => part == wanted,
            }
        })
}

fn headers(response: &Value, received: &HeaderMap) -> Vec<String> {
    let described = response["headers"].as_object().into_iter().flatten();
    let faults = described.flat_map(|(name, header)| {
        let header = OPENAPI.follow(header);
        match received.get(name) {
            Some(value) => OPENAPI.faults(&header["schema"], &value.to_str().unwrap().into()),
            None if header["required"] == true => vec!["missing".into()],
            None => Vec::new(),
        }
        .into_iter()
        .map(move |fault| format!("header {name}: {fault}"))
    });
    faults.collect()
}

fn content(response: &Value, received: &ReceivedResponse<'_>, body: &[u8]) -> Vec<String> {
    let kind = received.headers.get("content-type").map_or("", |kind| kind.to_str().unwrap());
    let Some(content) = response["content"].as_object() else {
        return if body.is_empty() { Vec::new() } else { vec!["an unexpected body".into()] };
    };
    let Some(media) = content.get(kind) else { return vec![format!("content type {kind:?} is not described")] };
    let Ok(body) = serde_json::from_slice::<Value>(body) else { return vec!["the body is not JSON".into()] };
    let mut faults = OPENAPI.faults(&media["schema"], &body);
    if kind == "application/problem+json" && body["status"] != received.status.as_u16() {
        faults.push(format!("status: {}", body["status"]));
    }
    faults
}

/// The differences between a socket's frame and AsyncAPI. The data of an unknown event type is not checked, because the
/// gateway forwards it unchanged.
pub(crate) fn frame_faults(frame: &Value) -> Vec<String> {
    let messages = ASYNCAPI.at("/channels/socket/messages");
    match frame["type"].as_str().and_then(|name| messages.get(name)) {
        Some(message) => ASYNCAPI.faults(&ASYNCAPI.follow(message)["payload"], frame),
        None => ASYNCAPI.faults(ASYNCAPI.at("/components/schemas/Frame"), frame),
    }
}
