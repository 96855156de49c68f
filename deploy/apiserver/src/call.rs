//! Parses requests into a verb and a resource, as Kubernetes roles name them.

use std::collections::HashMap;

use hyper::{HeaderMap, Method, Uri};

/// A request to the core API.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    /// `get`, `list`, `watch`, `create`, `patch` or `delete`.
    pub(crate) verb: &'static str,
    /// Empty for nodes and namespaces.
    pub(crate) namespace: String,
    pub(crate) resource: String,
    /// Empty if the request names no object.
    pub(crate) name: String,
    /// `binding`, `status`, or empty.
    pub(crate) subresource: String,
    query: HashMap<String, String>,
    /// Whether the body is a strategic merge patch.
    pub(crate) strategic: bool,
    /// Whether the client wants only the metadata of objects.
    pub(crate) partial: bool,
}

impl Call {
    /// Returns `None` if this is not a request to the core API.
    pub(crate) fn parse(method: &Method, uri: &Uri, headers: &HeaderMap) -> Option<Self> {
        let parts: Vec<_> = uri.path().strip_prefix("/api/v1/")?.split('/').collect();
        let (namespace, rest) = match parts.as_slice() {
            ["namespaces", namespace, rest @ ..] if !rest.is_empty() => (*namespace, rest),
            rest => ("", rest),
        };
        let (resource, name, subresource) = match rest {
            [resource] => (*resource, "", ""),
            [resource, name] => (*resource, *name, ""),
            [resource, name, subresource] => (*resource, *name, *subresource),
            _ => return None,
        };
        let query: HashMap<_, _> = uri.query().unwrap_or_default().split('&').filter_map(parse_parameter).collect();
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
            subresource: subresource.to_owned(),
            query,
            strategic: header("content-type").starts_with("application/strategic-merge-patch"),
            partial: header("accept").contains("as=PartialObjectMetadata"),
        })
    }

    /// The value of a query parameter. Empty if the parameter is absent.
    pub(crate) fn parameter(&self, parameter: &str) -> &str {
        self.query.get(parameter).map_or("", String::as_str)
    }

    /// The resource as roles name it: `pods`, `pods/status`.
    pub(crate) fn resource(&self) -> String {
        match self.subresource.as_str() {
            "" => self.resource.clone(),
            subresource => format!("{}/{subresource}", self.resource),
        }
    }
}

/// Parses and decodes `name=value`.
fn parse_parameter(text: &str) -> Option<(String, String)> {
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
