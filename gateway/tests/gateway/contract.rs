//! What the gateway says, held to its descriptions: `gateway/openapi.json`, and `events/asyncapi.json` for sockets.

use std::{collections::BTreeSet, sync::LazyLock};

use reqwest::{Method, StatusCode, header::HeaderMap};
use serde_json::{Value, json};

use crate::document::Document;

/// The description that the gateway serves.
pub(crate) static OPENAPI: LazyLock<Document> = LazyLock::new(|| Document::read("gateway/openapi.json"));

/// The description of its sockets.
pub(crate) static ASYNCAPI: LazyLock<Document> = LazyLock::new(|| Document::read("events/asyncapi.json"));

/// A response.
#[derive(Debug)]
pub(crate) struct ReceivedResponse<'a> {
    pub(crate) status: StatusCode,
    pub(crate) headers: &'a HeaderMap,
    /// `None` where it was not read to its end.
    pub(crate) body: Option<&'a [u8]>,
}

/// Its paths, in the order in which a request's is looked for.
pub(crate) fn paths() -> impl Iterator<Item = (&'static String, &'static Value)> {
    OPENAPI.at("/paths").as_object().unwrap().iter()
}

/// The methods that a path takes.
pub(crate) fn methods(item: &Value) -> BTreeSet<String> {
    item.as_object().unwrap().keys().filter(|key| *key != "parameters").map(|method| method.to_uppercase()).collect()
}

/// What of a response is not as it is described.
pub(crate) fn faults(method: &Method, path: &str, said: &ReceivedResponse<'_>) -> Vec<String> {
    let path = path.split('?').next().unwrap();
    let none = json!({});
    let item = paths().find(|(template, item)| is_of(path, template, item)).map(|(_, item)| item);
    let operation = item.map_or(&none, |item| &item[method.as_str().to_lowercase()]);
    let (expected, response) = match (item, operation) {
        (None, _) => (Some(404), OPENAPI.at("/components/responses/NotFound")),
        (Some(_), Value::Null) => (Some(405), OPENAPI.at("/components/responses/MethodNotAllowed")),
        (Some(_), operation) => match &operation["responses"][said.status.as_str()] {
            Value::Null => return vec![format!("{} is not described", said.status)],
            response => (None, OPENAPI.follow(response)),
        },
    };
    let mut faults = Vec::new();
    if let Some(expected) = expected.filter(|expected| said.status != *expected) {
        faults.push(format!("{} instead of {expected}", said.status));
    }
    if let (Some(item), Some(allow)) = (item, said.headers.get("allow")) {
        let allowed: BTreeSet<_> = allow.to_str().unwrap().split(", ").map(ToOwned::to_owned).collect();
        if allowed != methods(item) {
            faults.push(format!("Allow: {allow:?}"));
        }
    }
    faults.extend(headers(response, said.headers));
    if let Some(body) = said.body.filter(|_| method != Method::HEAD) {
        faults.extend(content(response, said, body));
    }
    faults
}

/// Whether a path is one of a template: `/v1/garage/cars/gt` of `/v1/garage/cars/{car}`.
fn is_of(path: &str, template: &str, item: &Value) -> bool {
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

fn headers(response: &Value, said: &HeaderMap) -> Vec<String> {
    let described = response["headers"].as_object().into_iter().flatten();
    let faults = described.flat_map(|(name, header)| {
        let header = OPENAPI.follow(header);
        match said.get(name) {
            Some(value) => OPENAPI.faults(&header["schema"], &value.to_str().unwrap().into()),
            None if header["required"] == true => vec!["missing".into()],
            None => Vec::new(),
        }
        .into_iter()
        .map(move |fault| format!("header {name}: {fault}"))
    });
    faults.collect()
}

fn content(response: &Value, said: &ReceivedResponse<'_>, body: &[u8]) -> Vec<String> {
    let kind = said.headers.get("content-type").map_or("", |kind| kind.to_str().unwrap());
    let Some(content) = response["content"].as_object() else {
        return if body.is_empty() { Vec::new() } else { vec!["a body, which is not described".into()] };
    };
    let Some(media) = content.get(kind) else { return vec![format!("content type {kind:?} is not described")] };
    let Ok(body) = serde_json::from_slice::<Value>(body) else { return vec!["no JSON".into()] };
    let mut faults = OPENAPI.faults(&media["schema"], &body);
    if kind == "application/problem+json" && body["status"] != said.status.as_u16() {
        faults.push(format!("status: {}", body["status"]));
    }
    faults
}

/// What of a socket's frame is not as it is described. A type that is not described is forwarded too: of it only the
/// frame itself is looked at.
pub(crate) fn frame_faults(frame: &Value) -> Vec<String> {
    let messages = ASYNCAPI.at("/channels/socket/messages");
    match frame["type"].as_str().and_then(|name| messages.get(name)) {
        Some(message) => ASYNCAPI.faults(&ASYNCAPI.follow(message)["payload"], frame),
        None => ASYNCAPI.faults(ASYNCAPI.at("/components/schemas/Frame"), frame),
    }
}
