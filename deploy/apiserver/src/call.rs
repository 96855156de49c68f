//! Requests, taken apart as roles name them.

use std::collections::HashMap;

use hyper::{HeaderMap, Method, Uri};

/// What is asked.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    /// As roles name it: `get`, `list`, `watch`, `create`, `patch`, `delete`.
    pub(crate) verb: &'static str,
    pub(crate) namespace: String,
    pub(crate) resource: String,
    pub(crate) name: String,
    /// `binding`, `status`, or empty.
    pub(crate) part: String,
    query: HashMap<String, String>,
    /// Whether a patch is merged as strategic ones are.
    pub(crate) strategic: bool,
    /// Whether only the metadata of objects are wanted.
    pub(crate) partial: bool,
}

impl Call {
    /// None where the core API has nothing of the kind.
    pub(crate) fn read(method: &Method, uri: &Uri, headers: &HeaderMap) -> Option<Self> {
        let parts: Vec<_> = uri.path().strip_prefix("/api/v1/")?.split('/').collect();
        let (namespace, rest) = match parts.as_slice() {
            ["namespaces", namespace, rest @ ..] if !rest.is_empty() => (*namespace, rest),
            rest => ("", rest),
        };
        let (resource, name, part) = match rest {
            [resource] => (*resource, "", ""),
            [resource, name] => (*resource, *name, ""),
            [resource, name, part] => (*resource, *name, *part),
            _ => return None,
        };
        let query: HashMap<_, _> = uri.query().unwrap_or_default().split('&').filter_map(parameter).collect();
        let watched = matches!(query.get("watch").map(String::as_str), Some("true" | "1"));
        let verb = match *method {
            Method::GET if watched => "watch",
            Method::GET if name.is_empty() => "list",
            Method::GET => "get",
            Method::POST => "create",
            Method::PATCH => "patch",
            Method::DELETE => "delete",
            _ => return None,
        };
        let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        Some(Self {
            verb,
            namespace: namespace.to_owned(),
            resource: resource.to_owned(),
            name: name.to_owned(),
            part: part.to_owned(),
            query,
            strategic: header("content-type").starts_with("application/strategic-merge-patch"),
            partial: header("accept").contains("as=PartialObjectMetadata"),
        })
    }

    /// A parameter of the query; empty when it is not there.
    pub(crate) fn asks(&self, parameter: &str) -> &str {
        self.query.get(parameter).map_or("", String::as_str)
    }

    /// As roles name it: `pods`, `pods/status`.
    pub(crate) fn resource(&self) -> String {
        match self.part.as_str() {
            "" => self.resource.clone(),
            part => format!("{}/{part}", self.resource),
        }
    }
}

fn parameter(text: &str) -> Option<(String, String)> {
    let (name, value) = text.split_once('=')?;
    let mut decoded = Vec::new();
    let mut bytes = value.bytes();
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => {
                let digits = [bytes.next()?, bytes.next()?];
                u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?
            }
            b'+' => b' ',
            byte => byte,
        });
    }
    Some((name.to_owned(), String::from_utf8(decoded).ok()?))
}
