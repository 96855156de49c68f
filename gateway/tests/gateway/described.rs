//! The gateway serves its OpenAPI document and behaves like it. In addition, `support` checks every response of all
//! tests against the document.

use std::{collections::BTreeSet, fs, path::Path};

use reqwest::{
    Method, StatusCode,
    header::{HeaderMap, HeaderValue},
};
use serde_json::{Value, json};

use crate::{
    contract::{ASYNCAPI, OPENAPI, ReceivedResponse, faults, frame_faults, methods, paths},
    support::{App, TICKETS},
};

const METHODS: [Method; 7] =
    [Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::PATCH, Method::DELETE, Method::OPTIONS];

/// An example path for a template.
pub(crate) fn filled(template: &str) -> String {
    let id = "0198c5a0-7b1e-7c3d-8000-0123456789ab";
    template
        .replace("{id}", id)
        .replace("{car}", "gt")
        .replace("{slot}", "spoiler")
        .replace("{item}", "wing")
        .replace("{sub}", "bob")
}

#[tokio::test]
async fn the_openapi_document_needs_no_token_and_can_be_cached() {
    let app = App::start().await;
    let response = app.anonymous(Method::GET, "/openapi.json").send().await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["cache-control"], "public, max-age=300");
    assert_eq!(response.text().await.unwrap(), include_str!("../../openapi.json"));
}

#[tokio::test]
async fn each_path_supports_exactly_the_documented_methods() {
    let app = App::start().await;
    for (template, item) in paths() {
        for method in METHODS {
            // `send` also checks the response, including the `Allow` header of a 405.
            let status = app.anonymous(method.clone(), &filled(template)).send().await.unwrap().status().as_u16();
            let operation = &item[method.as_str().to_lowercase()];
            let needs_token = operation["security"] != json!([]);
            let expected = match (operation, needs_token) {
                (Value::Null, _) => 405,
                (_, true) => 401,
                _ if template == "/v1/ping" => 204,
                _ => 200,
            };
            assert_eq!(status, expected, "{method} {template}");
        }
    }
}

#[test]
fn the_documented_paths_are_the_routes_of_the_code() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = vec![source.join("routes.rs"), source.join("upgrade.rs")];
    files.extend(fs::read_dir(source.join("routes")).unwrap().map(|entry| entry.unwrap().path()));
    let mut routes = BTreeSet::new();
    for text in files.iter().map(|file| fs::read_to_string(file).unwrap()) {
        for start in ["answer(\"", "const PATH: &str = \""] {
            routes.extend(text.split(start).skip(1).map(|rest| rest.split('"').next().unwrap().to_owned()));
        }
    }
    // The label of unknown paths.
    assert!(routes.remove("none"));
    assert_eq!(routes, paths().map(|(path, _)| path.clone()).collect());
}

#[test]
fn the_examples_match_their_schemas() {
    fn examples<'a>(value: &'a Value, found: &mut Vec<(&'a Value, &'a Value)>) {
        if let (Some(schema), Some(example)) = (value.get("schema"), value.get("example")) {
            found.push((schema, example));
        }
        value.as_object().into_iter().flat_map(|object| object.values()).for_each(|value| examples(value, found));
    }
    let mut found = Vec::new();
    for place in ["/paths", "/components/responses", "/x-fallback-responses"] {
        examples(OPENAPI.at(place), &mut found);
    }
    assert!(found.len() > 40, "{}", found.len());
    for (schema, example) in found {
        assert_eq!(OPENAPI.faults(schema, example), Vec::<String>::new(), "{example}");
    }
}

#[test]
fn a_response_that_differs_from_the_document_is_detected() {
    let matches = |body: &Value, status: u16, more: &[(&'static str, &'static str)]| {
        let problem = status >= 400;
        let kind = if problem { "application/problem+json" } else { "application/json" };
        let mut headers = HeaderMap::from_iter([("content-type".parse().unwrap(), HeaderValue::from_static(kind))]);
        for (name, value) in more {
            headers.insert(*name, HeaderValue::from_static(value));
        }
        let (status, body) = (StatusCode::from_u16(status).unwrap(), body.to_string());
        move |method: Method, path: &str| {
            faults(&method, path, &ReceivedResponse { status, headers: &headers, body: Some(body.as_bytes()) })
                .is_empty()
        }
    };
    let regions = json!({"regions": ["eu"], "endpoints": [], "measure_every_ms": 1});
    assert!(matches(&regions, 200, &[])(Method::GET, "/v1/regions"));
    assert!(!matches(&regions, 201, &[])(Method::GET, "/v1/regions"));
    assert!(!matches(&regions, 200, &[])(Method::GET, "/v1/wallet"));
    assert!(!matches(&regions, 200, &[])(Method::POST, "/v1/regions"));
    assert!(!matches(&regions, 200, &[])(Method::GET, "/v1/nowhere"));
    assert!(!matches(&json!({"regions": ["EU"], "endpoints": [], "measure_every_ms": 1}), 200, &[])(
        Method::GET,
        "/v1/regions"
    ));
    assert!(!matches(&json!({"regions": [], "endpoints": [], "measure_every_ms": 1, "more": 1}), 200, &[])(
        Method::GET,
        "/v1/regions"
    ));
    let problem = |status: u16| json!({"type": "about:blank", "title": "", "status": status, "detail": ""});
    let challenge = [("www-authenticate", "Bearer")];
    assert!(matches(&problem(401), 401, &challenge)(Method::GET, "/v1/regions"));
    assert!(!matches(&problem(400), 401, &challenge)(Method::GET, "/v1/regions"));
    assert!(!matches(&problem(401), 401, &[])(Method::GET, "/v1/regions"));
    assert!(matches(&problem(405), 405, &[("allow", "POST")])(Method::GET, TICKETS));
    assert!(!matches(&problem(405), 405, &[("allow", "POST, PUT")])(Method::GET, TICKETS));
    assert!(!matches(&problem(409), 409, &[])(Method::POST, TICKETS));
    assert!(methods(OPENAPI.at("/paths/~1v1~1garage~1cars~1{car}")).contains("DELETE"));
}

#[test]
fn a_frame_that_differs_from_the_document_is_detected() {
    let frame = |type_name: &str, data: Value| json!({"seq": 1, "n": 1, "type": type_name, "data": data});
    let id = "0198c5a0-7b1e-7c3d-8000-0123456789ab";
    let released = json!({"player": "ann", "ticket": id, "session": id, "why": "finished"});
    assert!(frame_faults(&frame("Released", released.clone())).is_empty());
    assert!(!frame_faults(&frame("Cancelled", released)).is_empty());
    assert!(frame_faults(&frame("Promoted", json!({"to": "gold"}))).is_empty());
    assert!(!frame_faults(&json!({"seq": 1, "type": "Promoted", "data": {}})).is_empty());
}

#[test]
fn schemas_in_both_documents_are_equal() {
    let schemas =
        |document: &'static crate::document::Document| document.at("/components/schemas").as_object().unwrap();
    let both: Vec<_> = schemas(&OPENAPI).iter().filter(|(name, _)| schemas(&ASYNCAPI).contains_key(*name)).collect();
    assert!(both.iter().any(|(name, _)| *name == "CurrentPlayer"));
    for (name, schema) in both {
        assert_eq!(schema, &schemas(&ASYNCAPI)[name], "{name}");
    }
}
